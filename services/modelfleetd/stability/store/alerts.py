"""Alerts: what fires, what is over, and how far they have been derived."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final

from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection, Database, Record
from modelfleetd.kit.filter import And, Node, Not, Operator, Or, Restriction
from modelfleetd.kit.filter import Kind as FieldKind
from modelfleetd.stability.domain.alert import Alert, Kind, Resolution, Severity, State
from modelfleetd.stability.domain.fleet import Metric, Role, Tier
from modelfleetd.stability.domain.tenure import Evaluated, Tenure

# In the order of the columns.
_STORED: Final = tuple(each.name for each in fields(Alert) if each.name not in ("deliver_time", "silence"))
_TYPES: Final = {
    "kind": "smallint", "severity": "smallint", "state": "smallint", "metric": "smallint", "role": "smallint",
    "tier": "smallint", "resolution": "smallint", "revision": "bigint",
    **dict.fromkeys(("start_time", "end_time", "calm_since"), "timestamptz"),
}  # fmt: skip
# What stays as it was when the alert began: what it is about.
_FIXED: Final = frozenset({"name", "kind", "model_type", "model", "prediction", "role", "start_time"})

_WRITE = f"""
INSERT INTO alerts ({", ".join(_STORED)})
SELECT * FROM unnest({", ".join(f"${n}::{_TYPES.get(name, 'text')}[]" for n, name in enumerate(_STORED, 1))})
ON CONFLICT (name) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _STORED if name not in _FIXED)}
WHERE alerts.state = {State.FIRING.value}
"""
# The silence that ends last is the one that is told.
READ = f"""
SELECT alerts.*, coalesce(silences.name, '') AS silence FROM alerts LEFT JOIN LATERAL (
    SELECT name FROM silences WHERE alerts.state = {State.FIRING.value}
    AND resource IN (alerts.model, alerts.model_type) AND start_time <= $1 AND end_time > $1
    ORDER BY end_time DESC, sequence LIMIT 1
) AS silences ON true
"""
_FORGET = """
DELETE FROM alerts WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM alerts WHERE state = 2 AND end_time < $1 ORDER BY end_time LIMIT 10000
))
"""


@dataclass(frozen=True, slots=True)
class Numbered:
    """An alert and its place in the order of their beginning."""

    sequence: int
    alert: Alert


async def progress(conn: Connection) -> tuple[int, int] | None:
    """Locks the derivation; returns the newest minute and revision that it has seen. None: another one is at it."""
    row = await conn.fetchrow("SELECT minute, revision FROM alerting FOR UPDATE SKIP LOCKED")
    return None if row is None else (row["minute"], row["revision"])


async def progressed(conn: Connection, minute: int, revision: int) -> None:
    """Says how far the derivation has come."""
    await conn.execute("UPDATE alerting SET minute = $1, revision = $2", minute, revision)


async def evaluated(conn: Connection) -> Evaluated | None:
    """Returns the newest minute that was evaluated; None where none was."""
    row = await conn.fetchrow("SELECT minute, revision FROM evaluation WHERE minute IS NOT NULL")
    return None if row is None else Evaluated(row["minute"], row["revision"])


async def tenures(conn: Connection, since_minute: int) -> list[Tenure]:
    """Returns the tenures that go on, or have ended after a minute."""
    rows = await conn.fetch("SELECT * FROM tenures WHERE end_minute IS NULL OR end_minute > $1", since_minute)
    return [Tenure(**row) for row in rows]


async def write_tenures(conn: Connection, changed: Sequence[Tenure]) -> None:
    """Ends those that have an end, and begins or changes the others."""
    ended = [tenure for tenure in changed if tenure.end_minute is not None]
    await conn.execute(
        """UPDATE tenures SET end_minute = ended.minute FROM unnest($1::text[], $2::int[]) AS ended (model, minute)
           WHERE tenures.model = ended.model AND end_minute IS NULL""",
        [tenure.model for tenure in ended],
        [tenure.end_minute for tenure in ended],
    )
    going_on = [tenure for tenure in changed if tenure.end_minute is None]
    await conn.execute(
        """INSERT INTO tenures (model, slo, revision, start_minute)
           SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::int[])
           ON CONFLICT (model) WHERE end_minute IS NULL DO UPDATE SET start_minute = excluded.start_minute""",
        [tenure.model for tenure in going_on],
        [tenure.slo for tenure in going_on],
        [tenure.revision for tenure in going_on],
        [tenure.start_minute for tenure in going_on],
    )


async def firing(conn: Connection, now: datetime) -> list[Alert]:
    """Returns all alerts that fire, each with the silence that keeps it quiet."""
    rows = await conn.fetch(f"{READ} WHERE state = {State.FIRING.value} ORDER BY sequence", now)
    return [alert_of(row) for row in rows]


async def write(conn: Connection, alerts: Sequence[Alert]) -> None:
    """Writes alerts that begin, change or end. One that has ended stays as it is."""
    if alerts:
        await conn.execute(_WRITE, *([_stored(alert, name) for alert in alerts] for name in _STORED))


async def delivered(database: Database, names: Sequence[str], now: datetime) -> None:
    """Says that Alertmanager took some alerts over."""
    await database.execute(
        "UPDATE alerts SET deliver_time = greatest(deliver_time, $2) WHERE name = ANY($1)", names, now
    )


async def get(database: Database, name: str, now: datetime) -> Alert:
    """Raises ResourceNotFound where there is no such alert."""
    row = await database.fetchrow(f"{READ} WHERE alerts.name = $2", now, name)
    if row is None:
        raise ResourceNotFound(name)
    return alert_of(row)


async def page(
    database: Database, fits: Node | None, after: tuple[int, int] | None, limit: int, now: datetime
) -> list[Numbered]:
    """Returns alerts after a position, state and sequence: those that fire first, then the newest first."""
    arguments: list[object] = [now, *(after or (0, 0)), limit]

    def bind(value: object) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    where = "true" if fits is None else _condition(fits, bind)
    rows = await database.fetch(
        f"""{READ} WHERE (state > $2 OR (state = $2 AND sequence < $3)) AND {where}
            ORDER BY state, sequence DESC LIMIT $4""",
        *arguments,
    )
    return [Numbered(row["sequence"], alert_of(row)) for row in rows]


async def forget(database: Database, before: datetime) -> None:
    """Forgets what has been over since before a time, a few thousand a transaction."""
    while await database.execute(_FORGET, before) != "DELETE 0":
        pass
    await database.execute("DELETE FROM tenures WHERE end_minute < $1", int(before.timestamp()) // 60)
    await database.execute("DELETE FROM silences WHERE end_time < $1", before)


async def forget_requests(database: Database, kept: timedelta) -> None:
    """Forgets answers that nobody asks for again."""
    await database.execute("DELETE FROM requests WHERE create_time < now() - $1::interval", kept)


def _condition(node: Node, bind: Callable[[object], str]) -> str:
    """Returns a bound filter as a condition of SQL. Columns are those of its fields; values are arguments."""
    match node:
        case And(parts):
            return f"({' AND '.join(_condition(part, bind) for part in parts)})"
        case Or(parts):
            return f"({' OR '.join(_condition(part, bind) for part in parts)})"
        case Not(part):
            return f"NOT {_condition(part, bind)}"
        case Restriction():
            return _comparison(node, bind)
        case _:
            raise TypeError("the filter is not bound to fields")


def _comparison(asked: Restriction, bind: Callable[[object], str]) -> str:
    column = f"alerts.{asked.field.path}"
    is_enum = asked.field.kind is FieldKind.ENUM
    # What is not stated passes no test.
    present = f"{column} <> 0" if is_enum else f"{column} <> ''"
    value: Any = int(asked.value) if is_enum and asked.operator is not Operator.PRESENT else asked.value
    match asked.operator:
        case Operator.PRESENT:
            return present
        case Operator.CONTAINS:
            return f"position(lower({bind(value)}) IN lower({column})) > 0"
        case Operator.LIKE:
            return f"{column} LIKE {bind(_pattern(str(value)))}"
        case operator:
            return f"({present} AND {column} {operator.value} {bind(value)})"


def _pattern(text: str) -> str:
    r"""Returns a filter's pattern as LIKE has it: `*` is anything, `%`, `_` and `\` are themselves."""
    for each in ("\\", "%", "_"):
        text = text.replace(each, f"\\{each}")
    return text.replace("*", "%")


def _stored(alert: Alert, name: str) -> Any:
    value = getattr(alert, name)
    if isinstance(value, enum.Enum):
        return value.value
    return 0 if value is None and name in ("metric", "resolution") else value


def alert_of(row: Record) -> Alert:
    columns = {name: value for name, value in row.items() if name != "sequence"}
    return Alert(
        **columns
        | {
            "kind": Kind(row["kind"]),
            "severity": Severity(row["severity"]),
            "state": State(row["state"]),
            "role": Role(row["role"]),
            "tier": Tier(row["tier"]),
            "metric": Metric(row["metric"]) if row["metric"] else None,
            "resolution": Resolution(row["resolution"]) if row["resolution"] else None,
        }
    )
