"""The example of the Python client's README runs as it stands there, but for the address."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from modelfleet.registry.v1 import registry_pb2
from tests.support.fleet import fleet

README = Path(__file__).parents[2] / "clients/python/README.md"


async def test_the_example_runs(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    async with fleet(database_url, ["registry"]) as running:
        async with running.client() as client:
            await client.registry.create_team(team_id="ranking", team=registry_pb2.Team(on_call="pager"))
        address = running.services["registry"].address
        assert "127.0.0.1:8460" in example
        await asyncio.to_thread(exec, example.replace("127.0.0.1:8460", address), {})
    assert capsys.readouterr().out == "teams/ranking pager\nRESOURCE_NOT_FOUND modelTypes/nope\n"
