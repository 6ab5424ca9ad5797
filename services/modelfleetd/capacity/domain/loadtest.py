"""A load test: a temporary job that finds out what one replica of a model carries.

PENDING ──▶ STARTING ──▶ SEARCHING ──▶ CERTIFYING ──▶ SUCCEEDED
                ▲             │             │
                └─────────────┴─────────────┘  begun again after the service died in between
from each of them: FAILED, CANCELLED
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.capacity.domain.exact import in_range, refuse
from modelfleetd.errors import FieldViolation

MAX_SAMPLES = 1000
MAX_SAMPLE_BYTES = 1 << 20
DEFAULT_START_QPS = 50.0
DEFAULT_ERROR_RATE = 0.001
DEFAULT_CERTIFICATION_REQUESTS = 50_000
CERTIFICATION_REQUESTS = range(1_000, 1_000_001)
MAX_ATTEMPTS = 3


class State(enum.Enum):
    """Where a load test is in its life. The worker that holds its lease moves it on; anybody may cancel it."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    SEARCHING = "SEARCHING"
    CERTIFYING = "CERTIFYING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
_STOPS = frozenset({State.FAILED, State.CANCELLED})
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PENDING: _STOPS | {State.STARTING},
    State.STARTING: _STOPS | {State.STARTING, State.SEARCHING},
    State.SEARCHING: _STOPS | {State.STARTING, State.CERTIFYING},
    State.CERTIFYING: _STOPS | {State.STARTING, State.SUCCEEDED},
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class Outcome(enum.Enum):
    """What a probe found. Only OVER speaks against the replica."""

    WITHIN = "WITHIN"
    OVER = "OVER"
    UNDECIDED = "UNDECIDED"
    GENERATOR_LIMIT = "GENERATOR_LIMIT"
    TRANSPORT_ERRORS = "TRANSPORT_ERRORS"


@dataclass(frozen=True, slots=True)
class Stoppers:
    """What a replica must keep while it carries the load.

    Attributes:
        latency_p99_ms: highest 99th percentile of the latency from the intended send time; 0: not judged.
        error_rate: highest share of failed requests.

    Raises:
        InvalidFields: a number is out of its range.
    """

    latency_p99_ms: float = 0.0
    error_rate: float = DEFAULT_ERROR_RATE

    def __post_init__(self) -> None:
        wrong = []
        if not in_range(self.latency_p99_ms, 0, 3_600_000):
            wrong.append(FieldViolation("load_test.stoppers.latency_p99_ms", "must be 0 (not judged) to 3,600,000"))
        if not in_range(self.error_rate, 0, 1, low_open=True, high_open=True):
            wrong.append(FieldViolation("load_test.stoppers.error_rate", "must be 0 (the default) or more, below 1"))
        refuse(wrong)

    @property
    def needed_requests(self) -> int:
        """Requests without a single failure that it takes to confirm the error rate with 97.5 % confidence."""
        return math.ceil(-math.log(0.025) / self.error_rate)


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried, and what it showed."""

    intended_qps: float
    actual_qps: float
    requests: int
    errors: int
    latency_p99_ms: float
    outcome: Outcome
    certification: bool
    explanation: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a load test is to find out.

    Raises:
        InvalidFields: no or too many samples, or a number out of its range.
    """

    model: str
    region: str
    flavor: str
    sample_requests: tuple[bytes, ...]
    stoppers: Stoppers
    start_qps: float
    certification_requests: int

    def __post_init__(self) -> None:
        wrong = []
        size = sum(map(len, self.sample_requests))
        if not 1 <= len(self.sample_requests) <= MAX_SAMPLES or size > MAX_SAMPLE_BYTES:
            description = f"must be 1 to {MAX_SAMPLES:,} requests, at most 1 MiB together"
            wrong.append(FieldViolation("load_test.sample_requests", description))
        if not in_range(self.start_qps, 0.1, 1e6):
            wrong.append(FieldViolation("load_test.start_qps", "must be 0 (the default) or 0.1 to 1,000,000"))
        fewest = max(CERTIFICATION_REQUESTS.start, self.stoppers.needed_requests)
        if not fewest <= self.certification_requests < CERTIFICATION_REQUESTS.stop:
            description = f"must be 0 (the default) or {fewest:,} to 1,000,000 to confirm the stoppers"
            wrong.append(FieldViolation("load_test.certification_requests", description))
        refuse(wrong)


@dataclass(frozen=True, slots=True)
class LoadTest:
    """A load test as it is stored, without its samples."""

    name: str
    model: str
    region: str
    flavor: str
    stoppers: Stoppers
    start_qps: float
    certification_requests: int
    state: State
    message: str
    probes: tuple[Probe, ...]
    certificate: str | None
    actor: str
    create_time: datetime
    end_time: datetime | None
    version: int

    @property
    def highest_within_qps(self) -> float:
        """The highest rate that it kept; 0 before the first."""
        return max((probe.intended_qps for probe in self.probes if probe.outcome is Outcome.WITHIN), default=0.0)

    @property
    def lowest_beyond_qps(self) -> float:
        """The lowest rate that it did not keep; 0 before the first."""
        return min((probe.intended_qps for probe in self.probes if probe.outcome is Outcome.OVER), default=0.0)
