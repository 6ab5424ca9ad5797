"""How a snapshot is loaded and kept current, without I/O: what to ask, and what to make of the answers.

`Following.steps` is a generator that yields what is to be done next and is sent what came of it, so the blocking and
the asyncio snapshot are the same in everything but how they wait.

    away ──list──> loaded ──watch──> current       OUT_OF_RANGE, another history: list again
     ^                                  │          anything else: watch again from where it was
     └──────── pause, longer each time ─┘
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from modelfleet.errors import DeadlineExceeded, ModelfleetError, NotFound, OutOfRange
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.snapshot.file import Kept
from modelfleet.snapshot.state import PREFIX, BaselineChange, State

log = logging.getLogger("modelfleet.snapshot")

PAGE_SIZE: Final = 1000
MAX_MODEL_TYPES: Final = 1000
CURRENT_SECONDS: Final = 30.0
"""How long after it was last known to be current a snapshot still is: three heartbeats."""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
# A watch is begun again now and then, so that watchers spread over replicas that came later.
_WATCH_SECONDS = (600.0, 900.0)
# Between two files; and no more than this part of the time is spent on writing them.
SAVE_SECONDS: Final = 10.0
_SAVE_SHARE = 0.02
# A file that differs only in when it was current is good enough for so long.
_TOUCH_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Call a method of the registry and send the answer."""

    method: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Watch:
    """Watch revisions, `take` each message, and send nothing when the stream ends."""

    fields: dict[str, Any]
    timeout: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


Step: TypeAlias = Ask | Watch | Pause
Steps: TypeAlias = Generator[Step, Any, None]


class _OtherHistoryError(Exception):
    """What the registry has is not what this state was made from."""


class Following:
    """Keeps a state current. Whoever drives it does its steps, one after the other, in one thread."""

    def __init__(
        self,
        model_types: Iterable[str] = (),
        on_baseline: Callable[[BaselineChange], object] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.filter = frozenset(each if each.startswith(PREFIX) else PREFIX + each for each in model_types)
        if len(self.filter) > MAX_MODEL_TYPES:
            raise ValueError(f"a snapshot may be limited to at most {MAX_MODEL_TYPES:,} model types")
        self.state = State(self.filter)
        # Told of each state that takes the place of another one.
        self.on_state: Callable[[State], None] = lambda _: None
        # Why it is not current, in words; empty while it is.
        self.problem = "the registry was not asked yet"
        self._on_baseline = on_baseline
        self._monotonic = monotonic
        self._wall = wall
        self._chance = chance
        self._current_at = -math.inf
        self._failures = 0
        # While it is loaded (again): the state to come, and the revision from which it is right.
        self._coming: State | None = None
        self._target = 0
        # Revision below which nothing is asked for when it is loaded again; None: it need not be.
        self._load_from: int | None = 0
        self._saved_revision = -1
        self._saved_at = -math.inf
        self._save_pause = SAVE_SECONDS

    # What readers may ask.

    @property
    def age(self) -> float:
        """Seconds since the state was last known to be current; infinite where it never was."""
        return self._monotonic() - self._current_at

    # Its beginning and end on disk.

    def resume(self, state: State, current_time: float) -> None:
        """Begins with a state from a file: readers have it at once, and it is followed from there."""
        state.publish()
        self._show(state)
        self._load_from = None
        self._current_at = self._monotonic() - max(0.0, self._wall() - current_time)
        self._saved_revision, self._saved_at = state.revision, self._monotonic()

    def due(self, *, at_the_end: bool = False) -> Kept | None:
        """Returns what should be written now, or None. `saved` is to be called when it was."""
        if not self.state.is_published:
            return None
        since = self._monotonic() - self._saved_at
        changed = self.state.revision != self._saved_revision
        if not (since >= self._save_pause if changed and not at_the_end else at_the_end or since >= _TOUCH_SECONDS):
            return None
        current_time = self._wall() - self.age
        return Kept(self.state.revision, self.state.anchor, current_time, self.filter, list(self.state))

    def saved(self, kept: Kept, seconds: float) -> None:
        """Notes that a state was written, or could not be, and how long that took."""
        self._saved_revision, self._saved_at = kept.revision, self._monotonic()
        self._save_pause = max(SAVE_SECONDS, seconds / _SAVE_SHARE)

    # Its life.

    def steps(self) -> Steps:
        """Yields what is to be done next, for ever. Errors of the registry are thrown into it."""
        while True:
            try:
                if self._load_from is not None:
                    yield from self._load(self._load_from)
                elif self._coming is None:
                    yield from self._compare()
                yield from self._watch()
            except _OtherHistoryError as error:
                log.warning("the registry's history is another one than before (%s): loading again", error)
                self._load_from = 0
            except OutOfRange as error:
                log.info("revision %d can no longer be followed: loading again", self.state.revision)
                self._load_from = _number(error.metadata.get("current_revision", ""))
            except ModelfleetError as error:
                self.problem = error.message
                if not self._failures:
                    log.warning("the registry does not answer (%s); reads go on with what is known", error)
            except Exception as error:
                # A defect must not end the following, and with it all news.
                self.problem, self._load_from = repr(error), 0
                log.exception("a step failed: loading again")
            yield Pause(self._pause())

    def take(self, message: pb.WatchRevisionsResponse) -> None:
        """Takes a message of the watch.

        Raises:
            Exception: what it says does not follow what is known; to be thrown into `steps`.
        """
        self._failures = 0
        state = self._coming or self.state
        if message.HasField("revision"):
            self._take_revision(state, message.revision)
        # Of a watch that is limited: what was passed over is none of this state's business.
        state.revision = max(state.revision, message.position)
        if state is self._coming and state.revision >= self._target:
            self._tell(self._publish(state))
        if state.revision >= message.current_revision and self._coming is None:
            self._current_at = self._monotonic()
            self.problem = ""

    def _take_revision(self, state: State, revision: pb.Revision) -> None:
        if revision.number <= state.revision:
            return
        number, hash_ = state.anchor
        is_next = revision.number == state.revision + 1
        is_successor = not hash_ or number != revision.number - 1 or hash_ == revision.previous_hash
        if not (is_next or self.filter) or not is_successor:
            raise _OtherHistoryError(f"revision {revision.number} does not follow {state.revision} as it is known")
        self._tell(state.apply(revision))

    def _publish(self, state: State) -> Sequence[BaselineChange]:
        changes = state.publish(before=self.state)
        self._show(state)
        self._coming = None
        return changes

    def _show(self, state: State) -> None:
        self.state = state
        self.on_state(state)

    def _load(self, least: int) -> Steps:
        """Lists everything. Readers see it once it is as of one revision: first the watch reaches the newest page's."""
        self._coming = None
        state = State(self.filter)
        first = yield Ask("list_model_types", {"page_size": 1, "min_revision": least})
        state.revision = start = newest = first.revision
        if self.filter:
            for name in sorted(self.filter):
                try:
                    model_type = yield Ask("get_model_type", {"name": name, "min_revision": start})
                    state.add((model_type,), self.state)
                    pages = yield from self._add_pages(state, start, "list_models", "models", parent=name)
                except NotFound:
                    continue  # not registered (any more): should that change, the watch tells
                newest = max(newest, model_type.revision, pages)
        else:
            newest = yield from self._add_pages(state, start, "list_model_types", "model_types")
            newest = yield from self._add_pages(state, newest, "list_models", "models", parent=f"{PREFIX}-")
        state.anchor = (start, (yield from self._hash_of(start)))
        self._load_from, self._target = None, newest
        if start == newest:
            self._tell(self._publish(state))
        else:
            self._coming = state

    def _add_pages(self, state: State, least: int, method: str, items: str, **fields: str) -> Generator[Step, Any, int]:
        """Adds a list, page by page; each may be of a later revision than the one before. Returns the newest one's."""
        token = ""
        while True:
            asked = {"page_size": PAGE_SIZE, "page_token": token, "min_revision": least}
            page = yield Ask(method, fields | asked)
            state.add(getattr(page, items), self.state)
            # No page of a replica that is behind the one before.
            least = page.revision
            token = page.next_page_token
            if not token:
                return least

    def _compare(self) -> Steps:
        """Looks whether the registry's history still is the one that the state was made from."""
        number, known = self.state.anchor
        found = yield from self._hash_of(number)
        if known and found and known != found:
            raise _OtherHistoryError(f"revision {number} is not what it was")

    def _hash_of(self, revision: int) -> Generator[Step, Any, str]:
        """Asks for the hash of a revision; empty where it is not kept any more, or there is none yet."""
        if not revision:
            return ""
        try:
            found: pb.Revision = yield Ask("get_revision", {"name": f"revisions/{revision}"})
        except NotFound:
            return ""
        return found.hash

    def _watch(self) -> Steps:
        shortest, longest = _WATCH_SECONDS
        try:
            after = (self._coming or self.state).revision
            wanted = {"after_revision": after, "model_types": sorted(self.filter)}
            yield Watch(wanted, shortest + (longest - shortest) * self._chance())
        except DeadlineExceeded:
            # Its time was over, or nobody answered.
            if self.age > CURRENT_SECONDS:
                raise

    def _pause(self) -> float:
        """Returns how long to wait before the next attempt: longer each time, and never in step with others."""
        longest = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0**self._failures)
        self._failures = min(self._failures + 1, 30)
        return longest * (0.5 + 0.5 * self._chance())

    def _tell(self, changes: Sequence[BaselineChange]) -> None:
        if self._on_baseline is None:
            return
        for change in changes:
            try:
                self._on_baseline(change)
            except Exception:
                # The caller's own; the following goes on.
                log.exception("on_baseline failed for %s", change.model_type)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
