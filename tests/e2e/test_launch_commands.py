"""A launch as a user steers it from the command line, on a whole system."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from modelfleet.cli import main
from tests.support.wait import until
from tests.support.whole import NEW, OLD, Whole, whole

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
_PROGRAM = Path(sys.executable).with_name("modelfleet")


@dataclass
class Done:
    """What a command left."""

    status: int
    out: str
    err: str


async def run(everything: Whole, *arguments: str) -> Done:
    environment = os.environ | {"MODELFLEET_ADDRESS": everything.system.address}
    process = await asyncio.create_subprocess_exec(
        str(_PROGRAM), *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def run_here(everything: Whole, capsys: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """Runs a command in this process, where it begins at once and nothing has to be imported for it."""
    capsys.readouterr()
    status = await asyncio.to_thread(main, [*arguments, "--address", everything.system.address])
    return Done(status, *capsys.readouterr())


async def _exists(everything: Whole, launch: str) -> bool:
    found = await everything.client.launcher.list_launches()
    return any(one.name == launch for one in found.launches)


MISTAKES: list[tuple[list[str], str]] = [
    (["launch", "describe", "nope"], "launches/nope does not exist"),
    (["launch", "plan", "ranker/nope", "--pool", "ours"], "nope"),
    (["launch", "plan", "ranker/new", "--pool", "nope"], "pools/nope"),
    (["launch", "plan", "ranker/new", "--pool", "ours", "--max-step", "150%"], "between 0.01% and 100%"),
    (["launch", "plan", "ranker/new", "--pool", "ours", "--bake", "soon"], "write 30s, 5m"),
    (["capacity", "pool", "usage", "nope"], "pools/nope does not exist"),
    (["capacity", "certificate", "state", "ranker/nope", "--max-qps", "5"], "nope does not exist"),
    (["capacity", "estimate", "ranker/nope"], "nope"),
    (["capacity", "loadtest", "show", "nope"], "loadTests/nope does not exist"),
    (["stability", "show", "ranker/nope"], "nope"),
    (["stability", "show", "ranker/old", "--resolution", "2m"], "'1m', '5m', '1h'"),
    (["stability", "judge", "ranker/nope"], "nope"),
]


async def test_a_launch_is_steered_from_the_command_line_and_mistakes_are_told_on_one_line_with_exit_status_1(
    subtests: pytest.Subtests, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    async with whole() as everything:
        await everything.register()
        first = await everything.launch(OLD, "first")
        for arguments, said in MISTAKES:
            with subtests.test(" ".join(arguments)):
                done = await run_here(everything, capsys, *arguments)
                assert done.status == 1 and done.out == ""
                assert done.err.count("\n") == 1 and said in done.err and "Traceback" not in done.err, done.err
        await everything.ended(first)
        await _is_planned_watched_explained_and_steered(everything, capsys)


async def _is_planned_watched_explained_and_steered(everything: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    wishes = ["ranker/new", "--pool", "ours", "--max-step", "50%", "--bake", "2s", "--no-stability-gate"]
    plan = await run_here(everything, capsys, "launch", "plan", *wishes)
    assert plan.status == 0, plan.err
    assert "new replaces old of ranker" in plan.out and "5 → 3" in plan.out
    assert "second" not in (await run_here(everything, capsys, "launch", "list")).out, "a plan creates nothing"

    # The watch goes on while the launcher is away.
    async with asyncio.TaskGroup() as tasks:
        create = ["launch", "create", *wishes, "--id", "second", "--watch", "--rollback-window", "0s"]
        watching = tasks.create_task(run(everything, *create))
        await until(partial(_exists, everything, "launches/second"), timeout=60)
        # On a busy machine, a process might begin after the end of the launch.
        paused = await run_here(everything, capsys, "launch", "pause", "second", "--reason", "a look at the graphs")
        assert paused.status == 0 and "paused" in paused.out.lower(), paused
        assert everything.kill("launcher")
        resumed = await run(everything, "launch", "resume", "second", "--timeout", "30")
        assert resumed.status == 0, resumed.err
    watched = watching.result()
    assert watched.status == 0, watched.err
    assert "SUCCEEDED" in watched.out

    described = await run_here(everything, capsys, "launch", "describe", "second")
    assert described.out.startswith("Succeeded"), "the first sentence says how it is"
    assert "Paused" in described.out and "a look at the graphs" in described.out
    launches = json.loads((await run_here(everything, capsys, "launch", "list", "-o", "json")).out)
    assert [launch["name"] for launch in launches] == ["launches/second", "launches/first"]
    late = await run_here(everything, capsys, "launch", "pause", "second", "--reason", "too late")
    assert late.status == 1 and "SUCCEEDED" in late.err and late.err.count("\n") == 1
    assert NEW in (await run_here(everything, capsys, "registry", "type", "get", "ranker")).out
