"""What people write to rehearse a launch: files that are understood, and what is said of those that are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import gates_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.launcher.domain.policy import Approval
from modelfleetd.launcher.wire.launches import launch_to_proto
from modelfleetd.rehearsal.files import parse
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.reading import ScenarioInvalid
from modelfleetd.rehearsal.report import Report, as_data
from modelfleetd.rehearsal.scenario import Moment, Place, Scenario
from modelfleetd.rehearsal.single import Rehearsal, rehearse
from modelfleetd.stability.domain.criteria import Limits

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


def test_every_example_is_understood() -> None:
    launch = parse((EXAMPLES / "launch.yaml").read_text())
    assert isinstance(launch, Scenario)
    (place,) = launch.places
    assert (place.old, place.new, place.spare, len(launch.accidents)) == (500, 420, {"flavors/cpu": 84}, 3)
    assert launch.accidents[0].at == Moment(step=2) and launch.accidents[1].seconds == 120
    regions = parse((EXAMPLES / "regions.yaml").read_text())
    assert isinstance(regions, Scenario)
    assert [(place.region, place.new) for place in regions.places] == [("regions/us", 12), ("regions/eu", 6)]
    fleet = parse((EXAMPLES / "fleet.yaml").read_text(), seed=9)
    assert isinstance(fleet, FleetPlan) and (fleet.types, fleet.seed) == (20, 9)


def test_everything_that_is_wrong_is_said_at_once_with_its_line() -> None:
    text = "launch:\n  old: ten\n  new: 8\n  stepp: 20%\naccidents:\n- at: noon\n  what: flood\npeople: nobody\n"
    with pytest.raises(ScenarioInvalid) as raised:
        parse(text)
    said = str(raised.value).splitlines()
    assert [line.split(":")[0] for line in said] == ["line 2", "line 4", "line 6", "line 7", "line 8"]
    assert "a number of replicas" in said[0] and "stepp is not known (is it step?); there are: " in said[1]
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
    launch.plan.gates.append("stability: as it says")
    for at in range(regions):
        region = launch.plan.regions.add(
            region=f"regions/r{at}",
            new_model="modelTypes/ctr/models/new",
            old_model="modelTypes/ctr/models/old",
            new_flavor="flavors/gpu",
            old_flavor="flavors/cpu",
            old_replicas_full=4,
            new_replicas_full=3,
            new_units_per_replica=2,
            old_units_per_replica=1,
            old_share_before_basis_points=10_000,
        )
        region.holds.add(flavor="flavors/cpu", free_units=1, hold_units=4, moved_units=4)
        region.holds.add(flavor="flavors/gpu", free_units=6, hold_units=6, extra_units=6)
        region.steps.add(old_replicas_before=4, new_replicas=3, peak_units=10, share_basis_points=10_000)
    return json_format.MessageToJson(launch, preserving_proto_field_name=True)


def test_what_no_plan_has_is_refused_and_what_is_no_plan_has_nothing_beside_it() -> None:
    with pytest.raises(ScenarioInvalid, match=r"cannot be read.*max_stepps"):
        parse(_plan().replace('"policy": {', '"policy": {"max_stepps": 3'))
    with pytest.raises(ScenarioInvalid, match="this is no plan"):
        parse(SMALL, beside="seed: 3\n")
    with pytest.raises(ScenarioInvalid, match=r"line 1: launch is not known"):
        parse(_plan(), beside=SMALL)


def test_a_plan_is_taken_over_and_what_it_does_not_know_is_said() -> None:
    plan = _plan(
        2,
        launch_deadline=timedelta(hours=3),
        availability_gate=gates_pb2.AvailabilityGate(max_latency_p99_ms=40, dry_run=True),
        stability_gate=pb.StabilityGate(
            max_extensions=1, criteria=[pb.StabilityCriterion(prediction="buy", calibration_low=0.9, min_positives=7)]
        ),
        approval=pb.LaunchPolicy.REQUIRED,
        webhook_gates=[gates_pb2.WebhookGate(webhook="change-board")],
        people_gates=[gates_pb2.PeopleGate(reason="half of it", after_share_basis_points=5_000)],
    )
    found = _scenario(plan)
    policy = found.policy
    assert policy.launch_deadline == timedelta(hours=3) and policy.stability_gate.extensions == 1
    assert policy.availability_gate.max_latency_p99_ms == 40 and policy.availability_gate.dry_run
    assert policy.approval is Approval.REQUIRED and policy.webhook_gates and policy.people_gates
    spare = {"flavors/cpu": 1, "flavors/gpu": 6}
    assert found.places == tuple(
        Place(f"regions/r{at}", 4, 3, spare, old_share=10_000, new_share=0, old_running=4, new_running=0)
        for at in range(2)
    )
    assert (found.old_model.units, found.new_model.units) == (1, 2)
    (buy,) = found.predictions
    assert (buy.id, buy.calibration.low, buy.min_positives) == ("buy", 0.9, 7)
    about = {note.about for note in found.notes}
    assert about == {"machines", "predictions", "candidate", "approval", "people", "webhook/change-board"}
    under_way = json_format.Parse(plan, pb.Launch())
    under_way.progress.add(region="regions/r0")
    more_notes = _scenario(json_format.MessageToJson(under_way, preserving_proto_field_name=True)).notes
    assert {note.about for note in more_notes} == about | {"standing"}
    # Whatever is said beside it is assumed no more.
    beside = """machines: {start: 5s}
candidate: {labels: 100%}
predictions:
- {id: buy, window: 1m, positives: 20%}
answers:
- {gate: approval, after: 5m}
- {gate: people, says: reject}
- {gate: webhook/change-board, says: fail}
"""
    more = parse(plan, 3, beside)
    assert isinstance(more, Scenario) and not more.notes
    assert (more.seed, more.predictions[0].rate, more.predictions[0].min_positives) == (3, 0.2, 7)
    with pytest.raises(ScenarioInvalid, match=r"no gate evidence; it has: webhook/change-board, approval, people"):
        parse(plan, beside="answers:\n- {gate: evidence, says: fail}\n")


def test_tier_demand_and_predictions_are_those_of_the_plan_and_what_is_assumed_says_how_to_say_otherwise() -> None:
    launch = json_format.Parse(_plan(2), pb.Launch())
    launch.tier = serving_pb2.TIER1
    for region, demand in zip(launch.plan.regions, (30.0, 70.0), strict=True):
        region.demand_qps = demand
    made = launch.plan.predictions.add(prediction="like", calibration_low=0.9, calibration_high=1.1, min_positives=40)
    made.attribution_window.FromTimedelta(timedelta(minutes=20))
    plan = json_format.MessageToJson(launch, preserving_proto_field_name=True)
    found = _scenario(plan)
    assert found.tier == "TIER1" and found.policy.rollback_window == timedelta(hours=24)
    assert [place.demand for place in found.places] == [30.0, 70.0]
    (like,) = found.predictions
    assert (like.id, like.window, like.calibration, like.min_positives) == (
        "like",
        timedelta(minutes=20),
        Limits(0.9, 1.1),
        40,
    )
    said = [str(note) for note in found.notes]
    assert any("peak of 100 requests a second" in line for line in said)
    assert any(line.endswith("--with says otherwise: predictions: [{id: like, positives: 2%}]") for line in said)
    # Each of them is one that a second file takes.
    for instead in (note.instead for note in found.notes):
        more = parse(plan, beside=instead)
        assert isinstance(more, Scenario) and len(more.notes) < len(found.notes)
        carried = [0.0, 0.0] if "requests_per_second" in instead else [30.0, 70.0]
        assert [place.demand for place in more.places] == carried


def _rehearsed(text: str) -> Report:
    report = asyncio.run(rehearse(_scenario(text)))
    assert list(report.broken) == []
    return report


def _ends(report: Report) -> list[tuple[int, int, int, int]]:
    """By region: shares and replicas of both models at the end."""
    return [
        (point.new_share, point.old_share, point.new_replicas, point.old_replicas)
        for point in (region.points[-1] for region in report.regions)
    ]


@pytest.mark.parametrize(
    ("launch", "end"),
    [
        ("strategy: start-experiment, share: 20%", (2_000, 8_000, 2, 8)),
        ("strategy: ramp, from: 10%, share: 40%", (4_000, 6_000, 4, 6)),
        ("strategy: ramp, from: 40%, share: 10%", (1_000, 9_000, 2, 9)),
        ("strategy: end-experiment, from: 40%", (0, 10_000, 0, 10)),
        ("strategy: resize", (10_000, 0, 8, 0)),
        ("strategy: roll-back", (10_000, 0, 8, 0)),
        ("new_flavor: gpu, new_units: 2, spare_old: 0", (10_000, 0, 8, 0)),
    ],
)
def test_each_strategy_is_rehearsed_to_its_end(launch: str, end: tuple[int, int, int, int]) -> None:
    """Where it begins: ten replicas of the old model, which is all there is, or what it has beside an experiment."""
    gate = "" if "end-" in launch or "re" in launch[:12] or "roll" in launch else "stability_gate: false, "
    report = _rehearsed(f"launch: {{old: 10, new: 8, spare: 16, bake: 30s, step: 50%, {gate}{launch}}}\n")
    assert report.state == "SUCCEEDED", report.sentence
    assert _ends(report) == [end]
    assert all(units.peak <= units.hold for region in report.regions for units in region.units)


REGIONS = """launch:
  bake: 30s
  step: 50%
  stability_gate: false
  region_order: {}
  regions:
  - {{name: us, old: 6, new: 5, spare: 6}}
  - {{name: eu, old: 4, new: 3, spare: 4}}
"""


def test_regions_go_one_after_another_the_one_with_the_least_traffic_first() -> None:
    report = _rehearsed(REGIONS.format("one-by-one"))
    assert [(there.region, there.wave) for there in report.regions] == [("regions/eu", 1), ("regions/us", 2)]
    assert _ends(report) == [(10_000, 0, 3, 0), (10_000, 0, 5, 0)]
    began = [next(point.seconds for point in there.points if point.new_share) for there in report.regions]
    done = [next(point.seconds for point in there.points if point.new_share == 10_000) for there in report.regions]
    assert began[1] > done[0]


@pytest.mark.parametrize("order", ["one-by-one", "together"])
def test_a_failure_in_one_region_halts_the_launch_and_takes_every_region_back(order: str) -> None:
    accident = "accidents:\n- {at: step 1, region: us, what: candidate-fails, rate: 30%, for: 2h}\n"
    report = _rehearsed(REGIONS.format(order) + accident)
    assert report.state == "ROLLED_BACK" and "gate/availability" in report.sentence
    assert _ends(report) == [(0, 10_000, 0, 4), (0, 10_000, 0, 6)]
    eu = report.regions[0].points
    # One after another it was done there when it failed elsewhere.
    assert (max(point.new_share for point in eu) == 10_000) is (order == "one-by-one")


def test_gates_answer_as_the_scenario_has_it_and_a_freeze_window_holds_it_back() -> None:
    report = _rehearsed(
        """launch: {old: 2, new: 2, spare: 2, bake: 30s, step: 50%, stability_gate: false}
gates:
- {gate: approval}
- {gate: evidence}
- {gate: webhook/board, when: before-finalize}
- {gate: people, after_share: 50%, reason: revenue}
answers:
- {gate: approval, after: 10m}
- {gate: evidence, says: fail, for: 15m}
- {gate: people, after: 5m}
- {gate: webhook/board, says: error, for: 40m}
freezes:
- {at: 18m, for: 10m}
"""
    )
    said = [(line.seconds, line.text) for line in report.lines]

    def when(text: str) -> float:
        return next(seconds for seconds, line in said if text in line)

    assert report.state == "SUCCEEDED"
    approved, let_on = (seconds for seconds, line in said if "carol approves it" in line)
    assert 600 <= approved < 660
    assert when("paused by gate/evidence") < 900 <= when("evidence: PASS") <= 960
    assert when("lets it on: revenue") + 300 == pytest.approx(let_on, abs=61)
    assert when("Frozen") >= 1_075 and when("Thawed") == pytest.approx(28 * 60, abs=1)
    assert when("webhook/board: ERROR") < 2_400 <= when("webhook/board: PASS")


def test_who_rejects_ends_it_and_whom_nobody_answers_is_left() -> None:
    gates = "gates:\n- {gate: people, after_share: 50%}\nanswers:\n- {gate: people, says: reject, after: 1m}\n"
    text = "launch: {old: 2, new: 2, spare: 2, bake: 30s, step: 50%, stability_gate: false}\n"
    rejected = _rehearsed(text + gates)
    assert rejected.state == "ROLLED_BACK" and "rejected" in rejected.sentence
    paused = _rehearsed(text.replace("30s", "5m") + "people:\n- {at: step 1, do: pause}\n")
    assert not paused.ended and paused.left == "Nobody in the scenario resumes or aborts it."


def test_somebody_tries_again_once_it_has_gone_back() -> None:
    text = "launch: {old: 2, new: 2, spare: 2, bake: 30s, step: 50%, stability_gate: false}\n"
    text += "accidents:\n- {at: step 1, what: candidate-fails, rate: 30%, for: 3m}\npeople:\n- {at: end, do: retry}\n"
    report = _rehearsed(text)
    assert report.state == "SUCCEEDED"
    assert any("gate/availability" in line.text or "failed (" in line.text for line in report.lines)


@pytest.mark.parametrize(
    ("criterion", "candidate", "ends"),
    [
        ({"calibration_low": 0.95, "calibration_high": 1.05}, "calibration: 1.0", "SUCCEEDED"),
        ({"calibration_low": 0.95, "calibration_high": 1.05}, "calibration: 1.2", "ROLLED_BACK"),
        ({"calibration_low": 0.5, "calibration_high": 2.0}, "calibration: 1.2", "SUCCEEDED"),
        ({"max_calibration_difference": 0.05}, "calibration: 1.2", "ROLLED_BACK"),
        ({"max_ne_regression": 0.001}, "calibration: 1.4", "ROLLED_BACK"),
    ],
)
def test_a_plans_own_criteria_judge_what_the_simulated_models_predict(
    criterion: dict[str, Any], candidate: str, ends: str
) -> None:
    wide: dict[str, Any] = {"calibration_low": 0.5, "calibration_high": 2.0}
    gate = pb.StabilityGate(criteria=[pb.StabilityCriterion(prediction="buy", min_positives=50, **(wide | criterion))])
    plan = _plan(bake_duration=timedelta(minutes=10), stability_gate=gate)
    found = parse(plan, beside=f"machines: {{requests_per_second: 200}}\ncandidate: {{{candidate}}}\n")
    assert isinstance(found, Scenario)
    report = asyncio.run(rehearse(found))
    assert report.state == ends, report.sentence
    assert (ends == "SUCCEEDED") or "of buy" in report.sentence


GATED = REGIONS.format("one-by-one") + "gates:\n- {gate: people, after_share: 50%}\n"
ONE = "launch: {old: 10, new: 8, spare: 4, bake: 2m, stability_gate: false}\n"


def _in_flight(text: str, seconds: float, act: Callable[[Fleet, str], object] | None = None) -> pb.Launch:
    """A rehearsed launch after so long, as `launch describe -o json` would show it."""

    async def go_on() -> pb.Launch:
        scenario = _scenario(text)
        rehearsal = Rehearsal(scenario)
        await rehearsal.begin()
        fleet, name = rehearsal.fleet, rehearsal.name
        await fleet.run(fleet.clock.monotonic() + seconds)
        if act is not None:
            act(fleet, name)
            await fleet.run(fleet.clock.monotonic() + 1.0)
        return launch_to_proto(fleet.launches.rows[name].launch, (), fleet.clock.now())

    return asyncio.run(go_on())


@pytest.mark.parametrize(
    ("text", "seconds", "act", "begins", "ends"),
    [
        (ONE, 30, None, "step 1 of 5 in regions/local: its replicas start", "SUCCEEDED"),
        (ONE, 100, None, "step 1 of 5 in regions/local: it bakes for another", "SUCCEEDED"),
        (ONE, 400, lambda fleet, name: fleet.pause(name), "its replicas start; paused by bob: a look", "SHIFTING"),
        (ONE, 400, lambda fleet, name: fleet.abort(name), "on its way back, from step 3", "ROLLED_BACK"),
        (GATED + "- {gate: approval}\n", 60, None, "its plan waits for approval", "SUCCEEDED"),
        (GATED, 400, None, "step 1 of 2 in regions/eu: its bake is over, and somebody is to look", "SUCCEEDED"),
        (GATED, 2_100, None, "in regions/us: ", "SUCCEEDED"),
    ],
)
def test_a_launch_in_flight_is_rehearsed_from_where_it_is(
    text: str, seconds: float, act: Callable[[Fleet, str], object] | None, begins: str, ends: str
) -> None:
    shown = _in_flight(text, seconds, act)
    report = _rehearsed(json_format.MessageToJson(shown, preserving_proto_field_name=True))
    assert report.begun.startswith("it begins where the launch is: ") and begins in report.begun
    assert report.state == ends, report.sentence
    for there in report.regions:
        progress = next((one for one in shown.progress if one.region == there.region), None)
        if progress is not None:
            first = there.points[0]
            had = (progress.candidate.intended_basis_points, progress.baseline.intended_basis_points)
            assert (first.new_share, first.old_share) == had
            assert first.new_replicas >= progress.candidate.available_replicas
    # Its time counts from here.
    assert report.seconds < 5_400 and all(line.seconds >= 0 for line in report.lines)


def test_what_a_launch_in_flight_waits_for_ends_as_it_does_in_truth() -> None:
    """The bake's end, the deadline and the promotion are those of the launch; what happens later is left to come."""
    shown = _in_flight(ONE, 100)
    left = (shown.progress[0].bake_end_time.ToDatetime() - shown.progress[0].observe_time.ToDatetime()).total_seconds()
    text = json_format.MessageToJson(shown, preserving_proto_field_name=True)
    rehearsed = parse(text, beside="people:\n- {at: 10s, do: pause}\n- {at: 5m, do: resume}\n")
    assert isinstance(rehearsed, Scenario)
    report = asyncio.run(rehearse(rehearsed))
    reduced = next(line.seconds for line in report.lines if "OldReduced" in line.text)
    assert left < 300 <= reduced < 310 and report.state == "SUCCEEDED"
    shown.deadline_time.FromDatetime(shown.progress[0].observe_time.ToDatetime() + timedelta(minutes=3))
    overdue = _rehearsed(json_format.MessageToJson(shown, preserving_proto_field_name=True))
    assert overdue.state == "ROLLED_BACK" and "deadline" in overdue.sentence
    del shown.allowed_verbs[:]
    shown.ClearField("deadline_time")
    promoted = _rehearsed(json_format.MessageToJson(shown, preserving_proto_field_name=True))
    assert promoted.state == "SUCCEEDED" and promoted.seconds < 300
    # Where as usual means that it would never have come so far, that is said, and its plan is rehearsed.
    shown.current_step = 40
    lost = _rehearsed(json_format.MessageToJson(shown, preserving_proto_field_name=True))
    assert "its plan's beginning" in lost.begun and lost.state == "SUCCEEDED"


@pytest.mark.parametrize(("accident", "ends"), [("", (10_000, 0, 8, 0)), ("candidate-fails", (0, 0, 0, 0))])
def test_the_first_model_of_a_route_takes_everything_or_leaves_nothing(
    accident: str, ends: tuple[int, int, int, int]
) -> None:
    text = "launch: {old: 0, new: 8, bake: 2m, stability_gate: false}\n"
    if accident:
        text += f"accidents:\n- {{at: step 1, what: {accident}, rate: 30%, for: 1h}}\n"
    report = _rehearsed(text)
    assert report.state == ("ROLLED_BACK" if accident else "SUCCEEDED") and _ends(report) == [ends]
    assert report.peak == report.hold == 8
    with pytest.raises(ScenarioInvalid, match=r"launch.old: '0' is not accepted"):
        parse("launch: {strategy: resize, old: 0, new: 8}")


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
    assert _ends(report) == [(0, 10_000, 0, 10)]


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
