"""Simulated models whose predictions and labels are known, minute by minute, with faults put into them.

Volumes, base rates and delays of labels are spread as in a large fleet. Traffic and base rates have daily and weekly
cycles; calibration wanders a little by itself and leans a little by hour of the week; positives vary more than a count
would. What is drawn is the sums of each minute, from the distributions that sums of examples have, and not examples: 28
days of a model take a second.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Final

import numpy as np
from scipy.signal import lfilter
from scipy.special import erf, expit

from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits
from modelfleetd.stability.domain.exact import Floats
from modelfleetd.stability.domain.fleet import hour_of_week
from modelfleetd.stability.domain.maturity import AGE_BOUNDS, MINUTE_MICROS, moment_of
from modelfleetd.stability.domain.minute_series import MinuteSeries

DAY: Final = 1440
# 2025-03-03 00:00 UTC, a Monday.
START: Final = 29_016_000
_WEEK: Final = 7 * DAY
_WINDOWS: Final = (15, 30, 60, 120, 360)
_TARGETS: Final = ((0.999, 0.1), (0.995, 0.2), (0.99, 0.4), (0.98, 0.3))


class Fault(enum.Enum):
    """What goes wrong."""

    SCALE_1_1 = "scale ×1.1"
    SCALE_1_3 = "scale ×1.3"
    SCALE_2 = "scale ×2"
    FEATURE_LOST = "feature lost, NE +5 %"
    LABELS_DOWN = "labels down"
    TRAFFIC_HALVED = "traffic halved"
    DRIFT = "drift 1 % a day"


_SCALES: Final = {Fault.SCALE_1_1: 1.1, Fault.SCALE_1_3: 1.3, Fault.SCALE_2: 2.0}
_NE_WORSE: Final = 0.05
_DRIFT_A_DAY: Final = 0.01


@dataclass(frozen=True, slots=True)
class Task:
    """One prediction of a simulated model."""

    id: str
    base_rate: float
    spread: float  # of the log-odds: how much the model knows
    window: timedelta
    delay: tuple[float, float]  # median in minutes and sigma of the lognormal delay, cut off at the window
    hours: Floats  # 168: by how much calibration leans, in logarithms
    rate_cycle: float  # amplitude of the base rate over the day, in logarithms
    wander: tuple[float, float]  # deviation of the calibration's own wander, in logarithms, and its memory in minutes
    dispersion: float  # variance of positives over that of a Poisson count

    def declared(self) -> DeclaredPrediction:
        """Returns it as the registry would declare it."""
        return DeclaredPrediction(self.id, self.window, False, Limits(0.5, 2.0), None, 10)

    def densities(self) -> Floats:
        """Returns the share of the labels that come in each bucket of age."""
        median, sigma = self.delay
        ends = np.minimum(np.append(AGE_BOUNDS / MINUTE_MICROS, np.inf), self.window / timedelta(minutes=1))
        came = 0.5 * (1.0 + erf((np.log(ends) - math.log(median)) / (sigma * math.sqrt(2.0))))
        found: Floats = np.diff(came / came[-1], prepend=0.0)
        return found


@dataclass(frozen=True, slots=True)
class Model:
    """One simulated model."""

    seed: int
    target: float  # of its stability objective
    examples_per_minute: float
    day_cycle: float  # amplitude over the day, in logarithms
    phase: float  # hour of the peak, as a share of the day
    weekend: float  # factor
    traffic_wander: float  # in logarithms
    tasks: tuple[Task, ...]

    @property
    def positives_per_minute(self) -> float:
        """Of its first prediction, to which faults happen."""
        return self.examples_per_minute * self.tasks[0].base_rate


def make_model(seed: int, tasks: int = 3, positives_per_minute: float = 0.0) -> Model:
    """Returns a model, the same for the same seed.

    Its predictions have 0.2 to 200 positives a minute (or the first as many as given), and base rates of 0.1 to 30 %.
    """
    rng = np.random.default_rng([seed, 0])
    wanted = positives_per_minute or _log_uniform(rng, 0.2, 200.0)
    first = _log_uniform(rng, 0.001, 0.3)
    examples = wanted / first
    low, high = max(0.001, 0.2 / examples), min(0.3, 200.0 / examples)
    rates = [first] + [_log_uniform(rng, low, high) for _ in range(tasks - 1)]
    targets, weights = zip(*_TARGETS, strict=True)
    return Model(
        seed,
        float(rng.choice(targets, p=weights)),
        examples,
        float(rng.uniform(0.3, 0.9)),
        float(rng.uniform()),
        float(rng.uniform(0.7, 1.2)),
        float(rng.uniform(0.02, 0.06)),
        tuple(_make_task(rng, f"task{index}", rate) for index, rate in enumerate(rates)),
    )


def _make_task(rng: np.random.Generator, name: str, base_rate: float) -> Task:
    window = int(rng.choice(_WINDOWS))
    return Task(
        name,
        base_rate,
        float(rng.uniform(0.8, 1.8)),
        timedelta(minutes=window),
        (window * float(rng.uniform(0.08, 0.25)), float(rng.uniform(0.7, 1.2))),
        rng.normal(0.0, rng.uniform(0.003, 0.015), 168),
        float(rng.uniform(0.0, 0.2)),
        (float(rng.uniform(0.003, 0.015)), float(rng.uniform(4, 24)) * 60.0),
        float(rng.uniform(1.0, 1.5)),
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


@dataclass(frozen=True, slots=True, eq=False)
class Life:
    """A model over some days: what no sample shows, how much traffic there is and where calibration really is."""

    model: Model
    minutes: int
    traffic: Floats  # examples a minute, on average
    calibration: tuple[Floats, ...]  # of each task
    rates: tuple[Floats, ...]  # mean prediction of each task

    def draw(
        self, first: int, end: int, fault: Fault | None = None, since: int = 0, salt: int = 0
    ) -> tuple[MinuteSeries, ...]:
        """Returns minutes of each task, counted from the life's beginning, as they are once all labels have come.

        Faults happen to the first task; traffic and labels to all.

        Args:
            first: the first minute.
            end: the minute after the last.
            fault: what goes wrong.
            since: the minute from which on it does.
            salt: for other draws of the same minutes.
        """
        rng = np.random.default_rng([self.model.seed, first, end, salt])
        minutes = np.arange(first, end)
        wrong = (minutes >= since) if fault else np.zeros(len(minutes), dtype=bool)
        traffic = self.traffic[first:end]
        if fault is Fault.TRAFFIC_HALVED:
            traffic = np.where(wrong, traffic / 2.0, traffic)
        examples = rng.poisson(traffic).astype(np.float64)
        found = []
        for index, task in enumerate(self.model.tasks):
            scale, blind = np.ones(len(minutes)), np.zeros(len(minutes))
            if index == 0 and fault is Fault.DRIFT:
                scale = np.where(wrong, (1.0 + _DRIFT_A_DAY) ** ((minutes - since) / DAY), 1.0)
            if index == 0 and fault in _SCALES:
                scale = np.where(wrong, _SCALES[fault], 1.0)
            if index == 0 and fault is Fault.FEATURE_LOST:
                blind = np.where(wrong, 1.0, 0.0)
            rate, calibration = self.rates[index][first:end], self.calibration[index][first:end]
            lost_at = START + since if fault is Fault.LABELS_DOWN else None
            found.append(_draw(rng, task, START + first, examples, rate, calibration, scale, blind, lost_at))
        return tuple(found)


def live(model: Model, days: int) -> Life:
    """Returns a model's life."""
    rng = np.random.default_rng([model.seed, 1])
    minutes = days * DAY
    time = np.arange(minutes)
    day = np.cos(2.0 * math.pi * (time / DAY - model.phase))
    weekday = (hour_of_week(moment_of(START)) // 24 + time // DAY) % 7
    traffic = model.examples_per_minute * np.exp(
        model.day_cycle * day + _wander(rng, minutes, model.traffic_wander, 180.0)
    )
    traffic = np.where(weekday >= 5, model.weekend, 1.0) * traffic
    # On average what the model is said to have.
    traffic *= model.examples_per_minute / traffic.mean()
    calibration, rates = [], []
    for task in model.tasks:
        lean = task.hours[(time % _WEEK) // 60]
        calibration.append(np.exp(lean + _wander(rng, minutes, *task.wander)))
        rates.append(task.base_rate * np.exp(task.rate_cycle * day - task.rate_cycle**2 / 4.0))
    return Life(model, minutes, traffic, tuple(calibration), tuple(rates))


def joined(one: MinuteSeries, other: MinuteSeries) -> MinuteSeries:
    """Returns minutes that follow each other as one series."""
    pairs = ((getattr(one, name), getattr(other, name)) for name in _SUMS)
    return MinuteSeries(one.start, *(np.concatenate(pair, axis=-1) for pair in pairs))


def cut(series: MinuteSeries, start: int, end: int) -> MinuteSeries:
    """Returns some minutes of a series, by number since 1970."""
    part = slice(start - series.start, end - series.start)
    return MinuteSeries(start, *(getattr(series, name)[..., part] for name in _SUMS))


_SUMS: Final = tuple(field.name for field in fields(MinuteSeries))[1:]


def arrived(series: MinuteSeries, window: timedelta, now: int) -> MinuteSeries:
    """Returns a series as it is known at a minute: labels that come later are missing, losses included."""
    assert series.arrivals is not None
    ages = now - np.arange(series.start, series.end) - 0.5
    bounds = AGE_BOUNDS / MINUTE_MICROS
    end = window / timedelta(minutes=1)
    knots = np.concatenate(([0.0], bounds[bounds < end], [end]))
    place = np.interp(ages, knots, np.arange(len(knots)))
    come = np.concatenate((np.zeros((1, series.minutes)), np.cumsum(series.arrivals, axis=0)))
    whole = np.where(ages >= end, len(come) - 1, place.astype(np.int64))
    part = np.where(ages >= end, 0.0, place - np.floor(place))
    at = np.arange(series.minutes)
    there = come[whole, at] + part * (come[np.minimum(whole + 1, len(come) - 1), at] - come[whole, at])
    share = np.divide(there, series.observed, out=np.zeros(series.minutes), where=series.observed > 0)
    known = (getattr(series, name) * (ages > 0) for name in _SUMS[:-1])
    found = MinuteSeries(series.start, *known)
    for column in (found.positives, found.observed, found.observed_squares):
        column *= share
    return found


def _wander(rng: np.random.Generator, minutes: int, deviation: float, memory: float) -> Floats:
    """Returns an AR(1) path of this deviation, which forgets within `memory` minutes."""
    keep = math.exp(-1.0 / memory)
    shocks = rng.normal(0.0, deviation * math.sqrt(1.0 - keep * keep), minutes)
    shocks[0] = rng.normal(0.0, deviation)
    found: Floats = lfilter([1.0], [1.0, -keep], shocks)
    return found


_FEATURES: Final = 6  # p, p(1 − p), l₀, l₀², l₁, l₁²


@dataclass(frozen=True, slots=True, eq=False)
class _Kinds:
    """Features of one kind of example: means by the mean log-odds, and the covariance in the middle."""

    means: Floats  # places × features
    root: Floats  # of the covariance

    def at(self, places: Floats) -> Floats:
        """Returns the means between places: features × minutes."""
        low = np.clip(places.astype(np.int64), 0, len(self.means) - 2)
        part = (places - low)[:, np.newaxis]
        found: Floats = (self.means[low] * (1.0 - part) + self.means[low + 1] * part).T
        return found

    def sums(self, rng: np.random.Generator, counts: Floats, means: Floats) -> Floats:
        """Returns sums of features over so many examples with these means: features × minutes."""
        noise = self.root @ rng.standard_normal((_FEATURES, len(counts)))
        sums = counts * means + np.sqrt(counts) * noise
        # A few examples with luck beyond what is possible.
        found: Floats = np.maximum(sums, 0.001 * counts * means)
        return found


def _draw(
    rng: np.random.Generator,
    task: Task,
    start: int,
    examples: Floats,
    rate: Floats,
    calibration: Floats,
    scale: Floats,
    blind: Floats,
    lost_at: int | None,
) -> MinuteSeries:
    """Returns a task's minutes.

    `scale` multiplies predictions; where `blind` is 1 a feature is lost; labels that come from `lost_at` on are lost.
    """
    places, negatives, positives, plain = _kinds(task)
    place = np.interp(np.log(np.minimum(rate * scale, 0.95)), places, np.arange(len(places)))
    truth = np.minimum(rate / calibration, 0.95)
    came = np.minimum(_counts(rng, examples * truth, task.dispersion), examples)
    arrivals = rng.multinomial(came.astype(np.int64), task.densities()).T
    if lost_at is not None:
        arrivals = rng.binomial(
            arrivals, _come_until(task, lost_at - start - 0.5 - np.arange(len(examples), dtype=np.float64))
        )
    observed = arrivals.sum(axis=0).astype(np.float64)
    # Of some positives the model, without the feature, knows nothing: of so many that NE is worse by _NE_WORSE.
    unknown = blind * _blindness(task)
    of_all = plain.at(place)
    of_positives = (1.0 - unknown) * positives.at(place) + unknown * of_all
    of_negatives = (of_all - truth * of_positives) / (1.0 - truth)
    negative = negatives.sums(rng, examples - came, of_negatives)
    # A positive whose label is lost counts as a negative.
    negative += positives.sums(rng, came - observed, of_positives)
    positive = positives.sums(rng, observed, of_positives)
    p, pq = negative[:2] + positive[:2]
    loss = negative[2] + positive[4]
    return MinuteSeries(
        start,
        examples=examples,
        weight=examples,
        weight_squares=examples,
        expected=p,
        expected_variance=pq,
        loss=loss,
        loss_by_squares=loss,
        loss_squares=negative[3] + positive[5],
        positives=observed,
        observed=observed,
        observed_squares=observed,
        positive_loss=positive[4],
        waiting=examples,
        waiting_expected=p,
        seen=examples,
        arrivals=arrivals.astype(np.float64),
    )


def _come_until(task: Task, left: Floats) -> Floats:
    """Returns by bucket of age the share of labels that come before their examples are so many minutes old."""
    ends = np.minimum(np.append(AGE_BOUNDS / MINUTE_MICROS, np.inf), task.window / timedelta(minutes=1))
    begins = np.concatenate(([0.0], ends[:-1]))
    width = np.maximum(ends - begins, 1e-9)
    found: Floats = np.clip((left - begins[:, np.newaxis]) / width[:, np.newaxis], 0.0, 1.0)
    return found


def _counts(rng: np.random.Generator, mean: Floats, dispersion: float) -> Floats:
    """Returns counts whose variance is so many times their mean."""
    if dispersion <= 1.0 + 1e-6:
        return rng.poisson(mean).astype(np.float64)
    shape = np.maximum(mean, 1e-9) / (dispersion - 1.0)
    return rng.poisson(rng.gamma(shape, dispersion - 1.0)).astype(np.float64)


def _kinds(task: Task) -> tuple[Floats, _Kinds, _Kinds, _Kinds]:
    """Returns logarithms of the mean prediction, rising, and features of negatives, positives and examples at each."""
    nodes = np.linspace(-5.0, 5.0, 201)
    mass = np.exp(-0.5 * nodes**2)
    centres = np.linspace(-10.0, 4.0, 113)
    z = centres[:, np.newaxis] + task.spread * nodes
    p = expit(z)
    l0, l1 = np.logaddexp(0.0, z), np.logaddexp(0.0, -z)
    features = np.stack((p, p * (1.0 - p), l0, l0**2, l1, l1**2), axis=-1)
    mean_p = (p * mass).sum(axis=1) / mass.sum()
    middle = int(np.argmin(np.abs(mean_p - task.base_rate)))

    def kind(weights: Floats) -> _Kinds:
        weights = weights / weights.sum(axis=1, keepdims=True)
        means = np.einsum("cn,cnf->cf", weights, features)
        centred = features[middle] - means[middle]
        covariance = np.einsum("n,nf,ng->fg", weights[middle], centred, centred)
        values, vectors = np.linalg.eigh(covariance)
        return _Kinds(means, vectors * np.sqrt(np.maximum(values, 0.0)))

    plain = np.broadcast_to(mass, p.shape)
    return np.log(mean_p), kind(plain * (1.0 - p)), kind(plain * p), kind(plain)


def _blindness(task: Task) -> float:
    """Returns the share of the positives that must be unknown to the model for NE to be worse by _NE_WORSE."""
    places, negatives, positives, plain = _kinds(task)
    at = int(np.argmin(np.abs(places - math.log(task.base_rate))))
    b = task.base_rate
    loss = (1.0 - b) * negatives.means[at, 2] + b * positives.means[at, 4]
    worse = b * (plain.means[at, 4] - positives.means[at, 4])
    return float(min(1.0, _NE_WORSE * loss / worse))
