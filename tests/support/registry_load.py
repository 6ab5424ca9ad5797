"""Callers that write to a registry through whatever befalls it, those who watch, and the account of what must be there.

Every write is one that can be told from all others by what it leaves in history, and is repeated with its request_id
until it is answered. So when it is over, history must hold each of them exactly once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from modelfleet.ledger import Verified, verify
from modelfleet.registry.v1 import history_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.registry import wire
from tests.support.registry_calls import CTR, Registry, request_id, spec
from tests.support.wait import until

# What a caller repeats: the call may have been done, or not.
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# Comes back fast after a server's restart, as the client library does.
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


@asynccontextmanager
async def caller(address: str, timeout: float = 10.0, *options: tuple[str, int]) -> AsyncIterator[Registry]:
    """Gives a registry over a connection of its own, which outlives the registry's process."""
    own = (*_OPTIONS, ("grpc.use_local_subchannel_pool", 1), *options)
    async with grpc.aio.insecure_channel(address, own) as channel:
        yield Registry(channel, timeout=timeout, address=address)


@dataclass(frozen=True)
class Write:
    """A write that was acknowledged."""

    method: str
    fields: dict[str, Any]
    answer: Any
    token: tuple[str, str]
    """What it leaves in history, and no other write does: resource, and label or action."""

    async def again(self, registry: Registry) -> Any:
        """Makes the same call once more, with the same request_id."""
        return await getattr(registry, self.method)(**self.fields)


@dataclass(frozen=True)
class Failure:
    """A call that has to be repeated."""

    at: float
    took: float
    code: grpc.StatusCode
    details: str


@dataclass
class Load:
    """What callers did.

    Args:
        registries: any of them takes a write.
        seed: of what they do.
        twice: share of the calls that are made at all registries at the same time.
    """

    registries: Sequence[Registry]
    seed: int = 0
    twice: float = 0.0
    acknowledged: list[Write] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long each call that was answered took."""
    _ended: bool = False
    _callers: Sequence[asyncio.Task[None]] = ()

    @asynccontextmanager
    async def running(self, callers: int) -> AsyncIterator[Load]:
        """Lets callers write as long as the block lasts; each ends with a write that is acknowledged."""
        async with asyncio.TaskGroup() as tasks:
            names = [f"{self.seed}-{number}" for number in range(callers)]
            self._callers = [tasks.create_task(self._write_again_and_again(name)) for name in names]
            try:
                yield self
            finally:
                self._ended = True

    async def finish(self) -> None:
        """Has the callers end, and returns once every write that was begun is acknowledged."""
        self._ended = True
        await asyncio.wait(self._callers)

    async def acknowledge(self, count: int, timeout: float = 30.0) -> None:
        """Returns once so many more writes are acknowledged."""
        enough = len(self.acknowledged) + count
        await until(lambda: len(self.acknowledged) >= enough, timeout)

    async def fail(self, count: int, timeout: float = 30.0) -> None:
        """Returns once so many more calls have failed."""
        enough = len(self.failures) + count
        await until(lambda: len(self.failures) >= enough, timeout)

    @property
    def newest(self) -> int:
        """The newest revision that somebody was told of."""
        return max((getattr(write.answer, "revision", 0) for write in self.acknowledged), default=0)

    async def _write_again_and_again(self, name: str) -> None:
        chance, models, count = random.Random(name), [], 0
        while not self._ended:
            count += 1
            kind = chance.random()
            if kind < 0.2:
                await self.create(f"m-{name}-{count}", chance)
                models.append(f"{CTR}/models/m-{name}-{count}")
            elif kind < 0.3 and models:
                await self.delete(models.pop(), chance)
            else:
                # Half of the time what nobody else writes, else what everybody does.
                await self.label(chance.choice([CTR, models[-1]]) if models else CTR, f"{name}-{count}", chance)

    async def label(self, entry: str, text: str, chance: random.Random) -> Any:
        """Sets a label of the type or a model to what it never had."""
        mask = {"paths": ["labels.site"]}
        token = (entry, text)
        if entry == CTR:
            changed = pb.ModelType(name=entry, labels={"site": text})
            return await self.write("UpdateModelType", token, chance, model_type=changed, update_mask=mask)
        model = pb.Model(name=entry, labels={"site": text})
        return await self.write("UpdateModel", token, chance, model=model, update_mask=mask)

    async def create(self, key: str, chance: random.Random) -> Any:
        """Creates a model that there never was."""
        token = (f"{CTR}/models/{key}", "CREATED")
        return await self.write(
            "CreateModel", token, chance, parent=CTR, model_id=key, model=pb.Model(serving_spec=spec())
        )

    async def delete(self, name: str, chance: random.Random) -> Any:
        """Deletes a model."""
        return await self.write("DeleteModel", (name, "DELETED"), chance, name=name)

    async def write(self, method: str, token: tuple[str, str], chance: random.Random, **fields: Any) -> Any:
        """Calls until it is answered."""
        fields["request_id"] = request_id()
        while True:
            asked = self.registries if chance.random() < self.twice else [chance.choice(self.registries)]
            answers = await asyncio.gather(*(self._call(registry, method, fields) for registry in asked))
            given = [answer for answer in answers if answer is not None]
            if given:
                assert all(answer == given[0] for answer in given), "one request_id, one answer"
                self.acknowledged.append(Write(method, fields, given[0], token))
                return given[0]
            # As a client does: not at once.
            await asyncio.sleep(chance.uniform(0.02, 0.1))

    async def _call(self, registry: Registry, method: str, fields: dict[str, Any]) -> Any:
        began = time.monotonic()
        try:
            answer = await getattr(registry, method)(**fields)
        except grpc.aio.AioRpcError as error:
            if error.code() not in PASSING:
                raise
            now = time.monotonic()
            self.failures.append(Failure(now, now - began, error.code(), error.details() or ""))
            return None
        now = time.monotonic()
        self.answered_at.append(now)
        self.seconds.append(now - began)
        return answer

    def expect_each_once(self, history: Sequence[pb.Revision]) -> None:
        """Fails unless a history holds every write that was acknowledged, once, as it was answered.

        Args:
            history: the revisions in order.
        """
        found = Counter(token for revision in history for token in tokens_of(revision))
        for write in self.acknowledged:
            assert found[write.token] == 1, f"{write.token} is {found[write.token]} times in history"
        by_number = {revision.number: revision for revision in history}
        for write in self.acknowledged:
            if getattr(write.answer, "name", ""):
                changes = {change.resource: change for change in by_number[write.answer.revision].changes}
                assert wire.after_of(changes[write.answer.name]) == write.answer


@dataclass
class Watcher:
    """One who watches from the first revision on, and goes on from where it was when its stream ends."""

    registry: Registry
    revisions: list[pb.Revision] = field(default_factory=list)
    position: int = 0
    ends: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Watcher]:
        """Watches as long as the block lasts."""
        task = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            if task.done():
                task.result()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                async for message in self.registry.WatchRevisions(after_revision=self.position):
                    assert message.position >= self.position and message.current_revision >= message.position
                    self.position = message.position
                    if message.HasField("revision"):
                        assert message.revision.number == message.position
                        self.revisions.append(message.revision)
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING:
                    raise
                self.ends.append((error.code(), error.details() or ""))
                await asyncio.sleep(0.05)

    def expect_linear(self, newest: int) -> None:
        """Fails unless it saw every revision up to one, each once and in order, and each the successor of the last."""
        assert [revision.number for revision in self.revisions] == list(range(1, newest + 1))
        before = ""
        for revision in self.revisions:
            assert revision.previous_hash == before, revision.name
            before = revision.hash


def tokens_of(revision: pb.Revision) -> list[tuple[str, str]]:
    """Returns what a revision says of the writes of a load."""
    tokens = []
    for change in revision.changes:
        if change.action == pb.ResourceChange.UPDATED:
            tokens += [
                (change.resource, each.after.string_value) for each in change.fields if each.path == "labels.site"
            ]
        else:
            tokens.append((change.resource, pb.ResourceChange.Action.Name(change.action)))
    return tokens


def state_after(history: Sequence[pb.Revision]) -> dict[str, Any]:
    """Returns the entries that a history leaves, by name."""
    state: dict[str, Any] = {}
    for revision in history:
        for change in revision.changes:
            state[change.resource] = wire.after_of(change)
    return {name: entry for name, entry in state.items() if entry is not None}


async def state_of(registry: Registry, min_revision: int) -> dict[str, Any]:
    """Returns the entries that a registry answers with, by name."""
    state: dict[str, Any] = {}
    lists = {"ListTeams": "teams", "ListRegions": "regions", "ListModelTypes": "model_types", "ListModels": "models"}
    for method, entries in lists.items():
        token = ""
        while True:
            parent = {"parent": "modelTypes/-"} if method == "ListModels" else {}
            answer = await getattr(registry, method)(
                page_size=1000, page_token=token, min_revision=min_revision, **parent
            )
            state |= {entry.name: entry for entry in getattr(answer, entries)}
            token = answer.next_page_token
            if not token:
                break
    return state


async def verified(registry: Registry) -> Verified:
    """Verifies history and state as they are stored, and says how far they go."""
    request = history_pb2.ReadHistoryRequest(with_state=True)
    messages = [message async for message in registry.stub.ReadHistory(request, timeout=30)]
    return verify(messages)
