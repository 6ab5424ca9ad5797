"""Figures: what is kept of a launch that has ended, and what many of them say together."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.launcher.domain.deadlines import NO_TIME
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import ENDED, State
from modelfleetd.launcher.domain.waits import PEOPLE

DEFAULT_SPAN: Final = timedelta(weeks=4)
MOST_SPAN: Final = timedelta(days=400)
MOST_GROUPS: Final = 1_000
MOST_SURFACE: Final = 63
# Those that turn a launch round and are nobody; whoever else does is a person.
_NOBODY: Final = frozenset({"availability", "capacity", "deadline", "plan", "platform", "registry"})
# Those that are named by what they are: `mitigation/launches/x`, `holds/x`.
_NAMED: Final[Mapping[str, str]] = {"mitigation": "mitigation", "holds": "hold"}


@dataclass(frozen=True, slots=True)
class Figures:
    """What is kept of one attempt of a launch once it has ended.

    Attributes:
        duration: from its beginning to its end.
        phases: time in each state that it was in.
        waits: time lost waiting, cause by cause; together at most the duration.
        people_wait: of these, the time that it waited for people to answer.
        cause: why it went back, as the kind of who turned it round; empty where nobody did.
        failed_gates: verdicts FAIL, gate by gate.
    """

    duration: timedelta
    phases: Mapping[State, timedelta]
    waits: Mapping[str, timedelta]
    people_wait: timedelta
    cause: str
    failed_gates: Mapping[str, int]


def figures_of(launch: Launch) -> Figures:
    """What is kept of a launch that has ended; its waits are over."""
    assert launch.end_time is not None
    phases: dict[State, timedelta] = {}
    for phase in launch.phase_times:
        if phase.state not in ENDED:
            took = max(NO_TIME, (phase.end_time or launch.end_time) - phase.start_time)
            phases[phase.state] = phases.get(phase.state, NO_TIME) + took
    waits = launch.waits.times
    return Figures(
        duration=sum(phases.values(), NO_TIME),
        phases=phases,
        waits=waits,
        people_wait=sum((waits[cause] for cause in PEOPLE & waits.keys()), NO_TIME),
        cause=cause_of(launch),
        failed_gates=launch.waits.failed,
    )


def cause_of(launch: Launch) -> str:
    """Why a launch goes back: `gate/stability`, `deadline`, `mitigation` and the like, or `person`."""
    if launch.abort is None:
        return ""
    author = launch.abort.author
    if author.startswith("gate/") or author in _NOBODY:
        return author
    return _NAMED.get(author.partition("/")[0], "person")


class GroupBy(enum.Enum):
    """By what launches are put together."""

    TEAM = 1
    SURFACE = 2
    STRATEGY = 3
    WEEK = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """Which launches are counted, and by what they are put together; None: all of them."""

    start: datetime
    end: datetime
    group_by: GroupBy | None = None
    team: str = ""
    surface: str = ""

    @property
    def weeks(self) -> float:
        """How many weeks a group's launches are of."""
        return 1.0 if self.group_by is GroupBy.WEEK else (self.end - self.start) / timedelta(weeks=1)


def asked(
    start: datetime | None, end: datetime | None, now: datetime, *, group_by: GroupBy | None, team: str, surface: str
) -> Asked:
    """Fills in the defaults of a question: four weeks, until now.

    Raises:
        InvalidFields: with everything that is wrong with it.
    """
    end = now if end is None else end
    start = end - DEFAULT_SPAN if start is None else start
    wrong: list[FieldViolation] = []
    if start >= end:
        wrong.append(FieldViolation("start_time", f"must be before end_time, {end:%Y-%m-%dT%H:%M:%SZ}"))
    elif end - start > MOST_SPAN:
        wrong.append(FieldViolation("start_time", f"must be at most {MOST_SPAN.days} days before end_time"))
    if len(surface) > MOST_SURFACE:
        wrong.append(FieldViolation("surface", f"must have at most {MOST_SURFACE} characters"))
    if wrong:
        raise InvalidFields(wrong)
    return Asked(start, end, group_by, team, surface)


@dataclass(frozen=True, slots=True)
class PhaseStatistics:
    """Time in one phase."""

    phase: str
    launches: int
    median_duration: timedelta
    p90_duration: timedelta
    total_duration: timedelta


@dataclass(frozen=True, slots=True)
class WaitStatistics:
    """Time lost waiting for one cause."""

    cause: str
    launches: int
    total_duration: timedelta


@dataclass(frozen=True, slots=True)
class CauseCount:
    """How often."""

    cause: str
    count: int


@dataclass(frozen=True, slots=True)
class LaunchStatistics:
    """Figures of a group of launches that have ended."""

    group: str = ""
    launches: int = 0
    succeeded: int = 0
    rolled_back: int = 0
    cancelled: int = 0
    failed: int = 0
    succeeded_per_week: float = 0.0
    median_duration: timedelta | None = None
    p90_duration: timedelta | None = None
    phases: tuple[PhaseStatistics, ...] = ()
    waits: tuple[WaitStatistics, ...] = ()
    causes: tuple[CauseCount, ...] = ()
    failed_gates: tuple[CauseCount, ...] = ()
    people_wait: timedelta = NO_TIME
