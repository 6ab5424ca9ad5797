"""Time runs out for tiers: a worker that marks what is overdue, and lowers it when nobody has renewed it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.clock import Clock
from modelfleetd.kit.codec import timestamp_from_proto
from modelfleetd.registry.domain.criticality import GRACE
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.revisions import Author, Edits
from modelfleetd.registry.domain.tiers import lapse
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.snapshot import SnapshotLedger
from modelfleetd.registry.writer import Writer

ROUND_SECONDS = 60.0
ACTOR = "service/registry"


class Lapses:
    """Does what is due to tiers that were approved for a time. Any number of replicas may run it."""

    def __init__(self, follower: Follower, writer: Writer, clock: Clock) -> None:
        self._follower = follower
        self._writer = writer
        self._clock = clock

    async def round(self) -> None:
        """Writes a revision for each entry of which something is due: none where another replica has."""
        now = self._clock.now()
        for name in list(self._due(now)):
            due = lapse(SnapshotLedger(self._follower.snapshot), name, now)
            if due is not None:
                await self._write(name, due.reason, now)

    async def _write(self, name: str, reason: str, now: datetime) -> None:
        def decide(ledger: Ledger) -> Edits:
            # Another replica may have been faster, or a person have renewed it.
            due = lapse(ledger, name, now)
            return due.edits if due is not None and due.reason == reason else ()

        await self._writer.change_unasked(Author(ACTOR, reason=reason), decide)

    def _due(self, now: datetime) -> Iterator[str]:
        """Yields entries with a grant that has run out. Entries without an open request are not looked at."""
        snapshot = self._follower.snapshot
        for name in sorted(snapshot.open_requests):
            entry = snapshot.find(name)
            if not isinstance(entry, (pb.ModelType, pb.Model)) or not entry.HasField("tier_grant"):
                continue
            grant = entry.tier_grant
            allowed = GRACE if grant.overdue else timedelta()
            if now >= timestamp_from_proto(grant.expire_time) + allowed:
                yield name
