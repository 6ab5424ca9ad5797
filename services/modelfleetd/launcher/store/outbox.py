"""What leaves the launcher by itself: spans that wait to be exported, and which replica does which duty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelfleetd.kit.db import Database


class Outbox:
    """The side of the store that workers use."""

    _database: Database

    async def spans(self, limit: int) -> list[tuple[int, Mapping[str, Any]]]:
        """Spans that wait to be exported, oldest first."""
        rows = await self._database.fetch("SELECT number, span FROM spans ORDER BY number LIMIT $1", limit)
        return [(row["number"], row["span"]) for row in rows]

    async def forget_spans(self, numbers: Sequence[int]) -> None:
        """Removes spans that were exported."""
        await self._database.execute("DELETE FROM spans WHERE number = ANY($1)", list(numbers))

    async def take_duty(self, name: str, holder: str, seconds: float) -> bool:
        """Takes or keeps what only one replica needs to do; False where another one does it."""
        found = await self._database.fetchval(
            """INSERT INTO duties VALUES ($1, $2, now() + make_interval(secs => $3))
               ON CONFLICT (name) DO UPDATE SET holder = $2, expire_time = now() + make_interval(secs => $3)
               WHERE duties.holder = $2 OR duties.expire_time <= now() RETURNING true""",
            name,
            holder,
            seconds,
        )
        return bool(found)
