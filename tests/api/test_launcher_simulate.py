"""`modelfleet launch simulate`, as people run it: the real command, and the real rehearsal in its process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from modelfleet.cli import main
from modelfleetd.rehearsal.scenario import Scenario, parse

README = Path(__file__).parents[2] / "services/modelfleetd/launcher/README.md"
SMALL = "launch: {old: 10, new: 8, spare: 4, bake: 30s, stability_gate: false}\n"


def test_a_launch_is_rehearsed_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "launch.yaml", tmp_path / "launch.svg"
    file.write_text(SMALL)
    assert main(["launch", "simulate", str(file), "--seeds", "2", "--plot", str(picture)]) == 0
    said = capfd.readouterr().out
    assert "10 replicas become 8 with 4 to spare" in said and "no promise broken at" in said
    assert "Succeeded after" in said and "2 seeds: 2 succeeded" in said
    assert picture.read_text().startswith("<?xml")


def test_a_file_that_is_wrong_is_answered_with_its_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text("launch:\n  old: many\n  new: 8\npeople:\n- {at: 5m, do: dance}\n")
    assert main(["launch", "simulate", str(file), "-o", "json"]) != 0
    said = capfd.readouterr().err
    assert "line 2" in said and "line 5" in said and "pause, resume, skip, abort" in said


def test_the_scenario_of_the_readme_is_understood() -> None:
    section = README.read_text().split("## Rehearsing a launch")[1].split("\n## ")[0]
    (example,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    found = parse(example)
    assert isinstance(found, Scenario) and len(found.accidents) == len(found.people) == 2


def test_an_answer_is_json_for_programs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text(SMALL)
    assert main(["launch", "simulate", str(file), "--seed", "3", "-o", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["launch"]["seed"] == 3 and found["launch"]["broken_promises"] == []
