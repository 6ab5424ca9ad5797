"""What must be true of healthy ranges and service levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from modelfleetd import names
from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.registry.domain.resources import HealthyRange, Metric, Model, ModelType, ServiceLevel
from modelfleetd.registry.domain.violations import Violations

HOURS_OF_WEEK: Final = 168
MAX_FACTOR: Final = 1000.0
MAX_PAGES: Final = 10.0
MAX_RANGES: Final = 300
_SHORTEST, _LONGEST = timedelta(minutes=5), timedelta(days=1)

# The burn rate that pages within the hour. None exceeds 1 / (1 - target): with a lower target that page can never be
# sent, and nobody would notice.
FASTEST_BURN: Final = 14.4
LEAST_TARGET: Final = 0.9306
MOST_TARGET: Final = 0.99999


def check_service_level(wrong: Violations, level: ServiceLevel, path: str) -> None:
    """Notes what cannot be of a service level. Zeros are what the tier gives."""
    for name in ("stability", "availability"):
        target = getattr(level, name)
        accepted = (
            f"must be {LEAST_TARGET} to {MOST_TARGET}: a budget cannot burn faster than 1 / (1 - target), so below "
            f"{LEAST_TARGET} the alert at {FASTEST_BURN} times could never fire"
        )
        wrong.expect(target == 0 or LEAST_TARGET <= target <= MOST_TARGET, f"{path}.{name}", accepted)
    wrong.expect(0 <= level.coverage < 1, f"{path}.coverage", "must be above 0 and below 1, for example 0.9")
    is_share = 0 <= level.min_success_share <= 1
    wrong.expect(is_share, f"{path}.min_success_share", "must be above 0 and at most 1, for example 0.99")
    is_latency = math.isfinite(level.max_latency_p99_ms) and level.max_latency_p99_ms >= 0
    wrong.expect(is_latency, f"{path}.max_latency_p99_ms", "must be 0 or more milliseconds")


def check_ranges(wrong: Violations, ranges: Sequence[HealthyRange], declared: Sequence[str] | None) -> None:
    """Notes what cannot be of the healthy ranges of an entry.

    Args:
        wrong: collects it.
        ranges: those of a model type, or of a model.
        declared: ids of the predictions of the model type; None: of a model, whose type is another entry.
    """
    wrong.count(ranges, "healthy_ranges", MAX_RANGES)
    for index, healthy in enumerate(ranges):
        path = f"healthy_ranges[{index}]"
        _check_range(wrong, healthy, path)
        if declared is None:
            of_model = "must be CALIBRATION or NE: volume is of the route, so its range belongs to the model type"
            wrong.expect(healthy.metric is not Metric.VOLUME, f"{path}.metric", of_model)
        elif names.is_id(healthy.prediction):
            wrong.expect(healthy.prediction in declared, f"{path}.prediction", _one_of(declared))
    keys = [f"{healthy.prediction} {'' if healthy.metric is None else healthy.metric.name}" for healthy in ranges]
    wrong.unique(keys, "healthy_ranges")


def expect_declared(model: Model, before: Model | None, model_type: ModelType) -> None:
    """Expects that ranges that a model gets are of predictions that its type declares.

    Those that it had stay: a type that stops to declare a prediction must not make its models impossible to change.

    Raises:
        InvalidFields: some are not; names each.
    """
    if before is not None and before.healthy_ranges == model.healthy_ranges:
        return
    declared = [prediction.id for prediction in model_type.predictions]
    found = [
        FieldViolation(f"model.healthy_ranges[{index}].prediction", _one_of(declared))
        for index, healthy in enumerate(model.healthy_ranges)
        if healthy.prediction not in declared
    ]
    if found:
        raise InvalidFields(found)


def _one_of(declared: Sequence[str]) -> str:
    return f"must be one that the model type declares: {', '.join(declared) or 'it declares none'}"


def _check_range(wrong: Violations, healthy: HealthyRange, path: str) -> None:
    wrong.expect(names.is_id(healthy.prediction), f"{path}.prediction", names.ID_EXPECTATION)
    wrong.expect(healthy.metric is not None, f"{path}.metric", "must be CALIBRATION, NE or VOLUME")
    is_range = 0 <= healthy.low <= healthy.high < math.inf and healthy.high > 0
    wrong.expect(is_range, path, "must have finite ends with 0 <= low <= high and high above 0")
    factors = healthy.hour_of_week_factors
    wrong.expect(len(factors) in {0, HOURS_OF_WEEK}, f"{path}.hour_of_week_factors", "must be none or 168")
    are_factors = all(0 < factor <= MAX_FACTOR for factor in factors)
    wrong.expect(are_factors, f"{path}.hour_of_week_factors", "must each be above 0 and at most 1,000")
    window = healthy.window
    is_window = window is None or (_SHORTEST <= window <= _LONGEST and not window % timedelta(minutes=1))
    wrong.expect(is_window, f"{path}.window", "must be 5 min to 1 d, in whole minutes")
    wrong.expect(healthy.residuals >= 0, f"{path}.residuals", "must be 0 or more")
    wrong.expect(0 <= healthy.pages_per_week <= MAX_PAGES, f"{path}.pages_per_week", "must be 0 to 10")
    start, end = healthy.history_start_time, healthy.history_end_time
    ordered = start is None or end is None or start < end
    wrong.expect(ordered, f"{path}.history_end_time", "must be after history_start_time")
