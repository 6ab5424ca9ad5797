"""How a launch goes about it: the defaults, the limits, and what its gates demand."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.launcher.domain.shares import FULL
from modelfleetd.names import ID_EXPECTATION, is_id

_CRITICAL: Final = frozenset({"TIER0", "TIER1"})
# Most gates of a kind that one launch may name.
_MOST_GATES: Final = 10
_MAX_REASON: Final = 1_000


class Approval(enum.Enum):
    """When people are asked."""

    AUTOMATIC = 1
    REQUIRED = 2


class RegionOrder(enum.Enum):
    """In what order the regions of a route are launched."""

    ONE_BY_ONE = 1
    TOGETHER = 2
    CANARY_REGION = 3


@dataclass(frozen=True, slots=True)
class Criterion:
    """What is demanded of one prediction; None and 0 mean what the registry says, or the judge's default."""

    prediction: str
    calibration_low: float | None = None
    calibration_high: float | None = None
    max_ne_regression: float = 0.0
    min_positives: int = 0
    confidence: float = 0.0
    include_immature: bool = False
    max_calibration_difference: float = 0.0


@dataclass(frozen=True, slots=True)
class StabilityGate:
    """Asks the judge at every step."""

    disabled: bool = False
    dry_run: bool = False
    criteria: tuple[Criterion, ...] = ()
    max_extensions: int | None = None
    roll_back_on_error: bool = False

    @property
    def extensions(self) -> int:
        """How often an INCONCLUSIVE verdict extends the bake before the launch pauses."""
        return 3 if self.max_extensions is None else self.max_extensions


@dataclass(frozen=True, slots=True)
class AvailabilityGate:
    """Compares errors and latency of the candidate with the baseline's at every bake."""

    disabled: bool = False
    dry_run: bool = False
    max_error_rate_increase_basis_points: int = 50
    max_error_rate_basis_points: int = 500
    # As a ratio: 0.5 is +50 %.
    max_latency_p99_increase: float = 0.5
    # 0: no limit.
    max_latency_p99_ms: float = 0.0
    min_requests: int = 100


@dataclass(frozen=True, slots=True)
class EvidenceGate:
    """Asks the registry for the candidate's evidence before anything is started."""

    disabled: bool = False
    dry_run: bool = False
    # A FAIL ends the launch instead of pausing it.
    reject: bool = False


class When(enum.Enum):
    """When a webhook is asked."""

    BEFORE_START = 1
    EVERY_STEP = 2
    BEFORE_FINALIZE = 3


@dataclass(frozen=True, slots=True)
class WebhookGate:
    """Asks a service of the organisation, by the name that the launcher's configuration gives it."""

    webhook: str
    when: When = When.BEFORE_START
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class PeopleGate:
    """Waits for somebody other than the creator before the candidate's share exceeds this, in basis points."""

    reason: str
    after_share_basis_points: int = 0
    deadline: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Policy:
    """A launch's policy with every default filled in."""

    max_step_basis_points: int = 2_000
    max_steps: int = 20
    bake_duration: timedelta = timedelta(minutes=5)
    step_deadline: timedelta = timedelta(minutes=10)
    launch_deadline: timedelta = timedelta(days=7)
    approval_deadline: timedelta = timedelta(days=7)
    approval: Approval = Approval.AUTOMATIC
    stability_gate: StabilityGate = StabilityGate()
    rollback_window: timedelta = timedelta(hours=2)
    availability_gate: AvailabilityGate = AvailabilityGate()
    evidence_gate: EvidenceGate = EvidenceGate()
    webhook_gates: tuple[WebhookGate, ...] = ()
    people_gates: tuple[PeopleGate, ...] = ()
    region_order: RegionOrder = RegionOrder.ONE_BY_ONE


def default_rollback_window(tier: str) -> timedelta:
    """How long the hold keeps what a rollback needs: a day for what can cause a SEV0 or SEV1, else two hours."""
    return timedelta(hours=24) if tier in _CRITICAL else timedelta(hours=2)


def check(policy: Policy, path: str = "launch.policy") -> None:
    """Checks every range of a policy.

    Raises:
        InvalidFields: names every field that is out of its range.
    """
    second, minute, day = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
    found = [
        *_between(f"{path}.max_step_basis_points", policy.max_step_basis_points, 1, FULL),
        *_between(f"{path}.max_steps", policy.max_steps, 1, 100),
        *_lasts(f"{path}.bake_duration", policy.bake_duration, timedelta(0), 7 * day, "0 s to 7 d"),
        *_lasts(f"{path}.step_deadline", policy.step_deadline, second, 7 * day, "1 s to 7 d"),
        *_lasts(f"{path}.launch_deadline", policy.launch_deadline, minute, 90 * day, "1 min to 90 d"),
        *_lasts(f"{path}.approval_deadline", policy.approval_deadline, minute, 90 * day, "1 min to 90 d"),
        *_lasts(f"{path}.rollback_window", policy.rollback_window, timedelta(0), 7 * day, "0 s to 7 d"),
        *_between(f"{path}.stability_gate.max_extensions", policy.stability_gate.extensions, 0, 1_000),
    ]
    for index, criterion in enumerate(policy.stability_gate.criteria):
        found.extend(_criterion(f"{path}.stability_gate.criteria[{index}]", criterion))
    found.extend(_availability(f"{path}.availability_gate", policy.availability_gate))
    found.extend(_webhooks(f"{path}.webhook_gates", policy.webhook_gates))
    found.extend(_people(f"{path}.people_gates", policy.people_gates))
    if found:
        raise InvalidFields(found)


def _between(path: str, value: int, low: int, high: int) -> list[FieldViolation]:
    return [] if low <= value <= high else [FieldViolation(path, f"must be {low:,} to {high:,}")]


def _lasts(path: str, value: timedelta, low: timedelta, high: timedelta, words: str) -> list[FieldViolation]:
    return [] if low <= value <= high else [FieldViolation(path, f"must be {words}")]


def _criterion(path: str, criterion: Criterion) -> list[FieldViolation]:
    low, high = criterion.calibration_low, criterion.calibration_high
    # Written so that NaN fails each of them.
    rules = {
        "calibration_low": low is None or low >= 0,
        "calibration_high": high is None or high >= (low or 0),
        "max_ne_regression": 0 <= criterion.max_ne_regression <= 100,
        "min_positives": 0 <= criterion.min_positives <= 1_000_000,
        "confidence": criterion.confidence == 0 or 0.5 < criterion.confidence < 1,
        "max_calibration_difference": 0 <= criterion.max_calibration_difference <= 100,
    }
    words = {
        "calibration_low": "must be 0 or more",
        "calibration_high": "must not be below calibration_low",
        "max_ne_regression": "must be 0 (not judged) to 100",
        "min_positives": "must be 0 to 1,000,000",
        "confidence": "must be above 0.5 and below 1, or 0 for the default",
        "max_calibration_difference": "must be 0 (not judged) to 100",
    }
    return [FieldViolation(f"{path}.{field}", words[field]) for field, holds in rules.items() if not holds]


def _availability(path: str, gate: AvailabilityGate) -> list[FieldViolation]:
    found = [
        *_between(f"{path}.max_error_rate_increase_basis_points", gate.max_error_rate_increase_basis_points, 0, FULL),
        *_between(f"{path}.max_error_rate_basis_points", gate.max_error_rate_basis_points, 0, FULL),
        *_between(f"{path}.min_requests", gate.min_requests, 0, 1_000_000),
    ]
    # Written so that NaN fails both.
    if not 0 <= gate.max_latency_p99_increase <= 100:
        found.append(FieldViolation(f"{path}.max_latency_p99_increase", "must be 0 to 100; 0.5 is 50 % more"))
    if not 0 <= gate.max_latency_p99_ms <= 3_600_000:
        found.append(FieldViolation(f"{path}.max_latency_p99_ms", "must be 0 (no limit) to 3,600,000 ms"))
    return found


def _webhooks(path: str, gates: tuple[WebhookGate, ...]) -> list[FieldViolation]:
    if len(gates) > _MOST_GATES:
        return [FieldViolation(path, f"must have at most {_MOST_GATES} items")]
    found = [
        FieldViolation(f"{path}[{index}].webhook", ID_EXPECTATION)
        for index, gate in enumerate(gates)
        if not is_id(gate.webhook)
    ]
    asked = [(gate.webhook, gate.when) for gate in gates]
    found.extend(
        FieldViolation(f"{path}[{index}]", f"{gate.webhook} is asked {gate.when.name} already")
        for index, gate in enumerate(gates)
        if (gate.webhook, gate.when) in asked[:index]
    )
    return found


def _people(path: str, gates: tuple[PeopleGate, ...]) -> list[FieldViolation]:
    if len(gates) > _MOST_GATES:
        return [FieldViolation(path, f"must have at most {_MOST_GATES} items")]
    found: list[FieldViolation] = []
    for index, gate in enumerate(gates):
        at = f"{path}[{index}]"
        found.extend(_between(f"{at}.after_share_basis_points", gate.after_share_basis_points, 0, FULL))
        if not gate.reason.strip() or len(gate.reason) > _MAX_REASON:
            found.append(FieldViolation(f"{at}.reason", f"must have 1 to {_MAX_REASON} characters"))
        found.extend(_lasts(f"{at}.deadline", gate.deadline, timedelta(minutes=1), timedelta(days=90), "1 min to 90 d"))
        if index and gate.after_share_basis_points <= gates[index - 1].after_share_basis_points:
            found.append(FieldViolation(f"{at}.after_share_basis_points", "must be more than that of the gate before"))
    return found
