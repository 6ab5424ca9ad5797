"""The outbox of what people are told: written with the change that it tells of, a row for each receiver.

A row is claimed for one attempt with a lease, in one statement; nothing is open while a receiver is called. Who dies
between a receiver's answer and its record is followed by an attempt with the same key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection, Database
from modelfleetd.kit.failpoint import failpoint
from modelfleetd.launcher.documents import to_document
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.notifications import (
    ALARM_AGAIN,
    ALERTMANAGER,
    ENDINGS,
    LASTS,
    TRIED,
    Audience,
    DeliveryState,
    Kind,
    Notification,
    Outgoing,
    notifications,
    over,
)
from modelfleetd.names import LAUNCH

KEPT: Final = timedelta(days=90)
# Alerts of one round; so many at a time nobody looks at.
_MOST_ALERTS: Final = 5_000
_MOST_FORGOTTEN: Final = 10_000
# After the week, whoever delivers it gives it up itself, soon.
_LATE: Final = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Due:
    """A notification that this process may deliver to a webhook, until its lease ends."""

    number: int
    key: str
    body: Mapping[str, Any]
    # This one included.
    attempts: int


@dataclass(frozen=True, slots=True)
class Lasting:
    """An alert that goes on, or has ended lately."""

    number: int
    kind: Kind
    message: str
    labels: Mapping[str, str]
    body: Mapping[str, Any]
    create_time: datetime
    end_time: datetime | None
    is_pending: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits to be delivered to one receiver."""

    pending: int
    # For how long the oldest of it has been waiting, in seconds.
    oldest: float


def telling(first: int) -> str:
    """Common table expressions that write what a change tells: after one named `changed` with the launch's id.

    Args:
        first: number of the first of their three parameters, those of `told_by`.
    """
    told, ended, again = f"${first}", f"${first + 1}", f"${first + 2}"
    row = (
        "n(kind text, about text, page boolean, receiver text, key text, message text, body jsonb, labels jsonb, "
        "create_time timestamptz, end_time timestamptz)"
    )
    # An alarm that comes back soon is not told again, but to who was told that it was over.
    lately = f"""o.launch = changed.id AND o.receiver = n.receiver AND o.kind = n.kind AND o.about = n.about
        AND o.page = n.page AND n.kind = 'NEEDS_ATTENTION' AND o.create_time > n.create_time - {again}::interval"""
    return f"""told AS (
    INSERT INTO notifications (launch, kind, about, page, receiver, key, message, body, labels, create_time, end_time)
    SELECT changed.id, n.* FROM changed, jsonb_to_recordset({told}) AS {row}
    WHERE NOT EXISTS (SELECT 1 FROM notifications o WHERE {lately}) ORDER BY n.key, n.receiver
), again AS (
    UPDATE notifications o SET end_time = NULL, change_time = now() FROM changed, jsonb_to_recordset({told}) AS {row}
    WHERE o.receiver = '{ALERTMANAGER}' AND {lately}
), is_over AS (
    UPDATE notifications o SET end_time = now(), change_time = now()
    FROM changed, jsonb_to_recordset({ended}) AS t(kind text, about text, page boolean)
    WHERE o.launch = changed.id AND o.receiver = '{ALERTMANAGER}' AND o.kind = t.kind AND o.about = t.about
      AND o.page = t.page AND (o.end_time IS NULL OR o.end_time > now())
)"""


_TELL = f"WITH changed AS (SELECT $1::text AS id), {telling(2)} SELECT 1"


def told_by(before: Launch, after: Launch, audience: Audience, now: datetime) -> tuple[object, object, timedelta]:
    """The parameters of `telling`: what each receiver is told of a change, and which topics are over."""
    if not audience:
        return [], [], ALARM_AGAIN
    told = [
        _row(notification, receiver)
        for notification in notifications(before, after, now)
        for receiver, kinds in audience.items()
        if notification.kind in kinds
    ]
    return told, [to_document(topic) for topic in over(before, after)], ALARM_AGAIN


def _row(notification: Notification, receiver: str) -> dict[str, Any]:
    document: dict[str, Any] = to_document(notification)
    return document | {"receiver": receiver}


CLAIM = """
WITH due AS (
    SELECT number AS due_number FROM notifications
    WHERE receiver = $1 AND state = 'PENDING' AND next_attempt_time <= now()
    ORDER BY next_attempt_time LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE notifications SET attempts = attempts + 1, next_attempt_time = now() + make_interval(secs => $3)
FROM due WHERE number = due_number RETURNING number, key, body, attempts
"""

# Of the same labels only the newest: Alertmanager takes them for one alert.
_LASTING = f"""
SELECT * FROM (
    SELECT DISTINCT ON (launch, kind, about, page) number, kind, message, labels, body, create_time, end_time,
           state = 'PENDING' AS is_pending
    FROM notifications
    WHERE receiver = '{ALERTMANAGER}' AND (end_time IS NULL OR end_time > now() - $1::interval OR state = 'PENDING')
    ORDER BY launch, kind, about, page, number DESC) AS newest
ORDER BY number DESC LIMIT $2
"""


class Notifications:
    """The side of the store that tells people."""

    _database: Database
    _audience: Audience

    async def tell(self, conn: Connection, before: Launch, after: Launch, now: datetime) -> None:
        """Writes what a change of a locked launch tells, in its transaction."""
        told, ended, again = told_by(before, after, self._audience, now)
        if told or ended:
            await conn.execute(_TELL, LAUNCH.parse(after.name)[0], told, ended, again)

    async def due_notifications(self, receiver: str, lease: float, limit: int) -> list[Due]:
        """Claims notifications to a webhook that are due, the longest due first."""
        failpoint("launcher.before_commit.claim_notifications")
        rows = await self._database.fetch(CLAIM, receiver, limit, lease)
        if rows:
            failpoint("launcher.after_commit.claim_notifications")
        return [Due(**row) for row in sorted(rows, key=lambda row: row["number"])]

    async def delivered(self, numbers: Sequence[int]) -> None:
        """The receiver has taken them."""
        await self._database.execute(
            """UPDATE notifications SET state = 'DELIVERED', deliver_time = now(), next_attempt_time = NULL,
                   last_error = '' WHERE number = ANY($1) AND state <> 'DELIVERED'""",
            list(numbers),
        )

    async def not_delivered(self, number: int, attempts: int, error: str, pause: float) -> None:
        """An attempt has failed: tried again after so many seconds, or given up after a week."""
        await self._database.execute(
            """UPDATE notifications SET last_error = $3,
                   state = CASE WHEN create_time + $5::interval < now() THEN 'ABANDONED' ELSE state END,
                   next_attempt_time =
                       CASE WHEN create_time + $5::interval >= now() THEN now() + make_interval(secs => $4) END
               WHERE number = $1 AND attempts = $2 AND state = 'PENDING'""",
            number,
            attempts,
            error,
            pause,
            TRIED,
        )

    async def lasting_alerts(self, resolved_kept: timedelta) -> list[Lasting]:
        """Alerts that go on, have ended lately, or were never told; the newest first, of many only these."""
        rows = await self._database.fetch(_LASTING, resolved_kept, _MOST_ALERTS)
        return [Lasting(**(dict(row) | {"kind": Kind[row["kind"]]})) for row in rows]

    async def alerts_changed(self) -> datetime | None:
        """When an alert has last begun or ended; None where there was none."""
        found: datetime | None = await self._database.fetchval(
            f"SELECT max(change_time) FROM notifications WHERE receiver = '{ALERTMANAGER}'"
        )
        return found

    async def alerts_taken(self, numbers: Sequence[int]) -> None:
        """An Alertmanager has taken alerts, and with them all that went before under the same labels.

        What simply has happened lasts from when it was told, so that it is seen at all.
        """
        await self._database.execute(
            """UPDATE notifications o SET state = 'DELIVERED', deliver_time = now(), next_attempt_time = NULL,
                   attempts = o.attempts + 1, last_error = '',
                   end_time = CASE WHEN o.kind = ANY($2) THEN greatest(o.end_time, now() + $3::interval)
                                   ELSE o.end_time END
               FROM notifications n
               WHERE n.number = ANY($1) AND o.launch = n.launch AND o.receiver = n.receiver AND o.kind = n.kind
                 AND o.about = n.about AND o.page = n.page AND o.number <= n.number AND o.state = 'PENDING'""",
            list(numbers),
            [kind.name for kind in ENDINGS],
            LASTS,
        )

    async def alerts_not_taken(self, error: str) -> None:
        """No Alertmanager has taken what waits for one."""
        await self._database.execute(
            f"""UPDATE notifications SET attempts = attempts + 1, last_error = $1
                WHERE receiver = '{ALERTMANAGER}' AND state = 'PENDING'""",
            error,
        )

    async def sweep_notifications(self) -> None:
        """Gives up what nobody has delivered for a week, and forgets what was told long ago."""
        await self._database.execute(
            """UPDATE notifications SET state = 'ABANDONED', next_attempt_time = NULL,
                   last_error = CASE WHEN last_error = '' THEN 'no launcher knows this receiver any more'
                                     ELSE last_error END
               WHERE state = 'PENDING' AND create_time < now() - $1::interval AND next_attempt_time < now()""",
            TRIED + _LATE,
        )
        await self._database.execute(
            """DELETE FROM notifications WHERE number IN (
                   SELECT number FROM notifications WHERE create_time < now() - $1::interval AND state <> 'PENDING'
                     AND (receiver <> $3 OR end_time < now()) ORDER BY create_time LIMIT $2)""",
            KEPT,
            _MOST_FORGOTTEN,
            ALERTMANAGER,
        )

    async def backlog(self) -> dict[str, Backlog]:
        """What waits to be delivered, by receiver."""
        rows = await self._database.fetch(
            """SELECT receiver, count(*) AS pending, extract(epoch FROM now() - min(create_time))::float8 AS oldest
               FROM notifications
               WHERE state = 'PENDING' GROUP BY receiver"""
        )
        return {row["receiver"]: Backlog(row["pending"], row["oldest"]) for row in rows}

    async def notifications(self, *, launch: str, pending_only: bool, before: int | None, limit: int) -> list[Outgoing]:
        """What people were told, newest first, from a number downwards.

        Raises:
            ResourceNotFound: there is no such launch.
        """
        id_ = LAUNCH.parse(launch, "launch")[0] if launch else None
        conditions, arguments = ["true"], list[object]([limit])
        for condition, value in (("number <", before), ("launch =", id_)):
            if value is not None:
                arguments.append(value)
                conditions.append(f"{condition} ${len(arguments)}")
        if pending_only:
            conditions.append("state = 'PENDING'")
        rows = await self._database.fetch(
            f"""SELECT number, launch, kind, receiver, key, message, state, attempts, last_error, create_time,
                       deliver_time
                FROM notifications WHERE {" AND ".join(conditions)} ORDER BY number DESC LIMIT $1""",
            *arguments,
        )
        if not rows and id_ and not await self._database.fetchval("SELECT true FROM launches WHERE id = $1", id_):
            raise ResourceNotFound(launch)
        return [
            Outgoing(
                **dict(row)
                | {
                    "launch": LAUNCH.format(row["launch"]),
                    "kind": Kind[row["kind"]],
                    "state": DeliveryState[row["state"]],
                }
            )
            for row in rows
        ]
