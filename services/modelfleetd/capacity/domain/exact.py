"""Numbers as people wrote them: 0.7 is seven tenths, so that a ceiling that falls on an integer stays on it."""

from __future__ import annotations

import math
from fractions import Fraction

from modelfleetd.errors import FieldViolation, InvalidFields

BASIS_POINTS = 10_000


def exact(value: float) -> Fraction:
    """Returns the shortest decimal that reads as this float, as a fraction: 0.1 is 1/10."""
    return Fraction(repr(value))


def ceil_share(units: int, share_basis_points: int) -> int:
    """Returns ceil(units × share) in integers."""
    return -(-units * share_basis_points // BASIS_POINTS)


def in_range(value: float, low: float, high: float, *, low_open: bool = False, high_open: bool = False) -> bool:
    """Says whether a finite value lies in a range, whose ends belong to it unless they are open. NaN never does."""
    if not math.isfinite(value):
        return False
    above = value > low if low_open else value >= low
    return above and (value < high if high_open else value <= high)


def refuse(violations: list[FieldViolation]) -> None:
    """Raises InvalidFields with all violations where there are any."""
    if violations:
        raise InvalidFields(violations)
