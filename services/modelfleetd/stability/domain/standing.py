"""Standings: what the newest evaluation says of each model, since when, and what decided."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from modelfleetd.stability.domain.availability import NOT_OBSERVED, Availability, AvailabilityState, Interval
from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.estimates import Estimate, State
from modelfleetd.stability.domain.fleet import Metric, WatchedModel
from modelfleetd.stability.domain.slices import Objective, Slice
from modelfleetd.stability.domain.window_verdict import Stability, verdict_of_model


class ModelState(enum.Enum):
    """Whether a model is stable. The numbers are those of the protos, and stored."""

    STABLE = 1
    UNSTABLE = 2
    UNKNOWN = 3
    NOT_APPLICABLE = 4


@dataclass(frozen=True, slots=True)
class MetricStanding:
    """One metric of one prediction against its healthy range, over the newest window that is decidable."""

    prediction: str
    metric: Metric
    state: Stability
    estimate: Estimate
    limits: Limits
    start: int  # first minute of the window, since 1970-01-01 UTC
    end: int  # the minute after its last
    immature: bool
    label_coverage: float
    positives: int
    examples: int

    @property
    def key(self) -> tuple[str, Metric]:
        return self.prediction, self.metric

    @property
    def excess(self) -> float:
        """How far outside its range the value lies, in widths of the range; 0 inside."""
        if self.estimate.state is not State.VALUE:
            # Without a value only a lower end that lies above the range says so.
            return float("inf") if self.estimate.low > self.limits.high else 0.0
        value, width = self.estimate.value, self.limits.high - self.limits.low
        outside = max(self.limits.low - value, value - self.limits.high, 0.0)
        return outside / width if width else float("inf") if outside else 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What the newest evaluation says of a model."""

    model: str
    state: ModelState
    since: datetime
    # The prediction and metric that decided; None where none did.
    culprit: tuple[str, Metric] | None = None
    metrics: tuple[MetricStanding, ...] = ()
    availability: Availability = NOT_OBSERVED
    # By region: what its availability follows from, and what the next report is compared with.
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def decisive(self) -> MetricStanding | None:
        """The culprit with its figures."""
        return next((metric for metric in self.metrics if metric.key == self.culprit), None)

    def slices(self, slo: str) -> dict[tuple[str, Objective], Slice]:
        """Returns what the minute counts as for the model's objectives."""
        found = {(slo, Objective.AVAILABILITY): _AVAILABILITY_SLICES[self.availability.state]}
        if self.state is not ModelState.NOT_APPLICABLE:
            found[slo, Objective.STABILITY] = _STABILITY_SLICES[self.state]
        return found


_STABILITY_SLICES: Final = {
    ModelState.STABLE: Slice.GOOD,
    ModelState.UNSTABLE: Slice.BAD,
    ModelState.UNKNOWN: Slice.UNKNOWN,
}
_AVAILABILITY_SLICES: Final = {
    AvailabilityState.AVAILABLE: Slice.GOOD,
    AvailabilityState.UNAVAILABLE: Slice.BAD,
    AvailabilityState.UNKNOWN: Slice.UNKNOWN,
}
_STATES: Final = {
    Stability.STABLE: ModelState.STABLE,
    Stability.UNSTABLE: ModelState.UNSTABLE,
    Stability.UNKNOWN: ModelState.UNKNOWN,
}


def stand(
    model: WatchedModel,
    metrics: Sequence[MetricStanding],
    availability: Availability,
    intervals: Mapping[str, Interval],
    before: Standing | None,
    now: datetime,
) -> Standing:
    """Returns the standing of a model: 0 by any metric that is unstable, else unknown by any, else 1.

    Args:
        model: the model.
        metrics: its metrics; none where none could be looked at.
        availability: whether its requests succeed.
        intervals: what that follows from, by region.
        before: the standing of the evaluation before; None: there is none.
        now: the moment of this evaluation, since when a new state holds.
    """
    if model.predictions:
        state = _STATES[verdict_of_model(metric.state for metric in metrics)]
    else:
        state = ModelState.NOT_APPLICABLE
    goes_on = before is not None and before.state is state
    return Standing(
        model=model.name,
        state=state,
        since=before.since if before is not None and goes_on else now,
        culprit=_culprit(state, metrics, before.culprit if before is not None and goes_on else None),
        metrics=tuple(metrics),
        availability=availability,
        intervals=intervals,
    )


def _culprit(
    state: ModelState, metrics: Sequence[MetricStanding], before: tuple[str, Metric] | None
) -> tuple[str, Metric] | None:
    """Returns what decided. What decided before stays, so that two of a kind do not take turns by the minute."""
    if state not in (ModelState.UNSTABLE, ModelState.UNKNOWN):
        return None
    deciding = [metric for metric in metrics if _STATES[metric.state] is state]
    if any(metric.key == before for metric in deciding):
        return before
    # Of equals the first, in the order of the declaration.
    worst = max(deciding, key=lambda metric: metric.excess, default=None)
    return None if worst is None else worst.key
