"""The first launch by hand, as the README tells people to type it."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from tests.support.whole import whole

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
ROOT = Path(__file__).parents[2]
README = ROOT / "services/modelfleetd/local/README.md"


async def test_the_lines_of_the_readme_launch_a_model() -> None:
    (lines,) = re.findall(r"```console\n(export PATH.*?)```", README.read_text(), re.DOTALL)
    async with whole() as everything:
        environment = os.environ | {"MODELFLEET_ADDRESS": everything.system.address}
        shell = await asyncio.create_subprocess_exec(
            "bash", "-euo", "pipefail", "-c", lines,
            cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = await asyncio.wait_for(shell.communicate(), 120)
        except BaseException:
            shell.kill()
            await shell.wait()
            raise
        text = said.decode()
        assert shell.returncode == 0, text
        assert "v2 replaces v1 of feed_ctr" in text and "Succeeded" in text
        model_type = await everything.client.registry.get_model_type(name="modelTypes/feed_ctr")
        assert model_type.baseline == "modelTypes/feed_ctr/models/v2"
