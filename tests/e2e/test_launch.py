"""One launch from end to end: `modelfleetd up`, real Envoy, real processes, real traffic."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from modelfleet.cli import main
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.registry.v1 import registry_pb2
from tests.support.chance import chosen
from tests.support.wait import until
from tests.support.whole import NEW, OLD, POOL, REGION, TYPE, Whole, whole

# Among the faults, so that all cases are seen by `make faults`; one of them is drawn otherwise.
pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Case:
    """A candidate that the availability gate judges: how its servers behave, and what becomes of its launch.

    Args:
        model: its name.
        flags: of its servers (`tests/support/oip_server.py`); a good one has none.
        rate: of the route, requests a second. Latencies are compared from 1,000 requests on each side on.
        bake: seconds of each step.
        shown: what `launch describe` says of the verdict that decides, its figures among it.
    """

    model: str
    flags: tuple[str, ...]
    rate: float
    bake: float
    shown: tuple[str, ...]


FAILING = ("FAIL", "where at most 5 % may fail", "candidate.error_rate.low 0.")
CASES = [
    Case(f"{TYPE}/models/slow", ("--delay", "0.5"), 250.0, 20.0, ("FAIL", "50% more are allowed", "slow_looks 3")),
    Case(f"{TYPE}/models/failing", ("--error-rate", "0.3"), 80.0, 8.0, FAILING),
    # The last one, since it takes over.
    Case(f"{TYPE}/models/good", (), 80.0, 4.0, ("PASS", "of the candidate 0 of", "candidate.error_rate 0,")),
]


async def test_a_candidate_is_taken_back_takes_over_without_a_failed_request_and_others_are_judged_by_how_they_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with whole() as everything:
        await everything.register(old=5, new=4, spare=2)
        first = await everything.ended(await everything.launch(OLD, "first"))
        assert first.state == launcher_pb2.Launch.SUCCEEDED, first.summary
        await _is_taken_back_in_the_middle(everything)
        await _takes_over(everything)
        for case in chosen(CASES, 1):
            await _is_judged_beside_the_baseline(everything, case, capsys)


async def _is_taken_back_in_the_middle(everything: Whole) -> None:
    before = len(await everything.effects())
    async with everything.traffic() as traffic:
        name = await everything.launch(NEW, "aborted", bake=60.0)
        await until(lambda: traffic.answered[NEW] > 10, timeout=40)
        await everything.client.launcher.abort_launch(name=name, reason="the reader changed their mind")
        launch = await everything.ended(name)
    assert launch.state == launcher_pb2.Launch.ROLLED_BACK, launch.summary
    assert not traffic.failed
    assert await everything.broken_promises(launch, before) == []
    assert (await everything.client.registry.get_model_type(name=TYPE)).baseline == OLD
    (usage,) = (await everything.client.capacity.get_pool(name=POOL)).usages
    assert (usage.serving_units, usage.held_units, usage.available_units) == (5, 0, 2)


async def _takes_over(everything: Whole) -> None:
    before = len(await everything.effects())
    async with everything.traffic() as traffic:
        await until(lambda: traffic.answered[OLD] > 20)
        launch = await everything.ended(await everything.launch(NEW, "second", bake=1.0))
        await until(lambda: traffic.answered[NEW] > 20)
    assert launch.state == launcher_pb2.Launch.SUCCEEDED, launch.summary
    assert not traffic.failed
    assert await everything.broken_promises(launch, before) == []
    assert len(launch.plan.regions[0].steps) > 1, "with two spare replicas it must recycle"

    # Registry, capacity and platform agree.
    model_type = await everything.client.registry.get_model_type(name=TYPE)
    assert model_type.baseline == NEW
    assert [(s.model, s.share_basis_points) for s in model_type.splits[0].shares if s.share_basis_points] == [
        (NEW, 10_000)
    ]
    roles = {m.name: m.role for m in (await everything.client.registry.list_models(parent=TYPE)).models}
    assert roles == {OLD: registry_pb2.Model.RETIRED, NEW: registry_pb2.Model.BASELINE}
    (usage,) = (await everything.client.capacity.get_pool(name=POOL)).usages
    assert (usage.serving_units, usage.held_units, usage.retained_units, usage.available_units) == (4, 0, 0, 3)
    revision = await everything.client.registry.get_revision(name=f"revisions/{launch.revision}")
    assert revision.launch == launch.name
    assert await everything.most_units() <= 7


async def _is_judged_beside_the_baseline(everything: Whole, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    await everything.add_model(case.model, 2, *case.flags)
    before = len(await everything.effects())
    async with everything.traffic(case.rate) as traffic:
        await until(lambda: traffic.answered[NEW] > 20)
        name = await everything.launch(case.model, case.model.rsplit("/", 1)[1], max_step=5_000, bake=case.bake)
        launch = await everything.ended(name, timeout=200)
    baseline = (await everything.client.registry.get_model_type(name=TYPE)).baseline
    # At the first step, where both sides have half of the traffic.
    decided = [verdict for verdict in launch.gate_verdicts if verdict.step == 1][-1]
    assert (decided.gate, decided.region) == ("availability", REGION)
    assert decided.figures["baseline.requests"] > 0 and decided.figures["baseline.errors"] == 0
    if case.flags:
        assert launch.state == launcher_pb2.Launch.ROLLED_BACK, launch.summary
        assert launch.abort.author == "gate/availability" and launch.current_step == 1
        assert (decided.verdict, baseline) == (serving_pb2.FAIL, NEW)
    else:
        assert launch.state == launcher_pb2.Launch.SUCCEEDED, launch.summary
        assert (decided.verdict, baseline) == (serving_pb2.PASS, case.model)
    assert not traffic.failed or "--error-rate" in case.flags
    assert await everything.broken_promises(launch, before) == []

    capsys.readouterr()
    asked = ["launch", "describe", name.removeprefix("launches/"), "--address", everything.system.address]
    assert await asyncio.to_thread(main, asked) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(figure in shown for figure in case.shown), shown
