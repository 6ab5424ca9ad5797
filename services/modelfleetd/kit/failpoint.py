"""Places where a test lets a process die, stop, fail or lose its connections: before and after every commit and every
outgoing call. `kit/places.py` lists them; `modelfleetd failpoints` prints them.

    MODELFLEET_FAILPOINT=launcher.after_act.shift:kill        dies as by kill −9 at the first such place
    MODELFLEET_FAILPOINT=launcher.before_record.*:stop:3      stops (SIGSTOP) at the third
    MODELFLEET_FAILPOINT=launcher.before_act.*:error          fails as if the part did not answer, every time
    MODELFLEET_FAILPOINT=capacity.after_commit.*:drop         loses every connection that it has, and goes on
    MODELFLEET_FAILPOINT_ONCE=<file>                          only while the file is not there; it is made then
    MODELFLEET_FAILPOINT_FILE=<file>                          what the file says, once it is there: whoever comes to the
                                                              place first takes it, by renaming it to <file>.<pid>
    MODELFLEET_FAILPOINT_TRACE=<file>                         notes in the file each place that is passed, once

Costs nothing where none of these is set.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.places import is_listed

_ACTIONS = ("kill", "stop", "error", "drop")
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Failpoint:
    """One place, or a pattern of places, and what happens there."""

    def __init__(self, spec: str, once: str = "") -> None:
        name, _, rest = spec.partition(":")
        action, _, count = rest.partition(":")
        if action not in _ACTIONS:
            raise ValueError(f"MODELFLEET_FAILPOINT={spec}: what happens must be one of {', '.join(_ACTIONS)}")
        self.pattern = name
        self.action = action
        self._once = Path(once) if once else None
        self._left = int(count or 1)

    def pass_by(self, name: str) -> None:
        """Does what is to happen, where this is the place."""
        if not fnmatch.fnmatchcase(name, self.pattern):
            return
        self._left -= 1
        if self._left > 0 or (self._left < 0 and self.action != "error"):
            return
        if self._once is not None:
            try:
                self._once.touch(exist_ok=False)
            except FileExistsError:
                return
        self.happen(name)

    def happen(self, name: str) -> None:
        """Does what is to happen."""
        if self.action == "error":
            raise PartUnavailable(f"failpoint {name}")
        if self.action == "drop":
            drop_connections()
            return
        os.kill(os.getpid(), _SIGNALS[self.action])


class FailpointFile:
    """What happens, once, at the place that a file names: it may be written while the processes run."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._written = 0
        self._failpoint: Failpoint | None = None

    def pass_by(self, name: str) -> None:
        """Does what is to happen where this is the place and nobody else has come to it before."""
        try:
            written = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if written != self._written:
            with contextlib.suppress(FileNotFoundError):
                self._failpoint = Failpoint(self._path.read_text())
                self._written = written
        if self._failpoint is None or not fnmatch.fnmatchcase(name, self._failpoint.pattern):
            return
        try:
            self._path.rename(f"{self._path}.{os.getpid()}")
        except FileNotFoundError:
            return
        self._failpoint.happen(name)


class Trace:
    """Notes which places are passed."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._noted: set[str] = set()

    def pass_by(self, name: str) -> None:
        """Notes a place, the first time."""
        if name not in self._noted:
            self._noted.add(name)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")


def drop_connections() -> None:
    """Shuts down every connection of this process, whoever opened it: TCP, and Unix sockets that have an address."""
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as found:
                # A pair without addresses is how an event loop wakes itself.
                if found.type == socket.SOCK_STREAM and (found.getpeername() or found.getsockname()):
                    found.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue  # Not connected, or closed meanwhile.


def _from_environment() -> list[Failpoint | FailpointFile | Trace]:
    found: list[Failpoint | FailpointFile | Trace] = []
    if trace := os.environ.get("MODELFLEET_FAILPOINT_TRACE"):
        found.append(Trace(trace))
    if spec := os.environ.get("MODELFLEET_FAILPOINT"):
        found.append(Failpoint(spec, os.environ.get("MODELFLEET_FAILPOINT_ONCE", "")))
    if file := os.environ.get("MODELFLEET_FAILPOINT_FILE"):
        found.append(FailpointFile(file))
    return found


_active = _from_environment()


def is_active() -> bool:
    """Whether anything may happen at a place, or is noted there."""
    return bool(_active)


def failpoint(name: str) -> None:
    """Marks a place where a test may let the process die.

    Raises:
        LookupError: where anything may happen at all: the place is not in `kit/places.py`.
    """
    if _active and not is_listed(name):
        raise LookupError(f"{name} is no place that kit/places.py lists")
    for each in _active:
        each.pass_by(name)


def spelled(words: str) -> str:
    """Makes a name of what people read: `look at every launch` is `look_at_every_launch`."""
    return re.sub(r"\W+", "_", words)


@contextmanager
def passing(part: str, kind: str, what: str) -> Iterator[None]:
    """Marks the places before and after what is inside: `part.before_kind.what`, and `after` where nothing is raised.

    Args:
        part: the service.
        kind: `commit` or `call`.
        what: is committed or called.
    """
    failpoint(f"{part}.before_{kind}.{what}")
    yield
    failpoint(f"{part}.after_{kind}.{what}")
