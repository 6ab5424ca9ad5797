"""The gate from end to end: the launcher asks the real judge about what real traffic would have written."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from modelfleet import columns
from modelfleet.cli import main
from modelfleet.common.v1 import serving_pb2
from modelfleet.errors import InvalidArgument
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.clock import ManualClock
from modelfleetd.stability.app import build as build_stability
from tests.support.front_door import door
from tests.support.launcher import CTR, NEW, OLD, Fleet, another_launcher, launcher_fleet
from tests.support.servers import client_of, running

CLICKED = [1 if index % 50 == 0 else 0 for index in range(1000)]
CRITERIA = "launch.policy.stability_gate.criteria"


@asynccontextmanager
async def judged_fleet(database_url: str, score: float, **fleet_options: Any) -> AsyncIterator[Fleet]:
    """A fleet whose launcher asks the real judge; a thousand impressions come again and again, 2 % clicked."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(
            launcher_fleet(database_url, old=10, new=10, launcher=False, **fleet_options)
        )
        stability = await stack.enter_async_context(
            running("stability", build_stability, database_url, registry_address=fleet.registry.address)
        )
        launcher = await stack.enter_async_context(another_launcher(fleet, stability_address=stability.address))
        services = (*fleet.services.values(), launcher, stability)
        client = await stack.enter_async_context(client_of(*services))
        fleet = replace(fleet, client=client, launcher=launcher)
        traffic = asyncio.create_task(_traffic(fleet, score))
        try:
            yield fleet
        finally:
            traffic.cancel()
            await asyncio.gather(traffic, return_exceptions=True)


async def _traffic(fleet: Fleet, score: float) -> None:
    for sequence in itertools.count(1):
        for model, scored in ((OLD, 0.02), (NEW, score)):
            await fleet.client.stability.write_examples(
                columns.examples(
                    model_type=CTR,
                    producer=f"test-{model.rpartition('/')[2]}",
                    sequence=sequence,
                    model=model,
                    prediction="click",
                    event_time=[datetime.now(UTC)] * len(CLICKED),
                    score=[scored] * len(CLICKED),
                    label=CLICKED,
                )
            )
        # The pace of the traffic; nothing waits for it.
        await asyncio.sleep(0.2)


async def create(fleet: Fleet, **criterion: Any) -> None:
    """Creates a launch whose gate demands one thing of the clicks, and waits for as many as that takes."""
    asked = fleet.request(bake=1, policy=pb.LaunchPolicy(max_step_basis_points=10_000))
    demanded = pb.StabilityCriterion(prediction="click", include_immature=True, **criterion)
    asked.policy.stability_gate.CopyFrom(pb.StabilityGate(criteria=[demanded], max_extensions=1000))
    await fleet.client.launcher.create_launch(launch_id="l1", launch=asked)


@pytest.mark.parametrize(
    "criterion",
    [{"calibration_low": 0.4}, {"calibration_high": 3.0}, {}, {"max_ne_regression": 0.5}],
    ids=["only the lower end", "only the upper end", "no range", "compared with the baseline"],
)
async def test_a_good_candidate_passes_whatever_of_the_criterion_is_left_to_the_registry(
    database_url: str, criterion: dict[str, float]
) -> None:
    window = registry_pb2.Prediction().attribution_window
    window.FromMilliseconds(1_000)
    declared = {"calibration_range": registry_pb2.Range(low=0.5, high=2.0), "attribution_window": window}
    async with judged_fleet(database_url, 0.02, prediction=declared) as fleet:
        await create(fleet, **criterion)
        launch = await fleet.reaches(pb.Launch.SUCCEEDED, timeout=60)
        (demanded,) = launch.policy.stability_gate.criteria
        assert demanded.calibration_low == criterion.get("calibration_low", 0.5)
        assert demanded.calibration_high == criterion.get("calibration_high", 2.0)
        verdicts = [verdict.verdict for verdict in launch.gate_verdicts]
        assert serving_pb2.ERROR not in verdicts, launch.gate_verdicts
        assert verdicts[-1] == serving_pb2.PASS


async def test_a_candidate_that_predicts_four_times_too_much_goes_back(database_url: str) -> None:
    async with judged_fleet(database_url, 0.08) as fleet:
        await create(fleet, calibration_low=0.4)
        launch = await fleet.reaches(pb.Launch.ROLLED_BACK, timeout=60)
        assert launch.abort.author == "gate/stability"
        assert launch.gate_verdicts[-1].verdict == serving_pb2.FAIL
        assert "calibration of click" in launch.gate_verdicts[-1].explanation


async def test_a_launch_that_had_no_gate_is_replayed_with_one(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(judged_fleet(database_url, 0.08))
        asked = fleet.request(bake=1, policy=pb.LaunchPolicy(max_step_basis_points=10_000))
        asked.policy.stability_gate.disabled = True
        await fleet.client.launcher.create_launch(launch_id="l1", launch=asked)
        launch = await fleet.reaches(pb.Launch.SUCCEEDED, timeout=60)
        # Some minutes later.
        later = ManualClock(launch.end_time.ToDatetime(tzinfo=UTC) + timedelta(minutes=3))
        registry = fleet.services["registry"]
        judge = await stack.enter_async_context(
            running("stability", build_stability, database_url, clock=later, registry_address=registry.address)
        )
        addresses = {"registry": registry.address, "launcher": fleet.launcher.address, "stability": judge.address}
        address = await stack.enter_async_context(door(tmp_path, addresses))
        demanded = ("--calibration", "0.5..2", "--step", "1m")
        command = ["stability", "replay", "--launch", "l1", *demanded, "--address", address]
        assert await asyncio.to_thread(main, command) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("ctr/new against old, ")
        assert "from the first traffic of launches/l1, which ended as SUCCEEDED" in printed
        assert re.search(r"Would have failed at .* UTC, [12] min after the start: calibration of click is 4 ", printed)
        assert await asyncio.to_thread(main, [*command, "--baseline", "old"]) == 1
        assert "a launch says itself which model, baseline and times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("criterion", "serving", "field"),
    [
        ({"prediction": "unknown"}, True, "[0].prediction"),
        ({"prediction": "click", "max_ne_regression": 0.1}, False, "[0].max_ne_regression"),
        ({"prediction": "click", "calibration_low": 2.5}, True, "[0].calibration_low"),
        ({"prediction": "click", "calibration_high": 0.2}, True, "[0].calibration_high"),
    ],
)
async def test_what_could_never_be_judged_is_refused_when_the_launch_is_created(
    database_url: str, criterion: dict[str, Any], serving: bool, field: str
) -> None:
    async with launcher_fleet(database_url, old=10, new=10, serving=serving) as fleet:
        asked = fleet.request()
        asked.policy.stability_gate.CopyFrom(pb.StabilityGate(criteria=[pb.StabilityCriterion(**criterion)]))
        with pytest.raises(InvalidArgument) as raised:
            await fleet.client.launcher.create_launch(launch_id="l1", launch=asked)
        assert [violation.field for violation in raised.value.violations] == [CRITERIA + field]
