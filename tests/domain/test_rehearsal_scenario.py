"""What people write to rehearse a launch: files that are understood, and what is said of those that are not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from modelfleetd.launcher.domain.launch import Strategy
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.scenario import Moment, Scenario, ScenarioInvalid, parse
from modelfleetd.rehearsal.single import as_data, rehearse

EXAMPLES = Path(__file__).parents[2] / "services/modelfleetd/rehearsal/examples"
SMALL = "launch: {old: 10, new: 8, spare: 4, bake: 30s, stability_gate: false}\n"


def _scenario(text: str) -> Scenario:
    found = parse(text)
    assert isinstance(found, Scenario)
    return found


def test_both_examples_are_understood() -> None:
    launch = parse((EXAMPLES / "launch.yaml").read_text())
    assert isinstance(launch, Scenario)
    assert (launch.old, launch.new, launch.spare, len(launch.accidents)) == (500, 420, 84, 3)
    assert launch.accidents[0].at == Moment(step=2) and launch.accidents[1].seconds == 120
    fleet = parse((EXAMPLES / "fleet.yaml").read_text(), seed=9)
    assert isinstance(fleet, FleetPlan) and (fleet.types, fleet.seed) == (20, 9)


def test_everything_that_is_wrong_is_said_at_once_with_its_line() -> None:
    text = "launch:\n  old: ten\n  new: 8\n  stepp: 20%\naccidents:\n- at: noon\n  what: flood\npeople: nobody\n"
    with pytest.raises(ScenarioInvalid) as raised:
        parse(text)
    said = str(raised.value).splitlines()
    assert [line.split(":")[0] for line in said] == ["line 2", "line 4", "line 6", "line 7", "line 8"]
    assert "a number of replicas" in said[0] and "stepp is not known; there are: old, new" in said[1]
    assert "such as step 3" in said[2] and "no-machines" in said[3]


@pytest.mark.parametrize("text", ["", "[]", "launch: [", "launch: {old: 3}", "launch: 3", "fleet: {types: 0}"])
def test_what_is_no_scenario_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ScenarioInvalid):
        parse(text)


def test_a_plan_of_several_regions_is_refused_and_one_of_one_is_taken() -> None:
    region = {"new_replicas_full": 8, "old_replicas_full": 10, "free_units": "4"}
    plan = {"candidate": "c", "strategy": "REPLACE_BASELINE", "policy": {"bake_duration": "30s"}}
    found = _scenario(str({**plan, "plan": {"regions": [region]}}))
    assert (found.old, found.new, found.spare, found.strategy) == (10, 8, 4, Strategy.REPLACE_BASELINE)
    assert found.policy.bake_duration.total_seconds() == 30
    with pytest.raises(ScenarioInvalid, match="2 regions"):
        parse(str({**plan, "plan": {"regions": [region, region]}}))


def test_the_same_seed_is_the_same_trace_and_another_seed_is_another() -> None:
    scenario = _scenario(SMALL + "machines: {start_failures: 10%}\n")
    other = parse(SMALL + "machines: {start_failures: 10%}\n", seed=1)
    assert isinstance(other, Scenario)
    first, again, another = (as_data(asyncio.run(rehearse(each))) for each in (scenario, scenario, other))
    assert first == again and first["trace"] != another["trace"]
    assert first["state"] == "SUCCEEDED" and first["broken_promises"] == []
    assert first["peak_units"] <= first["hold_units"] == 12


@pytest.mark.parametrize(
    ("what", "ends"),
    [
        ("what: kill, replicas: 3, of: old", "SUCCEEDED"),
        ("what: no-machines, for: 2m", "SUCCEEDED"),
        ("what: no-machines, for: 2d", "ROLLED_BACK"),
        ("what: agent-away, for: 5m", "SUCCEEDED"),
        ("what: launcher-crashes, for: 5m", "SUCCEEDED"),
        ("what: candidate-fails, rate: 20%, for: 1h", "ROLLED_BACK"),
        ("what: candidate-slow, factor: 3, for: 1h", "ROLLED_BACK"),
    ],
)
def test_an_accident_ends_as_it_should_and_breaks_no_promise(what: str, ends: str) -> None:
    report = asyncio.run(rehearse(_scenario(SMALL + f"accidents:\n- {{at: step 2, {what}}}\n")))
    assert report.state == ends, report.sentence
    assert list(report.broken) == []
    assert [line.kind for line in report.lines].count("accident") == 1


def test_somebody_aborts() -> None:
    report = asyncio.run(rehearse(_scenario(SMALL + "people:\n- {at: step 2, do: abort}\n")))
    assert report.state == "ROLLED_BACK" and "it looks bad" in report.sentence
    assert report.points[-1].old_share == 10_000 and report.points[-1].new_replicas == 0
