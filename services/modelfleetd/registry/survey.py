"""Looks at all entries of a kind before something that they must fulfil changes, without holding up anybody.

With the head of the ledger locked nobody else writes, and a check of 100,000 entries takes seconds. So it is done
before, a few milliseconds at a time; with the head locked only entries that have changed since are left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.wire import AnyMessage, message_of

M = TypeVar("M", bound=AnyMessage)
S = TypeVar("S")
A = TypeVar("A")

# Of the event loop at a time.
_SLICE_SECONDS = 0.005
# What may be left to check with the head locked.
MOST_LEFT = 200


class SurveyNeeded(Exception):
    """A decision cannot be taken yet: too many entries have not been looked at."""


class Survey(Generic[M]):
    """What a check finds in entries. Each is checked once, as long as it does not change."""

    def __init__(self, check: Callable[[M], str | None]) -> None:
        """Makes it from a check that says what is wrong with an entry, or None."""
        self.check = check
        # As they were when they were checked: messages are never changed, only replaced.
        self._seen: dict[str, M] = {}
        self._problems: dict[str, str] = {}

    async def look(self, entries: Callable[[], Mapping[str, M]]) -> None:
        """Checks all entries, giving up control in between, until few have changed meanwhile."""
        loop = asyncio.get_running_loop()
        pause = loop.time() + _SLICE_SECONDS
        while len(left := self._left(entries())) > MOST_LEFT:
            for name in left:
                entry = entries().get(name)
                if entry is not None:
                    self._look_at(name, entry)
                if loop.time() >= pause:
                    await asyncio.sleep(0)
                    pause = loop.time() + _SLICE_SECONDS

    def problems(self, entries: Mapping[str, M]) -> Mapping[str, str]:
        """Returns what is wrong with entries as they are, by name; without giving up control.

        Raises:
            SurveyNeeded: too many of them have not been looked at.
        """
        left = self._left(entries)
        if len(left) > MOST_LEFT:
            raise SurveyNeeded
        for name in left:
            self._look_at(name, entries[name])
        return {name: problem for name, problem in self._problems.items() if name in entries}

    def _left(self, entries: Mapping[str, M]) -> list[str]:
        return [name for name, entry in entries.items() if self._seen.get(name) is not entry]

    def _look_at(self, name: str, entry: M) -> None:
        problem = self.check(entry)
        self._seen[name] = entry
        self._problems.pop(name, None)
        if problem is not None:
            self._problems[name] = problem


class Inquiry(Generic[S]):
    """What a change would make of the entries there are: asked within a write, answered before it.

    A decision asks with `problems`. Where that cannot be said yet, the write is given up, entries are looked at with
    the ledger open to everybody, and it is tried again.
    """

    def __init__(
        self,
        follower: Follower,
        concerns: Callable[[S], type[AnyMessage] | None],
        check: Callable[[S], Callable[[Any], str | None]],
        prepare: Callable[[S], object],
        *,
        force: bool,
    ) -> None:
        """Makes it.

        Args:
            follower: with the entries.
            concerns: the kind of entries that a change asks something new of; None where it asks nothing new.
            check: makes of a change what says of an entry what would be wrong with it, or None.
            prepare: what else is dear to check of a change itself; done in a thread. Raises where it is wrong.
            force: whatever becomes of entries.
        """
        self._follower = follower
        self._concerns = concerns
        self._check = check
        self._prepare = prepare
        self._force = force
        self._change: S | None = None
        self._survey: Survey[Any] | None = None

    def problems(self, change: S, pending: Edits) -> Mapping[str, str]:
        """Returns what a change would make wrong with entries, by name; nothing where it is forced.

        Args:
            change: what is about to be written.
            pending: what has been decided just before and is not in the snapshot yet.

        Raises:
            SurveyNeeded: this cannot be said yet.
        """
        if self._survey is None or self._change != change:
            self._change, self._survey = change, None
            raise SurveyNeeded
        kind = self._concerns(change)
        if self._force or kind is None:
            return {}
        found = dict(self._survey.problems(self._follower.snapshot.table(kind)))
        for edit in pending:
            found.pop(edit.name, None)
            after = None if edit.after is None else message_of(edit.after)
            if isinstance(after, kind) and (problem := self._survey.check(after)) is not None:
                found[edit.name] = problem
        return dict(sorted(found.items()))

    async def answer(self, attempt: Callable[[], Awaitable[A]]) -> A:
        """Returns what an attempt to write makes, repeated each time that there is something to be looked at first."""
        while True:
            try:
                return await attempt()
            except SurveyNeeded:
                await self._find_out()

    async def _find_out(self) -> None:
        change = self._change
        assert change is not None
        if self._survey is None:
            await asyncio.to_thread(self._prepare, change)
            self._survey = Survey(self._check(change))
        kind = self._concerns(change)
        if not self._force and kind is not None:
            await self._survey.look(lambda: self._follower.snapshot.table(kind))
