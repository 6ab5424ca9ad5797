"""The examples of stability's README print what it shows."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import fleet
from tests.support.front_door import door
from tests.support.readme import heading, parts, run_examples
from tests.support.stability import at, stability_fleet

README = Path(__file__).parents[2] / "services/modelfleetd/stability/README.md"
PARTS = [part for part in parts(README, "<!-- examples: a new fleet -->") if "$ modelfleet" in part]


async def test_the_example_of_the_readme_runs(database_url: str) -> None:
    (example,) = re.findall(r"```python\n(?!# file)(.*?)```", README.read_text(), re.DOTALL)
    async with stability_fleet(database_url) as fleet:
        names: dict[str, Any] = {"client": fleet.client, "times": [at(minutes=-1)] * 4}
        exec("async def run(client, times):\n" + textwrap.indent(example, "    "), names)
        await names["run"](names["client"], names["times"])


@pytest.mark.parametrize("part", PARTS, ids=heading)
async def test_every_command_prints_what_the_readme_shows(
    part: str,
    database_url: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with (
        fleet(database_url, ["registry", "stability"]) as running,
        door(
            tmp_path_factory.mktemp("door"), {name: found.address for name, found in running.services.items()}
        ) as address,
    ):
        await run_examples(part, address, tmp_path, monkeypatch, capsys)
