"""Writes: lock the head, decide on exactly that state, append a revision each, commit, answer. Nothing else writes.

Writes that come while others are being committed are committed together, next. Each is decided on the state that the
ones before it leave, has a revision of its own, and is refused alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

from google.protobuf.empty_pb2 import Empty

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.db import Connection
from modelfleetd.kit.idempotency import known
from modelfleetd.kit.turns import Turns
from modelfleetd.registry import wire
from modelfleetd.registry.batch import (
    After,
    Answer,
    Batch,
    Decide,
    LaunchEnding,
    Memory,
    OwnWrite,
    Reply,
    RequestedWrite,
    Write,
    edits_of,
)
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.revisions import Author, Edits, check_size, revise
from modelfleetd.registry.domain.roles import Finalization, finalize_launch
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.slices import in_slices
from modelfleetd.registry.snapshot import SnapshotLedger
from modelfleetd.registry.store import Head, LaunchOutcome, Store

_MOST_TOGETHER = 64


class Writer:
    """Writes revisions."""

    def __init__(self, store: Store, follower: Follower) -> None:
        self._store = store
        self._follower = follower
        self._turns: Turns[Write[Any]] = Turns(self._write, _MOST_TOGETHER, lambda write: write.weight)

    async def change(
        self,
        request: Any,
        answer: type[Answer],
        name: str,
        author: Author,
        decide: Decide,
        *,
        evidence_of: Sequence[str] = (),
        weight: int = 1,
    ) -> Answer:
        """Does what a request asks for, once for its request_id, and answers with the resource that it is about.

        Args:
            request: with request_id and validate_only.
            answer: the class of the resource's message, or Empty.
            name: of the resource.
            author: of the revision.
            decide: the edits; the one of the resource comes first. It may be asked on any state, and must not wait.
            evidence_of: models whose evidence it asks for: that is not in memory.
            weight: how many entries of usual size it is as much as.
        """
        if request.validate_only:
            return self._preview(answer, name, await edits_of(decide(await self._now(evidence_of))))

        def reply(_: pb.Revision | None, after: After) -> Answer:
            return answer() if answer is Empty else cast(Answer, after(name))

        return await self.write(request, answer, author, decide, reply, evidence_of=evidence_of, weight=weight)

    async def write(
        self,
        request: Any,
        answer: type[Answer],
        author: Author,
        decide: Decide,
        reply: Reply[Answer],
        *,
        evidence_of: Sequence[str] = (),
        weight: int = 1,
    ) -> Answer:
        """Does what a request asks for, once for its request_id.

        Args:
            request: with request_id.
            answer: the class of the answer.
            author: of the revision.
            decide: the edits. It may be asked on any state, more than once, and must not wait.
            reply: makes the answer.
            evidence_of: models whose evidence the decision asks for.
            weight: how many entries it is about.
        """
        write = RequestedWrite(
            author=author,
            decide=decide,
            reply=reply,
            weight=weight,
            evidence_of=evidence_of,
            request=request,
            answer_class=answer,
        )
        return await self._do(write)

    async def preview(self, decide: Decide, evidence_of: Sequence[str] = ()) -> Sequence[pb.ResourceChange]:
        """Returns the changes that a revision would have. What only a revision gives is as it was.

        Raises:
            InvalidFields: the revision would be too large.
        """
        # Others may write meanwhile, as they may between this answer and whatever is done with it.
        edits = await edits_of(decide(await self._now(evidence_of)))
        changes = [wire.stored_change(change, 0) async for edit in in_slices(edits) for change in revise((edit,), None)]
        check_size(len(change.change) for change in changes)
        return [pb.ResourceChange.FromString(change.change) for change in changes]

    async def change_unasked(self, author: Author, decide: Decide) -> pb.Revision | None:
        """Writes what the registry itself decides. Returns the revision; None where there was nothing to do.

        Args:
            author: of the revision.
            decide: the edits; empty where everything is so already, so that several replicas may try.
        """
        made = await self._do(
            OwnWrite(author=author, decide=decide, reply=lambda revision, _: revision or pb.Revision())
        )
        return made if made.number else None

    async def finalize(self, asked: Finalization, author: Author) -> pb.FinalizeLaunchResponse:
        """Ends an attempt of a launch, once for ever: repeated with the same content it answers the same.

        Raises:
            LaunchEnded: it ended with another outcome or content, the launch has succeeded, or a later one has ended.
        """

        def decide(ledger: Ledger) -> Edits:
            return finalize_launch(ledger, asked)

        def reply(revision: pb.Revision | None, after: After) -> pb.FinalizeLaunchResponse:
            number = 0 if revision is None else revision.number
            model_type = cast(pb.ModelType | None, after(asked.model_type))
            return pb.FinalizeLaunchResponse(model_type=model_type, revision=number)

        return await self._do(LaunchEnding(author=author, decide=decide, reply=reply, asked=asked))

    async def _now(self, evidence_of: Sequence[str]) -> Ledger:
        """Returns the ledger as it is now, or was a moment ago."""
        await self._follower.catch_up()
        return SnapshotLedger(self._follower.snapshot, await self._store.evidence.heads(evidence_of))

    async def _do(self, write: Write[Answer]) -> Answer:
        await self._turns.do(write)
        if write.refusal is not None:
            raise write.refusal
        assert write.answer is not None
        return write.answer

    def _preview(self, answer: type[Answer], name: str, edits: Edits) -> Answer:
        """Answers as if the edits had been written; what only a revision gives is as it was."""
        if answer is Empty:
            return answer()
        for edit in edits:
            if edit.name == name and edit.after is not None:
                return cast(Answer, wire.message_of(edit.after))
        return cast(Answer, self._follower.snapshot.find(name))

    async def _write(self, writes: Sequence[Write[Any]]) -> None:
        """Decides writes and commits all that were not refused: one transaction, whatever their number."""
        async with self._store.transaction() as conn:
            head = await self._head(conn)
            # The head is held, so the state stays as it is while others go on; and the server sees that we live.
            pause = functools.partial(self._store.keep_alive, conn)
            # What is read with the head locked is of the revision that is decided on.
            evidence = await self._store.evidence.heads(
                {model for write in writes for model in write.evidence_of}, conn
            )
            batch = Batch(self._follower.snapshot, head, await self._memory(conn, writes), evidence, pause)
            for write in writes:
                await batch.add(write)
            await batch.append(self._store, conn)
        # Reads that follow on this replica see the writes: only what is committed gets here.
        for revision in batch.revisions:
            self._follower.apply(revision)

    async def _head(self, conn: Connection) -> Head:
        """Locks the head and brings the snapshot there: what is decided on is then the state that is written over."""
        head = await self._store.lock_head(conn)
        if head.number != self._follower.snapshot.revision or head.hash != self._follower.snapshot.hash:
            await self._follower.catch_up_within(conn)
        return head

    async def _memory(self, conn: Connection, writes: Sequence[Write[Any]]) -> Memory:
        """Returns what was answered before to those of the calls that are repetitions."""
        requests = [write.request.request_id for write in writes if isinstance(write, RequestedWrite)]
        launches = [write.asked.launch for write in writes if isinstance(write, LaunchEnding)]
        outcomes = await self._store.launch_outcomes(conn, launches)
        ended: dict[str, dict[int, LaunchOutcome]] = {}
        for outcome in outcomes:
            ended.setdefault(outcome.launch, {})[outcome.attempt] = outcome
        return Memory(await known(conn, requests), ended)
