"""The demo as a person runs it: real models, real traffic, real processes, and what it promises in each scenario."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleetd.local import demo_fleet as fleet
from modelfleetd.local import leftovers
from tests.support.chance import chosen
from tests.support.memory import memory
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.xdist_group("demo")]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="modelfleet-tests-", dir=memory()) as path:
        yield Path(path)


@contextlib.asynccontextmanager
async def demo(scenario: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-m", "modelfleetd", "demo", "--scenario", scenario, "--output", "json")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, "--data-dir", str(folder), stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.to_thread(leftovers.end, folder)


async def played(scenario: str, folder: Path) -> dict[str, Any]:
    async with demo(scenario, folder) as process:
        output, story = await process.communicate()
        assert process.returncode == 0, story.decode()
        assert leftovers.processes_of(folder) == []
        summary: dict[str, Any] = json.loads(output)
    assert summary["deviations"] == []
    assert summary["failed_requests"] == 0
    assert summary["rejected_rows"] == {}
    assert summary["peak_units"] <= summary["hold_units"] == fleet.BASELINE_REPLICAS + fleet.SPARE
    assert len(summary["trace_id"]) == 32
    return summary


async def until_said(process: asyncio.subprocess.Process, words: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(120):
        while line := await process.stderr.readline():
            if words in line.decode():
                return
    pytest.fail(f"it never said: {words}")


# What each scenario shows on this system is shown of the launcher by itself in every run: that a candidate takes over
# with nobody's request failed (test_launch, on a whole system as well), that a gate sends it back, and that a dead
# launcher changes nothing. `crash` is `replace` with a launcher that dies, and has to end as that does.
@pytest.mark.faults
@pytest.mark.parametrize("scenario", chosen(("replace", "crash", "miscalibrated"), 1))
async def test_a_demo_ends_as_its_scenario_says_and_no_request_fails_whoever_is_killed(
    folder: Path, scenario: str
) -> None:
    summary = await played(scenario, folder)
    if scenario == "miscalibrated":
        _sent_back_by_the_gate(summary)
    else:
        _replaced_the_baseline(summary)
        assert len(summary["kills"]) >= (4 if scenario == "crash" else 0)


def _replaced_the_baseline(summary: dict[str, Any]) -> None:
    assert summary["state"] == "SUCCEEDED"
    assert summary["baseline"] == fleet.CANDIDATE
    assert len(summary["steps"]) >= 3  # it had to recycle
    assert summary["replicas"][fleet.CANDIDATE]["running"] == fleet.CANDIDATE_REPLICAS
    assert summary["replicas"][fleet.BASELINE]["running"] == 0
    assert any("BASELINE → RETIRED" in change for change in summary["changes"])


def _sent_back_by_the_gate(summary: dict[str, Any]) -> None:
    assert summary["state"] == "ROLLED_BACK"
    assert summary["reason"].startswith("gate/stability: calibration of click is")
    assert summary["baseline"] == fleet.BASELINE
    assert summary["replicas"][fleet.CANDIDATE]["running"] == 0
    assert summary["replicas"][fleet.BASELINE] == {
        "started": fleet.BASELINE_REPLICAS, "ended": 0, "lost": 0, "running": fleet.BASELINE_REPLICAS,
    }  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("number", chosen((signal.SIGINT, signal.SIGTERM, signal.SIGKILL), 1))
async def test_a_demo_that_is_interrupted_or_killed_leaves_nothing_behind(folder: Path, number: signal.Signals) -> None:
    if number is signal.SIGKILL and sys.platform != "linux":
        pytest.skip("the kernel's help is Linux's")
    async with demo("replace", folder) as process:
        await until_said(process, "3. Traffic")
        process.send_signal(number)
        await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == (-number if number is signal.SIGKILL else 130)
        await until(lambda: leftovers.processes_of(folder) == [], 60 if number is signal.SIGKILL else 0, every=0.2)
