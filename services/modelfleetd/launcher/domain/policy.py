"""How a launch goes about it: the defaults, the limits, and the stability gate."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.launcher.domain.shares import FULL

_CRITICAL: Final = frozenset({"TIER0", "TIER1"})


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
    }
    words = {
        "calibration_low": "must be 0 or more",
        "calibration_high": "must not be below calibration_low",
        "max_ne_regression": "must be 0 (not judged) to 100",
        "min_positives": "must be 0 to 1,000,000",
        "confidence": "must be above 0.5 and below 1, or 0 for the default",
    }
    return [FieldViolation(f"{path}.{field}", words[field]) for field, holds in rules.items() if not holds]
