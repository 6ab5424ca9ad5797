"""A long history, written into a database as the registry would have written it, but by the thousand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from modelfleet.ledger import _field, _varint
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.registry.wire import kind_of_message

START = datetime(2025, 1, 1, tzinfo=UTC)
_KIND = pb.ResourceChange.DESCRIPTOR.fields_by_name["model_type"].number
_REVISION = pb.ModelType.DESCRIPTOR.fields_by_name["revision"].number
_BATCH = 20_000

Row = tuple[int, datetime, bytes, bytes, bytes, str, bytes, bytes]


async def write_history(url: str, revisions: int, model_types: int) -> None:
    """Writes updates of some model types, one a revision, a second apart."""
    database = await Database.open(url, "registry")
    states: dict[str, tuple[int, bytes]] = {}
    rows: list[Row] = []
    async with database.transaction() as conn:
        await conn.execute("SET LOCAL statement_timeout = 0")

        async def flush() -> None:
            await conn.copy_records_to_table(
                "revisions",
                records=[row[:5] for row in rows],
                columns=["number", "time", "header", "previous_hash", "hash"],
            )
            await conn.copy_records_to_table(
                "changes",
                records=[(row[0], 0, row[5], row[6]) for row in rows],
                columns=["revision", "position", "resource", "change"],
            )
            rows.clear()

        for row in _rows(revisions, model_types):
            rows.append(row)
            states[row[5]] = (row[0], row[7])
            if len(rows) == _BATCH:
                await flush()
        last = row
        await flush()
        await conn.copy_records_to_table(
            "resources",
            records=[(name, kind_of_message(pb.ModelType).name, *state) for name, state in states.items()],
            columns=["name", "kind", "revision", "state"],
        )
        await conn.execute("UPDATE head SET number = $1, time = $2, hash = $3", last[0], last[1], last[4])
    await database.execute("ANALYZE")
    await database.close()


def _rows(revisions: int, model_types: int) -> Iterator[Row]:
    """Yields number, time, header, hash before, hash, name, change and state."""
    names = [f"modelTypes/t{number:06}" for number in range(model_types)]
    states = [_state(name) for name in names]
    begins = [_field(1, name.encode()) + b"\x10\x02" for name in names]
    actor = _field(4, b"alice") + _field(7, b"a new label")
    field = pb.FieldChange(path="labels.site")
    field.after.string_value = "zrh"
    fields = _field(3, field.SerializeToString())
    previous, sha256 = b"", hashlib.sha256
    start_seconds = int(START.timestamp())
    for number in range(1, revisions + 1):
        which = number % model_types
        counted = _varint(number)
        time = _field(3, b"\x08" + _varint(start_seconds + number))
        header = _field(1, b"revisions/%d" % number) + b"\x10" + counted + time + actor
        state = states[which] + _varint(_REVISION << 3) + counted
        change = begins[which] + fields + _field(_KIND, state)
        parts = (
            len(previous).to_bytes(8, "big"), previous,
            len(header).to_bytes(8, "big"), header,
            len(change).to_bytes(8, "big"), change,
        )  # fmt: skip
        computed = sha256(b"".join(parts)).digest()
        yield number, START + timedelta(seconds=number), header, previous, computed, names[which], change, state
        previous = computed


def _state(name: str) -> bytes:
    return pb.ModelType(
        name=name,
        uid="0f8fad5b-d9cb-469f-a165-70867728950e",
        purpose="Ranks the stories in the tray.",
        team="teams/stories",
        funnel_stage=pb.LATE_STAGE_RANKING,
        predictions=[pb.Prediction(id=key) for key in ("like", "comment", "follow")],
        labels={"surface": "stories", "placement": "tray", "site": "zrh"},
    ).SerializeToString(deterministic=True)
