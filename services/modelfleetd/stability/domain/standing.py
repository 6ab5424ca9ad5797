"""Standings: what the newest evaluation says of each model, since when, and what decided."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from modelfleetd.stability.domain.availability import NOT_OBSERVED, Availability, AvailabilityState, Interval
from modelfleetd.stability.domain.fleet import Metric, WatchedModel
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.slices import Objective, Slice
from modelfleetd.stability.domain.window_verdict import Stability, verdict_of_model
from modelfleetd.stability.domain.words import count


class ModelState(enum.Enum):
    """Whether a model is stable. The numbers are those of the protos, and stored."""

    STABLE = 1
    UNSTABLE = 2
    UNKNOWN = 3
    NOT_APPLICABLE = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """What the newest evaluation says of a model."""

    model: str
    state: ModelState
    since: datetime
    # The prediction and metric that decided; None where none did.
    culprit: tuple[str, Metric] | None = None
    metrics: tuple[WindowVerdict, ...] = ()
    availability: Availability = NOT_OBSERVED
    # By region: what its availability follows from, and what the next report is compared with.
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def decisive(self) -> WindowVerdict | None:
        """The culprit with its figures."""
        return next((metric for metric in self.metrics if _key(metric) == self.culprit), None)

    @property
    def explanation(self) -> str:
        """Returns in a sentence what is wrong and since when, or what is missing."""
        decisive, since = self.decisive, f"{self.since:%Y-%m-%d %H:%M} UTC"
        if self.state is ModelState.NOT_APPLICABLE:
            return "Its model type declares no predictions: only its availability is watched."
        if self.state is ModelState.STABLE:
            if len(self.metrics) == 1:
                return f"Its 1 metric is within its healthy range since {since}."
            return f"All of {count(len(self.metrics), 'metric')} within their healthy ranges since {since}."
        if decisive is None:
            return f"Nothing is known of its predictions since {since}."
        others = sum(metric.state is decisive.state for metric in self.metrics) - 1
        more = f" {count(others, 'more metric')} likewise." if others else ""
        return f"Since {since}: {decisive.explanation}{more}"

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
    metrics: Sequence[WindowVerdict],
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
    state: ModelState, metrics: Sequence[WindowVerdict], before: tuple[str, Metric] | None
) -> tuple[str, Metric] | None:
    """Returns what decided. What decided before stays, so that two of a kind do not take turns by the minute."""
    if state not in (ModelState.UNSTABLE, ModelState.UNKNOWN):
        return None
    deciding = [metric for metric in metrics if _STATES[metric.state] is state]
    if any(_key(metric) == before for metric in deciding):
        return before
    # Of equals the first, in the order of the declaration.
    worst = max(deciding, key=excess, default=None)
    return None if worst is None else _key(worst)


def excess(metric: WindowVerdict) -> float:
    """Returns how far outside its range a value lies, in widths of the range: 0 inside, infinite without a value."""
    if not metric.estimate.known:
        return math.inf
    value, limits = metric.estimate.value, metric.limits
    outside = max(limits.low - value, value - limits.high, 0.0)
    return outside / (limits.high - limits.low) if limits.high > limits.low else outside


def _key(metric: WindowVerdict) -> tuple[str, Metric]:
    return metric.prediction, metric.metric
