"""Announcements: what Alertmanager is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.kit.db import Connection, Database, Record
from modelfleetd.stability.domain.alert import Alert
from modelfleetd.stability.domain.announcement import Announcement, settle
from modelfleetd.stability.store.alerts import READ, alert_of

_OPEN = "SELECT alert, labels, start_time, end_time, ending FROM announcements WHERE end_time IS NULL"
# Of several under the same labels the newest counts: Alertmanager knows no other difference between them.
_DUE = """
SELECT DISTINCT ON (labels) alert, labels, start_time, end_time, ending FROM announcements
WHERE end_time IS NULL OR end_time > $1 ORDER BY labels, end_time DESC, id DESC
"""


@dataclass(frozen=True, slots=True)
class Due:
    """An announcement with its alert."""

    announcement: Announcement
    alert: Alert


async def bring_up_to_date(conn: Connection, now: datetime) -> bool:
    """Ends and begins announcements by the alerts and silences that there are; says whether anything changed.

    To be called with the derivation locked.
    """
    known = [Announcement(**row) for row in await conn.fetch(_OPEN)]
    rows = await conn.fetch(f"{READ} WHERE state = 1 OR alerts.name = ANY($2)", now, [one.alert for one in known])
    ended, begun = settle(map(alert_of, rows), known, now)
    if ended:
        await conn.execute(
            """UPDATE announcements SET end_time = ended.time, ending = ended.why
               FROM unnest($1::text[], $2::timestamptz[], $3::text[]) AS ended (alert, time, why)
               WHERE announcements.alert = ended.alert AND end_time IS NULL""",
            [one.alert for one in ended],
            [one.end_time for one in ended],
            [one.ending for one in ended],
        )
    if begun:
        await conn.execute(
            """INSERT INTO announcements (alert, labels, start_time)
               SELECT * FROM unnest($1::text[], $2::jsonb[], $3::timestamptz[])""",
            [one.alert for one in begun],
            [dict(one.labels) for one in begun],
            [one.start_time for one in begun],
        )
    return bool(ended or begun)


async def due(database: Database, ended_after: datetime, now: datetime) -> list[Due]:
    """Returns what Alertmanager is to be told now: what goes on, and what has ended after a time."""
    async with database.transaction(readonly=True) as conn:
        told = [Announcement(**row) for row in await conn.fetch(_DUE, ended_after)]
        rows = await conn.fetch(f"{READ} WHERE alerts.name = ANY($2)", now, _names(told))
    alerts: dict[str, Record] = {row["name"]: row for row in rows}
    return [Due(one, alert_of(alerts[one.alert])) for one in told]


async def forget(database: Database, before: datetime) -> None:
    """Forgets what had ended before a time."""
    await database.execute("DELETE FROM announcements WHERE end_time < $1", before)


def _names(told: Sequence[Announcement]) -> list[str]:
    return sorted({one.alert for one in told})
