"""The availability gate: errors and latency of the candidate against the baseline's at the same time. Pure.

Errors are counted since the split in force, so both sides are compared over the same time. A limit is broken where the
whole of a one-sided 99 % interval lies beyond it: Wilson's for a rate, Newcombe's for a difference of rates (Newcombe,
"Interval estimation for the difference between independent proportions", Statistics in Medicine 17, 1998, method 10).
A rate that lies beyond its limit without that is undecided: one error in 120 requests is no reason to go back, and none
to go on. The confidence is that of one look.

Latency is a percentile of the proxy's last interval, of which nobody knows the noise: the candidate is slow where three
intervals in a row found it so, and only where there is traffic enough for the slowest hundredth to be more than chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.observed import Observed, Seen
from modelfleetd.launcher.domain.policy import AvailabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.domain.shares import FULL
from modelfleetd.launcher.domain.words import count

# Of the standard normal distribution, for a one-sided 99 %.
_Z: Final = 2.3263478740408408
# What is slower by less than this is never held against a candidate.
_SLOWER_MS: Final = 1.0
SLOW_LOOKS: Final = 3
# With fewer requests the slowest hundredth is a handful, and says nothing.
_TAIL: Final = 1_000
# Looks at the same interval of the proxy find its moment to differ by less than this.
_SAME: Final = timedelta(seconds=0.5)
# Older numbers of the proxy say nothing of now.
_STALE: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, with its figures by name."""

    verdict: Verdict
    explanation: str
    figures: Mapping[str, float] = field(default_factory=dict)


def wilson(errors: int, requests: int) -> tuple[float, float]:
    """The one-sided 99 % bounds of a rate: not below the first, and not above the second. Without requests 0 and 1."""
    if requests <= 0:
        return 0.0, 1.0
    rate, z2 = errors / requests, _Z * _Z
    middle = (rate + z2 / (2 * requests)) / (1 + z2 / requests)
    half = _Z / (1 + z2 / requests) * math.sqrt(rate * (1 - rate) / requests + z2 / (4 * requests * requests))
    return max(0.0, middle - half), min(1.0, middle + half)


def least_increase(errors: int, requests: int, errors_before: int, requests_before: int) -> float:
    """The one-sided 99 % lower bound of how much one rate exceeds another, by Newcombe's method."""
    if requests <= 0 or requests_before <= 0:
        return -1.0
    rate, before = errors / requests, errors_before / requests_before
    low, high_before = wilson(errors, requests)[0], wilson(errors_before, requests_before)[1]
    return rate - before - math.hypot(rate - low, high_before - before)


def looked(launch: Launch, seen: Seen) -> Launch:
    """Counts in how many of the proxy's intervals in a row the candidate was found slow."""
    gate, (candidate, baseline) = launch.policy.availability_gate, _sides(launch, seen)
    step, region = launch.step, seen.region
    if seen.time is None or seen.statistics_age is None:
        return launch
    moment, before = seen.time - seen.statistics_age, step.slow_moments.get(region)
    if before is not None and moment - before < _SAME:
        return launch
    looks = step.slow_looks.get(region, 0) + 1 if _slower(gate, candidate, baseline) else 0
    counted = replace(
        step, slow_looks={**step.slow_looks, region: looks}, slow_moments={**step.slow_moments, region: moment}
    )
    return replace(launch, step=counted)


def judge(launch: Launch, seen: Seen, *, final: bool) -> Finding:
    """Judges a region.

    Args:
        launch: with this look counted (`looked`).
        seen: of the region.
        final: whether the bake is over: then few requests are all that there will be.
    """
    gate, (candidate, baseline) = launch.policy.availability_gate, _sides(launch, seen)
    if seen.statistics_age is None or seen.statistics_age > _STALE:
        age = "none yet" if seen.statistics_age is None else f"{seen.statistics_age.total_seconds():.0f} s old"
        return Finding(Verdict.ERROR, f"the proxy's numbers are {age}: nobody knows how the candidate answers")
    figures = _figures(candidate, baseline, launch.step.slow_looks.get(seen.region, 0))
    broken, doubtful = _errors(gate, candidate, baseline)
    slower = _slower(gate, candidate, baseline)
    looks = launch.step.slow_looks.get(seen.region, 0) if slower else 0
    if looks >= SLOW_LOOKS:
        broken = [*broken, f"{slower}, {looks} intervals in a row"]
    if broken:
        return Finding(Verdict.FAIL, "; ".join(broken), figures)
    few = candidate.since_split < gate.min_requests
    if few and not final:
        less = f"{count(candidate.since_split, 'request')} of the {gate.min_requests} that a verdict needs"
        return Finding(Verdict.INCONCLUSIVE, less, figures)
    if few:
        return _on_the_platforms_word(candidate, figures)
    if looks:
        doubtful = [*doubtful, f"{slower}; that counts once {SLOW_LOOKS} intervals in a row are so"]
    if doubtful:
        return Finding(Verdict.INCONCLUSIVE, "; ".join(doubtful), figures)
    return Finding(Verdict.PASS, _well(gate, candidate, baseline), figures)


def _sides(launch: Launch, seen: Seen) -> tuple[Observed, Observed]:
    """The launch's candidate and its baseline, whichever of them grows."""
    sides = (seen.candidate, seen.baseline)
    return sides if launch.candidate == launch.rising else sides[::-1]


def _errors(gate: AvailabilityGate, candidate: Observed, baseline: Observed) -> tuple[list[str], list[str]]:
    """The limits of errors that are broken for certain, and those of which it is doubtful."""
    broken: list[str] = []
    doubtful: list[str] = []
    limit, more = gate.max_error_rate_basis_points / FULL, gate.max_error_rate_increase_basis_points / FULL
    said = _rate_of("candidate", candidate)
    if candidate.error_rate > limit:
        beyond = f"{said}, where at most {_percent(limit)} may fail"
        certain = wilson(candidate.errors_since_split, candidate.since_split)[0] > limit
        (broken if certain else doubtful).append(beyond + ("" if certain else ": too few to tell"))
    if _is_comparable(gate, baseline) and candidate.error_rate - baseline.error_rate > more:
        beyond = f"{said} and {_rate_of('baseline', baseline)}, where {_percent(more)} more may fail"
        certain = _least_increase(candidate, baseline) > more
        (broken if certain else doubtful).append(beyond + ("" if certain else ": too few to tell"))
    return broken, doubtful


def _least_increase(candidate: Observed, baseline: Observed) -> float:
    return least_increase(
        candidate.errors_since_split, candidate.since_split, baseline.errors_since_split, baseline.since_split
    )


def _is_comparable(gate: AvailabilityGate, baseline: Observed) -> bool:
    return baseline.since_split >= max(1, gate.min_requests)


def _slower(gate: AvailabilityGate, candidate: Observed, baseline: Observed) -> str:
    """Which limit of latency the candidate exceeds, in words; empty where none."""
    slow, usual = candidate.latency_p99_ms, baseline.latency_p99_ms
    if slow is None or candidate.since_split < max(gate.min_requests, _TAIL):
        return ""
    said = f"1 % of the candidate's answers take {slow:.4g} ms or more"
    if 0 < gate.max_latency_p99_ms < slow:
        return f"{said}, where {gate.max_latency_p99_ms:.4g} ms are allowed"
    comparable = usual is not None and baseline.since_split >= max(gate.min_requests, _TAIL)
    if comparable and usual is not None and slow > max(usual * (1 + gate.max_latency_p99_increase), usual + _SLOWER_MS):
        more = f"{gate.max_latency_p99_increase:.0%}"
        return f"{said}, the baseline's {usual:.4g} ms, where {more} more are allowed"
    return ""


def _on_the_platforms_word(candidate: Observed, figures: Mapping[str, float]) -> Finding:
    few = f"only {count(candidate.since_split, 'request')}"
    if candidate.available == 0 or candidate.available < candidate.desired:
        lacks = f"{few}, and {candidate.available} of {candidate.desired} replicas are available"
        return Finding(Verdict.INCONCLUSIVE, lacks, figures)
    word = f"{few}: passes on the platform's word that all {candidate.available} replicas are available"
    return Finding(Verdict.PASS, word, figures)


def _well(gate: AvailabilityGate, candidate: Observed, baseline: Observed) -> str:
    found = _rate_of("candidate", candidate)
    if not _is_comparable(gate, baseline):
        found += "; the baseline has too little traffic to compare with"
    else:
        found += f" and {_rate_of('baseline', baseline)}"
    if candidate.latency_p99_ms is None:
        return found
    usual = "" if baseline.latency_p99_ms is None else f" and {baseline.latency_p99_ms:.4g} ms"
    return f"{found}; 99th percentiles of latency {candidate.latency_p99_ms:.4g} ms{usual}"


def _rate_of(called: str, side: Observed) -> str:
    return f"of the {called} {side.errors_since_split} of {side.since_split} failed ({_percent(side.error_rate)})"


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _figures(candidate: Observed, baseline: Observed, looks: int) -> Mapping[str, float]:
    found: dict[str, float | None] = {"slow_looks": float(looks)}
    for called, side in (("candidate", candidate), ("baseline", baseline)):
        found[f"{called}.requests"] = float(side.since_split)
        found[f"{called}.errors"] = float(side.errors_since_split)
        found[f"{called}.error_rate"] = side.error_rate if side.since_split else None
        found[f"{called}.latency_p99_ms"] = side.latency_p99_ms
    if candidate.since_split:
        found["candidate.error_rate.low"] = wilson(candidate.errors_since_split, candidate.since_split)[0]
    if candidate.since_split and baseline.since_split:
        found["error_rate_increase"] = candidate.error_rate - baseline.error_rate
        found["error_rate_increase.low"] = _least_increase(candidate, baseline)
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
