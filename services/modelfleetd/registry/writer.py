"""One write: lock the head, decide on exactly that state, append a revision, answer. Nothing else writes the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import LaunchEnded
from modelfleetd.kit.db import Connection
from modelfleetd.kit.idempotency import once
from modelfleetd.registry import wire
from modelfleetd.registry.domain.evidence import EvidenceHead
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.revisions import Author, Edits, Stamp, StoredRevision, revise
from modelfleetd.registry.domain.roles import Finalization, finalize_launch
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.snapshot import SnapshotLedger
from modelfleetd.registry.store import Head, LaunchOutcome, Store

Answer = TypeVar("Answer", bound=Message)
Decide = Callable[[Ledger], Edits]


class Writer:
    """Writes revisions."""

    def __init__(self, store: Store, follower: Follower) -> None:
        self._store = store
        self._follower = follower
        # Writes follow each other anyway: waiting here instead of in the database leaves its connections to others.
        self._turn = asyncio.Lock()

    async def change(
        self,
        request: Any,
        answer: type[Answer],
        name: str,
        author: Author,
        decide: Decide,
        evidence_of: Sequence[str] = (),
    ) -> Answer:
        """Does what a request asks for, once for its request_id, and answers with the resource that it is about.

        Args:
            request: with request_id and validate_only.
            answer: the class of the resource's message, or Empty.
            name: of the resource.
            author: of the revision.
            decide: the edits; the one of the resource comes first. It may be asked on any state, and must not wait.
            evidence_of: models whose evidence it asks for: that is not in memory.
        """
        if request.validate_only:
            await self._follower.catch_up()
            evidence = await self._store.evidence_heads(evidence_of)
            return self._preview(answer, name, decide(self._ledger(evidence)))
        revisions: list[pb.Revision] = []

        async def act() -> Answer:
            head = await self._head(conn)
            # With the head locked, what is read here is of the revision that is decided on.
            evidence = await self._store.evidence_heads(evidence_of, conn)
            edits = decide(self._ledger(evidence))
            if edits:
                revisions.append(await self._append(conn, head, author, edits))
            return _answer(answer, revisions, self._follower, name)

        async with self._turn, self._store.transaction() as conn:
            made = await once(conn, request, answer, act)
        self._take_over(revisions)
        return made

    async def finalize(self, asked: Finalization, author: Author) -> pb.FinalizeLaunchResponse:
        """Ends a launch, once for ever: repeated with the same content it answers the same.

        Raises:
            LaunchEnded: it ended with another outcome or content.
        """
        revisions: list[pb.Revision] = []
        async with self._turn, self._store.transaction() as conn:
            head = await self._head(conn)
            known = await self._store.launch_outcome(conn, asked.launch)
            if known is not None and known.digest != asked.digest():
                raise LaunchEnded(asked.launch, known.outcome)
            if known is not None:
                return pb.FinalizeLaunchResponse.FromString(known.response)
            edits = finalize_launch(self._ledger(), asked)
            if edits:
                revisions.append(await self._append(conn, head, author, edits))
            number = revisions[0].number if revisions else 0
            model_type = _after(revisions, self._follower, asked.model_type)
            made = pb.FinalizeLaunchResponse(model_type=cast(pb.ModelType | None, model_type), revision=number)
            outcome = LaunchOutcome(
                "" if asked.outcome is None else asked.outcome.name, asked.digest(), made.SerializeToString()
            )
            await self._store.keep_launch_outcome(conn, asked.launch, outcome)
        self._take_over(revisions)
        return made

    def _preview(self, answer: type[Answer], name: str, edits: Edits) -> Answer:
        """Answers as if the edits had been written; what only a revision gives is as it was."""
        for edit in edits:
            if edit.name == name and edit.after is not None:
                return cast(Answer, wire.message_of(edit.after))
        return _answer(answer, (), self._follower, name)

    def _ledger(self, evidence: Mapping[str, Sequence[EvidenceHead]] | None = None) -> Ledger:
        return SnapshotLedger(self._follower.snapshot, evidence)

    async def _head(self, conn: Connection) -> Head:
        """Locks the head and brings the snapshot there: what is decided on is then the state that is written over."""
        head = await self._store.lock_head(conn)
        if head.number != self._follower.snapshot.revision or head.hash != self._follower.snapshot.hash:
            await self._follower.catch_up_within(conn)
        return head

    async def _append(self, conn: Connection, head: Head, author: Author, edits: Edits) -> pb.Revision:
        stamp = Stamp(head.number + 1, head.now)
        header = wire.header_of(author, stamp)
        changes = [wire.stored_change(change) for change in revise(edits, stamp)]
        parts = [change.change for change in changes]
        stored = StoredRevision.following(head.hash, stamp.revision, header, parts)
        await self._store.append(conn, stored, stamp.time, changes)
        return wire.revision_of(stored)

    def _take_over(self, revisions: Sequence[pb.Revision]) -> None:
        """Reads that follow on this replica see the write: only what is committed gets here."""
        for revision in revisions:
            self._follower.apply(revision)


def _answer(answer: type[Answer], revisions: Sequence[pb.Revision], follower: Follower, name: str) -> Answer:
    if answer is Empty:
        return answer()
    return cast(Answer, _after(revisions, follower, name))


def _after(revisions: Sequence[pb.Revision], follower: Follower, name: str) -> wire.AnyMessage | None:
    """Returns a resource after the revision of this call; as it is where the call changes nothing of it."""
    for revision in revisions:
        for change in revision.changes:
            if change.resource == name:
                return wire.after_of(change)
    return follower.snapshot.find(name)
