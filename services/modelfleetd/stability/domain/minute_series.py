"""What is known of series by minute of event time, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from modelfleetd.stability.domain.exact import Floats


@dataclass(frozen=True, slots=True, eq=False)
class MinuteSeries:
    """What is known of series by minute of event time: minutes along the last axis, one of series before it or none.

    All are sums in natural units, as `Sums` has them; positives as far as they have come. Other minutes have no data.
    """

    start: int  # the first minute, since 1970
    examples: Floats
    weight: Floats  # Σw
    weight_squares: Floats  # Σw²
    expected: Floats  # S = Σwp
    expected_variance: Floats  # Σw²p(1 − p)
    loss: Floats  # Σwl
    loss_by_squares: Floats  # Σw²l
    loss_squares: Floats  # Σw²l²
    positives: Floats
    observed: Floats  # Σwy
    observed_squares: Floats  # Σw²y
    positive_loss: Floats  # Σw²ly
    waiting: Floats  # examples whose labels come later than they do
    waiting_expected: Floats  # Σwp of these
    seen: Floats  # predictions, also those that have no label and do not count for that
    # Of the observed those that came later than their examples, by bucket of age: (buckets, minutes). For replays.
    arrivals: Floats | None = None

    @property
    def minutes(self) -> int:
        return int(self.examples.shape[-1])

    @property
    def end(self) -> int:
        """The minute after the last."""
        return self.start + self.minutes

    def between(self, start: int, end: int) -> MinuteSeries:
        """Returns the minutes of a span, whether or not they are known. Without arrivals."""
        low, high = max(start, self.start), min(end, self.end)

        def cut(column: Floats) -> Floats:
            if low == start and high == end:
                return column[..., low - self.start : high - self.start]
            padded = np.zeros((*column.shape[:-1], end - start))
            if low < high:
                padded[..., low - start : high - start] = column[..., low - self.start : high - self.start]
            return padded

        return MinuteSeries(start, *(cut(getattr(self, name)) for name in COLUMNS))


COLUMNS: Final = tuple(field.name for field in fields(MinuteSeries))[1:-1]


def empty_series(start: int, *shape: int) -> MinuteSeries:
    """Returns series without data, whose columns can be filled: of this number of series, if any, and minutes."""
    return MinuteSeries(start, *(np.zeros(shape) for _ in COLUMNS))


def as_matrix(series: MinuteSeries) -> MinuteSeries:
    return MinuteSeries(series.start, *(getattr(series, name)[np.newaxis] for name in COLUMNS))
