"""`modelfleet launch simulate`, as people run it: the real command, and the real rehearsal in its process."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
from google.protobuf import json_format

from modelfleet.cli import main, render
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.rehearsal.command import main as simulate
from modelfleetd.rehearsal.files import parse
from modelfleetd.rehearsal.scenario import Scenario
from modelfleetd.rehearsal.single import rehearse
from tests.support.launcher import CTR, EU, NEW, OLD, POOL, Fleet, certify, launcher_fleet, register_route

README = Path(__file__).parents[2] / "services/modelfleetd/launcher/README.md"
PROGRAM = Path(sys.executable).parent / "modelfleet"
FLEET = "fleet: {types: 1000, launches: 100000, days: 365}\n"
SMALL = "launch: {old: 10, new: 8, spare: 4, bake: 30s, stability_gate: false}\n"


def test_a_launch_is_rehearsed_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "launch.yaml", tmp_path / "launch.svg"
    file.write_text(SMALL)
    assert main(["launch", "simulate", str(file), "--seeds", "2", "--plot", str(picture)]) == 0
    said = capfd.readouterr().out
    assert "10 replicas become 8 with 4 to spare" in said and "no promise broken at" in said
    assert "Succeeded after" in said and "2 seeds: 2 succeeded" in said
    assert picture.read_text().startswith("<?xml")


def test_the_scenario_of_the_readme_goes_as_it_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, example, gates = _examples()
    section = _section()
    (ends,) = re.findall(r"```text\n(Rolled back.*?)\n```", section, re.DOTALL)
    (wrong,) = re.findall(r"```text\n(modelfleet: .*?)\n```", section, re.DOTALL)
    file = tmp_path / "launch.yaml"
    file.write_text(example)
    assert main(["launch", "simulate", str(file)]) == 0
    said = capfd.readouterr().out
    assert " ".join(ends.split()) in " ".join(said.split())
    assert "! the agent does not answer, for 60 s" in said and "bob skips step 1" in said
    file.write_text(example.replace("new: 3", "new: many").replace("do: skip", "do: dance"))
    assert main(["launch", "simulate", str(file)]) == 1
    assert capfd.readouterr().err.replace(str(file), "launch.yaml").strip() == wrong
    assert isinstance(parse(example + gates), Scenario)


def _section() -> str:
    return README.read_text().split("## Rehearsing a launch")[1].split("\n## ")[0]


def _examples() -> list[str]:
    """What is said beside a plan, a scenario, and its gates."""
    return re.findall(r"```yaml\n(.*?)```", _section(), re.DOTALL)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (FLEET, ["--plot"], "--plot is for one launch"),
        (FLEET, ["--seeds", "2"], "--seeds is for one launch"),
        (SMALL, ["--ablations"], "--ablations is for a `fleet:`"),
    ],
)
def test_what_there_is_not_is_refused_before_anything_runs(
    text: str, options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(text)
    assert simulate([str(file), *options]) == 2
    out, err = capsys.readouterr()
    assert said in err and not out


async def test_a_plan_of_the_launcher_is_rehearsed(database_url: str, tmp_path: Path) -> None:
    beside = tmp_path / "beside.yaml"
    beside.write_text(_examples()[0] + "answers:\n- {gate: approval, after: 1m}\n")
    async with launcher_fleet(database_url, old=2, new=2, spare=2) as fleet:
        wishes = ["--pool", "feed", "--bake", "1m", "--max-step", "50%", "--approval", "--no-stability-gate"]
        plan = await _piped(["plan", "ctr/new", *wishes, "--address", fleet.launcher.address, "-o", "json"])
        found = json.loads(await _piped(["simulate", "-", "-o", "json", "--with", str(beside)], plan))
    # What it is said to assume is nothing that the second file says.
    assert not found["assumed"]["notes"] and found["assumed"]["start_seconds"] == [120, 240]
    assert found["launch"]["state"] == "SUCCEEDED" and found["launch"]["broken_promises"] == []
    said = str([line["text"] for line in found["launch"]["timeline"]])
    assert "carol approves it" in said and "replicas of the old model are killed" in said


async def test_plans_of_each_strategy_are_rehearsed_from_where_they_begin(database_url: str) -> None:
    """Each as it is printed, of what can be done with what serves. Nothing is simulated that would have the plan made
    anew, so hold, shares and replicas are those of the plan.
    """
    async with launcher_fleet(database_url, old=4, new=3, spare=6) as fleet:
        await _rehearses_each_strategy(fleet)


async def _rehearses_each_strategy(fleet: Fleet) -> None:
    launcher = fleet.client.launcher
    first = "modelTypes/first"
    await register_route(fleet.client, first, {f"{first}/models/new": 3}, [EU], (f"{first}/models/new",))
    of_first = _asked(pb.Launch.REPLACE_BASELINE, f"{first}/models/new")
    of_first.model_type = first
    await _rehearses(fleet, of_first)
    await _rehearses(fleet, _asked(pb.Launch.REPLACE_BASELINE))
    await certify(fleet.client, OLD, 5)
    await _rehearses(fleet, _asked(pb.Launch.RESIZE, OLD))
    await certify(fleet.client, OLD, 4)
    experiment = _asked(pb.Launch.START_EXPERIMENT, target_share_basis_points=3_000)
    await _rehearses(fleet, experiment)
    made = await launcher.create_launch(launch_id="experiment", launch=experiment, timeout=60)
    await fleet.reaches(pb.Launch.SUCCEEDED, made.name, timeout=90)
    for target in (5_000, 1_000):
        await _rehearses(fleet, _asked(pb.Launch.RAMP, target_share_basis_points=target))
    await _rehearses(fleet, _asked(pb.Launch.END_EXPERIMENT))
    asked = _asked(pb.Launch.REPLACE_BASELINE)
    asked.policy.bake_duration.FromTimedelta(timedelta(minutes=5))
    made = await launcher.create_launch(launch_id="new", launch=asked, timeout=60)
    await _rehearses_in_flight(await fleet.waits("Baking", made.name))
    await launcher.promote_launch(name=made.name, reason="it was rehearsed")
    await fleet.reaches(pb.Launch.SUCCEEDED, made.name, timeout=90)
    await _rehearses(fleet, _asked(pb.Launch.ROLL_BACK, OLD))


def _asked(strategy: pb.Launch.Strategy.ValueType, candidate: str = NEW, **fields: Any) -> pb.Launch:
    """A launch in two steps that hardly bakes, and that nobody's predictions hold up."""
    policy = pb.LaunchPolicy(max_step_basis_points=5_000, stability_gate=pb.StabilityGate(disabled=True))
    policy.bake_duration.FromTimedelta(timedelta(seconds=0.1))
    return pb.Launch(model_type=CTR, candidate=candidate, pool=POOL, strategy=strategy, policy=policy, **fields)


async def _rehearses(fleet: Fleet, asked: pb.Launch) -> None:
    plan = await fleet.client.launcher.create_launch(launch=asked, validate_only=True, timeout=60)
    scenario = parse(json_format.MessageToJson(plan, preserving_proto_field_name=True))
    assert isinstance(scenario, Scenario)
    report = await rehearse(scenario)
    assert report.state == "SUCCEEDED" and not report.broken, report.sentence
    (region,), (planned,) = report.regions, plan.plan.regions
    assert [units.hold for units in region.units] == [hold.hold_units for hold in planned.holds]
    last, end = planned.steps[-1], region.points[-1]
    grows = (last.share_basis_points, last.new_replicas)
    gives = (last.old_share_basis_points, last.old_replicas_after)
    ends = grows, gives
    if planned.new_model != plan.candidate:
        ends = gives, grows
    assert ((end.new_share, end.new_replicas), (end.old_share, end.old_replicas)) == ends


async def _rehearses_in_flight(shown: pb.Launch) -> None:
    scenario = parse(json_format.MessageToJson(shown, preserving_proto_field_name=True))
    assert isinstance(scenario, Scenario)
    report = await rehearse(scenario)
    assert "step 1 of 2 in regions/eu: it bakes for another" in report.begun and not report.broken
    (progress,), begin = shown.progress, report.regions[0].points[0]
    assert begin.new_share == progress.candidate.intended_basis_points
    assert (begin.new_replicas, begin.old_replicas) == (
        progress.candidate.total_replicas,
        progress.baseline.total_replicas,
    )
    assert report.state == "SUCCEEDED" and 300 < report.seconds < 3_600


async def _piped(line: list[str], given: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM), "launch", *line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate(given.encode())
    assert process.returncode == 0, err.decode()
    return out.decode()


def test_an_interrupt_ends_everything_with_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    totals: list[int | None] = []

    def interrupted(what: str, total: int | None) -> NoReturn:
        """Somebody presses Ctrl-C as soon as it runs; alone, it would take hours."""
        totals.append(total)
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "progress", interrupted)
    assert main(["launch", "simulate", str(file)]) == 130
    out, err = capfd.readouterr()
    assert (out, err) == ("", "modelfleet: the rehearsal was interrupted; nothing that runs was touched\n")
    assert totals[0] is not None and totals[0] > 1
