"""What a judgement demands, checked when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from modelfleetd.errors import FieldViolation, InvalidFields

DEFAULT_CONFIDENCE: Final = 0.99
DEFAULT_MIN_POSITIVES: Final = 10
DEFAULT_LABEL_COVERAGE: Final = 0.5
MOST_POSITIVES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """A closed range that is demanded."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


DEFAULT_CALIBRATION: Final = Limits(0.5, 2.0)
ANYTHING: Final = Limits(0.0, math.inf)


@dataclass(frozen=True, slots=True)
class Criterion:
    """What is demanded of one prediction. Zeros mean the defaults until `checked` has filled them in."""

    prediction: str
    calibration: Limits | None = None
    ne: Limits | None = None
    max_ne_regression: float = 0.0
    min_positives: int = DEFAULT_MIN_POSITIVES
    confidence: float = DEFAULT_CONFIDENCE
    include_immature: bool = False
    max_calibration_difference: float = 0.0

    @property
    def compares(self) -> bool:
        """Whether anything is demanded in relation to a baseline."""
        return bool(self.max_ne_regression or self.max_calibration_difference)


@dataclass(frozen=True, slots=True)
class DeclaredPrediction:
    """A prediction as the registry declares it, its defaults filled in."""

    id: str
    attribution_window: timedelta
    ignores_missing: bool  # an example without a label does not count; else it is a negative
    calibration_range: Limits
    ne_range: Limits | None
    min_positives: int
    min_label_coverage: float = DEFAULT_LABEL_COVERAGE

    def criterion(self) -> Criterion:
        """Returns what the registry itself demands."""
        return Criterion(
            self.id, calibration=self.calibration_range, ne=self.ne_range, min_positives=self.min_positives
        )


def checked(
    criteria: Sequence[Criterion], declared: Mapping[str, DeclaredPrediction], *, has_baseline: bool
) -> tuple[Criterion, ...]:
    """Returns the criteria with their defaults; what the registry demands where there are none.

    Raises:
        InvalidFields: some make no sense; every one of them is named.
    """
    if not criteria:
        return tuple(prediction.criterion() for prediction in declared.values())
    violations: list[FieldViolation] = []
    for index, criterion in enumerate(criteria):
        path = f"criteria[{index}]"
        violations += [FieldViolation(f"{path}{name}", text) for name, text in _wrong(criterion, declared)]
        for name in () if has_baseline else _COMPARING:
            if getattr(criterion, name):
                violations.append(FieldViolation(f"{path}.{name}", "needs a baseline to compare with"))
        if any(other.prediction == criterion.prediction for other in criteria[:index]):
            violations.append(FieldViolation(f"{path}.prediction", f"{criterion.prediction} has a criterion already"))
    if violations:
        raise InvalidFields(violations)
    return tuple(
        replace(
            criterion,
            min_positives=criterion.min_positives or DEFAULT_MIN_POSITIVES,
            confidence=criterion.confidence or DEFAULT_CONFIDENCE,
        )
        for criterion in criteria
    )


def confidence_or_default(confidence: float, path: str) -> float:
    """Returns the confidence, 0.99 where it is 0.

    Raises:
        InvalidFields: it is not between 0.5 and 1.
    """
    if confidence and not 0.5 < confidence < 1.0:
        raise InvalidFields([FieldViolation(path, _CONFIDENCE)])
    return confidence or DEFAULT_CONFIDENCE


# What is demanded in relation to a baseline, with an example.
_COMPARING: Final = {"max_ne_regression": "0.02 for 2 %", "max_calibration_difference": "0.05 for 5 % either way"}
_CONFIDENCE: Final = "must be above 0.5 and below 1, for example 0.99"


def _wrong(criterion: Criterion, declared: Mapping[str, DeclaredPrediction]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if criterion.prediction not in declared:
        found.append((".prediction", f"must be one that the model type declares: {', '.join(declared)}"))
    for name in ("calibration", "ne"):
        limits: Limits | None = getattr(criterion, name)
        if limits is not None:
            found += [(f".{name}{rest}", text) for rest, text in _wrong_limits(limits)]
    for name, example in _COMPARING.items():
        if not 0.0 <= getattr(criterion, name) < math.inf:
            found.append((f".{name}", f"must be 0 or more, for example {example}"))
    if not 0 <= criterion.min_positives <= MOST_POSITIVES:
        found.append((".min_positives", f"must be from 1 to {MOST_POSITIVES}, or 0 for {DEFAULT_MIN_POSITIVES}"))
    if criterion.confidence and not 0.5 < criterion.confidence < 1.0:
        found.append((".confidence", _CONFIDENCE))
    if criterion.calibration is None and criterion.ne is None and not criterion.compares:
        found.append(("", "must demand calibration, ne, max_ne_regression or max_calibration_difference"))
    return found


def _wrong_limits(limits: Limits) -> list[tuple[str, str]]:
    if not 0.0 <= limits.low < math.inf:
        return [(".low", "must be 0 or more, and finite")]
    # An infinite upper end is a range that is open above.
    return [] if limits.high >= limits.low else [(".high", f"must be at least low, {limits.low:g}")]
