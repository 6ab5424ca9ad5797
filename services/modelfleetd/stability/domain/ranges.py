"""Healthy ranges proposed from a history that was healthy, and what they would have done to it.

Centre by hour of week, shrunk (`seasons`); spread pooled over the whole history, with the tolerance that its size needs
(`tolerance`); as far out as slices and burn rates allow for the pages that were declared (`false_alarms`). `range_fit`
puts these together for the width of window that sees faults soonest, `range_replay` tries the range on its history.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.fleet import HealthyRange, Metric
from modelfleetd.stability.domain.history import (
    History,
)
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.range_fit import MIN_RESIDUALS, MOST, WIDTHS, Fit, alpha_of, best_fit
from modelfleetd.stability.domain.range_replay import Outside, RangePoint, Replay, replay_on
from modelfleetd.stability.domain.range_terms import DEFAULT_PAGES_PER_WEEK, Terms, values_of
from modelfleetd.stability.domain.tolerance import ASSUMED, reach


class Basis(enum.Enum):
    """What a proposal rests on. The numbers are those of the protos."""

    SEASONAL = 1
    LEVEL = 2
    DEFAULT = 3


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed range, and what it would have done."""

    range: HealthyRange
    basis: Basis
    explanation: str
    current: Limits | None
    outside: tuple[Outside, ...]
    pages: int
    page_times: tuple[datetime, ...]
    windows: int
    history: tuple[RangePoint, ...]


# Where too little is known. NE of 1 is that of a constant; a little more is chance.
_DEFAULTS: Final[Mapping[Metric, Limits]] = {Metric.CALIBRATION: Limits(0.5, 2.0), Metric.NE: Limits(0.0, 1.1)}
_DEFAULT_VOLUME: Final = 10.0
_DEFAULT_WIDTH: Final = 60


def propose(history: History, terms: Terms) -> Proposal | None:
    """Returns a range for one metric of one prediction; None for a volume of which nothing was ever seen.

    Args:
        history: matured sums; of the whole route for VOLUME.
        terms: what the range is for.
    """
    history = history.trimmed()
    fit = best_fit(history, terms) if history.steps else None
    if fit is None:
        return _default(history, terms)
    range_ = _range(fit, history, terms)
    replay = replay_on(history, range_, terms, growth=fit.growth)
    basis = Basis.LEVEL if fit.centre.hours is None else Basis.SEASONAL
    return _proposal(range_, basis, _words(fit, history, basis), replay, terms)


def propose_model(
    histories: Mapping[str, History],
    volumes: Mapping[str, History],
    declared: Mapping[str, DeclaredPrediction],
    *,
    target: float,
    pages_per_week: float = DEFAULT_PAGES_PER_WEEK,
    width: int = 0,
    delays: Mapping[str, Delays] | None = None,
    current: Mapping[tuple[str, Metric], HealthyRange] | None = None,
) -> list[Proposal]:
    """Returns the ranges of a model, prediction by prediction, metric by metric; they share its false alarms evenly.

    Args:
        histories: of the model, by prediction.
        volumes: of its route, by prediction; empty for a model whose volume nobody judges.
        declared: all predictions of the model's type: also those that no range is asked for have their share.
        target: of the model's stability objective.
        pages_per_week: false alarms to allow for the whole model.
        width: of the windows, in minutes; 0: whichever sees faults soonest.
        delays: by prediction, of labels that come later than their examples.
        current: the ranges in force.
    """
    found = []
    ranges = len(declared) * (3 if volumes else 2)
    for prediction, history in histories.items():
        sources = {Metric.CALIBRATION: history, Metric.NE: history, Metric.VOLUME: volumes.get(prediction)}
        for metric, source in sources.items():
            if source is not None:
                terms = Terms(
                    declared[prediction],
                    metric,
                    target,
                    pages_per_week,
                    ranges,
                    width,
                    (delays or {}).get(prediction),
                    (current or {}).get((prediction, metric)),
                )
                found.append(propose(source, terms))
    return [proposal for proposal in found if proposal is not None]


def _range(fit: Fit, history: History, terms: Terms) -> HealthyRange:
    hours = fit.centre.hours
    factors = () if hours is None else tuple(np.round(np.exp(np.clip(hours, -6.9, 6.9)), 6).tolist())
    level = fit.centre.level
    return HealthyRange(
        prediction=terms.prediction.id,
        metric=terms.metric,
        low=_digits(math.exp(level - fit.reach.below), up=False),
        high=_digits(math.exp(level + fit.reach.above), up=True),
        hour_of_week_factors=factors,
        window=timedelta(minutes=fit.values.width),
        history_start_time=moment_of(history.start),
        history_end_time=moment_of(history.end),
        residuals=fit.residuals,
        pages_per_week=terms.pages_per_week,
    )


def _default(history: History, terms: Terms) -> Proposal | None:
    """Returns a range that is wide and safe."""
    width, limits = _default_limits(history, terms)
    if limits is None:
        return None
    range_ = HealthyRange(
        terms.prediction.id,
        terms.metric,
        limits.low,
        limits.high,
        window=timedelta(minutes=width),
        history_start_time=moment_of(history.start) if history.steps else None,
        history_end_time=moment_of(history.end) if history.steps else None,
        pages_per_week=terms.pages_per_week,
    )
    replay = replay_on(history, range_, terms) if _holds(history, width) else Replay((), (), 0, ())
    text = f"Fewer than {MIN_RESIDUALS} windows hold enough to go by: a wide, safe default"
    return _proposal(range_, Basis.DEFAULT, text, replay, terms)


def _default_limits(history: History, terms: Terms) -> tuple[int, Limits | None]:
    """Returns a width and what is safe there: of calibration, more than its usual default where positives are few."""
    width = terms.width or _DEFAULT_WIDTH
    if terms.metric is Metric.NE:
        return width, _DEFAULTS[terms.metric]
    if terms.metric is Metric.VOLUME:
        if not _holds(history, width):
            return width, None
        examples = history.windows(width).of("seen")
        low, high = float(examples.min()) / _DEFAULT_VOLUME, float(examples.max()) * _DEFAULT_VOLUME
        return width, Limits(_digits(low, up=False), _digits(high, up=True))
    usual = safe = _DEFAULTS[terms.metric]
    for tried in (terms.width,) if terms.width else WIDTHS[WIDTHS.index(_DEFAULT_WIDTH) :]:
        values = values_of(history.windows(tried), terms) if _holds(history, tried) else None
        if values is None or not values.usable.any():
            continue
        alpha = alpha_of(terms, tried, wander=1.0)
        found = reach(ASSUMED, values.variance[values.usable], values.count[values.usable], alpha)
        low, high = _digits(math.exp(-found.below), up=False), _digits(math.exp(found.above), up=True)
        width, safe = tried, Limits(min(usual.low, low), max(usual.high, high))
        if safe == usual:
            break
    return width, safe


def _holds(history: History, width: int) -> bool:
    return history.steps * history.step >= width


def _proposal(range_: HealthyRange, basis: Basis, text: str, replay: Replay, terms: Terms) -> Proposal:
    current = terms.current
    now = None if current is None else Limits(current.low, current.high)
    text = f"{text}. {_would_have(replay, range_)}"
    return Proposal(
        range_,
        basis,
        text,
        now,
        replay.outside,
        len(replay.page_times),
        replay.page_times,
        replay.windows,
        replay.history,
    )


def _would_have(replay: Replay, range_: HealthyRange) -> str:
    times = replay.page_times
    start, end = range_.history_start_time, range_.history_end_time
    if start is None or end is None:
        return "There is no history to try it on."
    days = (end - start) / timedelta(days=1)
    over = f"in the {days:.0f} days" if days >= 2 else f"in the {days * 24:.0f} hours"
    if not times:
        return f"It would not have paged {over} of the history."
    when = ", ".join(f"{moment:%Y-%m-%d %H:%M}" for moment in times[:3]) + (" …" if len(times) > 3 else "")
    return f"It would have paged {len(times)} {'time' if len(times) == 1 else 'times'} {over} of the history: {when}."


def _words(fit: Fit, history: History, basis: Basis) -> str:
    days = history.days
    span = f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"
    seasons = "a centre for each hour of the week" if basis is Basis.SEASONAL else "one centre"
    parts = [f"{fit.residuals:,} windows of {span}, {seasons}"]
    if fit.spread.tails:
        parts.append("tails heavier than normal")
    if fit.growth:
        parts.append(f"growth of {math.expm1(7 * fit.growth):+.1%} a week allowed for over four weeks")
    if fit.share < MOST:
        parts.append(f"{fit.share:.0%} of the windows hold enough to decide on")
    return "; ".join(parts)


def _digits(value: float, *, up: bool) -> float:
    """Returns a number with four digits that mean something, rounded outwards."""
    if value <= 0.0:
        return 0.0
    scale = 10.0 ** (3 - math.floor(math.log10(value)))
    return (math.ceil if up else math.floor)(value * scale) / scale
