"""The README's example runs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from tests.support.stability import at, stability_fleet

README = Path(__file__).parents[2] / "services/modelfleetd/stability/README.md"


async def test_the_example_of_the_readme_runs(database_url: str) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    async with stability_fleet(database_url) as fleet:
        names: dict[str, Any] = {"client": fleet.client, "times": [at(minutes=-1)] * 4}
        exec("async def run(client, times):\n" + textwrap.indent(example, "    "), names)
        await names["run"](names["client"], names["times"])
