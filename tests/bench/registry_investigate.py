"""`modelfleet investigate` on the whole set: until every answer is there, and while one service is stopped.

Each question comes from a new client, as on the command line: through the front door, connections included. What
starting Python takes is said beside it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from modelfleet import AsyncClient
from modelfleet.asking import Unknown
from modelfleet.investigate import Investigation, investigate
from modelfleet.transport import Options
from tests.bench.figures import Figure
from tests.support.whole import OLD, TYPE, Whole, whole

NAMES = ("registry.investigate_p99_ms", "registry.investigate_degraded_p99_ms")
_QUESTIONS, _DEGRADED_QUESTIONS, _COMMANDS = 200, 50, 7
_TARGET_MS = 300.0


async def run() -> list[Figure]:
    """Asks about a model that serves."""
    async with whole() as everything:
        await everything.register()
        await everything.ended(await everything.launch(OLD, "first"))
        await _ask(everything, 5)  # warms up
        healthy = await _ask(everything, _QUESTIONS)
        command = await _command(everything)
        stopped = everything.system.process("capacity")
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        try:
            degraded = await _ask(everything, _DEGRADED_QUESTIONS)
        finally:
            os.kill(stopped, signal.SIGCONT)
    assert all(isinstance(found.certificate, Unknown) for found in degraded)
    assert not any(isinstance(found.type, Unknown) for found in degraded)
    return [
        Figure(
            name="registry.investigate_p99_ms",
            value=_p99(healthy),
            unit="ms",
            yardstick=f"{_QUESTIONS} questions, median {_median(healthy):.0f} ms; the whole command, with what "
            f"starting Python takes, {command:.0f} ms",
            target=_TARGET_MS,
            better="lower",
        ),
        Figure(
            name="registry.investigate_degraded_p99_ms",
            value=_p99(degraded),
            unit="ms",
            yardstick=f"{_DEGRADED_QUESTIONS} questions while capacity is stopped; the rest is there",
            target=_TARGET_MS,
            better="lower",
        ),
    ]


async def _ask(everything: Whole, times: int) -> list[Investigation]:
    answers = []
    for _ in range(times):
        async with AsyncClient(everything.system.address, options=Options(attempts=1)) as client:
            answers.append(await investigate(client, TYPE))
    return answers


async def _command(everything: Whole) -> float:
    """Milliseconds of a whole command; the median of a few."""
    program = str(Path(sys.executable).with_name("modelfleet"))
    environment = os.environ | {"MODELFLEET_ADDRESS": everything.system.address}
    took = []
    for _ in range(_COMMANDS):
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            program, "investigate", TYPE, env=environment, stdout=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


def _median(answers: Sequence[Investigation]) -> float:
    return 1000 * statistics.median(answer.elapsed for answer in answers)


def _p99(answers: Sequence[Investigation]) -> float:
    return 1000 * sorted(answer.elapsed for answer in answers)[int(0.99 * (len(answers) - 1))]
