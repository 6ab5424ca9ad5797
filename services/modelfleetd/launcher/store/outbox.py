"""What leaves the launcher by itself: spans that wait to be exported, and which replica does which duty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelfleetd.kit.db import Connection, Database
from modelfleetd.kit.failpoint import passing

# Events of one span; collectors take no more than 128 by default.
_TOLD: Final = 100
_SPANS: Final = """
SELECT number, span, (
    SELECT jsonb_agg(jsonb_build_object('name', type, 'time', time, 'message', message, 'actor', actor,
                                        'step', step, 'region', region) ORDER BY sequence)
    FROM (SELECT * FROM events WHERE launch = span ->> 'tells' AND time > (span ->> 'start')::timestamptz
          AND time <= (span ->> 'end')::timestamptz ORDER BY sequence LIMIT $2) AS told) AS events
FROM spans ORDER BY number LIMIT $1
"""


class Outbox:
    """The side of the store that workers use."""

    _database: Database

    async def spans(self, limit: int) -> list[tuple[int, Mapping[str, Any]]]:
        """Spans that wait to be exported, oldest first; those that tell what happened to their launch with that."""
        rows = await self._database.fetch(_SPANS, limit, _TOLD)
        return [(row["number"], {**row["span"], "events": row["events"] or []}) for row in rows]

    async def trace(self, conn: Connection, span: Mapping[str, Any]) -> None:
        """Stores a span with what it is of, in one transaction."""
        await conn.execute("INSERT INTO spans (span) VALUES ($1)", span)

    async def forget_spans(self, numbers: Sequence[int]) -> None:
        """Removes spans that were exported."""
        await self._database.execute("DELETE FROM spans WHERE number = ANY($1)", list(numbers))

    async def take_duty(self, name: str, holder: str, seconds: float) -> bool:
        """Takes or keeps what only one replica needs to do; False where another one does it."""
        with passing("launcher", "commit", "take_duty"):
            found = await self._database.fetchval(
                """INSERT INTO duties VALUES ($1, $2, now() + make_interval(secs => $3))
                   ON CONFLICT (name) DO UPDATE SET holder = $2, expire_time = now() + make_interval(secs => $3)
                   WHERE duties.holder = $2 OR duties.expire_time <= now() RETURNING true""",
                name,
                holder,
                seconds,
            )
        return bool(found)
