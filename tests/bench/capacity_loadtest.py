"""Three load tests of the demo's model server on this machine: how far their results are apart."""

from __future__ import annotations

from rich.console import Console

from tests.bench.figures import Figure
from tests.support.demo_load import Run, runs

NAMES = ("capacity.loadtest_spread",)

_RUNS = 3


async def run() -> list[Figure]:
    """Measures the same model three times; a test that does not converge is an error that says why."""
    console = Console()
    found: list[Run] = []
    async for one in runs(_RUNS):
        console.print(f"  load test {len(found) + 1}: {one}", highlight=False)
        if not one.max_qps:
            raise RuntimeError(f"nothing could be measured: {one.test.message}")
        found.append(one)
    results = [one.max_qps for one in found]
    values = ", ".join(f"{qps:.4g}" for qps in results)
    longest = max(one.seconds for one in found)
    foreign = max(one.foreign_share for one in found)
    return [
        Figure(
            name="capacity.loadtest_spread",
            value=max(results) / min(results) - 1,
            unit="of the lowest",
            yardstick=f"results {values} requests/s; the longest took {longest:.0f} s; others used up to {foreign:.0%} "
            "of the machine meanwhile",
            target=0.10,
            better="lower",
        )
    ]
