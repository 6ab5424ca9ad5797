"""What people write to rehearse a launch: files that are understood, and what is said of those that are not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from modelfleet.launcher.v1 import gates_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.launcher.domain.policy import Approval
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.scenario import Moment, Scenario, ScenarioInvalid, parse
from modelfleetd.rehearsal.single import as_data, rehearse

EXAMPLES = Path(__file__).parents[2] / "services/modelfleetd/rehearsal/examples"
SMALL = "launch: {old: 10, new: 8, spare: 4, bake: 30s, stability_gate: false}\n"
JUDGED = """launch: {{old: 2, new: 2, spare: 2, bake: 5m, step: 50%}}
machines: {{requests_per_second: {}}}
candidate: {{{}}}
"""


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


def _plan(regions: int = 1, **policy: Any) -> str:
    """What `launch plan -o json` prints, made by the messages that it is made of."""
    launch = pb.Launch(
        model_type="modelTypes/ctr",
        candidate="modelTypes/ctr/models/new",
        strategy=pb.Launch.REPLACE_BASELINE,
        policy=pb.LaunchPolicy(**policy),
    )
    for _ in range(regions):
        region = launch.plan.regions.add(old_replicas_full=4, new_replicas_full=3, free_units=6)
        region.steps.add(old_replicas_before=4, new_replicas=1, peak_units=10)
    return json_format.MessageToJson(launch, preserving_proto_field_name=True)


def test_a_plan_of_several_regions_is_refused_and_what_no_plan_has_too() -> None:
    with pytest.raises(ScenarioInvalid, match=r"2 regions.*--region REGION"):
        parse(_plan(2))
    with pytest.raises(ScenarioInvalid, match=r"cannot be read.*max_stepps"):
        parse(_plan().replace('"policy": {', '"policy": {"max_stepps": 3'))


def test_a_plans_policy_is_taken_over_and_what_is_left_out_of_it_is_said() -> None:
    found = _scenario(
        _plan(
            launch_deadline=timedelta(hours=3),
            availability_gate=gates_pb2.AvailabilityGate(max_latency_p99_ms=40, dry_run=True),
            stability_gate=pb.StabilityGate(max_extensions=1, criteria=[pb.StabilityCriterion(prediction="click")]),
            approval=pb.LaunchPolicy.REQUIRED,
            webhook_gates=[gates_pb2.WebhookGate(webhook="change-board")],
            people_gates=[gates_pb2.PeopleGate(reason="half of it", after_share_basis_points=5_000)],
        )
    )
    policy = found.policy
    assert policy.launch_deadline == timedelta(hours=3) and policy.stability_gate.extensions == 1
    assert policy.availability_gate.max_latency_p99_ms == 40 and policy.availability_gate.dry_run
    assert (policy.approval, policy.webhook_gates, policy.people_gates) == (Approval.AUTOMATIC, (), ())
    assert (found.old, found.new, found.spare) == (4, 3, 3)
    said = "\n".join(found.notes)
    for left_out in ("approval", "change-board", "50 % (half of it)", "evidence", "criteria", "units"):
        assert left_out in said


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


@pytest.mark.parametrize(
    ("candidate", "ends"),
    [
        ("calibration: 1.6", "calibration of click is 1.6"),
        ("labels: 0%", "or its labels are lost"),
        ("labels_late: 30m", "or its labels are lost"),
    ],
)
def test_a_candidate_that_is_miscalibrated_or_whose_labels_do_not_come_goes_back(candidate: str, ends: str) -> None:
    report = asyncio.run(rehearse(_scenario(JUDGED.format(200, candidate))))
    assert report.state == "ROLLED_BACK" and "gate/stability" in report.sentence and ends in report.sentence
    assert list(report.broken) == []


def test_labels_that_are_a_little_late_and_those_that_are_in_time_lead_to_success() -> None:
    for candidate in ("labels_late: 20s", "labels: 100%"):
        report = asyncio.run(rehearse(_scenario(JUDGED.format(200, candidate))))
        assert report.state == "SUCCEEDED", report.sentence


def test_where_some_labels_are_lost_and_evidence_is_scarce_it_waits_for_people() -> None:
    text = JUDGED.format(2, "labels: 80%") + "people:\n- {at: 30m, do: abort}\n"
    report = asyncio.run(rehearse(_scenario(text)))
    told = [line.text for line in report.lines if line.kind == "told"]
    assert "paused by gate/stability" in told[0] and report.state == "ROLLED_BACK" and "oncall" in report.sentence


def test_limits_of_the_launcher_hold_for_a_scenario_too() -> None:
    with pytest.raises(ScenarioInvalid, match=r"line 3: launch.deadline must be 1 min to 90 d"):
        parse("launch:\n  old: 2\n  deadline: 2s\n  new: 2\n")
