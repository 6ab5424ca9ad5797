"""Traffic through a real Envoy to real replicas: who answers, what is counted, and that nothing fails."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest

from modelfleetd.node.admin import Admin
from modelfleetd.platform.ledger import violations
from modelfleetd.platform.model import EffectKind, Fence, ServingObservation, TargetKind
from tests.support.node import Load, Node, replica_spec
from tests.support.serving import NEW, OLD, TARGET, serving
from tests.support.wait import until

SPEC = replica_spec()


async def _counted(node: Node, requests: dict[str, int]) -> ServingObservation:
    """Waits until the agent has counted so many requests of each model: it reads the proxy's numbers now and then."""

    async def counted() -> ServingObservation | None:
        seen = await node.platform.observe(TARGET)
        return seen if all(seen.model(model).requests >= count for model, count in requests.items()) else None

    found: ServingObservation | None = await until(counted)
    assert found is not None
    assert {model: found.model(model).requests for model in requests} == requests
    return found


async def _in_flight(node: Node, requests: int) -> None:
    """Waits until replicas work on so many requests."""
    admin = Admin(str(node.folder / "envoy" / "admin.sock"))

    async def arrived() -> bool:
        clusters = (await admin.clusters()).values()
        return sum(host.active for cluster in clusters for host in cluster.hosts.values()) == requests

    await until(arrived)


async def test_traffic_follows_the_weights_and_answers_are_marked(node: Node) -> None:
    await node.reach(serving({NEW: 1, OLD: 1}, spec=SPEC))
    await node.reach(serving({NEW: 1, OLD: 1}, {NEW: 3_000, OLD: 7_000}, SPEC))
    async with node.caller() as caller:
        answers = [await caller.ask() for _ in range(2_000)]
    # Five standard deviations of 2,000 draws are 5.1 percentage points.
    assert abs(answers.count(NEW) - 600) < 103
    seen = await _counted(node, {NEW: answers.count(NEW), OLD: answers.count(OLD)})
    assert seen.model(NEW).requests_since_split == answers.count(NEW)
    assert seen.model(NEW).observed_basis_points == round(10_000 * answers.count(NEW) / 2_000)


async def test_with_a_split_key_nobody_moves_back_as_a_model_grows(node: Node) -> None:
    """For any growing shares: the same key gives the same model, and who has moved to the new one stays there."""
    await node.reach(serving({NEW: 1, OLD: 1}, spec=SPEC))
    draw = random.Random(4)
    keys = [f"user-{draw.getrandbits(64):x}" for _ in range(150)]
    async with node.caller() as caller:

        async def moved() -> set[str]:
            answers = await asyncio.gather(*(caller.ask(key=key) for key in keys))
            return {key for key, model in zip(keys, answers, strict=True) if model == NEW}

        for _ in range(3):
            before: set[str] = set()
            for share in sorted(draw.sample(range(1, 10_001), 6)):
                shares = {NEW: share, OLD: 10_000 - share} if share < 10_000 else {NEW: share}
                await node.reach(serving({NEW: 1, OLD: 1}, shares, SPEC))
                now = await moved()
                assert now == await moved()
                assert before <= now
                assert abs(len(now) - len(keys) * share / 10_000) < 5 * (len(keys) / 4) ** 0.5
                before = now


async def test_requests_that_name_a_model_reach_it_and_count_in_no_share(node: Node) -> None:
    await node.reach(serving({NEW: 1, OLD: 1}, spec=SPEC))
    await node.reach(serving({NEW: 1, OLD: 1}, {OLD: 10_000}, SPEC))
    async with node.caller() as caller:
        assert {await caller.ask(model=NEW) for _ in range(20)} == {NEW}
        assert await caller.ask() == OLD
        with pytest.raises(grpc.aio.AioRpcError):
            await caller.ask(model="modelTypes/ranker/models/none")
    await _counted(node, {NEW: 0, OLD: 1})


async def test_a_load_test_gets_only_what_is_addressed_to_it(node: Node) -> None:
    target = "targets/loadtest-1"
    await node.reach(serving({OLD: 1}, spec=SPEC))
    await node.reach(serving({OLD: 1}, {OLD: 10_000}, SPEC))
    await node.platform.apply(target, TargetKind.LOAD_TEST, Fence(1, "load"), serving({NEW: 1}, spec=SPEC))
    await node.reached(target)
    async with node.caller() as caller:
        assert await caller.ask(model=NEW, model_type="loadtest-1") == NEW
        with pytest.raises(grpc.aio.AioRpcError):
            await caller.ask(model_type="loadtest-1")
        assert {await caller.ask() for _ in range(20)} == {OLD}


async def test_errors_are_answers_whose_grpc_status_is_not_ok(node: Node) -> None:
    await node.reach(serving({OLD: 1}, spec=replica_spec("--error-rate", "0.5")))
    await node.reach(serving({OLD: 1}, {OLD: 10_000}, replica_spec("--error-rate", "0.5")))
    async with node.caller() as caller:
        outcomes = await asyncio.gather(*(caller.ask() for _ in range(100)), return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert {error.code() for error in errors} == {grpc.StatusCode.INTERNAL}
    failed = len(errors)
    seen = (await _counted(node, {OLD: 100})).model(OLD)
    assert 20 < failed < 80
    assert (seen.errors, seen.errors_since_split) == (failed, failed)


async def test_latencies_are_those_of_the_proxys_last_interval(node: Node) -> None:
    spec = replica_spec("--delay", "0.02")
    await node.reach(serving({OLD: 1}, spec=spec))
    await node.reach(serving({OLD: 1}, {OLD: 10_000}, spec))
    async with node.caller() as caller, Load(caller, rate=50):

        async def measured() -> float | None:
            return (await node.platform.observe(TARGET)).model(OLD).latency_p50_ms

        median = await until(measured, timeout=15)
    assert median is not None
    assert 18 <= median <= 60


async def test_requests_for_a_route_without_shares_are_refused_and_counted(node: Node) -> None:
    await node.reach(serving({OLD: 1}, spec=SPEC))
    async with node.caller() as caller:
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await caller.ask()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await caller.ask(model_type="nobody")
        assert "x-modelfleet-model-type" in str(unknown.value.details())

    async def unrouted() -> bool:
        return (await node.platform.observe(TARGET)).unrouted_errors == 3

    await until(unrouted)


async def test_no_request_fails_while_a_model_is_swapped_under_load(node: Node) -> None:
    spec = replica_spec("--delay", "0.01")
    await node.reach(serving({OLD: 2}, spec=spec))
    await node.reach(serving({OLD: 2}, {OLD: 10_000}, spec))
    async with node.caller() as caller, Load(caller, rate=150) as load:
        for share, new, old in ((2_000, 1, 2), (5_000, 1, 1), (8_000, 2, 1), (10_000, 2, 0)):
            before = (await node.platform.observe(TARGET)).desired
            assert before is not None
            shares = {s.model: s.share_basis_points for s in before.shares}
            await node.reach(serving({NEW: new, OLD: max(1, before.replicas_of(OLD))}, shares, spec))
            after = {NEW: share, OLD: 10_000 - share} if share < 10_000 else {NEW: share}
            await node.reach(serving({NEW: new, OLD: max(1, before.replicas_of(OLD))}, after, spec))
            await node.reach(serving({NEW: new, OLD: old} if old else {NEW: new}, after, spec))
        counted = load.count
        await until(lambda: load.count > counted + 100)
    assert load.failures == []
    assert load.answers[NEW] > 0
    assert load.answers[OLD] > 0
    effects = (await node.platform.effects()).effects
    assert violations(effects) == []
    await _counted(node, {NEW: load.answers[NEW]})
    assert sum(effect.kind is EffectKind.REPLICA_TERMINATED for effect in effects) == 2


async def test_a_draining_replica_finishes_what_it_has(node: Node) -> None:
    spec = replica_spec("--delay", "1.5", drain=10)
    await node.reach(serving({OLD: 2}, spec=spec))
    await node.reach(serving({OLD: 2}, {OLD: 10_000}, spec))
    async with node.caller() as caller:
        calls = [asyncio.create_task(caller.ask()) for _ in range(10)]
        await _in_flight(node, 10)
        await node.reach(serving({OLD: 1}, {OLD: 10_000}, spec))
        assert set(await asyncio.gather(*calls)) == {OLD}


async def test_a_drain_ends_at_its_timeout(node: Node) -> None:
    spec = replica_spec("--delay", "30", drain=0.5)
    await node.reach(serving({OLD: 1, NEW: 1}, spec=spec))
    await node.reach(serving({OLD: 1, NEW: 1}, {OLD: 10_000}, spec))
    async with node.caller() as caller:
        call = asyncio.create_task(caller.ask(timeout=20))
        await _in_flight(node, 1)
        await node.reach(serving({NEW: 1, OLD: 1}, {NEW: 10_000}, spec))
        await node.reach(serving({NEW: 1}, {NEW: 10_000}, spec), timeout=15)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
