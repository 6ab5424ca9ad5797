"""Keeps processes running: starts them, starts them again with growing pauses, stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelfleetd.local.bounded_log import BoundedLog

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
# Whoever lived so long gets the first pause again.
_STEADY_SECONDS = 30.0
_CHUNK = 1 << 16
_PR_SET_PDEATHSIG = 1

# Bound before any fork, so that the child only has to call it.
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Program:
    """A process to be kept running."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own."""
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    """Asks for a clean end; also sent by the kernel when the supervisor dies (Linux)."""
    stop_seconds: float = 15.0
    """Grace before SIGKILL."""


class _Kept:
    """One program, its present process, and the task that keeps it."""

    def __init__(self, program: Program, log: BoundedLog) -> None:
        self.program = program
        self.log = log
        self.process: asyncio.subprocess.Process | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopping = False


class Supervisor:
    """Keeps programs running until they are stopped."""

    def __init__(self, logs: Path, say: Callable[[str], None], changed: Callable[[], None] = lambda: None) -> None:
        """Makes one that keeps nothing yet.

        Args:
            logs: folder for what the programs say.
            say: takes a line for people: an end, a start.
            changed: called when a program got another process.
        """
        self._logs = logs
        self._say = say
        self._changed = changed
        self._kept: dict[str, _Kept] = {}

    def start(self, program: Program) -> None:
        """Starts a program and keeps it running."""
        kept = _Kept(program, BoundedLog(self._logs / f"{program.name}.log"))
        self._kept[program.name] = kept
        kept.task = asyncio.create_task(self._keep(kept), name=f"keep {program.name}")

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by program, of those that run now."""
        return {name: kept.process.pid for name, kept in self._kept.items() if kept.process is not None}

    def last_words(self, name: str) -> str:
        """Returns the last line that a program said."""
        return self._kept[name].log.last_line() if name in self._kept else "it was not started"

    async def stop(self, names: Iterable[str]) -> None:
        """Stops programs at the same time and waits for their end."""
        await asyncio.gather(*(self._stop(self._kept[name]) for name in names if name in self._kept))

    def kill(self) -> None:
        """Ends every program at once, without grace."""
        for kept in self._kept.values():
            kept.stopping = True
            if kept.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    kept.process.kill()

    async def _keep(self, kept: _Kept) -> None:
        program, pause = kept.program, _FIRST_PAUSE
        while not kept.stopping:
            began = time.monotonic()
            status = await _run(kept, self._changed)
            if self._is_stopping(kept):
                return
            pause = _FIRST_PAUSE if time.monotonic() - began > _STEADY_SECONDS else pause
            self._say(
                f"{program.name} ended with {_describe(status)}; starting it again in {pause:.1f} s; "
                f"it said last: {kept.log.last_line()[:200]}"
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @staticmethod
    def _is_stopping(kept: _Kept) -> bool:
        return kept.stopping

    async def _stop(self, kept: _Kept) -> None:
        kept.stopping = True
        task = kept.task
        if task is None:
            return
        if kept.process is None:  # between two lives
            task.cancel()
        else:
            with contextlib.suppress(ProcessLookupError):
                kept.process.send_signal(kept.program.stop_signal)
        _, late = await asyncio.wait({task}, timeout=kept.program.stop_seconds)
        if late:
            self._say(f"{kept.program.name} did not end within {kept.program.stop_seconds:.0f} s; killing it")
            if kept.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    kept.process.kill()
            await asyncio.wait({task}, timeout=5.0)
        kept.log.close()


async def _run(kept: _Kept, started: Callable[[], None]) -> int:
    """Runs a program once, its words going to its log, and returns its exit status."""
    program = kept.program
    loop = asyncio.get_running_loop()
    # A pipe of our own: a program's end is noticed also where a child of it keeps the pipe open.
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        kept.process = await asyncio.create_subprocess_exec(
            *program.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            env={**os.environ, **program.environment},
            **identity(program.user),
            cwd="/",
            # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops all in order.
            start_new_session=True,
            preexec_fn=die_with(os.getpid(), program.stop_signal),
        )
        loop.add_reader(reading, _drain, reading, kept.log)
        started()
        return await kept.process.wait()
    finally:
        kept.process = None
        os.close(writing)
        loop.remove_reader(reading)
        _drain(reading, kept.log)
        os.close(reading)


def identity(user: str | None) -> dict[str, Any]:
    """Returns what makes a child run as a user, with none of our groups."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": ()}


def _drain(source: int, log: BoundedLog) -> None:
    """Moves what is there to the log."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(source, _CHUNK):
            log.write(data)


def die_with(parent: int, number: signal.Signals) -> Callable[[], None]:
    """Returns what runs in a child before its program (`preexec_fn`): the kernel will signal it when we have died."""

    def bind() -> None:
        if _prctl is None:
            return
        _prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return bind


def _describe(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
