"""Processes of this machine that outlive the agent: started in sessions of their own, found again by id and start.

Process ids are used again, so a process is known by its id together with the moment when it started, as the system
tells it. Whatever the agent starts carries `MODELFLEET_REPLICA=<agent id>/<name>` in its environment, so that a process
whose start was never recorded can still be found.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modelfleetd.node.domain import Process

OWNER_VARIABLE = "MODELFLEET_REPLICA"
# Of the agent's own environment; what it is configured with may hold secrets and is nothing to replicas.
_PRIVATE_PREFIXES = ("MODELFLEET_", "OTEL_")
_LINUX = sys.platform == "linux"


def start(
    command: Sequence[str],
    *,
    owner: str,
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    inherit: Sequence[socket.socket] = (),
) -> Process:
    """Starts a process in its own session, its output appended to a file.

    Args:
        command: the arguments; no shell sees them.
        owner: goes into `OWNER_VARIABLE`.
        folder: where it runs.
        log: the file of its output.
        environment: added to the agent's own.
        inherit: sockets that it keeps open.

    Raises:
        OSError: it cannot be started.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE_PREFIXES)}
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, **(environment or {}), OWNER_VARIABLE: owner},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[held.fileno() for held in inherit],
        )
    # Never waited for through this object: `Exit` reaps. Without this Python would warn about a running child.
    child.returncode = 0
    return Process(child.pid, mark_of(child.pid) or "")


def mark_of(pid: int) -> str | None:
    """When a process started, in the system's own words; None where it does not run (any more)."""
    if _LINUX:
        try:
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, started = after_name[0], after_name[19]
        return None if state in "ZX" else f"{_boot()}/{started}"
    told = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return told.stdout.strip() or None


def runs(process: Process) -> bool:
    """Whether exactly this process still runs."""
    return mark_of(process.pid) == process.mark


def end(process: Process, number: signal.Signals) -> None:
    """Sends a signal to a process and everything in its session, if it still runs."""
    if runs(process):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def owned(agent: str) -> dict[str, Process]:
    """Processes that an agent has started and that still run, by what follows the agent's id in their owner.

    Only leaders of sessions count: what they have started themselves has inherited the variable.
    """
    found: dict[str, Process] = {}
    wanted = f"{OWNER_VARIABLE}={agent}/"
    for pid, variables in _environments():
        name = next((v[len(wanted) :] for v in variables if v.startswith(wanted)), None)
        mark = mark_of(pid) if name is not None else None
        with contextlib.suppress(ProcessLookupError):
            if name is not None and mark is not None and os.getsid(pid) == pid:
                found[name] = Process(pid, mark)
    return found


class Exit:
    """Tells when a process has ended, child or not, without asking again and again where the system can tell."""

    def __init__(self, process: Process, ended: Callable[[], None]) -> None:
        self._process = process
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._fd: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._fd = os.pidfd_open(process.pid)
        if self._fd is not None and runs(process):
            self._loop.add_reader(self._fd, self._tell)
        else:
            self._timer = self._loop.call_soon(self._look)  # type: ignore[assignment]

    def close(self) -> None:
        """Stops watching."""
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        _reap(self._process.pid)
        if runs(self._process):
            self._timer = self._loop.call_later(1.0, self._look)
        else:
            self._tell()

    def _tell(self) -> None:
        self.close()
        # What it has started itself goes with it; before reaping, while its id cannot be used again.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _reap(self._process.pid)
        self._ended()


def find_command(command: str) -> str | None:
    """Where a command is, or None. A relative path is none: replicas do not run where the agent runs."""
    return shutil.which(command) if Path(command).is_absolute() or os.sep not in command else None


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]


def _environments() -> list[tuple[int, list[str]]]:
    """Every process of this user with its environment; where that cannot be read, it is left out."""
    if not _LINUX:
        told = subprocess.run(["ps", "-axEww", "-o", "pid=,command="], capture_output=True, text=True, check=False)
        return [(int(line.split()[0]), line.split()[1:]) for line in told.stdout.splitlines() if line.split()]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                data = (entry / "environ").read_bytes()
                found.append((int(entry.name), data.decode(errors="replace").split("\0")))
    return found
