"""What really serves in one region, as far as a launch is concerned: everything that is observed, in one object."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain import shares
from modelfleetd.launcher.domain.plan import RegionPlan

# How long after a split the requests are waited for that would show it, before low traffic is concluded.
OBSERVING: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Observed:
    """One model in one region. `desired` and `share` are what the agent works towards; the rest is what is there."""

    desired: int = 0
    share: int = 0
    starting: int = 0
    available: int = 0
    unavailable: int = 0
    terminating: int = 0
    acknowledged: int = 0
    observed: int = 0
    requests: int = 0
    errors: int = 0
    message: str = ""
    # Since the split in force, and over the proxy's last interval.
    since_split: int = 0
    errors_since_split: int = 0
    latency_p99_ms: float | None = None

    @property
    def error_rate(self) -> float:
        """The share of requests since the split that failed; 0 where there were none."""
        return self.errors_since_split / self.since_split if self.since_split else 0.0

    @property
    def existing(self) -> int:
        """Replicas that take capacity now."""
        return self.starting + self.available + self.unavailable + self.terminating

    @property
    def slots(self) -> int:
        """Replicas that take capacity now, or may be started again at any moment."""
        return max(self.desired, self.starting + self.available + self.unavailable) + self.terminating

    @property
    def weight(self) -> int:
        """The share that it may have now: what is asked for, or what the proxy gives it."""
        return max(self.share, self.acknowledged)


@dataclass(frozen=True, slots=True)
class Seen:
    """One region at one moment.

    Attributes:
        known: the agent has a desired state for the target.
        current: the proxy has acknowledged the newest desired state.
        requests: all requests since the split.
        split_age: how long the split has been in force, by the agent's clock, as far as its numbers reach.
        time: of the observation, by the agent's clock.
        statistics_age: how old the numbers of requests are; None where there are none.
    """

    region: str
    candidate: Observed
    baseline: Observed
    known: bool = True
    current: bool = True
    requests: int = 0
    split_age: timedelta = timedelta(0)
    time: datetime | None = None
    statistics_age: timedelta | None = None

    def used(self, plan: RegionPlan, flavor: str) -> int:
        """Units of a flavor that both sides take, or may take at any moment."""
        units = 0
        if plan.candidate.flavor == flavor:
            units += self.candidate.slots * plan.candidate.units
        if plan.baseline is not None and plan.baseline.flavor == flavor:
            units += self.baseline.slots * plan.baseline.units
        return units

    def free(self, plan: RegionPlan, flavor: str) -> int:
        """Units of the hold that nothing takes."""
        return plan.held(flavor) - self.used(plan, flavor)


class ShareState(enum.Enum):
    """How far an intended share has become real."""

    # The proxy has not acknowledged it, or there was no time yet to see requests.
    PENDING = 1
    # The requests agree with it.
    OBSERVED = 2
    # Too few requests: the acknowledgement is all the evidence there is.
    LOW_TRAFFIC = 3
    # The requests do not agree with it.
    DIFFERS = 4


def in_proportion(seen: Seen) -> bool:
    """Whether the proxy gives both sides what is asked for, and in the same proportion what other models have dropped.

    A model without an available replica hands its share to the others; no act on these two sides would change that.
    """
    new, old = seen.candidate, seen.baseline
    asked, given = new.share + old.share, new.acknowledged + old.acknowledged
    if given <= asked:
        return (new.acknowledged, old.acknowledged) == (new.share, old.share)
    # Exact up to the rounding of each of them to whole basis points.
    return abs(new.acknowledged * asked - new.share * given) < asked


def share_state(seen: Seen) -> ShareState:
    """Says whether the shares that are asked for are really there (LAUNCH.md, One step, 4)."""
    asked, given = seen.candidate, seen.baseline
    if not seen.current or not in_proportion(seen):
        return ShareState.PENDING
    if seen.requests < shares.LOW_TRAFFIC:
        return ShareState.LOW_TRAFFIC if seen.split_age >= OBSERVING else ShareState.PENDING
    if all(shares.agrees(side.acknowledged, side.observed, seen.requests) for side in (asked, given)):
        return ShareState.OBSERVED
    return ShareState.DIFFERS
