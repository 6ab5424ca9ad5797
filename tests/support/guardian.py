"""Ends what a test run has started, also when the run itself is killed.

Replicas and Envoy outlive their agent by design, so nothing of the usual (parents, sessions, fixtures) is enough.
Every process of a run carries `FLEET_TEST_RUN=<id>` in its environment; a small guardian waits for the run's end on a
pipe and then kills whatever still carries the id.

    python guardian.py <id> [FOLDER...]    # reads standard input to its end, then kills, and removes the folders
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "FLEET_TEST_RUN"


def carriers(run: str) -> list[int]:
    """Ids of the processes that carry a run's mark or one that begins with it, this one excepted."""
    mark = f"{VARIABLE}={run}"
    if sys.platform != "linux":
        told = subprocess.run(["ps", "-axEww", "-o", "pid=,command="], capture_output=True, text=True, check=False)
        lines = (line.split() for line in told.stdout.splitlines())

        def begins(word: str) -> bool:
            return word.startswith(mark)

        return [int(line[0]) for line in lines if any(map(begins, line)) and int(line[0]) != os.getpid()]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if any(v.startswith(mark.encode()) for v in (entry / "environ").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
    return found


def kill_carriers(run: str) -> int:
    """Kills them all, what they start meanwhile included; returns how many there were."""
    count = 0
    for _ in range(100):
        living = carriers(run)
        if not living:
            return count
        count += len(living)
        for process in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    return count


def start_guardian(run: str, *folders: Path) -> subprocess.Popen[bytes]:
    """Starts a guardian of a run; it acts once this process has ended or has closed its standard input."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-S", __file__, run, *map(str, folders)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


@contextlib.contextmanager
def guarded(*folders: Path) -> Iterator[str]:
    """Gives the id of a run whose processes a guardian ends, and whose folders it removes, whatever happens to it."""
    run = uuid.uuid4().hex
    watcher = start_guardian(run, *folders)
    try:
        yield run
    finally:
        assert watcher.stdin is not None
        watcher.stdin.close()
        watcher.wait(30)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    kill_carriers(sys.argv[1])
    for folder in sys.argv[2:]:
        shutil.rmtree(folder, ignore_errors=True)
