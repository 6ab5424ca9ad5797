"""What a model's prediction takes in the database: bytes a day by table, and all that is kept of it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.retention import DAY, TABLES
from modelfleetd.stability.store import Store
from tests.bench.figures import Figure
from tests.support.stability_rows import fill

NAMES = ("stability.storage_kib_per_series_day", "stability.storage_kept_mib_per_series")

_SERIES = 20
_DAYS = 8
# Labels that come over hours have some eight ages each minute.
_AGES = 8
_EXAMPLES = 1000


async def run() -> list[Figure]:
    """Fills whole days and weighs the tables with their indexes, free space for updates included."""
    from tests.support.postgres import Postgres

    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder))
        stack.callback(postgres.stop)
        database = await Database.open(postgres.create(), "stability", max_size=1)
        now = datetime.now(UTC)
        await Store(database).partitions.make(now, minute_of(now) - _DAYS * DAY)
        await fill(database, now, days=_DAYS, series=_SERIES, ages=_AGES, examples=_EXAMPLES)
        sizes = {table: await database.fetchval(_SIZE, table.name) / _SERIES / _DAYS for table in TABLES}
        await database.close()
    by_table = ", ".join(f"{table.name} {size / 1024:,.0f} KiB" for table, size in sizes.items())
    kept = {table: size * table.kept.days for table, size in sizes.items()}
    kept_by_table = ", ".join(f"{table.name} {size / 2**20:.1f} MiB" for table, size in kept.items())
    return [
        Figure(
            name=NAMES[0],
            value=sum(sizes.values()) / 1024,
            unit="KiB",
            yardstick=f"a day with examples in every minute, labels of {_AGES} ages: {by_table}",
            target=3 * 1024,
            better="lower",
        ),
        Figure(
            name=NAMES[1],
            value=sum(kept.values()) / 2**20,
            unit="MiB",
            yardstick=f"as long as each is kept: {kept_by_table}",
            target=32,
            better="lower",
        ),
    ]


_SIZE = """
SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::float8 FROM pg_inherits WHERE inhparent = $1::text::regclass
"""
