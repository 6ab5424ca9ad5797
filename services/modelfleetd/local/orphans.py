"""Children of children that lost their parent: they become ours, and leave no zombie when they end.

A machine's init does that anyway; the first process of a container often does not, or is `up` itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys

_PR_SET_CHILD_SUBREAPER = 36
_PAUSE = 1.0


def adopt() -> None:
    """Makes orphans below this process its children (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def reap() -> None:
    """Reaps adopted children as they end, until it is cancelled.

    Children of our own are reaped at once by those who started them: a dead one that is still there a second later is
    an adopted one.
    """
    last: int | None = None
    while True:
        await asyncio.sleep(_PAUSE)
        dead = _dead_child()
        if dead is not None and dead == last:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(dead, os.WNOHANG)  # noqa: ASYNC222 - it is dead: this does not wait
        last = dead


def reap_all() -> None:
    """Reaps every dead child; for the end, when nobody waits for one any more."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _dead_child() -> int | None:
    with contextlib.suppress(ChildProcessError):
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if found is None else found.si_pid
    return None
