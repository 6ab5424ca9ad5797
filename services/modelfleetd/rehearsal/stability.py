"""The judge in memory: stability's own verdicts on sufficient statistics of what the simulated models answered.

Every request is one prediction, at the base rate times what the model is miscalibrated by; its label comes when the
attribution window and its slack are over, and before that it waits. A label that is later still, or lost, is missing
where it is due, and the judge cannot know. All predictions of a model are alike, so that the sums over any number of
them are exact.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.ports import Judgement
from modelfleetd.stability.domain.criteria import Criterion, Limits
from modelfleetd.stability.domain.exact import SCALE
from modelfleetd.stability.domain.judge import Case, verdict_of
from modelfleetd.stability.domain.maturity import mature_before, moment_of
from modelfleetd.stability.domain.points import Evidence, span_between
from modelfleetd.stability.domain.sums import NOTHING, Exposure, Positives, Sums

BASE_RATE: Final = 0.05
WINDOW: Final = timedelta(minutes=4)
_PREDICTION: Final = "click"
_CRITERION: Final = Criterion(_PREDICTION, calibration=Limits(0.8, 1.25), min_positives=100)
CRITERION_WORDS: Final = "one prediction's calibration: 0.8 to 1.25 with 100 positives"
# Above this many, a normal draw is as good as a binomial one.
_NORMAL_FROM: Final = 30


@dataclass(slots=True)
class _Model:
    """What one model has predicted: requests so far at moments, and the positives among those that have matured.

    `labelled` are those of the matured whose labels have come.
    """

    calibration: float = 1.0
    labels: float = 1.0
    delay: timedelta = timedelta(0)
    times: list[datetime] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    since: datetime | None = None
    before: int = 0
    matured: int = 0
    labelled: int = 0
    positives: int = 0


class MemoryStability:
    """Judges models of one fleet.

    Args:
        seed: of the labels.
        now: the time of the fleet.
        requests: how many requests a model has answered so far, in all regions.
    """

    def __init__(self, seed: int | str, now: Callable[[], datetime], requests: Callable[[str], int]) -> None:
        self._seed = seed
        self._now = now
        self._requests = requests
        self._models: dict[str, _Model] = {}
        self._draws: dict[str, random.Random] = {}

    def model(self, name: str, calibration: float, labels: float, delay: timedelta = timedelta(0)) -> None:
        """Says what a model is like from now on.

        Args:
            name: of the model.
            calibration: what it predicts over what happens.
            labels: the share of the positives whose labels come at all.
            delay: how much later than they are due they come.
        """
        self._models[name] = _Model(calibration, labels, delay)
        self._draws[name] = random.Random(f"{self._seed} {name}")

    def look(self, name: str) -> None:
        """Takes note of how many requests a model has answered by now."""
        known = self._models.get(name)
        if known is not None:
            known.times.append(self._now())
            known.requests.append(self._requests(name))

    def forget(self, name: str) -> None:
        """Nobody judges it any more."""
        self._models.pop(name, None)
        self._draws.pop(name, None)

    def judge(self, name: str, since: datetime) -> Judgement:
        """Judges a model by what it has predicted since a moment."""
        self.look(name)
        known, now = self._models[name], self._now()
        if known.since != since:
            known.since, known.matured, known.labelled, known.positives = since, 0, 0, 0
            known.before = _at(known, since)
        edge = max(since, moment_of(mature_before(now, WINDOW)))
        matured = max(known.matured, _at(known, edge) - known.before)
        come = max(since, moment_of(mature_before(now - known.delay, WINDOW)))
        labelled = min(matured, max(known.labelled, _at(known, come) - known.before))
        rate = BASE_RATE * known.labels
        known.positives += _binomial(self._draws[name], labelled - known.labelled, rate)
        known.matured, known.labelled = matured, labelled
        waiting = known.requests[-1] - known.before - matured
        predicted = min(0.999, BASE_RATE * known.calibration)
        first = mature_before(now, WINDOW) if waiting else None
        evidence = Evidence(_sums(matured, known.positives, predicted), _sums(waiting, 0, predicted), first)
        span = span_between(since, now, now) if since < now else span_between(since - timedelta(minutes=1), now, now)
        found, explanation = verdict_of([Case(_CRITERION, WINDOW, span, now, evidence)])
        figures = {"examples": float(matured), "positives": float(known.positives)}
        return Judgement(Verdict[found.name], explanation, figures)


def _at(known: _Model, moment: datetime) -> int:
    """Requests by a moment: between two looks they came evenly."""
    after = bisect_right(known.times, moment)
    if after == 0:
        return known.requests[0] if known.requests else 0
    if after == len(known.times):
        return known.requests[-1]
    begin, end = known.times[after - 1], known.times[after]
    part = (moment - begin) / (end - begin)
    return known.requests[after - 1] + int((known.requests[after] - known.requests[after - 1]) * part)


def _sums(examples: int, positives: int, predicted: float) -> Sums:
    if not examples:
        return NOTHING
    negative, positive = -math.log1p(-predicted), -math.log(predicted)
    one = SCALE

    def scaled(value: float) -> int:
        return round(value * SCALE)

    exposure = Exposure(
        n=examples,
        w=examples * one,
        w2=examples * one,
        wp=examples * scaled(predicted),
        w2pq=examples * scaled(predicted * (1 - predicted)),
        wl=examples * scaled(negative),
        w2l=examples * scaled(negative),
        w2l2=examples * scaled(negative**2),
    )
    if not positives:
        return Sums(exposure)
    return Sums(
        exposure,
        Positives(
            n=positives,
            w=positives * one,
            w2=positives * one,
            w2l1=positives * scaled(positive),
            wl=positives * scaled(positive - negative),
            w2l=positives * scaled(positive - negative),
            w2l2=positives * scaled(positive**2 - negative**2),
        ),
    )


def _binomial(draw: random.Random, n: int, p: float) -> int:
    if n <= 0 or p <= 0:
        return 0
    if n * min(p, 1 - p) < _NORMAL_FROM:
        return sum(draw.random() < p for _ in range(n))
    return min(n, max(0, round(draw.gauss(n * p, (n * p * (1 - p)) ** 0.5))))
