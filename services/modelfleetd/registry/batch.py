"""Several writes in one transaction: each decided on the state that the ones before it leave, each refused alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import LaunchEnded
from modelfleetd.kit.db import Connection
from modelfleetd.kit.idempotency import Answered, again, answer_of
from modelfleetd.registry import wire
from modelfleetd.registry.domain.evidence import EvidenceHead
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.overlay import Overlay
from modelfleetd.registry.domain.revisions import Author, Edit, Edits, Stamp, StoredRevision, check_size, revise
from modelfleetd.registry.domain.roles import Finalization, Outcome
from modelfleetd.registry.slices import Pause, give_way, in_slices
from modelfleetd.registry.snapshot import Snapshot, SnapshotLedger
from modelfleetd.registry.store import Head, LaunchOutcome, Store, Written

Answer = TypeVar("Answer", bound=Message)
Decide = Callable[[Ledger], Edits | Iterator[Edits]]
"""Gives the edits; or, where much is decided, yields step by step, and the edits at last: others go on between."""
After = Callable[[str], wire.AnyMessage | None]
"""Gives whatever has a name after a write, or None."""
Reply = Callable[[pb.Revision | None, After], Answer]
"""Makes the answer to a write: of its revision, None where it changed nothing, and what there is after it."""


class Memory:
    """What was answered before: kept while a batch goes on, and what is new is stored with it."""

    def __init__(self, requests: dict[str, Answered], launches: dict[str, dict[int, LaunchOutcome]]) -> None:
        self.requests = requests
        self.launches = launches
        self.new_requests: list[Answered] = []
        self.new_launches: list[LaunchOutcome] = []


@dataclass(eq=False, slots=True, kw_only=True)
class Write(ABC, Generic[Answer]):
    """One call that writes, and what became of it."""

    author: Author
    decide: Decide
    reply: Reply[Answer]
    weight: int = 1
    evidence_of: Sequence[str] = ()
    """Models whose evidence the decision asks for: that is not in memory."""
    """How many entries it is about: what takes long is not done together with much else."""
    answer: Answer | None = None
    refusal: Exception | None = None

    @abstractmethod
    def recall(self, memory: Memory) -> Answer | None:
        """Returns the answer to the same call before; None where this is the first."""

    @abstractmethod
    def remember(self, memory: Memory, answer: Answer) -> None:
        """Keeps the answer for repetitions."""


@dataclass(eq=False, slots=True, kw_only=True)
class RequestedWrite(Write[Answer]):
    """A call that is repeated with its request_id."""

    request: Any
    answer_class: type[Answer]

    def recall(self, memory: Memory) -> Answer | None:
        return again(self.request, self.answer_class, memory.requests.get(self.request.request_id))

    def remember(self, memory: Memory, answer: Answer) -> None:
        made = answer_of(self.request, answer)
        memory.requests[self.request.request_id] = made
        memory.new_requests.append(made)


@dataclass(eq=False, slots=True, kw_only=True)
class OwnWrite(Write[Answer]):
    """What the registry decides itself: nobody repeats it, and done again it comes to nothing."""

    def recall(self, memory: Memory) -> Answer | None:
        return None

    def remember(self, memory: Memory, answer: Answer) -> None:
        pass


@dataclass(eq=False, slots=True, kw_only=True)
class LaunchEnding(Write[pb.FinalizeLaunchResponse]):
    """The end of a launch's attempt, which is its own key, for ever."""

    asked: Finalization

    def recall(self, memory: Memory) -> pb.FinalizeLaunchResponse | None:
        attempts = memory.launches.get(self.asked.launch, {})
        known = attempts.get(self.asked.counted)
        if known is None:
            for attempt, other in attempts.items():
                if attempt > self.asked.counted or other.outcome == Outcome.SUCCEEDED.name:
                    raise LaunchEnded(self.asked.launch, f"{other.outcome} in attempt {attempt}")
            return None
        if known.digest != self.asked.digest():
            raise LaunchEnded(self.asked.launch, known.outcome)
        return pb.FinalizeLaunchResponse.FromString(known.response)

    def remember(self, memory: Memory, answer: pb.FinalizeLaunchResponse) -> None:
        outcome = "" if self.asked.outcome is None else self.asked.outcome.name
        made = LaunchOutcome(
            self.asked.launch, self.asked.counted, outcome, self.asked.digest(), answer.SerializeToString()
        )
        memory.launches.setdefault(made.launch, {})[made.attempt] = made
        memory.new_launches.append(made)


async def edits_of(decided: Edits | Iterator[Edits], pause: Pause = give_way) -> Edits:
    """Returns the edits that a decision comes to."""
    if isinstance(decided, tuple):
        return decided
    return [each async for each in in_slices(decided, pause)][-1]


class Batch:
    """Writes on top of a locked head, not committed yet."""

    def __init__(
        self,
        snapshot: Snapshot,
        head: Head,
        memory: Memory,
        evidence: Mapping[str, Sequence[EvidenceHead]],
        pause: Pause,
    ) -> None:
        self.revisions: list[pb.Revision] = []
        self._snapshot = snapshot
        self._number, self._hash, self._now = head.number, head.hash, head.now
        self._memory = memory
        self._pause = pause
        self._ledger = Overlay(SnapshotLedger(snapshot, evidence), wire.references_of_resource)
        self._written: list[Written] = []

    async def add(self, write: Write[Any]) -> None:
        """Decides a write, and gives it its answer or its refusal."""
        write.refusal = None
        try:
            write.answer = write.recall(self._memory)
            if write.answer is None:
                write.answer = await self._decided(write)
        except Exception as error:  # noqa: BLE001
            # Its own caller is told; the others go on, as if it had come alone.
            write.refusal = error

    async def append(self, store: Store, conn: Connection) -> None:
        """Writes it all."""
        await store.append(conn, self._written, self._memory.new_requests, self._memory.new_launches)

    async def _decided(self, write: Write[Answer]) -> Answer:
        edits = await edits_of(write.decide(self._ledger), self._pause)
        if not edits:
            answer = write.reply(None, self._find)
            write.remember(self._memory, answer)
            return answer
        stamp = Stamp(self._number + 1, self._now)
        changes, stored_changes = [], []
        async for edit in in_slices(edits, self._pause):
            (change,) = revise((edit,), stamp)
            changes.append(change)
            stored_changes.append(wire.stored_change(change, stamp.revision))
        header = wire.header_of(write.author, stamp)
        parts = [change.change for change in stored_changes]
        check_size(map(len, parts))
        stored = StoredRevision.following(self._hash, stamp.revision, header, parts)
        revision = wire.revision_of(stored)
        after = {change.resource: wire.after_of(change) for change in revision.changes}
        answer = write.reply(revision, lambda name: after[name] if name in after else self._find(name))
        write.remember(self._memory, answer)
        # Nothing can go wrong any more.
        self._number, self._hash = stored.number, stored.hash
        self._ledger.apply(tuple(Edit(edit.before, change.after) for edit, change in zip(edits, changes, strict=True)))
        self._written.append(Written(stored, stamp.time, stored_changes))
        self.revisions.append(revision)
        return answer

    def _find(self, name: str) -> wire.AnyMessage | None:
        edit = self._ledger.edited(name)
        if edit is None:
            return self._snapshot.find(name)
        return None if edit.after is None else wire.message_of(edit.after)
