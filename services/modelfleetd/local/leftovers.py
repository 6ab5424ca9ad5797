"""Processes that belong to a data directory, and their end: also those that a killed `up` left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from modelfleetd.local.data_directory import MARKER

# Carried by replicas and by the proxy before them (node/processes.py): they outlive their agent, which adopts them.
_REPLICA = "MODELFLEET_REPLICA="
_PAUSE = 0.05


def processes_of(directory: Path, *, replicas: bool = True) -> list[int]:
    """Returns the id of every living process that carries the directory's mark, which children inherit.

    Args:
        directory: the data directory.
        replicas: whether those count that the next node agent would take over.
    """
    mark = f"{MARKER}={directory}"
    return [
        process
        for process, variables in _environments()
        if mark in variables and (replicas or not any(variable.startswith(_REPLICA) for variable in variables))
    ]


def end(directory: Path, *, replicas: bool = True, grace: float = 5.0) -> int:
    """Ends what carries the directory's mark, what is started meanwhile included; returns how many there were.

    Asks first, and makes them end after the grace.
    """
    seen: set[int] = set()
    began = time.monotonic()
    while found := set(processes_of(directory, replicas=replicas)):
        waited = time.monotonic() - began
        if waited > 2 * grace:
            break
        # Asked once each; after the grace told, again and again.
        for process in found if waited > grace else found - seen:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL if waited > grace else signal.SIGTERM)
        seen |= found
        time.sleep(_PAUSE)
    return len(seen)


def _environments() -> Iterator[tuple[int, list[str]]]:
    """Gives every process whose environment this user may read; one that has ended and was not reaped has none."""
    if sys.platform != "linux":
        told = subprocess.run(("ps", "-axEww", "-o", "pid=,command="), capture_output=True, text=True, check=False)
        for line in told.stdout.splitlines():
            process, *variables = line.split()
            yield int(process), variables
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "environ").read_bytes().decode(errors="replace").split("\0")
