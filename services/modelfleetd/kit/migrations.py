"""Brings a service's schema to the newest version: safe to call by every replica at every start.

Migrations are Alembic's, with plain SQL inside, forward only, in the package `<service>/migrations`:

    0001_initial.py:   revision = "0001"; down_revision = None; def upgrade() -> None: op.execute(SQL)

Alembic renders them as one script, which runs in one transaction under an advisory lock, with the service's schema as
the search path. The usual case, nothing to do, is one query: Alembic and SQLAlchemy are not even imported then.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
from pathlib import Path
from types import ModuleType

import asyncpg

from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.database_url import EXPECTATION, check_database_url
from modelfleetd.kit.db import Connection

_log = logging.getLogger(__name__)

# Every replica of every service takes it, so that at most one migrates a database at a time.
_LOCK = 7_302_118_734_401
_FILE = re.compile(r"(\d+)_\w+\.py")


async def migrate(url: str, schema: str, migrations: ModuleType) -> None:
    """Applies whatever migrations the schema lacks.

    Args:
        url: of the database.
        schema: of the service; made where it does not exist.
        migrations: the package that holds the migrations.

    Raises:
        PartUnavailable: the database cannot be reached.
        RuntimeError: the schema is newer than this program.
        ValueError: the URL cannot be read; nothing of it is shown.
    """
    check_database_url(url)
    directory = directory_of(migrations)
    try:
        conn = await asyncpg.connect(url, timeout=10, target_session_attrs="read-write")
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise PartUnavailable("database") from error
    except ValueError:
        # The driver's words quote the URL.
        raise ValueError(EXPECTATION) from None
    try:
        if await _current(conn, schema) == head(directory):
            return
        await conn.execute("SELECT pg_advisory_lock($1)", _LOCK)
        current = await _current(conn, schema)  # another replica may have been faster
        if current == head(directory):
            return
        if current is not None and current not in revisions(directory):
            raise RuntimeError(f"schema {schema} is at version {current}, which this program does not know: update it")
        script = await asyncio.to_thread(_render, directory, schema, current)
        await conn.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"; SET search_path = "{schema}"')
        await conn.execute(script)
        _log.info("schema %s migrated from %s to %s", schema, current or "nothing", head(directory))
    finally:
        await conn.close()  # gives the lock back as well


def directory_of(migrations: ModuleType) -> Path:
    """Returns the folder of a migrations package."""
    return Path(next(iter(migrations.__path__)))


def revisions(directory: Path) -> list[str]:
    """Returns the ids of all migrations, oldest first: the numbers that their file names start with."""
    return sorted(found[1] for path in directory.iterdir() if (found := _FILE.fullmatch(path.name)))


def head(directory: Path) -> str | None:
    """Returns the id of the newest migration; None where there is none."""
    return max(revisions(directory), default=None)


async def _current(conn: Connection, schema: str) -> str | None:
    table = f'"{schema}".alembic_version'
    if await conn.fetchval("SELECT to_regclass($1)", table) is None:
        return None
    version: str | None = await conn.fetchval(f"SELECT version_num FROM {table}")
    return version


def _render(directory: Path, schema: str, current: str | None) -> str:
    """Returns the SQL that leads from one version to the newest, transaction and version table included."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(directory), version_locations=[str(directory)])
    output = io.StringIO()
    with EnvironmentContext(
        Config(),
        script,
        fn=lambda revision, _context: script._upgrade_revs("head", revision),
        as_sql=True,
        starting_rev=current,
        destination_rev="head",
    ) as environment:
        environment.configure(
            dialect_name="postgresql",
            output_buffer=output,
            version_table_schema=schema,
            transactional_ddl=True,
            # Keeps % as it is written.
            dialect_opts={"paramstyle": "named"},
        )
        with environment.begin_transaction():
            environment.run_migrations()
    return output.getvalue()
