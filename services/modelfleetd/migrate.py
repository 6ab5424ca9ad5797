"""Brings the database's schemas up to date.

Services do so themselves when they start; `modelfleetd migrate` does it apart, before a roll-out, and keeps the memory
that the tools for it take out of the services.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
from collections.abc import Sequence

from modelfleetd.errors import FleetError
from modelfleetd.kit.migrations import migrate

# Services that have a schema, which is named like them.
SCHEMAS = ("registry", "capacity", "launcher", "stability")


def main(argv: Sequence[str] | None = None) -> int:
    """Migrates the schemas that the arguments name, or all; returns the exit status."""
    parser = argparse.ArgumentParser(prog="modelfleetd migrate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("schemas", nargs="*", metavar="SERVICE", help=f"{', '.join(SCHEMAS)}; default all")
    parser.add_argument(
        "--database-url",
        default=os.environ.get("MODELFLEET_DATABASE_URL"),
        help="PostgreSQL, postgresql://user:password@host:port/database; $MODELFLEET_DATABASE_URL",
    )
    options = parser.parse_args(argv)
    if unknown := set(options.schemas) - set(SCHEMAS):
        parser.error(f"no service with a schema: {', '.join(sorted(unknown))}")
    if not options.database_url:
        parser.error("give --database-url, or MODELFLEET_DATABASE_URL")
    try:
        asyncio.run(migrate_all(options.database_url, options.schemas or SCHEMAS))
    except (FleetError, RuntimeError, ValueError) as error:
        print(f"modelfleetd migrate: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


async def migrate_all(database_url: str, schemas: Sequence[str] = SCHEMAS) -> None:
    """Brings each schema to its newest version."""
    for schema in schemas:
        await migrate(database_url, schema, importlib.import_module(f"modelfleetd.{schema}.migrations"))
