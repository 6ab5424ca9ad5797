"""Processes of a node agent: crashes, kills, restarts, orphans; of replicas, of Envoy, and of the agent itself."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import pytest

from modelfleetd.errors import ReplicaCannotStart, StaleEpoch
from modelfleetd.node.store import Store
from modelfleetd.platform.ledger import violations
from modelfleetd.platform.model import (
    DesiredModel,
    DesiredServing,
    EffectKind,
    ModelShare,
    ServingObservation,
    ServingSpec,
)
from tests.support import guardian
from tests.support.node import Load, Node, replica_spec
from tests.support.serving import CPU, NEW, OLD, TARGET, serving
from tests.support.wait import until

pytestmark = pytest.mark.faults
SPEC = replica_spec()


async def _serve_old(node: Node, replicas: int = 2) -> None:
    await node.reach(serving({OLD: replicas}, spec=SPEC))
    await node.reach(serving({OLD: replicas}, {OLD: 10_000}, SPEC))


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def _alive(processes: Mapping[str, int]) -> list[str]:
    """Those that run; one that is dead has closed its connections."""
    return [name for name, process in processes.items() if _state(process) not in ("", "Z", "X")]


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _half_closed(process: int) -> set[str]:
    """A process's connections whose other end is closed, and that it has not noticed yet."""
    rows = (row.split() for row in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:])
    closing = {f"socket:[{row[9]}]" for row in rows if row[3] == "08"}
    return closing & {str(entry.readlink()) for entry in Path(f"/proc/{process}/fd").iterdir() if entry.is_symlink()}


async def _effects(node: Node, kind: EffectKind) -> int:
    return sum(effect.kind is kind for effect in (await node.platform.effects()).effects)


async def test_a_killed_replica_is_replaced_and_its_requests_go_elsewhere(node: Node) -> None:
    await _serve_old(node)
    first = node.processes()
    async with node.caller() as caller, Load(caller, rate=100) as load:
        await until(lambda: load.count > 50)
        victim = next(name for name in first if name != "envoy")
        _kill(first[victim])

        async def replaced() -> bool:
            return await _effects(node, EffectKind.REPLICA_AVAILABLE) == 3

        await until(replaced, timeout=15)
        counted = load.count
        await until(lambda: load.count > counted + 50)
    # Only what the replica was working on when it died can fail.
    assert len(load.failures) <= 2, load.failures
    effects = (await node.platform.effects()).effects
    assert [e.kind for e in effects if e.replica == victim][-2:] == [
        EffectKind.REPLICA_LOST,
        EffectKind.REPLICA_TERMINATED,
    ]
    assert violations(effects) == []


async def test_replicas_and_traffic_go_on_while_the_agent_is_dead(node: Node) -> None:
    await _serve_old(node)
    before = node.processes()
    async with node.caller() as caller, Load(caller, rate=100) as load:
        node.kill()
        counted = load.count
        await until(lambda: load.count > counted + 100)
        await node.start()
        counted = load.count
        await until(lambda: load.count > counted + 50)
    assert load.failures == []
    assert node.processes() == before
    seen = await node.reached()
    assert seen.model(OLD).available_replicas == 2
    assert await _effects(node, EffectKind.REPLICA_STARTED) == 2


async def test_after_its_death_the_agent_goes_on_with_what_is_desired(node: Node) -> None:
    await _serve_old(node)
    await node.apply(serving({OLD: 2, NEW: 2}, {OLD: 10_000}, SPEC))
    await node.restart()
    seen = await node.reached()
    assert (seen.model(OLD).available_replicas, seen.model(NEW).available_replicas) == (2, 2)
    assert len(node.processes()) == 5
    effects = (await node.platform.effects()).effects
    assert violations(effects) == []
    # Killed again while replicas drain.
    await node.apply(serving({OLD: 1, NEW: 1}, {OLD: 10_000}, SPEC))
    await node.restart()
    await node.reached()
    assert len(node.processes()) == 3


async def test_a_raised_floor_survives_a_kill_right_after_the_answer(node: Node) -> None:
    await node.platform.observe(TARGET, 41)
    await node.restart()
    with pytest.raises(StaleEpoch):
        await node.platform.observe(TARGET, 40)


async def test_envoy_that_dies_is_started_again_and_counters_never_go_back(node: Node) -> None:
    await _serve_old(node)
    async with node.caller() as caller:
        for _ in range(50):
            await caller.ask()
        assert (await node.platform.observe(TARGET)).model(OLD).requests == 50
        _kill(node.processes()["envoy"])

        async def answers() -> bool:
            try:
                return await caller.ask(timeout=1) == OLD
            except grpc.aio.AioRpcError:
                return False

        await until(answers, timeout=15)
        for _ in range(20):
            await caller.ask()
        seen = (await node.platform.observe(TARGET)).model(OLD)
        assert seen.requests >= 70
        await node.restart()
        await caller.ask()

        async def counts_on() -> bool:
            return (await node.platform.observe(TARGET)).model(OLD).requests == seen.requests + 1

        await until(counts_on)


async def test_replicas_that_die_with_the_agent_are_written_off_and_replaced(node: Node) -> None:
    await _serve_old(node)
    node.kill()
    for name, process in node.processes().items():
        if name != "envoy":
            _kill(process)
    await node.start()

    async def recovered() -> bool:
        seen = await node.platform.observe(TARGET)
        return seen.model(OLD).available_replicas == 2 and seen.model(OLD).acknowledged_basis_points == 10_000

    await until(recovered, timeout=20)
    assert await _effects(node, EffectKind.REPLICA_TERMINATED) == 2
    async with node.caller() as caller:
        assert await caller.ask() == OLD


async def test_envoy_takes_dead_replicas_out_while_the_agent_is_dead(node: Node) -> None:
    await _serve_old(node, replicas=3)
    async with node.caller() as caller:
        node.kill()
        processes = node.processes()
        _kill(next(process for name, process in processes.items() if name != "envoy"))
        # What is under way on a connection at the moment of its end may fail: it may have been answered already.
        await until(lambda: len(_alive(processes)) == len(processes) - 1)
        await until(lambda: not _half_closed(processes["envoy"]))
        answers = [await caller.ask() for _ in range(200)]
    assert set(answers) == {OLD}


async def test_a_process_whose_start_was_never_recorded_is_ended(node: Node, test_run: str) -> None:
    node.kill()
    store = Store(node.folder / "agent.db")
    agent = store.agent_id()
    store.close()
    environment = {**os.environ, guardian.VARIABLE: test_run, "MODELFLEET_REPLICA": f"{agent}/ranker-1-99"}
    command = [sys.executable, "-c", "import time; time.sleep(300)"]
    orphan = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: ASYNC220
    await node.start()
    await until(lambda: orphan.poll() is not None)


@pytest.mark.parametrize("started", [True, False])
async def test_an_agent_that_died_between_intent_and_start_leaks_and_forgets_nothing(node: Node, started: bool) -> None:
    """Its ledger says that a replica was about to be started; the replica runs, or it does not."""
    await _serve_old(node)
    before = node.processes()
    node.kill()
    victim = next(name for name in before if name != "envoy")
    with sqlite3.connect(node.folder / "agent.db") as database:
        database.execute("UPDATE replicas SET phase = 'STARTING', pid = NULL, mark = NULL WHERE uid = ?", (victim,))
    if not started:
        _kill(before[victim])
    await node.start()
    seen = await node.reached()
    assert seen.model(OLD).available_replicas == 2
    after = node.processes()
    assert len(after) == 3
    assert (after.get(victim) == before[victim]) is started


async def test_whatever_dies_whenever_the_agent_comes_to_what_is_desired(node: Node) -> None:
    """Sixteen random acts and kills, of the agent, of Envoy and of replicas; then everything is as it was asked."""
    draw = random.Random(11)
    desired = serving({OLD: 1}, spec=SPEC)
    await node.reach(desired)
    for _ in range(16):
        match draw.choice(["act", "act", "agent", "replica", "envoy"]):
            case "act":
                desired = serving({OLD: draw.randint(1, 3), NEW: draw.randint(0, 2)}, spec=SPEC)
                await node.apply(desired)
            case "agent":
                await node.restart()
            case name:
                found = [p for n, p in node.processes().items() if (n == "envoy") is (name == "envoy")]
                if found:
                    _kill(draw.choice(found))
    seen = await node.reached(timeout=40)
    assert {m.model: m.available_replicas for m in seen.models} == {m.model: m.replicas for m in desired.models}
    assert len(node.processes()) == 1 + sum(model.replicas for model in desired.models)
    effects = (await node.platform.effects()).effects
    assert violations(effects) == []
    living = {e.replica for e in effects if e.kind is EffectKind.REPLICA_STARTED} - {
        e.replica for e in effects if e.kind is EffectKind.REPLICA_TERMINATED
    }
    assert living == set(node.processes()) - {"envoy"}


async def test_weight_is_taken_from_a_model_that_can_no_longer_be_started(node: Node, tmp_path: Path) -> None:
    program = tmp_path / "replica"
    program.symlink_to(sys.executable)
    usual = replica_spec()
    new = replace(usual, command=(str(program), *usual.command[1:]))

    def both(shares: dict[str, int]) -> DesiredServing:
        models = (DesiredModel(NEW, new, 1), DesiredModel(OLD, usual, 1))
        return DesiredServing(models, tuple(ModelShare(model, share) for model, share in shares.items()))

    await node.apply(both({}))
    await until(partial(_available, node, NEW), timeout=20)
    await until(partial(_available, node, OLD), timeout=20)
    await node.apply(both({NEW: 10_000, OLD: 0}))
    program.unlink()
    await node.apply(both({NEW: 0, OLD: 10_000}))
    assert (await node.platform.observe(TARGET)).desired == both({NEW: 0, OLD: 10_000})
    with pytest.raises(ReplicaCannotStart):
        await node.apply(
            DesiredServing((DesiredModel(NEW, new, 2), DesiredModel(OLD, usual, 1)), both({OLD: 10_000}).shares)
        )


async def _available(node: Node, model: str) -> bool:
    return (await node.platform.observe(TARGET)).model(model).available_replicas > 0


async def test_a_replica_that_cannot_start_is_refused_or_tried_again_ever_more_slowly(node: Node) -> None:
    with pytest.raises(ReplicaCannotStart):
        await node.apply(serving({OLD: 1}, spec=ServingSpec(command=("/no/such/program",), flavor=CPU)))
    await node.apply(serving({OLD: 1}, spec=replica_spec("--fail-start")))

    async def failed_thrice() -> bool:
        return await _effects(node, EffectKind.REPLICA_FAILED) >= 3

    await until(failed_thrice, timeout=20)
    seen = (await node.platform.observe(TARGET)).model(OLD)
    assert seen.available_replicas == 0
    assert seen.starting_replicas + seen.unavailable_replicas == 1
    assert seen.message
    effects = (await node.platform.effects()).effects
    assert violations(effects) == []
    starts = [e.time for e in effects if e.kind is EffectKind.REPLICA_STARTED]
    assert (starts[2] - starts[1]).total_seconds() >= 1.0
    log = next((node.folder / "replicas" / "logs").iterdir())
    assert "told to fail" in log.read_text()


async def test_a_replica_that_is_not_ready_in_time_is_given_up(node: Node) -> None:
    await node.apply(serving({OLD: 1}, spec=replica_spec("--not-ready", startup=1.0)))

    async def given_up() -> bool:
        return await _effects(node, EffectKind.REPLICA_TERMINATED) >= 1

    await until(given_up, timeout=15)
    effects = (await node.platform.effects()).effects
    assert [e.kind for e in effects if e.replica == effects[1].replica] == [
        EffectKind.REPLICA_STARTED,
        EffectKind.REPLICA_FAILED,
        EffectKind.REPLICA_TERMINATED,
    ]


async def test_a_replica_that_says_it_is_not_ready_leaves_the_rotation_until_it_is(node: Node, tmp_path: Path) -> None:
    switch = tmp_path / "unready"
    spec = replica_spec("--unready-file", str(switch))
    await node.reach(serving({OLD: 1}, spec=spec))
    await node.reach(serving({OLD: 1}, {OLD: 10_000}, spec))
    switch.touch()

    async def model() -> tuple[int, int, int]:
        seen = (await node.platform.observe(TARGET)).model(OLD)
        return seen.available_replicas, seen.unavailable_replicas, seen.acknowledged_basis_points

    async def is_out() -> bool:
        return await model() == (0, 1, 0)

    async def is_back() -> bool:
        return await model() == (1, 0, 10_000)

    await until(is_out, timeout=20)
    switch.unlink()
    await until(is_back, timeout=20)
    assert await _effects(node, EffectKind.REPLICA_STARTED) == 1


async def test_a_replica_that_ignores_sigterm_is_killed(node: Node) -> None:
    spec = replica_spec("--ignore-term", drain=0.5)
    await node.reach(serving({OLD: 1}, spec=spec))
    began = time.monotonic()
    await node.reach(serving({}, spec=spec), timeout=15)
    assert time.monotonic() - began < 8
    assert set(node.processes()) == {"envoy"}


async def test_a_model_without_replicas_hands_its_share_to_the_others_until_it_is_back(node: Node) -> None:
    slow = replica_spec("--start-delay", "2")
    await node.reach(serving({NEW: 1, OLD: 1}, spec=slow))
    await node.reach(serving({NEW: 1, OLD: 1}, {NEW: 4_000, OLD: 6_000}, slow))
    started = {e.replica: e.model for e in (await node.platform.effects()).effects if e.replica}
    _kill(next(process for name, process in node.processes().items() if started.get(name) == NEW))

    async def share_of_new() -> ServingObservation | None:
        seen = await node.platform.observe(TARGET)
        return seen if seen.model(OLD).acknowledged_basis_points == 10_000 else None

    await until(share_of_new)
    async with node.caller() as caller:
        assert {await caller.ask() for _ in range(30)} == {OLD}
        seen = await node.reached(timeout=20)

        async def restored() -> bool:
            return (await node.platform.observe(TARGET)).model(NEW).acknowledged_basis_points == 4_000

        await until(restored)
    assert seen.desired is not None
    assert seen.desired.share_of(NEW) == 4_000
    assert violations((await node.platform.effects()).effects) == []


async def test_told_to_stop_the_agent_keeps_or_ends_what_it_runs(tmp_path: Path, test_run: str) -> None:
    run = f"{test_run}-{uuid.uuid4().hex[:8]}"
    async with Node(tmp_path / "node", run) as keeping:
        await _serve_old(keeping)
        before = keeping.processes()
        assert keeping.kill(signal.SIGTERM) == 0
        assert keeping.processes() == before
    async with Node(tmp_path / "other", run, "--on-stop", "terminate") as ending:
        await _serve_old(ending)
        assert ending.kill(signal.SIGTERM) == 0
        await until(lambda: guardian.carriers(run) == [])
        await ending.start()

        async def serves_again() -> bool:
            return (await ending.platform.observe(TARGET)).model(OLD).acknowledged_basis_points == 10_000

        await until(serves_again, timeout=20)
        effects = (await ending.platform.effects()).effects
        assert violations(effects) == []


async def test_replicas_wait_for_the_machines_units(tmp_path: Path, test_run: str) -> None:
    run = f"{test_run}-{uuid.uuid4().hex[:8]}"
    async with Node(tmp_path / "node", run, "--flavor", "cpu=2") as node:
        assert [(u.flavor, u.units) for u in (await node.platform.agent()).capacity] == [(CPU, 2)]
        await node.apply(serving({OLD: 3}, spec=SPEC))

        async def two() -> bool:
            return (await node.platform.observe(TARGET)).model(OLD).available_replicas == 2

        await until(two)
        assert "wait for free units" in (await node.platform.observe(TARGET)).model(OLD).message
        await node.apply(serving({OLD: 1, NEW: 1}, spec=SPEC))
        await node.reached()
        with pytest.raises(ReplicaCannotStart):
            await node.apply(serving({OLD: 1}, spec=ServingSpec(command=SPEC.command, flavor="flavors/gpu")))


async def test_a_folder_belongs_to_one_agent(node: Node) -> None:
    command = [sys.executable, "-m", "modelfleetd", "node", "--data-dir", str(node.folder)]
    second = await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert second.returncode == 1
    assert "another agent runs" in second.stderr
    assert "Traceback" not in second.stderr
