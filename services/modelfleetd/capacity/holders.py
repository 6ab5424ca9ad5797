"""Those who hold: missed when they are not heard of. What they run is never taken from them for it."""

from __future__ import annotations

import logging
from datetime import timedelta

from prometheus_client import Gauge

from modelfleetd.capacity.store import reservations
from modelfleetd.kit.db import Database

_log = logging.getLogger(__name__)
# A holder renews every few minutes.
ABSENT_AFTER = timedelta(minutes=10)
_AT_A_TIME = 100
_ABSENT = Gauge(
    "modelfleet_capacity_absent_holders", "Activated holds whose holders have not renewed them, as of the last look"
)


class Holders:
    """Looks for holders that are absent. Any number of replicas may do so at once.

    Args:
        database: of capacity.
        after: how long a holder may be silent.
    """

    def __init__(self, database: Database, after: timedelta = ABSENT_AFTER) -> None:
        self._database = database
        self._after = after

    async def look(self) -> None:
        """Marks whoever is absent, and raises the alarm. A renewal clears it."""
        while True:
            found = await self._database.run(lambda conn: reservations.mark_absent(conn, self._after, _AT_A_TIME))
            for one in found:
                _log.error(
                    "%s of %s in %s is in use, and its holder was last heard of at %s: nothing is freed; see what "
                    "became of the launch, then renew or settle it",
                    one.name, one.launch, one.pool, one.renew_time.isoformat(timespec="seconds"),
                )  # fmt: skip
            if len(found) < _AT_A_TIME:
                break
        _ABSENT.set(await reservations.count_absent(self._database))
