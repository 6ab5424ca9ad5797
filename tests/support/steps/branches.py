"""Stories that have their beginning in common.

A launch in virtual time goes the same way whenever it is begun, so what comes after each of its moments need not go
through all that comes before. One process goes on undisturbed; at each moment that is asked for a child of it (`fork`)
lets something happen, goes on to the end and tells what was wrong. A child may have children in turn. It has everything
that there is in the memory of its parent, but no thread of it, and no connection that it could use: for stories that
are complete in memory.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import traceback
from collections.abc import Awaitable, Callable

# Seconds after which a story that does not end is ended.
_LONGEST = 240


class Branches:
    """The branches of one story, as one of its processes sees them.

    Attributes:
        name: of the branch that this process is; empty: the one that they all part from.
        wrong: what was wrong in the branches that have parted from this one.
    """

    def __init__(self) -> None:
        self.name = ""
        self.wrong: list[str] = []
        self._tells: int | None = None

    def parts(self, name: str) -> bool:
        """Begins a branch, and waits until it has been told.

        Returns:
            Whether this is the process of the branch, in which something is to happen now.
        """
        loop = asyncio.get_running_loop()
        hears, tells = os.pipe()
        child = os.fork()
        if not child:
            os.close(hears)
            # A child's loop is not known to run; what would end its parent in time does not end it; and what is
            # garbage goes with the process.
            asyncio.events._set_running_loop(loop)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LONGEST)
            gc.disable()
            self.name = f"{self.name}, {name}" if self.name else name
            self.wrong, self._tells = [], tells
            return True
        os.close(tells)
        with os.fdopen(hears, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        if status:
            self.wrong.append(f"{name}: its process ended with {os.waitstatus_to_exitcode(status)}")
        else:
            self.wrong += json.loads(told)
        return False

    def end(self, wrong: list[str]) -> list[str]:
        """Ends a branch with what was wrong in it: only the one that all have parted from returns, with everything."""
        found = [f"{self.name}: {what}" if self.name else what for what in wrong] + self.wrong
        if self._tells is not None:
            try:
                with os.fdopen(self._tells, "wb") as pipe:
                    pipe.write(json.dumps(found).encode())
            finally:
                # Also where nobody hears it any more: what began the story may not go on here.
                os._exit(0)
        return found


async def branching(story: Callable[[Branches], Awaitable[list[str]]]) -> list[str]:
    """Goes through a story and all that parts from it. Gives what was wrong anywhere, with where it was."""
    branches = Branches()
    try:
        wrong = await story(branches)
    except BaseException:
        if not branches.name:
            raise
        # Nothing but this function may go on in a child.
        wrong = [traceback.format_exc()]
    return branches.end(wrong)
