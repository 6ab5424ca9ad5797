"""The examples of capacity's README print what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fleet import fleet
from tests.support.front_door import door
from tests.support.readme import heading, parts, run_examples

README = Path(__file__).parents[2] / "services/modelfleetd/capacity/README.md"
PARTS = [part for part in parts(README, "<!-- examples: a new fleet -->") if "$ modelfleet" in part]


@pytest.mark.parametrize("part", PARTS, ids=heading)
async def test_every_example_prints_what_the_readme_shows(
    part: str,
    database_url: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with (
        fleet(database_url, ["registry", "capacity"], recordings_uri=str(tmp_path / "recordings")) as running,
        door(
            tmp_path_factory.mktemp("door"), {name: found.address for name, found in running.services.items()}
        ) as address,
    ):
        await run_examples(part, address, tmp_path, monkeypatch, capsys)
