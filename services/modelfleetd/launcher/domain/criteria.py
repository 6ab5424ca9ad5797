"""What a launch demands of its candidate's predictions, with what the registry demands where it says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.launcher.domain.policy import Criterion

_PATH = "launch.policy.stability_gate.criteria"


@dataclass(frozen=True, slots=True)
class Declared:
    """A prediction as the registry declares it, its defaults filled in."""

    id: str
    calibration_low: float
    calibration_high: float
    min_positives: int
    # How long after a prediction its label may come.
    attribution_window: timedelta = timedelta(hours=1)


def resolved(
    criteria: Sequence[Criterion], declared: Iterable[Declared], *, has_baseline: bool
) -> tuple[Criterion, ...]:
    """Returns the criteria as the judge can be asked them: each has its whole range.

    Args:
        criteria: as they were asked for, each value in its range.
        declared: the predictions of the model type.
        has_baseline: whether there is a model to compare NE with.

    Raises:
        InvalidFields: some could never be judged; every one of them is named.
    """
    known = {prediction.id: prediction for prediction in declared}
    violations: list[FieldViolation] = []
    found: list[Criterion] = []
    for index, criterion in enumerate(criteria):
        path = f"{_PATH}[{index}]"
        of_registry = known.get(criterion.prediction)
        if of_registry is None:
            expected = f"must be one that the model type declares: {', '.join(known) or 'it declares none'}"
            violations.append(FieldViolation(f"{path}.prediction", expected))
            continue
        if any(other.prediction == criterion.prediction for other in criteria[:index]):
            violations.append(FieldViolation(f"{path}.prediction", f"{criterion.prediction} has a criterion already"))
        if criterion.max_ne_regression and not has_baseline:
            violations.append(FieldViolation(f"{path}.max_ne_regression", "needs a baseline to compare with"))
        if criterion.max_calibration_difference and not has_baseline:
            violations.append(FieldViolation(f"{path}.max_calibration_difference", "needs a baseline to compare with"))
        whole = _filled(criterion, of_registry)
        violations.extend(_crossed(path, criterion, whole))
        found.append(whole)
    if violations:
        raise InvalidFields(violations)
    return tuple(found)


def _filled(criterion: Criterion, declared: Declared) -> Criterion:
    low, high = criterion.calibration_low, criterion.calibration_high
    return replace(
        criterion,
        calibration_low=declared.calibration_low if low is None else low,
        calibration_high=declared.calibration_high if high is None else high,
        min_positives=criterion.min_positives or declared.min_positives,
    )


def _crossed(path: str, asked: Criterion, whole: Criterion) -> list[FieldViolation]:
    """A range that is empty, because its other end is the registry's."""
    assert whole.calibration_low is not None and whole.calibration_high is not None
    if whole.calibration_low <= whole.calibration_high:
        return []
    if asked.calibration_high is None:
        words = f"is above the registry's upper end, {whole.calibration_high:g}; set calibration_high as well"
        return [FieldViolation(f"{path}.calibration_low", words)]
    words = f"is below the registry's lower end, {whole.calibration_low:g}; set calibration_low as well"
    return [FieldViolation(f"{path}.calibration_high", words)]
