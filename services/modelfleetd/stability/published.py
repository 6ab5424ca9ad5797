"""What Prometheus is told of models and their objectives: from memory, of those that serve, and bounded in number.

What is not known is absent rather than 0: stability, availability, and whatever has no value. Objectives are labelled
by their own name and not by the model, so that the series of a baseline's go on with the next baseline;
`modelfleet_model_info` says whose they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from modelfleetd.clock import Clock
from modelfleetd.stability.budgets import BudgetKeeper
from modelfleetd.stability.domain.availability import AvailabilityState
from modelfleetd.stability.domain.budget import Budgets, objectives_of
from modelfleetd.stability.domain.fleet import FunnelStage, Metric, Tier, WatchedModel
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.maturity import minute_of, moment_of
from modelfleetd.stability.domain.slices import Objective, Slice
from modelfleetd.stability.domain.slo import PAIRS, WINDOWS, Response, target_of
from modelfleetd.stability.domain.standing import ModelState, Standing
from modelfleetd.stability.domain.window_verdict import Stability

MOST_MODELS: Final = 2000
# Older evaluations say nothing about now.
_FRESH: Final = timedelta(minutes=3)
_BASIS_POINTS: Final = 10_000

_MODEL = ("model_type", "model")
_PREDICTION = (*_MODEL, "prediction")
_METRIC = (*_PREDICTION, "metric")
_OBJECTIVE = ("slo", "objective")
# Every metric: its labels, and what it says.
METRICS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "modelfleet_model_info": (
        (*_MODEL, "slo", "team", "surface", "product", "funnel_stage", "tier", "role"),
        "1 for each model that serves, with what others are joined to",
    ),
    "modelfleet_model_traffic_share": (_MODEL, "Share of its route's traffic, over all regions"),
    "modelfleet_model_requests_per_second": (_MODEL, "Requests that it answers, over all regions, as agents report"),
    "modelfleet_stability_stable": (_MODEL, "1: every prediction is in its healthy ranges, 0: one is not"),
    "modelfleet_stability_state": ((*_MODEL, "state"), "1 for the state that stability is in, 0 for the others"),
    "modelfleet_stability_available": (_MODEL, "1: its requests succeed in time, 0: too many do not"),
    "modelfleet_stability_in_range": (_METRIC, "1: the metric is in its healthy range, 0: it is not"),
    "modelfleet_stability_calibration": (_PREDICTION, "Predicted over observed positives, once all labels have come"),
    "modelfleet_stability_corrected_calibration": (
        _PREDICTION,
        "Predicted over observed positives, corrected for labels that are still to come",
    ),
    "modelfleet_stability_normalized_entropy": (_PREDICTION, "Mean log loss over the entropy of the base rate"),
    "modelfleet_stability_base_rate": (_PREDICTION, "Positives over examples, in the window of the calibration"),
    "modelfleet_stability_label_coverage": (_PREDICTION, "Share of the labels that can be expected that have come"),
    "modelfleet_stability_volume": (_PREDICTION, "Examples in the window of the range, of all models of the type"),
    "modelfleet_stability_range_low": (_METRIC, "Lower end of the healthy range"),
    "modelfleet_stability_range_high": (_METRIC, "Upper end of the healthy range"),
    "modelfleet_slo_target": (_OBJECTIVE, "Share of minutes that shall be good"),
    "modelfleet_slo_minute": (_OBJECTIVE, "1: the newest minute counts as good, 0: as bad"),
    "modelfleet_slo_budget_left": (_OBJECTIVE, "Share of the budget of 30 days that is left; below 0: overdrawn"),
    "modelfleet_slo_burn_rate": (
        (*_OBJECTIVE, "window"),
        "How fast the budget is spent: 1 spends it within 30 days",
    ),
    "modelfleet_slo_firing": ((*_OBJECTIVE, "severity"), "1: the burn rates of a page, or a ticket, are exceeded"),
    "modelfleet_stability_models": ((), "Models that serve"),
    "modelfleet_stability_models_left_out": ((), "Models that serve and are more than are published here"),
    "modelfleet_stability_evaluated_timestamp_seconds": ((), "The minute that was evaluated last"),
    "modelfleet_stability_evaluation_seconds": ((), "How long this replica's last evaluation took"),
}
_METRIC_NAMES: Final = {Metric.CALIBRATION: "calibration", Metric.NE: "ne", Metric.VOLUME: "volume"}


def _window(minutes: int) -> str:
    """Returns a width as Prometheus writes it: `5m`, `6h`, `3d`."""
    for size, unit in ((1440, "d"), (60, "h")):
        if minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


_WINDOWS: Final = {minutes: _window(minutes) for minutes in WINDOWS}


class Evaluated(Protocol):
    """The newest evaluation, whichever replica made it."""

    @property
    def minute(self) -> int | None: ...

    @property
    def standings(self) -> Mapping[str, Standing]: ...

    @property
    def seconds(self) -> float | None: ...


_NONE: Final[Mapping[str, Standing]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What a page was made of: snapshots that never change, so that the same objects say the same."""

    budgets: Budgets | None
    standings: Mapping[str, Standing]
    others: tuple[int | None, float | None, bool]  # minute and seconds of the evaluation, whether slices are of now

    def is_same(self, other: _Seen) -> bool:
        return self.budgets is other.budgets and self.standings is other.standings and self.others == other.others


class Published:
    """Tells Prometheus what is known, whenever it asks; what has not changed since is not written anew."""

    def __init__(
        self, evaluated: Evaluated, budgets: BudgetKeeper, clock: Clock, most_models: int = MOST_MODELS
    ) -> None:
        """Makes it.

        Args:
            evaluated: the newest evaluation.
            budgets: of the same fleet.
            clock: says what is too old.
            most_models: models that are published, the most critical ones first.
        """
        self._evaluated = evaluated
        self._budgets = budgets
        self._clock = clock
        self._most_models = most_models
        self._written: tuple[_Seen, bytes] | None = None

    def text(self) -> bytes:
        """Returns all of it in Prometheus's text format. Called by threads of the metrics server."""
        minute, budgets = self._evaluated.minute, self._budgets.newest
        seen = _Seen(
            budgets,
            self._evaluated.standings if self._is_fresh(minute) else _NONE,
            (minute, self._evaluated.seconds, budgets is not None and self._is_fresh(budgets.minute)),
        )
        known = self._written
        if known is None or not known[0].is_same(seen):
            known = self._written = (seen, self._page(seen))
        return known[1]

    def _page(self, seen: _Seen) -> bytes:
        page = _Page()
        minute, seconds, has_minute = seen.others
        page.evaluation(minute, seconds)
        if seen.budgets is not None:
            models = sorted(seen.budgets.fleet.models.values(), key=_rank)
            shown = models[: self._most_models]
            page.number("modelfleet_stability_models", len(models))
            page.number("modelfleet_stability_models_left_out", len(models) - len(shown))
            page.models(shown, seen.standings, seen.budgets, has_minute=has_minute)
        return page.text()

    def _is_fresh(self, minute: int | None) -> bool:
        return minute is not None and minute_of(self._clock.now()) - minute <= _FRESH // timedelta(minutes=1)


class _Page:
    """Lines by metric. Written by hand: with 80,000 of them the client library takes seconds."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {name: [] for name in METRICS}

    def text(self) -> bytes:
        """All lines, each metric with its type and meaning."""
        parts = []
        for name, (_, meaning) in METRICS.items():
            parts.append(f"# HELP {name} {meaning}\n# TYPE {name} gauge\n")
            parts += self._lines[name]
        return "".join(parts).encode()

    def number(self, name: str, value: float) -> None:
        self._lines[name].append(f"{name} {_written(value)}\n")

    def add(self, name: str, labels: str, value: float) -> None:
        self._lines[name].append(f"{name}{{{labels}}} {_written(value)}\n")

    def evaluation(self, minute: int | None, seconds: float | None) -> None:
        if minute is not None:
            self.number("modelfleet_stability_evaluated_timestamp_seconds", moment_of(minute).timestamp())
        if seconds is not None:
            self.number("modelfleet_stability_evaluation_seconds", seconds)

    def models(
        self,
        models: Iterable[WatchedModel],
        standings: Mapping[str, Standing],
        budgets: Budgets,
        *,
        has_minute: bool,
    ) -> None:
        for model in models:
            labels = f'model_type="{_id(model.model_type)}",model="{_id(model.name)}"'
            self._model(model, labels)
            for kind in objectives_of(model):
                self._objective(model, kind, budgets, has_minute=has_minute)
            standing = standings.get(model.name)
            if standing is not None:
                self._standing(labels, standing)

    def _model(self, model: WatchedModel, labels: str) -> None:
        stated = {
            "slo": _id(model.slo),
            "team": _id(model.team),
            "surface": model.surface,
            "product": model.product,
            "funnel_stage": "" if model.funnel_stage is FunnelStage.UNSTATED else model.funnel_stage.name,
            "tier": "" if model.tier is Tier.UNSTATED else model.tier.name,
            "role": model.role.name,
        }
        more = "".join(f',{name}="{_escaped(value)}"' for name, value in stated.items())
        self.add("modelfleet_model_info", labels + more, 1)
        self.add("modelfleet_model_traffic_share", labels, model.share_basis_points / _BASIS_POINTS)

    def _standing(self, labels: str, standing: Standing) -> None:
        if standing.state in (ModelState.STABLE, ModelState.UNSTABLE):
            self.add("modelfleet_stability_stable", labels, standing.state is ModelState.STABLE)
        for state in ModelState:
            self.add("modelfleet_stability_state", f'{labels},state="{state.name}"', state is standing.state)
        if standing.availability.observe_time is not None:
            self.add("modelfleet_model_requests_per_second", labels, standing.availability.request_rate)
        available = standing.availability.state
        if available is not AvailabilityState.UNKNOWN:
            self.add("modelfleet_stability_available", labels, available is AvailabilityState.AVAILABLE)
        for metric in standing.metrics:
            self._metric(f'{labels},prediction="{metric.prediction}"', metric)

    def _metric(self, labels: str, metric: WindowVerdict) -> None:
        by_metric = f'{labels},metric="{_METRIC_NAMES[metric.metric]}"'
        self.add("modelfleet_stability_range_low", by_metric, metric.limits.low)
        self.add("modelfleet_stability_range_high", by_metric, metric.limits.high)
        if metric.state is not Stability.UNKNOWN:
            self.add("modelfleet_stability_in_range", by_metric, metric.state is Stability.STABLE)
        if metric.metric is Metric.VOLUME:
            self.add("modelfleet_stability_volume", labels, metric.examples)
        if metric.metric is Metric.CALIBRATION:
            self.add("modelfleet_stability_label_coverage", labels, metric.label_coverage)
            if metric.examples:
                self.add("modelfleet_stability_base_rate", labels, metric.positives / metric.examples)
        if metric.estimate.known and metric.metric is Metric.NE:
            self.add("modelfleet_stability_normalized_entropy", labels, metric.estimate.value)
        if metric.estimate.known and metric.metric is Metric.CALIBRATION:
            self.add("modelfleet_stability_corrected_calibration", labels, metric.estimate.value)
            if not metric.immature:
                self.add("modelfleet_stability_calibration", labels, metric.estimate.value)

    def _objective(self, model: WatchedModel, kind: Objective, budgets: Budgets, *, has_minute: bool) -> None:
        labels = f'slo="{_id(model.slo)}",objective="{kind.name.lower()}"'
        target = target_of(model.service_level, kind)
        self.add("modelfleet_slo_target", labels, target)
        left = budgets.tally(model, kind).budget_left(target)
        if left is not None:
            self.add("modelfleet_slo_budget_left", labels, left)
        counts = _COUNTS[kind].get(budgets.newest_slice(model, kind)) if has_minute else None
        if counts is not None:
            self.add("modelfleet_slo_minute", labels, counts)
        if kind is not Objective.COVERAGE:
            self._burning(labels, model, kind, budgets)

    def _burning(self, labels: str, model: WatchedModel, kind: Objective, budgets: Budgets) -> None:
        burning, row = budgets.burning[kind], budgets.histories[kind].rows[model.slo]
        for minutes, window in _WINDOWS.items():
            rate = burning.rate(row, minutes)
            if rate is not None:
                self.add("modelfleet_slo_burn_rate", f'{labels},window="{window}"', rate)
        firing = {pair.response for pair, fires in zip(PAIRS, burning.firing[row].tolist(), strict=True) if fires}
        for response in Response:
            fires = f'{labels},severity="{response.name.lower()}"'
            self.add("modelfleet_slo_firing", fires, response in firing)


_KNOWN: Final = {Slice.GOOD: 1, Slice.BAD: 0}
_COUNTS: Final[Mapping[Objective, Mapping[Slice, int]]] = {
    Objective.STABILITY: _KNOWN,
    Objective.AVAILABILITY: _KNOWN,
    Objective.COVERAGE: {Slice.GOOD: 1, Slice.BAD: 1, Slice.UNKNOWN: 0},
}


def _rank(model: WatchedModel) -> tuple[int, int, str]:
    """The most critical ones first, baselines before others; where no tier is stated, last."""
    tier = len(Tier) if model.tier is Tier.UNSTATED else model.tier.value
    return tier, model.role.value, model.name


def _id(name: str) -> str:
    return name.rpartition("/")[2]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _written(value: float) -> str:
    if math.isfinite(value):
        return str(int(value) if isinstance(value, bool) else value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
