"""The stored state: sufficient statistics of one model and prediction over some minutes of event time.

Exposure rows hold every example as if its label were negative; label rows hold what the positives change. Both are
additive, so a window is the sum of its rows. All sums but the counts are integers in units of 2^-40 (see exact.py).

Σw²l₀ and its correction serve only to centre the variance of the loss: without them the interval of NE at a base rate
of one half would be several times too wide.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from modelfleetd.stability.domain.exact import SCALE


@dataclass(frozen=True, slots=True)
class _Additive:
    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def __add__(self, other: Self) -> Self:
        kind: Any = type(self)
        values = _values(kind)
        return type(self)(*map(operator.add, values(self), values(other)))


@functools.cache
def _values(kind: Any) -> Callable[[_Additive], tuple[Any, ...]]:
    """Returns what reads all fields at once; `astuple` would copy each of them, deeply."""
    return operator.attrgetter(*kind.names())


@dataclass(frozen=True, slots=True)
class Exposure(_Additive):
    """Examples, as if every label were negative."""

    n: int = 0
    w: int = 0  # Σw
    w2: int = 0  # Σw²
    wp: int = 0  # Σwp
    w2pq: int = 0  # Σw²p(1 − p)
    wl: int = 0  # Σw·l₀
    w2l: int = 0  # Σw²·l₀
    w2l2: int = 0  # Σw²·l₀²


@dataclass(frozen=True, slots=True)
class Positives(_Additive):
    """What the positives among the examples change."""

    n: int = 0  # n₁
    w: int = 0  # Σwy
    w2: int = 0  # Σw²y
    w2l1: int = 0  # Σw²·l₁·y
    wl: int = 0  # Σw(l₁ − l₀)
    w2l: int = 0  # Σw²(l₁ − l₀)
    w2l2: int = 0  # Σw²(l₁² − l₀²)


_NO_EXPOSURE: Final = Exposure()
_NO_POSITIVES: Final = Positives()


@dataclass(frozen=True, slots=True)
class Sums:
    """The final state of a window: its exposure and its positives. Properties are floats in natural units."""

    exposure: Exposure = _NO_EXPOSURE
    positives: Positives = _NO_POSITIVES

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.exposure + other.exposure, self.positives + other.positives)

    @property
    def examples(self) -> int:
        return self.exposure.n

    @property
    def weight(self) -> float:
        """W = Σw."""
        return self.exposure.w / SCALE

    @property
    def weight_squares(self) -> float:
        """Σw²."""
        return self.exposure.w2 / SCALE

    @property
    def expected(self) -> float:
        """S = Σwp."""
        return self.exposure.wp / SCALE

    @property
    def expected_variance(self) -> float:
        """Σw²p(1 − p)."""
        return self.exposure.w2pq / SCALE

    @property
    def observed(self) -> float:
        """P = Σwy."""
        return self.positives.w / SCALE

    @property
    def observed_squares(self) -> float:
        """Σw²y."""
        return self.positives.w2 / SCALE

    @property
    def loss(self) -> float:
        """Σwl."""
        return (self.exposure.wl + self.positives.wl) / SCALE

    @property
    def loss_by_squares(self) -> float:
        """Σw²l."""
        return (self.exposure.w2l + self.positives.w2l) / SCALE

    @property
    def loss_squares(self) -> float:
        """Σw²l²."""
        return (self.exposure.w2l2 + self.positives.w2l2) / SCALE

    @property
    def positive_loss(self) -> float:
        """Σw²ly."""
        return self.positives.w2l1 / SCALE

    @property
    def effective_positives(self) -> float:
        """k_eff = (Σwy)² / Σw²y: how many positives of equal weight say as much. 0 where there is none."""
        return self.observed**2 / self.observed_squares if self.positives.w2 else 0.0


NOTHING: Final = Sums()
