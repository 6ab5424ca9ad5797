"""`modelfleet launch simulate`, as people run it: the real command, and the real rehearsal in its process."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from modelfleet.cli import main, render
from modelfleetd.rehearsal.command import main as simulate
from tests.support.launcher import launcher_fleet

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
    section = README.read_text().split("## Rehearsing a launch")[1].split("\n## ")[0]
    (example,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
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


async def test_a_plan_of_the_launcher_is_rehearsed(database_url: str) -> None:
    async with launcher_fleet(database_url, old=2, new=2, spare=2) as fleet:
        wishes = ["--pool", "feed", "--bake", "1m", "--max-step", "50%", "--approval", "--no-stability-gate"]
        plan = await _piped(["plan", "ctr/new", *wishes, "--address", fleet.launcher.address, "-o", "json"])
        found = json.loads(await _piped(["simulate", "-", "-o", "json"], plan))
    assert found["assumed"] | {"notes": []} == {
        "old": 2, "new": 2, "spare": 2, "start_seconds": [20, 60], "drain_seconds": [5, 30], "bake_seconds": 60,
        "notes": [],
    }  # fmt: skip
    assert any("approval" in note for note in found["assumed"]["notes"])
    assert found["launch"]["state"] == "SUCCEEDED" and found["launch"]["broken_promises"] == []


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
