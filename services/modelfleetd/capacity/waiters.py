"""Those who wait: held as soon as there is room, in their order, and told what they wait for whenever that changes."""

from __future__ import annotations

from modelfleetd.capacity import holds, lines
from modelfleetd.capacity.store import reservations
from modelfleetd.capacity.store.reservations import Outlook
from modelfleetd.kit.db import Connection, Database


class Waiters:
    """Serves those who wait. Any number of replicas may do so at once.

    Args:
        database: of capacity.
        actor: that the ledger names.
    """

    def __init__(self, database: Database, actor: str) -> None:
        self._database = database
        self._actor = actor

    async def serve(self) -> None:
        """Holds whoever can be held now, and plans the others anew."""
        for pool in await reservations.organisations_waiting(self._database):
            await self._serve(pool)

    async def _serve(self, pool: str) -> None:
        while True:
            # Whether one really fits is decided on locked rows; what is only seen says whom to try.
            names, outlooks = await self._look(pool)
            held = [name for name in names if await self._hold(name)]
            if not held:
                break
            # Who is held moves and promises units: all others are looked at anew.
        if outlooks:
            await self._database.run(lambda conn: reservations.set_outlooks(conn, outlooks))

    async def _look(self, pool: str) -> tuple[list[str], list[Outlook]]:
        """Returns who fits, in order, and what each of all is to be told."""
        async with self._database.transaction(readonly=True) as conn:
            line = (await lines.view(conn, pool, (), lock=False, wait=True)).line
            now = await lines.now(conn)
        prospects = line.prospects()
        outlooks = [
            Outlook(one.claim.reservation, one.promises, one.expected_time(now), one.position, one.explain(now))
            for one in prospects
        ]
        return [one.claim.reservation for one in prospects if one.fits], outlooks

    async def _hold(self, name: str) -> bool:
        async def work(conn: Connection) -> bool:
            return await holds.hold_waiting(conn, name, self._actor)

        return await self._database.run(work)
