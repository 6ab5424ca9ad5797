"""A load test: a temporary job that finds out what one replica of a model carries.

PENDING ──▶ STARTING ──▶ SEARCHING ──▶ CERTIFYING ──▶ SUCCEEDED
                ▲             │             │
                └─────────────┴─────────────┘  begun again after the service died in between
from each of them: FAILED, CANCELLED
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleetd.capacity.domain.exact import in_range, refuse
from modelfleetd.errors import FieldViolation

MAX_SAMPLES = 1000
MAX_SAMPLE_BYTES = 1 << 20
DEFAULT_START_QPS = 50.0
DEFAULT_ERROR_RATE = 0.001
DEFAULT_CERTIFICATION_REQUESTS = 50_000
CERTIFICATION_REQUESTS = range(1_000, 1_000_001)
MAX_ATTEMPTS = 3
VALIDITY = timedelta(days=90)
SHORTEST_VALIDITY, LONGEST_VALIDITY = timedelta(hours=1), timedelta(days=365)
LONGEST_WARM_UP = timedelta(minutes=30)
MAX_LATENCY_STOPPERS = 8
LONGEST_MS = 3_600_000


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
    # The generator could not keep the rate, or sent too late.
    GENERATOR_LIMIT = "GENERATOR_LIMIT"
    # Requests did not reach the replica.
    TRANSPORT_ERRORS = "TRANSPORT_ERRORS"
    # The two halves of the probe differ far beyond their noise, and none of them was over.
    UNSTABLE = "UNSTABLE"


class Cause(enum.Enum):
    """Why a load test did not converge."""

    UNSTABLE_LATENCY = "UNSTABLE_LATENCY"
    GENERATOR_LIMIT = "GENERATOR_LIMIT"
    UNRELATED_ERRORS = "UNRELATED_ERRORS"
    NOTHING_WITHIN = "NOTHING_WITHIN"
    NOTHING_BEYOND = "NOTHING_BEYOND"
    CLONE_UNAVAILABLE = "CLONE_UNAVAILABLE"
    INTERRUPTED = "INTERRUPTED"
    OUT_OF_TIME = "OUT_OF_TIME"
    RECORDING_UNREADABLE = "RECORDING_UNREADABLE"

    @property
    def advice(self) -> str:
        """What to do next, in a sentence."""
        return _ADVICE[self]


_ADVICE = {
    Cause.UNSTABLE_LATENCY: "Look for what else runs on the clone's machine, for pauses (garbage collection, "
    "throttling) and for work that grows with time; then begin a new load test.",
    Cause.GENERATOR_LIMIT: "Give the capacity service more CPU, or run the load test while less is going on; the model "
    "is not to blame.",
    Cause.UNRELATED_ERRORS: "Look at the clone's log and at the sample requests: answers fail however low the rate is.",
    Cause.NOTHING_WITHIN: "Set stoppers that the model can keep, or begin at a much lower start_qps.",
    Cause.NOTHING_BEYOND: "Look whether the sample requests make the model work at all (answers from a cache?), or set "
    "tighter stoppers.",
    Cause.CLONE_UNAVAILABLE: "Look at the model's serving spec, at what the clone wrote, and whether the region has a "
    "machine for one more replica; then begin a new load test.",
    Cause.INTERRUPTED: "Look why the capacity service is restarted so often; then begin a new load test.",
    Cause.OUT_OF_TIME: "Ask for fewer certification_requests, or begin nearer to the maximum with start_qps.",
    Cause.RECORDING_UNREADABLE: "Look whether the recording's files are still there, or replay another recording.",
}


@dataclass(frozen=True, slots=True)
class LatencyStopper:
    """A percentile of the latency from the intended send time that must be kept.

    Attributes:
        percentile: in [50, 99.99].
        latency_ms: highest value of this percentile.
    """

    percentile: float
    latency_ms: float

    @property
    def share(self) -> float:
        """The share of the requests that may take longer: 0.01 for the 99th percentile."""
        return round(1 - self.percentile / 100, 12)

    def __str__(self) -> str:
        return f"p{self.percentile:g} ≤ {self.latency_ms:g} ms"


@dataclass(frozen=True, slots=True)
class Stoppers:
    """What a replica must keep while it carries the load.

    Attributes:
        latency_p99_ms: highest 99th percentile of the latency from the intended send time; 0: not judged.
        error_rate: highest share of failed requests.
        latencies: further percentiles to keep.

    Raises:
        InvalidFields: a number is out of its range.
    """

    latency_p99_ms: float = 0.0
    error_rate: float = DEFAULT_ERROR_RATE
    latencies: tuple[LatencyStopper, ...] = ()

    def __post_init__(self) -> None:
        wrong, field = [], "load_test.stoppers"
        if not in_range(self.latency_p99_ms, 0, LONGEST_MS):
            wrong.append(FieldViolation(f"{field}.latency_p99_ms", f"must be 0 (not judged) to {LONGEST_MS:,} ms"))
        if not in_range(self.error_rate, 0, 1, low_open=True, high_open=True):
            wrong.append(FieldViolation(f"{field}.error_rate", "must be 0 (the default) or more, below 1"))
        if len(self.latencies) > MAX_LATENCY_STOPPERS:
            wrong.append(FieldViolation(f"{field}.latencies", f"must be at most {MAX_LATENCY_STOPPERS}"))
        for index, stopper in enumerate(self.latencies):
            place = f"{field}.latencies[{index}]"
            if not in_range(stopper.percentile, 50, 99.99):
                wrong.append(FieldViolation(f"{place}.percentile", "must be 50 to 99.99"))
            if not in_range(stopper.latency_ms, 0, LONGEST_MS, low_open=True):
                wrong.append(FieldViolation(f"{place}.latency_ms", f"must be above 0, at most {LONGEST_MS:,} ms"))
        refuse(wrong)

    @property
    def latency_limits(self) -> tuple[LatencyStopper, ...]:
        """All percentiles to keep, `latency_p99_ms` among them, by percentile: of each the tightest."""
        tightest = {99.0: self.latency_p99_ms} if self.latency_p99_ms else {}
        for stopper in self.latencies:
            tightest[stopper.percentile] = min(stopper.latency_ms, tightest.get(stopper.percentile, math.inf))
        return tuple(LatencyStopper(*item) for item in sorted(tightest.items()))

    @property
    def longest_ms(self) -> float:
        """The longest latency that any of them names; 0 where none is judged."""
        return max((limit.latency_ms for limit in self.latency_limits), default=0.0)

    @property
    def needed_requests(self) -> int:
        """Requests, none of them slow or failed, that it takes to confirm the smallest share with 97.5 % confidence."""
        return math.ceil(-math.log(0.025) / min(self._shares.values()))

    @property
    def hardest_to_confirm(self) -> str:
        """The stopper that takes the most requests to confirm, in words."""
        return min(self._shares, key=self._shares.__getitem__)

    @property
    def _shares(self) -> dict[str, float]:
        """The share of the requests that may fail or be slow, by what asks for it."""
        limits = {str(limit): limit.share for limit in self.latency_limits}
        return {f"an error rate of {self.error_rate:g}": self.error_rate, **limits}


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried, and what it showed.

    Attributes:
        requests: that were judged, after the warm-up; of these, `errors` failed.
        latency_p99_ms: like its neighbours, counted from the intended send time.
        send_late_p99_ms: one percent of the requests were sent later than intended by this much or more.
        start_time: when the first judged request was to be sent; None where none was.
        rate_ratio: the rate that was sent over the rate that was to be sent; below 0.98 the generator is the limit.
        generator_cpu_fraction: the share of one core that the generator's process used.
        histogram: of the latencies in µs, an HDR histogram (V2, compressed).
    """

    intended_qps: float
    actual_qps: float
    requests: int
    errors: int
    latency_p99_ms: float
    outcome: Outcome
    certification: bool
    explanation: str
    latency_p50_ms: float = 0.0
    latency_p90_ms: float = 0.0
    latency_p999_ms: float = 0.0
    send_late_p99_ms: float = 0.0
    start_time: datetime | None = None
    end_time: datetime | None = None
    rate_ratio: float = 1.0
    generator_cpu_fraction: float = 0.0
    histogram: bytes = b""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a load test is to find out.

    Attributes:
        sample_requests: what is replayed, where it is not a recording.
        recording: what is replayed, where it is not sample requests.
        recording_digest: over the requests that are replayed.
        warm_up_duration: of the clone; None: until its latency has settled.
        validity_duration: of the certificate.

    Raises:
        InvalidFields: no or too many samples, samples and a recording, or a number out of its range.
    """

    model: str
    region: str
    flavor: str
    sample_requests: tuple[bytes, ...]
    stoppers: Stoppers
    start_qps: float
    certification_requests: int
    recording: str | None = None
    recording_digest: str = ""
    warm_up_duration: timedelta | None = None
    validity_duration: timedelta = VALIDITY

    def __post_init__(self) -> None:
        wrong = []
        size = sum(map(len, self.sample_requests))
        if self.recording is not None:
            if self.sample_requests:
                wrong.append(FieldViolation("load_test.recording", "give this or sample_requests, not both"))
        elif not 1 <= len(self.sample_requests) <= MAX_SAMPLES or size > MAX_SAMPLE_BYTES:
            description = f"must be 1 to {MAX_SAMPLES:,} requests, at most 1 MiB together; or give a recording"
            wrong.append(FieldViolation("load_test.sample_requests", description))
        if not in_range(self.start_qps, 0.1, 1e6):
            wrong.append(FieldViolation("load_test.start_qps", "must be 0 (the default) or 0.1 to 1,000,000"))
        fewest = max(CERTIFICATION_REQUESTS.start, self.stoppers.needed_requests)
        if not fewest <= self.certification_requests < CERTIFICATION_REQUESTS.stop:
            description = f"must be {fewest:,} to 1,000,000, or unset (the default)"
            if fewest == self.stoppers.needed_requests:
                description += f": fewer cannot confirm {self.stoppers.hardest_to_confirm}"
            wrong.append(FieldViolation("load_test.certification_requests", description))
        if self.warm_up_duration is not None and not timedelta(0) < self.warm_up_duration <= LONGEST_WARM_UP:
            wrong.append(FieldViolation("load_test.warm_up_duration", "must be unset (the default) or up to 30 min"))
        if not SHORTEST_VALIDITY <= self.validity_duration <= LONGEST_VALIDITY:
            wrong.append(FieldViolation("load_test.validity_duration", "must be unset (90 d) or 1 h to 365 d"))
        refuse(wrong)


def waits_for_its_turn(place: int = 1, under_way: str | None = None) -> str:
    """Says, for people, what a load test waits for that nobody has begun.

    Args:
        place: among those that wait; the first is begun next.
        under_way: the oldest load test that was begun and has not ended, if there is one.
    """
    where = [f"number {place} in line"] if under_way or place > 1 else []
    behind = [f"behind {under_way}, which is under way"] if under_way else []
    return ": ".join(["Waits for its turn", *([", ".join(where + behind)] if where else [])]) + "."


def digest_of(requests: Iterable[bytes]) -> str:
    """Returns the digest of requests as that of a recording is made: SHA-256 over each one's length and bytes."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(len(request).to_bytes(8, "big"))
        digest.update(request)
    return f"sha256:{digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class LoadTest:
    """A load test as it is stored, without its samples.

    Attributes:
        cause: why it ended without a result; None where it did not.
        current_qps: the rate that is being tried; 0 where none is.
        highest_within_qps: the highest rate that it kept so far; 0 before the first.
        lowest_beyond_qps: the lowest rate above that which it did not keep so far; 0 before the first.
        expected_end_time: by what is still to do; None where nothing can be said.
        start_time: when it was first begun; None before.
        attempt: how often it was begun.
    """

    name: str
    model: str
    region: str
    flavor: str
    stoppers: Stoppers
    start_qps: float
    certification_requests: int
    recording: str | None
    recording_digest: str
    warm_up_duration: timedelta | None
    validity_duration: timedelta
    state: State
    cause: Cause | None
    message: str
    probes: tuple[Probe, ...]
    certificate: str | None
    actor: str
    create_time: datetime
    start_time: datetime | None
    expected_end_time: datetime | None
    end_time: datetime | None
    current_qps: float
    highest_within_qps: float
    lowest_beyond_qps: float
    attempt: int
    version: int
