"""Faults in simulated models: minutes until a page, and false alarms of healthy ones, beside common alternatives.

Ranges are proposed from healthy days (`ranges.propose_model`), then further healthy days are judged each minute
(`windows.decide_all`) and alerted on (`slo.firing`). Beside it, on the same windows of the same metrics:

- static limits at three standard deviations, alerting by burn rates as here, or on each window outside;
- static limits as narrow as the false alarms of these very streams allow, which nobody knows beforehand;
- where `river` can be imported (it is not in the lock), its ADWIN and Page-Hinkley with their defaults, on windows that
  follow each other, standardised by the healthy days.

Who alarms often finds a fault soon, by chance: the row in which nothing is wrong tells how often.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from modelfleetd.stability.domain import slo
from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.judging import Verdicts
from modelfleetd.stability.domain.slices import Slice, Slices
from modelfleetd.stability.domain.window_verdict import Flags, Reason, Stability
from tests.bench.figures import Figure
from tests.support.simulated_streams import DAY, Fault, live, make_model
from tests.support.simulated_watch import Key, begins, fires, model_slices, watch

NAMES = ("stability.false_alarms_per_model_week", "stability.detect_scale_1_3_median_minutes")

_MODELS: Final = int(os.environ.get("BENCH_MODELS", "100"))
_DAYS: Final = int(os.environ.get("BENCH_DAYS", "28"))
_HISTORY_DAYS: Final = 28
_BUDGET: Final = 0.05
_BUSY: Final = 20.0  # positives a minute
_QUIET: Final = 2.0

OURS, NAIVE, ADWIN, PAGE_HINKLEY = "proposed ranges", "±3σ each", "ADWIN", "Page-Hinkley"
_SIGMAS: Final = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 10.0, 14.0, 20.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one model."""

    positives_per_minute: float
    weeks: float
    valid: float  # share of its minutes that were decidable
    pages: Mapping[str, int]  # by method, while healthy
    tickets: Mapping[str, int]
    minutes: Mapping[tuple[str, Fault | None], float]  # until the page; infinite where none came in time
    first_bad: Mapping[Fault | None, float]


async def run() -> list[Figure]:
    """Runs all models; prints what came of them."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        jobs = (loop.run_in_executor(pool, simulate, seed, _DAYS) for seed in range(_MODELS))
        outcomes = await asyncio.gather(*jobs)
    console = Console(width=150)
    for made in (false_alarms(outcomes), *(detection(outcomes, *kind) for kind in _KINDS)):
        console.print(made)
    rate = _rate(outcomes, OURS)
    busy = [outcome.minutes[OURS, Fault.SCALE_1_3] for outcome in outcomes if outcome.positives_per_minute >= _BUSY]
    everything = [outcome.minutes[OURS, Fault.SCALE_1_3] for outcome in outcomes]
    weeks = sum(outcome.weeks for outcome in outcomes)
    return [
        Figure(
            name="stability.false_alarms_per_model_week",
            value=rate,
            unit="pages",
            yardstick=f"{len(outcomes)} healthy models of 3 predictions, {weeks:.0f} model weeks; ±3σ on the same "
            f"streams: {_rate(outcomes, static(3.0)):.2f}, and {_rate(outcomes, NAIVE):.1f} where each window alerts",
            target=_BUDGET,
            better="lower",
        ),
        Figure(
            name="stability.detect_scale_1_3_median_minutes",
            value=min(_quantile(busy, 0.5), float(DAY)),
            unit="min",
            yardstick=f"until the page, of {len(busy)} models with at least {_BUSY:g} positives a minute; all models "
            f"{_span(_quantile(everything, 0.5))}",
            target=60.0,
            better="lower",
        ),
    ]


def simulate(seed: int, days: int) -> Outcome:
    """Returns what comes of one model in so many healthy days, and of each fault in a copy of them."""
    model = make_model(seed)
    watched = watch(live(model, _HISTORY_DAYS + days), _HISTORY_DAYS)
    first, end = _HISTORY_DAYS * DAY, (_HISTORY_DAYS + days) * DAY
    past, healthy = watched.verdicts(watched.series, 2 * DAY, first), watched.verdicts(watched.series, first, end)
    usual = {key: _usual(verdicts) for key, verdicts in past.items()}
    signals = {key: _signal(usual[key], past[key], healthy[key]) for key in watched.ranges}
    slices = _slices(healthy, usual)
    pages = {method: len(begins(fires(known, model.target))) for method, known in slices.items()}
    pages[NAIVE] = _episodes(slices[static(3.0)] == Slice.BAD)
    tickets = {method: len(begins(fires(known, model.target, slo.Response.TICKET))) for method, known in slices.items()}
    for method, make in _detectors().items():
        alarms = [_alarms(make(), signals[key], healthy[key].width) + 2 * DAY for key in watched.ranges]
        pages[method] = sum(int(np.count_nonzero(found >= first)) for found in alarms)
    minutes: dict[tuple[str, Fault | None], float] = {}
    first_bad: dict[Fault | None, float] = {}
    rng = np.random.default_rng([seed, 2])
    for fault in _FAULTS:
        since = first + int(rng.integers(3 * DAY, max(3 * DAY + 1, days * DAY - _horizon(fault))))
        until = min(since + _horizon(fault), end)
        series = watched.with_fault(fault, since, until) if fault else watched.series
        wrong = watched.verdicts(series, since, until)
        before = {method: known[: since - first] for method, known in slices.items()}
        weeks = {
            key: signal[since - 9 * DAY : since - 2 * DAY] for key, signal in signals.items()
        }  # begin after 2 days
        bad, found = _found(before, _slices(wrong, usual), model.target)
        found |= _found_by_detectors(weeks, wrong, usual)
        first_bad[fault] = bad
        minutes |= {(method, fault): after for method, after in found.items()}
    valid = float(np.mean((slices[OURS] == Slice.GOOD) | (slices[OURS] == Slice.BAD)))
    return Outcome(model.positives_per_minute, days / 7.0, valid, pages, tickets, minutes, first_bad)


def _found(before: Mapping[str, Slices], wrong: Mapping[str, Slices], target: float) -> tuple[float, dict[str, float]]:
    """Returns minutes until the first bad one, and by method until the alarm."""
    found = {}
    for method, slices in wrong.items():
        firing = fires(np.concatenate((before[method], slices)), target)
        found[method] = _first(firing[len(before[method]) :])
    found[NAIVE] = _first(wrong[static(3.0)] == Slice.BAD)
    return _first(wrong[OURS] == Slice.BAD), found


def _found_by_detectors(
    weeks: Mapping[Key, Floats], wrong: Mapping[Key, Verdicts], usual: Mapping[Key, tuple[float, float]]
) -> dict[str, float]:
    """Returns by detector the minutes until it sees a change, after it has seen the week before."""
    found = {}
    for method, make in _detectors().items():
        after = []
        for key, verdicts in wrong.items():
            signal = np.concatenate((weeks[key], _signal(usual[key], verdicts)))
            places = _alarms(make(), signal, verdicts.width) - len(weeks[key])
            after += [float(place) + 1.0 for place in places if place >= 0]
        found[method] = min(after, default=math.inf)
    return found


def _horizon(fault: Fault | None) -> int:
    """Returns for how many minutes it is watched whether a fault is found."""
    return 14 * DAY if fault is Fault.DRIFT else DAY


def _there(verdicts: Verdicts) -> Flags:
    """Says where there is a value that rests on enough."""
    found: Flags = np.isin(verdicts.judged.reason, (Reason.VALUE.value, Reason.WIDE.value, Reason.EVIDENCE.value))
    return found


def static(sigmas: float) -> str:
    """Returns the name of static limits with alerts by burn rates."""
    return f"±{sigmas:g}σ"


def _usual(past: Verdicts) -> tuple[float, float]:
    """Returns mean and standard deviation of a metric's healthy windows."""
    values = past.value[_there(past)]
    return (float(values.mean()), float(values.std())) if len(values) else (0.0, math.inf)


def _slices(verdicts: Mapping[Key, Verdicts], usual: Mapping[Key, tuple[float, float]]) -> dict[str, Slices]:
    """Returns what minutes count as by each kind of limits."""
    found = {OURS: model_slices(known.state for known in verdicts.values())}
    for sigmas in _SIGMAS:
        found[static(sigmas)] = model_slices(_static(known, *usual[key], sigmas) for key, known in verdicts.items())
    return found


def _static(verdicts: Verdicts, mean: float, deviation: float, sigmas: float) -> Slices:
    """Returns states by static limits, as `Verdicts.state` has them."""
    outside = np.abs(verdicts.value - mean) > sigmas * deviation
    known = np.where(outside, Stability.UNSTABLE.value, Stability.STABLE.value)
    return np.where(_there(verdicts), known, Stability.UNKNOWN.value).astype(np.uint8)


def _episodes(bad: Flags) -> int:
    """Returns how often something began that had not been for an hour."""
    at = np.flatnonzero(bad)
    return int(np.count_nonzero(np.diff(at) > 60)) + 1 if len(at) else 0


def _first(flags: Flags) -> float:
    return float(np.argmax(flags)) + 1.0 if flags.any() else math.inf


def _detectors() -> dict[str, Callable[[], Any]]:
    """Returns River's detectors with their defaults; none where it is not installed."""
    if importlib.util.find_spec("river") is None:
        return {}
    drift = importlib.import_module("river.drift")
    return {ADWIN: drift.ADWIN, PAGE_HINKLEY: drift.PageHinkley}


def _signal(usual: tuple[float, float], *verdicts: Verdicts) -> Floats:
    """Returns values minute by minute in standard deviations from the healthy mean; NaN where there is none."""
    mean, deviation = usual
    values = np.concatenate([np.where(_there(known), known.value, np.nan) for known in verdicts])
    # A metric that never varied, or was never known, has nothing to say.
    return (values - mean) / deviation if 0.0 < deviation < math.inf else values * np.nan


def _alarms(detector: Any, signal: Floats, width: int) -> Integers:
    """Returns the places in a signal at which a detector that is given one window after the other sees a change."""
    found = []
    for place in range(width - 1, len(signal), width):
        if not math.isnan(value := float(signal[place])):
            detector.update(value)
            if detector.drift_detected:
                found.append(place)
    return np.array(found, dtype=np.int64)


_FAULTS: Final = (None, *Fault)

# Models by the positives a minute of the prediction that faults happen to.
_KINDS: Final = (
    ("all models", 0.0, math.inf),
    (f"at least {_BUSY:g} positives a minute", _BUSY, math.inf),
    (f"{_QUIET:g} to {_BUSY:g} positives a minute", _QUIET, _BUSY),
    (f"under {_QUIET:g} positives a minute", 0.0, _QUIET),
)


def false_alarms(outcomes: Sequence[Outcome]) -> Table:
    """Returns how often healthy models raised an alarm."""
    weeks = sum(outcome.weeks for outcome in outcomes)
    valid = float(np.mean([outcome.valid for outcome in outcomes]))
    made = Table(title=f"{len(outcomes)} healthy models, {weeks:.0f} model weeks; {valid:.1%} of the minutes decidable")
    made.add_column("method", no_wrap=True)
    for title in ("pages a model and week", "models that page", "tickets a model and week"):
        made.add_column(title, justify="right")
    for method in _methods(outcomes):
        tickets = sum(outcome.tickets.get(method, 0) for outcome in outcomes) / weeks
        paging = sum(outcome.pages[method] > 0 for outcome in outcomes)
        told = f"{tickets:.3f}" if method in outcomes[0].tickets else ""
        made.add_row(method, f"{_rate(outcomes, method):.3f}", f"{paging} of {len(outcomes)}", told)
    return made


def detection(outcomes: Sequence[Outcome], name: str, low: float, high: float) -> Table:
    """Returns how fast faults were found in models with so many positives a minute."""
    some = [outcome for outcome in outcomes if low <= outcome.positives_per_minute < high]
    made = Table(title=f"{name} ({len(some)}): time to the page; share found in 24 h, drift in 14 d")
    made.add_column("", no_wrap=True)
    for title in ("bad slice", "page", "p95", "found", *_methods(outcomes)[1:]):
        made.add_column(title, justify="right")
    for fault in _FAULTS if some else ():
        cells = [_span(_quantile([outcome.first_bad[fault] for outcome in some], 0.5))]
        for method in _methods(outcomes):
            minutes = [outcome.minutes[method, fault] for outcome in some]
            median, found = _span(_quantile(minutes, 0.5)), f"{np.mean(np.isfinite(minutes)):.0%}"
            cells += [median, _span(_quantile(minutes, 0.95)), found] if method == OURS else [f"{median} {found}"]
        made.add_row(fault.value if fault else "nothing wrong", *cells)
    return made


def _methods(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the methods to show: of static limits those at 3σ, and the narrowest that keep to the budget."""
    kept = next((s for s in _SIGMAS if _rate(outcomes, static(s)) <= _BUDGET), _SIGMAS[-1])
    named = (OURS, static(kept), static(3.0), NAIVE, ADWIN, PAGE_HINKLEY)
    return [method for method in dict.fromkeys(named) if all(method in outcome.pages for outcome in outcomes)]


def _rate(outcomes: Sequence[Outcome], method: str) -> float:
    return sum(outcome.pages[method] for outcome in outcomes) / sum(outcome.weeks for outcome in outcomes)


def _quantile(minutes: Sequence[float], share: float) -> float:
    """Returns the value that this share is not above; infinite where it lies among those that were not found."""
    return float(np.quantile(minutes, share, method="inverted_cdf")) if minutes else math.inf


def _span(minutes: float) -> str:
    if math.isinf(minutes):
        return "–"
    if minutes < 180:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 2 * DAY else f"{minutes / DAY:.1f} d"


if __name__ == "__main__":
    asyncio.run(run())
