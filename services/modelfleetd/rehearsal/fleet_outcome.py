"""What a rehearsed fleet comes to: the figures of `modelfleet launch stats`, and what only a rehearsal can count."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Final

from modelfleetd.launcher.domain.deadlines import NO_TIME
from modelfleetd.launcher.domain.figures import (
    CauseCount,
    Figures,
    LaunchStatistics,
    PhaseStatistics,
    WaitStatistics,
)
from modelfleetd.launcher.domain.states import State
from modelfleetd.rehearsal.fleet_plan import FleetPlan

# So many broken promises are kept in words.
_KEPT: Final = 100
# One of so many launches is a large one.
_LARGE: Final = 10
_IMPORTANT: Final = ("TIER0", "TIER1")


@dataclass(frozen=True, slots=True)
class Ended:
    """What is kept of a launch that has ended.

    Attributes:
        state: in which it has.
        tier: of its model type.
        needs: replicas that its route takes at first: the same, however the fleet is rehearsed.
        figures: its times, waits and causes.
    """

    state: State
    tier: str
    needs: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Share:
    """Launches of some kind, and how many of them succeeded."""

    launches: int
    succeeded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What only a rehearsal can count.

    Attributes:
        unfinished: launches that had not ended two weeks after the last was created.
        broken: promises that were broken; any is a defect.
        first_broken: some of them, in words.
        rounds: of the launcher.
        effects: what agents did.
        crashes: times that a launcher's process died.
        stalls: calls that hung for longer than a lease.
        refused: launches that a person could not create.
        peak: the most units in use at once, pool by pool, all together.
        quota: units that all pools have.
        unit_hours: that were booked or held while launches were created.
        trace: a digest of everything that happened: the same plan has the same.
        seconds: of the machine, from the first to the last.
        cpu_seconds: of its processors, all processes together.
    """

    unfinished: int
    broken: int
    first_broken: tuple[str, ...]
    rounds: int
    effects: int
    crashes: int
    stalls: int
    refused: int
    peak: int
    quota: int
    unit_hours: float
    trace: str
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamOutcome(Counts):
    """What has become of one team, and each of its launches that ended."""

    team: int
    ended: tuple[Ended, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOutcome(Counts):
    """What has become of a fleet.

    Attributes:
        plan: what was rehearsed.
        statistics: the figures of `modelfleet launch stats`, of all launches.
        large: launches on the largest tenth of the routes, by launches.
        important: launches of TIER0 and TIER1.
    """

    plan: FleetPlan
    statistics: LaunchStatistics
    large: Share
    important: Share

    @property
    def utilisation(self) -> float:
        """The part of all units that was booked or held, on average, while launches were created."""
        return self.unit_hours / (self.quota * self.plan.days * 24)


def together(plan: FleetPlan, teams: Sequence[TeamOutcome], seconds: float) -> FleetOutcome:
    """What all teams of a plan come to, which took so many seconds."""
    digest = hashlib.sha256("".join(team.trace for team in teams).encode()).hexdigest()
    ended = [one for team in teams for one in team.ended]
    return FleetOutcome(
        plan=plan,
        statistics=statistics_of(ended, plan.days / 7),
        large=_share(sorted(ended, key=lambda one: -one.needs)[: -(-len(ended) // _LARGE)]),
        important=_share([one for one in ended if one.tier in _IMPORTANT]),
        unfinished=sum(team.unfinished for team in teams),
        broken=sum(team.broken for team in teams),
        first_broken=tuple(what for team in teams for what in team.first_broken)[:_KEPT],
        rounds=sum(team.rounds for team in teams),
        effects=sum(team.effects for team in teams),
        crashes=sum(team.crashes for team in teams),
        stalls=sum(team.stalls for team in teams),
        refused=sum(team.refused for team in teams),
        peak=sum(team.peak for team in teams),
        quota=sum(team.quota for team in teams),
        unit_hours=sum(team.unit_hours for team in teams),
        trace=digest,
        seconds=seconds,
        cpu_seconds=sum(team.cpu_seconds for team in teams),
    )


def _share(ended: Sequence[Ended]) -> Share:
    return Share(len(ended), sum(one.state is State.SUCCEEDED for one in ended))


def statistics_of(ended: Sequence[Ended], weeks: float) -> LaunchStatistics:
    """What the launches say together, as the launcher's store adds up what it keeps of each."""
    states = Counter(one.state for one in ended)
    times = [one.figures.duration for one in ended if one.state is State.SUCCEEDED]
    phases: dict[str, list[timedelta]] = {}
    waits: dict[str, list[timedelta]] = {}
    gates: Counter[str] = Counter()
    for one in ended:
        for state, took in one.figures.phases.items():
            phases.setdefault(state.name, []).append(took)
        for cause, took in one.figures.waits.items():
            waits.setdefault(cause, []).append(took)
        gates.update(one.figures.failed_gates)
    causes = Counter(one.figures.cause for one in ended if one.figures.cause)
    return LaunchStatistics(
        launches=len(ended),
        succeeded=states[State.SUCCEEDED],
        rolled_back=states[State.ROLLED_BACK],
        cancelled=states[State.CANCELLED],
        failed=states[State.FAILED],
        succeeded_per_week=states[State.SUCCEEDED] / weeks,
        median_duration=_median(times) if times else None,
        p90_duration=_p90(times) if times else None,
        phases=tuple(
            PhaseStatistics(phase, len(found), _median(found), _p90(found), sum(found, NO_TIME))
            for phase, found in sorted(phases.items())
        ),
        waits=tuple(
            WaitStatistics(cause, len(found), sum(found, NO_TIME))
            for cause, found in sorted(waits.items(), key=lambda each: -sum(each[1], NO_TIME))
        ),
        causes=tuple(CauseCount(cause, count) for cause, count in causes.most_common()),
        failed_gates=tuple(CauseCount(gate, count) for gate, count in gates.most_common()),
        people_wait=sum((one.figures.people_wait for one in ended), NO_TIME),
    )


def _median(times: Sequence[timedelta]) -> timedelta:
    return timedelta(seconds=median(time.total_seconds() for time in times))


def _p90(times: Sequence[timedelta]) -> timedelta:
    """A time that some launch took: the least that nine of ten do not exceed."""
    return sorted(times)[-(-9 * len(times) // 10) - 1]
