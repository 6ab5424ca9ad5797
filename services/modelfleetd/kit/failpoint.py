"""Places where a test lets a process die, stop or fail: before and after every commit and every outgoing call.

    MODELFLEET_FAILPOINT=launcher.after_act.shift:kill        dies as by kill −9 at the first such place
    MODELFLEET_FAILPOINT=launcher.before_record:stop:3        stops (SIGSTOP) at the third
    MODELFLEET_FAILPOINT=launcher.before_act.*:error          fails as if the part did not answer, every time
    MODELFLEET_FAILPOINT_ONCE=<file>                          only while the file is not there; it is made then

Costs nothing where the variable is not set.
"""

from __future__ import annotations

import fnmatch
import os
import signal
from pathlib import Path

from modelfleetd.errors import PartUnavailable

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Failpoint:
    """One place, or a pattern of places, and what happens there."""

    def __init__(self, spec: str, once: str = "") -> None:
        name, _, rest = spec.partition(":")
        action, _, count = rest.partition(":")
        if action not in ("kill", "stop", "error"):
            raise ValueError(f"MODELFLEET_FAILPOINT={spec}: what happens must be kill, stop or error")
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
        if self.action == "error":
            raise PartUnavailable(f"failpoint {name}")
        os.kill(os.getpid(), _SIGNALS[self.action])


_spec = os.environ.get("MODELFLEET_FAILPOINT", "")
_active = Failpoint(_spec, os.environ.get("MODELFLEET_FAILPOINT_ONCE", "")) if _spec else None


def failpoint(name: str) -> None:
    """Marks a place where a test may let the process die."""
    if _active is not None:
        _active.pass_by(name)
