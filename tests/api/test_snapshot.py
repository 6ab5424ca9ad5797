"""The client's snapshot against a real registry: it loads, follows, keeps itself in a file, and states its age."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import modelfleet
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.snapshot import BaselineChange, Share
from tests.support import registry_calls
from tests.support.postgres import Postgres
from tests.support.registry_calls import CTR, NEW, OLD, Registry, populate, spec, swap
from tests.support.wait import until

NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as found:
        await populate(found)
        yield found


async def ready(snapshot: modelfleet.Snapshot, revision: int = 0, max_age: float = float("inf")) -> None:
    """Waits in a thread, as the blocking snapshot does: the registry is in this loop."""
    await asyncio.to_thread(snapshot.wait_ready, 20, revision=revision, max_age=max_age)


class Following:
    """A started snapshot that is closed in a thread: `async with Following(address, path=…) as snapshot`."""

    def __init__(self, address: str, **options: Any) -> None:
        self.snapshot = modelfleet.Snapshot(address, **options)

    async def __aenter__(self) -> modelfleet.Snapshot:
        self.snapshot.start()
        return self.snapshot

    async def __aexit__(self, *raised: object) -> None:
        await asyncio.to_thread(self.snapshot.close)


async def test_every_read_answers_what_the_registry_does(registry: Registry) -> None:
    async with Following(registry.address) as snapshot:
        await ready(snapshot)
        route = snapshot.route("ctr")
        assert route is not None and route is snapshot.route(CTR)
        assert (snapshot.baseline("ctr"), snapshot.holdouts(CTR)) == (OLD, ())
        assert snapshot.split("ctr", "eu") == snapshot.split(CTR, "regions/eu") == (Share(OLD, 10_000),)
        assert snapshot.model_type("ctr") == await registry.GetModelType(name=CTR)
        assert snapshot.model(OLD) == route.models[OLD] == await registry.GetModel(name=OLD)
        assert [each.name for each in snapshot] == [CTR]
        assert snapshot.revision == (await registry.ListModelTypes()).revision


async def test_what_there_is_not_is_none_or_empty_and_never_an_error(registry: Registry) -> None:
    await registry.CreateModelType(model_type_id="bare", model_type=pb.ModelType(team="teams/feed"))
    async with Following(registry.address) as snapshot:
        await ready(snapshot)
        for key in ("nope", "modelTypes/nope", "", OLD):
            assert (snapshot.route(key), snapshot.model_type(key), snapshot.baseline(key)) == (None, None, None)
            assert (snapshot.holdouts(key), snapshot.split(key, "eu")) == ((), ())
        assert (snapshot.model(CTR), snapshot.model(f"{CTR}/models/nope")) == (None, None)
        assert snapshot.baseline("bare") is None
        assert snapshot.split("ctr", "nope") == ()


async def test_a_launch_is_seen_as_a_whole_and_told(registry: Registry) -> None:
    told: list[BaselineChange] = []
    async with Following(registry.address, on_baseline=told.append) as snapshot:
        await ready(snapshot)
        before = snapshot.route("ctr")
        planned = await registry.GetModelType(name=CTR)
        ended = await registry.FinalizeLaunch(**swap(planned.revision))
        await ready(snapshot, ended.revision)
        after = snapshot.route("ctr")
        assert before is not None and after is not None
        assert (before.baseline, before.models[NEW].role) == (OLD, pb.Model.CANDIDATE)
        assert (after.baseline, after.models[NEW].role, after.models[OLD].role) == (
            NEW, pb.Model.BASELINE, pb.Model.RETIRED
        )  # fmt: skip
        assert snapshot.split("ctr", "eu") == (Share(NEW, 10_000),)
        assert told == [BaselineChange(CTR, OLD, NEW, ended.revision)]


async def test_entries_come_and_go(registry: Registry) -> None:
    async with Following(registry.address) as snapshot:
        await ready(snapshot)
        await registry.CreateModelType(model_type_id="more", model_type=pb.ModelType(team="teams/feed"))
        made = await registry.CreateModel(parent="modelTypes/more", model_id="v1", model=pb.Model(serving_spec=spec()))
        await ready(snapshot, made.revision)
        assert snapshot.model(made.name) == made
        await registry.DeleteModel(name=made.name)
        await registry.DeleteModelType(name="modelTypes/more")
        await ready(snapshot, made.revision + 2)
        gone = (snapshot.model(made.name), snapshot.route("more"), snapshot.route("modelTypes/more"))
        assert gone == (None, None, None)
        assert [each.name for each in snapshot] == [CTR]


async def test_it_may_be_limited_to_some_model_types_also_to_ones_to_come(registry: Registry) -> None:
    async with Following(registry.address, model_types=["modelTypes/ctr", "later"]) as snapshot:
        await ready(snapshot)
        assert snapshot.baseline("ctr") == OLD
        for key in ("other", "later"):
            made = await registry.CreateModelType(model_type_id=key, model_type=pb.ModelType(team="teams/feed"))
        await ready(snapshot, made.revision)
        assert sorted(each.name for each in snapshot) == [CTR, "modelTypes/later"]


def ages(snapshot: modelfleet.Snapshot) -> tuple[bool, bool, bool]:
    """Whether there is anything, whether its age is known, and whether it is current."""
    return snapshot.is_ready, snapshot.age < float("inf"), snapshot.is_current


async def test_it_says_that_it_is_current_and_how_old_it_is_when_it_is_not(database_url: str) -> None:
    async with registry_calls.registry(database_url) as registry:
        await populate(registry)
        snapshot = modelfleet.Snapshot(registry.address)
        assert ages(snapshot) == (False, False, False)
        with pytest.raises(RuntimeError, match="call wait_ready"):
            snapshot.baseline("ctr")
        snapshot.start()
        await ready(snapshot, max_age=5)
        assert ages(snapshot) == (True, True, True) and snapshot.problem == ""
    # The registry has gone.
    await until(lambda: snapshot.problem)
    age = snapshot.age
    await until(lambda: snapshot.age > age)
    assert snapshot.baseline("ctr") == OLD
    await asyncio.to_thread(snapshot.close)
    assert snapshot.baseline("ctr") == OLD


async def test_who_waits_in_vain_is_told_why() -> None:
    async with Following(NOWHERE) as snapshot:
        with pytest.raises(TimeoutError, match=r"the snapshot of 127\.0\.0\.1:1 is not ready after 0\.3 s: .*onnect"):
            await until(lambda: "onnect" in snapshot.problem)
            snapshot.wait_ready(0.3)


async def kept(registry: Registry, path: Path, **options: Any) -> None:
    """Leaves a file behind."""
    async with Following(registry.address, path=path, **options) as snapshot:
        await ready(snapshot, max_age=5)


async def test_it_begins_with_its_file_where_nobody_answers_and_goes_on_from_there(
    database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "below" / "fleet.snapshot"
    async with registry_calls.registry(database_url) as registry:
        await populate(registry)
        await kept(registry, path)
        newest = (await registry.ListModelTypes()).revision
    async with Following(NOWHERE, path=path) as snapshot:
        await ready(snapshot)
        assert (snapshot.baseline("ctr"), snapshot.revision) == (OLD, newest)
        assert 0 < snapshot.age < 60
        with pytest.raises(TimeoutError):
            snapshot.wait_ready(0.05, max_age=0.001)
    told: list[BaselineChange] = []
    async with registry_calls.registry(database_url) as registry:
        planned = await registry.GetModelType(name=CTR)
        ended = await registry.FinalizeLaunch(**swap(planned.revision))
        async with Following(registry.address, path=path, on_baseline=told.append) as snapshot:
            await ready(snapshot, ended.revision, max_age=5)
            assert snapshot.baseline("ctr") == NEW
    assert [(change.before, change.after) for change in told] == [(OLD, NEW)]
    assert [each.name for each in path.parent.iterdir()] == [path.name], "nothing is left beside it"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _more(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _long(path: Path) -> None:
    content = path.read_bytes()
    line = content.index(b"\n") + 1
    path.write_bytes(content[:line] + b"A\xff\xff\xff\xff" + content[line + 5 :])


@pytest.mark.parametrize(
    "damage",
    [
        _cut, _flip, _more, _long,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes().replace(b"snapshot 1", b"snapshot 2")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["cut", "flipped", "longer", "length", "empty", "version", "folder"],
)  # fmt: skip
async def test_a_file_that_cannot_be_believed_is_not_used(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    path = tmp_path / "fleet.snapshot"
    await kept(registry, path)
    damage(path)
    with caplog.at_level(logging.WARNING):
        async with Following(NOWHERE, path=path) as snapshot:
            await until(lambda: "is not used" in caplog.text)
            assert not snapshot.is_ready
        async with Following(registry.address, path=path) as snapshot:
            await ready(snapshot)
            assert snapshot.baseline("ctr") == OLD


async def test_a_file_of_other_model_types_is_not_used(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "fleet.snapshot"
    await kept(registry, path, model_types=["ctr"])
    async with Following(NOWHERE, path=path):
        await until(lambda: "limited to other model types" in caplog.text)
    async with Following(NOWHERE, path=path, model_types=[CTR]) as snapshot:
        await ready(snapshot)


async def test_a_file_of_another_registry_is_found_out(registry: Registry, postgres: Postgres, tmp_path: Path) -> None:
    path = tmp_path / "fleet.snapshot"
    await kept(registry, path)
    async with registry_calls.registry(postgres.create()) as other:
        await populate(other)
        await other.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose="another"))
        async with Following(other.address, path=path) as snapshot:
            await ready(snapshot)
            await until(lambda: getattr(snapshot.model_type("ctr"), "purpose", "") == "another")


async def test_after_a_compaction_it_loads_again(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "fleet.snapshot"
    async with registry_calls.registry(database_url) as registry:
        await populate(registry)
        await kept(registry, path)
        for number in range(3):
            ended = await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose=str(number)))
        await registry.CompactHistory(oldest_kept=ended.revision)
    with caplog.at_level(logging.INFO):
        # One that has nothing of it in memory any more.
        async with registry_calls.registry(database_url) as again, Following(again.address, path=path) as snapshot:
            await ready(snapshot, ended.revision, max_age=5)
            found = snapshot.model_type("ctr")
            assert found is not None and found.purpose == "2"
    assert "can no longer be followed: loading again" in caplog.text


async def test_asyncio_has_the_same(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.snapshot"
    told: list[BaselineChange] = []
    async with registry_calls.registry(database_url) as registry:
        await populate(registry)
        async with modelfleet.AsyncSnapshot(registry.address, path=path, on_baseline=told.append) as snapshot:
            await snapshot.wait_ready(20, max_age=5)
            assert (snapshot.baseline("ctr"), snapshot.split("ctr", "eu")) == (OLD, (Share(OLD, 10_000),))
            planned = await registry.GetModelType(name=CTR)
            ended = await registry.FinalizeLaunch(**swap(planned.revision))
            await snapshot.wait_ready(20, revision=ended.revision)
            assert snapshot.baseline("ctr") == NEW
            assert told == [BaselineChange(CTR, OLD, NEW, ended.revision)]
            with pytest.raises(TimeoutError, match="is not ready after"):
                await snapshot.wait_ready(0.05, revision=ended.revision + 1)
    async with modelfleet.AsyncSnapshot(NOWHERE, path=path) as snapshot:
        await snapshot.wait_ready(20)
        assert snapshot.baseline("ctr") == NEW
    snapshot = modelfleet.AsyncSnapshot(NOWHERE)
    await snapshot.close()


async def test_replicas_may_be_replaced_one_by_one(database_url: str) -> None:
    """Each registry takes the port of the one before, as behind one address."""
    async with registry_calls.registry(database_url) as registry:
        await populate(registry)
        address = registry.address
        snapshot = modelfleet.Snapshot(address)
        snapshot.start()
        await ready(snapshot)
    for number in range(2):
        async with registry_calls.registry(database_url, listen=address) as registry:
            made = await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose=str(number)))
            await ready(snapshot, made.revision, max_age=5)
    await asyncio.to_thread(snapshot.close)


def test_importing_the_package_does_not_load_it() -> None:
    program = """
import sys, modelfleet
assert not [name for name in sys.modules if name.startswith(("modelfleet.snapshot", "modelfleet.registry"))]
modelfleet.Snapshot, modelfleet.AsyncSnapshot
try:
    modelfleet.nothing
except AttributeError as error:
    print(error)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "module 'modelfleet' has no attribute 'nothing'\n"
