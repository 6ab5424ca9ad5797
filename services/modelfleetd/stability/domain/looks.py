"""What an evaluation looks at: which metrics of which series, how far back, and what is found there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np

from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.fleet import HealthyRange, Metric, Role, WatchedModel
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.maturity import DELIVERY, completion
from modelfleetd.stability.domain.minute_series import MinuteSeries, empty_series
from modelfleetd.stability.domain.points import Span
from modelfleetd.stability.domain.window_kinds import Case
from modelfleetd.stability.domain.window_verdict import Flags
from modelfleetd.stability.domain.windows import decide_many, minutes_needed

Pair: TypeAlias = tuple[str, str]  # a model and a prediction

# Up to here all minutes that any metric looks at are kept as one; beyond, what matures is kept apart from what is new.
_TOGETHER: Final = 480
# Reaches are rounded up, so that series share them and a change of delays seldom moves one.
_ROUNDED: Final = 60
_MINUTE: Final = timedelta(minutes=1)
# Minutes that are read as one, but for the newest.
WIDE: Final = 5


@dataclass(frozen=True, slots=True)
class Reach:
    """Minutes before now: from the oldest, inclusive, to the newest, exclusive."""

    oldest: int
    newest: int = 0

    @property
    def is_matured(self) -> bool:
        """Whether it holds only what has matured, by 5 minutes."""
        return self.newest > 0

    def at(self, now: int) -> Span:
        return Span(now - self.oldest, now - self.newest)


@dataclass(frozen=True, slots=True)
class Look:
    """One metric of one model, and where its minutes are."""

    pair: Pair
    healthy: HealthyRange
    prediction: DeclaredPrediction
    delays: Delays
    reach: Reach
    # Where the series' newest minutes are. NE is found there where labels are known at once, VOLUME where it has any.
    young: Reach
    # Of VOLUME: all series of the route.
    route: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Looks:
    """All that an evaluation looks at."""

    # Metrics in the order in which their predictions are declared.
    by_model: Mapping[str, Sequence[Look]]

    @cached_property
    def wanted(self) -> dict[Reach, list[Pair]]:
        """The series by their reach."""
        found: defaultdict[Reach, dict[Pair, None]] = defaultdict(dict)
        for looks in self.by_model.values():
            for look in looks:
                for reach in (look.reach, look.young):
                    found[reach].update(dict.fromkeys((look.pair, *look.route)))
        return {reach: list(pairs) for reach, pairs in found.items()}


def looks_at(models: Iterable[WatchedModel], delays: Mapping[Pair, Delays]) -> Looks:
    """Returns what is to be looked at of models that serve, whose labels are delayed so."""
    routes: defaultdict[str, list[WatchedModel]] = defaultdict(list)
    for model in models:
        routes[model.model_type].append(model)
    by_model: dict[str, list[Look]] = {}
    for route in routes.values():
        by_model |= {model.name: [] for model in route}
        # Declared by the type, so the same for all of its models.
        for prediction in route[0].predictions.values():
            for look in _of_prediction(route, prediction, delays):
                by_model[look.pair[0]].append(look)
    return Looks(by_model)


def _of_prediction(
    route: Sequence[WatchedModel], prediction: DeclaredPrediction, delays: Mapping[Pair, Delays]
) -> Iterable[Look]:
    pairs = tuple((model.name, prediction.id) for model in route)
    judged = [
        (pair, healthy)
        for model, pair in zip(route, pairs, strict=True)
        for metric in Metric
        # Volume is the route's, and said of its main model.
        if (metric is not Metric.VOLUME or model.role is Role.BASELINE)
        and (healthy := model.ranges.get((prediction.id, metric))) is not None
    ]
    if not judged:
        return
    # Series of a route share their reach, so that they can be added up.
    young, matured = _reaches([healthy for _, healthy in judged], prediction, [delays[pair] for pair in pairs])
    for pair, healthy in judged:
        is_volume = healthy.metric is Metric.VOLUME
        # Examples that are sent with their labels may be as late as these.
        reach = young if healthy.metric is Metric.CALIBRATION else matured
        yield Look(pair, healthy, prediction, delays[pair], reach, young, pairs if is_volume else ())


def _reaches(
    ranges: Sequence[HealthyRange], prediction: DeclaredPrediction, delays: Iterable[Delays]
) -> tuple[Reach, Reach]:
    """Returns how far back the newest minutes are kept, and those that NE looks at."""
    most = max(minutes_needed(healthy, prediction) for healthy in ranges)
    if most <= _TOGETHER:
        together = Reach(_rounded(most))
        return together, together
    widest = max(healthy.window // _MINUTE for healthy in ranges)
    lag = max(_label_age(prediction, each) for each in delays)
    need = 2 * widest + lag + DELIVERY // _MINUTE
    mature = -(-completion(prediction.attribution_window) // _MINUTE)
    # Five minutes are read as one, and mature when the last of them is.
    return Reach(_rounded(need)), Reach(_rounded(most), mature + WIDE)


def _label_age(prediction: DeclaredPrediction, delays: Delays) -> int:
    """Returns an age in minutes from which on enough labels have come for windows of any width."""
    if prediction.ignores_missing:
        return 0
    if not delays.trusted:
        return -(-completion(prediction.attribution_window) // _MINUTE)
    ages = np.arange(int(prediction.attribution_window / _MINUTE) + 1, dtype=np.float64)
    return int(np.argmax(delays.shares(ages) >= prediction.min_label_coverage))


def _rounded(minutes: int) -> int:
    return -(-minutes // _ROUNDED) * _ROUNDED


def decide_looks(
    looks: Looks, series: Mapping[Reach, tuple[Sequence[Pair], MinuteSeries]], now: datetime
) -> dict[str, list[WindowVerdict]]:
    """Returns the verdicts of each model's metrics, in the order of `looks`.

    Args:
        looks: what to look at.
        series: by reach, which series there are, row by row, and their minutes.
        now: the moment, cut to the minute.
    """
    rows = {reach: {pair: row for row, pair in enumerate(pairs)} for reach, (pairs, _) in series.items()}
    known_at_once = {reach: _known_at_once(found) for reach, (_, found) in series.items()}
    has_examples = {reach: np.any(found.seen > 0, axis=1) for reach, (_, found) in series.items()}

    def reach_of(look: Look) -> Reach:
        return look.young if known_at_once[look.young][rows[look.young][look.pair]] else look.reach

    cases: defaultdict[Reach, list[tuple[Look, Case]]] = defaultdict(list)
    routes: defaultdict[Reach, list[Look]] = defaultdict(list)
    for look in (look for found in looks.by_model.values() for look in found):
        if look.route:
            has_newest = any(has_examples[look.young][rows[look.young][pair]] for pair in look.route)
            has_old = any(has_examples[look.reach][rows[look.reach][pair]] for pair in look.route)
            routes[look.young if has_newest or not has_old else look.reach].append(look)
        else:
            reach = reach_of(look)
            case = Case(rows[reach][look.pair], look.healthy, look.prediction, look.delays)
            cases[reach].append((look, case))
    verdicts: dict[int, WindowVerdict] = {}
    for reach, found in cases.items():
        decided = decide_many(series[reach][1], [case for _, case in found], now)
        verdicts |= {id(look): verdict for (look, _), verdict in zip(found, decided, strict=True)}
    for reach, volumes in routes.items():
        members = [[rows[reach][pair] for pair in look.route] for look in volumes]
        together = [Case(row, look.healthy, look.prediction, look.delays) for row, look in enumerate(volumes)]
        decided = decide_many(_added_up(series[reach][1], members), together, now)
        verdicts |= {id(look): verdict for look, verdict in zip(volumes, decided, strict=True)}
    return {model: [verdicts[id(look)] for look in found] for model, found in looks.by_model.items()}


def _known_at_once(series: MinuteSeries) -> Flags:
    """Says which series have examples, and none whose label comes later."""
    found: Flags = np.any(series.examples > 0, axis=1) & ~np.any(series.waiting > 0, axis=1)
    return found


# What a verdict by volume looks at.
_OF_VOLUME: Final = ("examples", "seen", "waiting", "positives")


def _added_up(series: MinuteSeries, members: Sequence[Sequence[int]]) -> MinuteSeries:
    """Returns the sums of some rows, group by group."""
    found = empty_series(series.start, len(members), series.minutes)
    rows = [row for group in members for row in group]
    begins = np.cumsum([0, *map(len, members[:-1])])
    for name in _OF_VOLUME:
        np.add.reduceat(getattr(series, name)[rows], begins, axis=0, out=getattr(found, name))
    return found
