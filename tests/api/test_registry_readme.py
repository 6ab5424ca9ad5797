"""The examples of the registry's README print what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fleet import fleet
from tests.support.readme import heading, parts, run_examples

README = Path(__file__).parents[2] / "services/modelfleetd/registry/README.md"


@pytest.mark.parametrize("part", parts(README, "<!-- examples: a new registry -->"), ids=heading)
async def test_every_example_prints_what_the_readme_shows(
    part: str,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with fleet(database_url, ["registry"]) as running:
        await run_examples(part, running.services["registry"].address, tmp_path, monkeypatch, capsys)
