"""The search for the highest rate that a replica keeps: gallop, bisect in log space, certify, step down.

A generator: it yields the next probe, is sent what the probe found, and returns the result. No I/O, no clock.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from modelfleetd.capacity.domain.loadtest import Outcome

FIRST_STEP = math.log(1.1)
STEP_GROWTH = 1.6
BRACKET = math.log(1.05)
STEP_DOWN = 0.98
LOWEST_QPS = 0.1
HIGHEST_QPS = 1e6
_MOST_STEPS_DOWN = 20
# A probe that says nothing of the replica is repeated this often.
_REPEATS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """The next probe."""

    qps: float
    certification: bool = False


class Cause(enum.Enum):
    """Why a search did not converge."""

    GENERATOR_LIMIT = "the load generator is the limit, not the replica"
    TRANSPORT_ERRORS = "requests did not reach the replica"
    NOTHING_WITHIN = "not even the lowest rate was within the stoppers"
    NOTHING_BEYOND = "no rate was beyond the stoppers"
    UNSTABLE = "no rate could be confirmed by a fresh run"


@dataclass(frozen=True, slots=True)
class Found:
    """The highest rate that a fresh run confirmed."""

    max_qps: float


@dataclass(frozen=True, slots=True)
class NotFound:
    """The search ended without a result."""

    cause: Cause
    qps: float

    def __str__(self) -> str:
        return f"At {self.qps:.4g} requests/s {self.cause.value}."


Result: TypeAlias = Found | NotFound
Search: TypeAlias = Generator[Plan, Outcome, Result]
_BLIND = {Outcome.GENERATOR_LIMIT: Cause.GENERATOR_LIMIT, Outcome.TRANSPORT_ERRORS: Cause.TRANSPORT_ERRORS}


def search(start_qps: float) -> Search:
    """Searches from a rate: the predecessor's certificate, or a guess."""
    bracket = yield from _gallop(start_qps)
    if isinstance(bracket, NotFound):
        return bracket
    within, beyond = bracket
    while math.log(beyond / within) > BRACKET:
        middle = math.sqrt(within * beyond)
        found = yield from _probe(Plan(middle))
        if isinstance(found, NotFound):
            return found
        within, beyond = (middle, beyond) if found else (within, middle)
    return (yield from _certify(within))


def _gallop(start_qps: float) -> Generator[Plan, Outcome, tuple[float, float] | NotFound]:
    """Returns a rate that is within and one that is not, found in steps that grow."""
    within = beyond = None
    rate, step = start_qps, FIRST_STEP
    while within is None or beyond is None:
        found = yield from _probe(Plan(rate))
        if isinstance(found, NotFound):
            return found
        if found:
            within = rate
        else:
            beyond = rate
        if within and rate >= HIGHEST_QPS:
            return NotFound(Cause.NOTHING_BEYOND, rate)
        if beyond and rate <= LOWEST_QPS:
            return NotFound(Cause.NOTHING_WITHIN, rate)
        rate = min(HIGHEST_QPS, max(LOWEST_QPS, rate * math.exp(step if found else -step)))
        step *= STEP_GROWTH
    return within, beyond


def _certify(rate: float) -> Search:
    for _ in range(_MOST_STEPS_DOWN):
        found = yield from _probe(Plan(rate, certification=True))
        if isinstance(found, NotFound):
            return found
        if found:
            return Found(rate)
        rate *= STEP_DOWN
    return NotFound(Cause.UNSTABLE, rate)


def _probe(plan: Plan) -> Generator[Plan, Outcome, bool | NotFound]:
    """Says whether a rate is within. An undecided one counts as not within: the claim stays conservative."""
    for _ in range(1 + _REPEATS):
        outcome = yield plan
        if outcome not in _BLIND:
            return outcome is Outcome.WITHIN
    return NotFound(_BLIND[outcome], plan.qps)
