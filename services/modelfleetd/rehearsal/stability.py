"""The judge in memory: stability's own verdicts on sufficient statistics of what the simulated models answered.

Every request is one example of each prediction, at its base rate times what the model is miscalibrated by; its label
comes when the attribution window and its slack are over, and before that it waits. A label that is later still, or
lost, is missing where it is due, and the judge cannot know. All predictions of a model are alike, so that the sums over
any number of them are exact; normalized entropy differs between models only by what they are miscalibrated by.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain.criteria import Declared
from modelfleetd.launcher.domain.policy import Criterion as Demanded
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.ports import Judgement
from modelfleetd.stability.domain.criteria import DEFAULT_CONFIDENCE, DEFAULT_MIN_POSITIVES, Criterion, Limits
from modelfleetd.stability.domain.exact import SCALE
from modelfleetd.stability.domain.judge import Case, compare, verdict_of
from modelfleetd.stability.domain.maturity import mature_before, minute_of, moment_of
from modelfleetd.stability.domain.points import Evidence, Span, span_between
from modelfleetd.stability.domain.sums import NOTHING, Exposure, Positives, Sums

BASE_RATE: Final = 0.05
HEALTHY: Final = Limits(0.8, 1.25)
WINDOW: Final = timedelta(minutes=4)
# Above this many, a normal draw is as good as a binomial one.
_NORMAL_FROM: Final = 30


@dataclass(frozen=True, slots=True)
class Predicted:
    """A prediction that the rehearsed models make.

    Attributes:
        id: its name.
        window: of attribution: so long after a prediction its label may come.
        rate: of its positives, whatever is predicted.
        calibration: that is healthy where a launch says nothing.
        min_positives: that a verdict needs where a launch says nothing.
    """

    id: str = "click"
    window: timedelta = WINDOW
    rate: float = BASE_RATE
    calibration: Limits = HEALTHY
    min_positives: int = 100

    @property
    def declared(self) -> Declared:
        """As the registry declares it."""
        return Declared(self.id, self.calibration.low, self.calibration.high, self.min_positives, self.window)

    @property
    def criterion(self) -> Criterion:
        """What is demanded of it where a launch says nothing."""
        return Criterion(self.id, calibration=self.calibration, min_positives=self.min_positives)


USUAL: Final = (Predicted(),)


@dataclass(slots=True)
class Counted:
    """Examples of one prediction: those that have matured, those of them whose labels have come, and the positives."""

    matured: int = 0
    labelled: int = 0
    positives: int = 0


@dataclass(slots=True)
class Answered:
    """What one model has predicted: requests so far at moments, and by prediction what is known since a moment."""

    calibration: float = 1.0
    labels: float = 1.0
    delay: timedelta = timedelta(0)
    times: list[datetime] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    since: datetime | None = None
    before: int = 0
    counted: dict[str, Counted] = field(default_factory=dict)


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
        self._models: dict[str, Answered] = {}
        self._draws: dict[str, random.Random] = {}
        self._predictions: dict[str, Predicted] = {}
        self.declared: tuple[Declared, ...] = ()
        self.predicts(USUAL)

    def predicts(self, predictions: Sequence[Predicted]) -> None:
        """Says what the models of the fleet predict."""
        self._predictions = {prediction.id: prediction for prediction in predictions}
        self.declared = tuple(prediction.declared for prediction in predictions)

    def model(self, name: str, calibration: float, labels: float, delay: timedelta = timedelta(0)) -> None:
        """Says what a model is like from now on.

        Args:
            name: of the model.
            calibration: what it predicts over what happens.
            labels: the share of the positives whose labels come at all.
            delay: how much later than they are due they come.
        """
        known = self._known(name)
        # What it has predicted stays.
        known.calibration, known.labels, known.delay = calibration, labels, delay

    def becomes(self, name: str, calibration: float, labels: float, delay: timedelta) -> None:
        """A model that is looked at already turns out to be otherwise; what it has answered stays counted."""
        known = self._models[name]
        known.calibration, known.labels, known.delay = calibration, labels, delay

    def look(self, name: str) -> None:
        """Takes note of how many requests a model has answered by now. One that nobody has spoken of is healthy."""
        known = self._known(name)
        known.times.append(self._now())
        known.requests.append(self._requests(name))

    def _known(self, name: str) -> Answered:
        if name not in self._models:
            self._models[name] = Answered()
            self._draws[name] = random.Random(f"{self._seed} {name}")
        return self._models[name]

    def judge(self, name: str, since: datetime, baseline: str = "", criteria: Sequence[Demanded] = ()) -> Judgement:
        """Judges a model by what it has predicted since a moment.

        Args:
            name: of the model.
            since: from when on it is judged.
            baseline: what it is compared with, where a criterion wants that.
            criteria: what is demanded; nothing: what the registry declares.
        """
        _, cases = self._cases(name, since, baseline, criteria)
        found, explanation = verdict_of(cases)
        figures: dict[str, float] = {}
        for case in cases:
            figures[f"{case.criterion.prediction}.examples"] = float(case.candidate.matured.examples)
            figures[f"{case.criterion.prediction}.positives"] = float(case.candidate.matured.positives.n)
        return Judgement(Verdict[found.name], explanation, figures)

    def _cases(
        self, name: str, since: datetime, baseline: str, criteria: Sequence[Demanded], *, whole: bool = False
    ) -> tuple[Span, list[Case]]:
        """What a judgement rests on, and its span: whole minutes, as stability has them.

        Args:
            name: of the model.
            since: from when on it is judged.
            baseline: what it is compared with; empty: nothing.
            criteria: what is demanded; nothing: what the registry declares.
            whole: with what is known of the baseline also where nothing is compared with it.
        """
        now = self._now()
        span = span_between(since if since < now else since - timedelta(minutes=1), now, now)
        demanded = [_criterion(one) for one in criteria] or [one.criterion for one in self._predictions.values()]
        return span, [self._case(name, baseline, criterion, span, now, whole=whole) for criterion in demanded]

    def _case(self, name: str, baseline: str, criterion: Criterion, span: Span, now: datetime, *, whole: bool) -> Case:
        prediction = self._predictions[criterion.prediction]
        ours = self._evidence(name, prediction, span.start_time, now)
        if not baseline or not (criterion.compares or whole):
            return Case(criterion, prediction.window, span, now, ours)
        theirs = self._evidence(baseline, prediction, span.start_time, now)
        before = mature_before(now, prediction.window)
        both = compare(criterion, span, before, ours, theirs, (ours.matured, theirs.matured))
        return Case(criterion, prediction.window, span, now, ours, theirs, both)

    def _evidence(self, name: str, prediction: Predicted, since: datetime, now: datetime) -> Evidence:
        """What is known of one prediction of a model since the beginning of a minute."""
        self.look(name)
        known, window = self._models[name], prediction.window
        if known.since != since:
            known.since, known.before = since, requests_at(known, since)
            known.counted = {}
        counted = known.counted.setdefault(prediction.id, Counted())
        edge = max(since, moment_of(mature_before(now, window)))
        matured = max(counted.matured, requests_at(known, edge) - known.before)
        come = max(since, moment_of(mature_before(now - known.delay, window)))
        labelled = min(matured, max(counted.labelled, requests_at(known, come) - known.before))
        rate = prediction.rate * known.labels
        counted.positives += _binomial(self._draws[name], labelled - counted.labelled, rate)
        counted.matured, counted.labelled = matured, labelled
        waiting = known.requests[-1] - known.before - matured
        predicted = min(0.999, prediction.rate * known.calibration)
        first = _first_waiting(known, minute_of(edge), known.before + matured) if waiting else None
        return Evidence(sums_of(matured, counted.positives, predicted), sums_of(waiting, 0, predicted), first)


def _first_waiting(known: Answered, minute: int, matured: int) -> int:
    """The first minute, from one on, with requests beyond those that have matured."""
    while requests_at(known, moment_of(minute + 1)) <= matured:
        minute += 1
    return minute


def _criterion(demanded: Demanded) -> Criterion:
    """What a launch demands, as the judge is asked it. What waits for its label has none here, so it never counts."""
    low, high = demanded.calibration_low, demanded.calibration_high
    return Criterion(
        demanded.prediction,
        calibration=Limits(low, high) if low is not None and high is not None else None,
        max_ne_regression=demanded.max_ne_regression,
        min_positives=demanded.min_positives or DEFAULT_MIN_POSITIVES,
        confidence=demanded.confidence or DEFAULT_CONFIDENCE,
        max_calibration_difference=demanded.max_calibration_difference,
    )


def requests_at(known: Answered, moment: datetime) -> int:
    """Requests by a moment: between two looks they came evenly."""
    after = bisect_right(known.times, moment)
    if after == 0:
        return known.requests[0] if known.requests else 0
    if after == len(known.times):
        return known.requests[-1]
    begin, end = known.times[after - 1], known.times[after]
    part = (moment - begin) / (end - begin)
    return known.requests[after - 1] + int((known.requests[after] - known.requests[after - 1]) * part)


def sums_of(examples: int, positives: int, predicted: float) -> Sums:
    """The sums of so many examples that are all predicted alike, and of the positives among them."""
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
