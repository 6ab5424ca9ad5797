"""The examples of the launcher's README do what it says that they do."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import Any

from modelfleet.errors import FailedPrecondition
from modelfleet.registry.v1 import registry_pb2
from tests.support.launcher import certify, launcher_fleet

README = Path(__file__).parents[2] / "services/modelfleetd/launcher/README.md"
_EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


async def _run(source: str, names: dict[str, Any]) -> str:
    """Runs an example as if it stood in a coroutine, and returns what it prints."""
    body = "".join(f"    {line}\n" for line in source.splitlines())
    module = ast.parse(f"async def example():\n{body}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(module, str(README), "exec"), names)
        await names["example"]()
    return printed.getvalue()


async def test_every_example_prints_what_the_readme_shows(database_url: str) -> None:
    examples = _EXAMPLE.findall(README.read_text())
    assert len(examples) == 5
    async with launcher_fleet(database_url, old=500, new=500, spare=100) as fleet:
        larger = "modelTypes/ctr/models/larger"
        spec = (await fleet.client.registry.get_model(name="modelTypes/ctr/models/new")).serving_spec
        spec.ClearField("digest")
        await fleet.client.registry.create_model(
            parent="modelTypes/ctr", model_id="larger", model=registry_pb2.Model(serving_spec=spec)
        )
        await certify(fleet.client, larger, 600)
        name = await fleet.create(bake=60)
        await fleet.waits("Baking")
        planned, infeasible, steered, retried, counted = examples
        names: dict[str, Any] = {"client": fleet.client, "name": name, "FailedPrecondition": FailedPrecondition}
        names |= {"launch": fleet.request(), "larger": fleet.request(candidate=larger)}
        for source, shown in (steered, counted, planned, infeasible, retried):
            assert await _run(source, names) == shown
