"""Probabilities and log losses of scores, row by row in float64.

Every result depends on its own row only, so that a row adds the same to a sum in whatever company it comes.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from modelfleetd.stability.domain.exact import Floats, columns

# Probabilities are clipped for the logarithm only: a loss is at most 27.6.
CLIP: Final = 1e-12
# Likewise for log-odds: a loss is at most 100, so that one absurd row cannot drown a window.
MAX_LOGIT: Final = 100.0


def probabilities(value: Floats, *, is_logit: bool) -> Floats:
    """Returns p for scores (as they are) or logits."""
    if not is_logit:
        return value
    small = np.exp(-np.abs(value))
    return np.where(value >= 0, 1.0, small) / (1.0 + small)


def negative_losses(value: Floats, *, is_logit: bool) -> Floats:
    """Returns l₀ = −ln(1 − p), the loss where the label is 0."""
    if is_logit:
        return _softplus(np.clip(value, -MAX_LOGIT, MAX_LOGIT))
    return -np.log1p(-np.clip(value, CLIP, 1.0 - CLIP))


def positive_losses(value: Floats, *, is_logit: bool) -> Floats:
    """Returns l₁ = −ln p, the loss where the label is 1."""
    if is_logit:
        return _softplus(-np.clip(value, -MAX_LOGIT, MAX_LOGIT))
    return -np.log(np.clip(value, CLIP, 1.0 - CLIP))


def _softplus(value: Floats) -> Floats:
    """ln(1 + e^x) without overflow."""
    return np.maximum(value, 0.0) + np.log1p(np.exp(-np.abs(value)))


# Arrays, since numbers of Python have to be made into such at every use.
_ZERO, _HALF, _ONE = np.array(0.0), np.array(0.5), np.array(1.0)


def _clipped(value: Floats, low: float, high: float) -> Floats:
    """Returns the values clipped: mostly themselves, since to look costs less."""
    if not len(value) or (np.minimum.reduce(value) >= low and np.maximum.reduce(value) <= high):
        return value
    return np.clip(value, low, high)


class Block:
    """Probabilities, losses and log-odds of one block of values after the other, in memory that stays in the cache.

    The same numbers as the functions above give, to the last bit: what they have in common is computed once.

    Args:
        is_logit: what the values are.
        positives: whether `positive_losses` are wanted.
    """

    def __init__(self, *, is_logit: bool, positives: bool = False) -> None:
        self._is_logit = is_logit
        self._positives = positives
        self._memory: Floats = columns(6)
        self.probabilities: Floats = self._memory[0]
        self.negative_losses: Floats = self._memory[1]
        self.positive_losses: Floats = self._memory[2]
        self.log_odds: Floats = self._memory[3]

    def load(self, value: Floats) -> None:
        """Takes a block; what was there of the one before is overwritten."""
        p, l0, l1, x, one, other = self._memory[:, : len(value)]
        if self._is_logit:
            np.copyto(x, _clipped(value, -MAX_LOGIT, MAX_LOGIT))
            size = np.abs(x, out=one)
            small = np.exp(np.negative(size, out=l0), out=p)
            rest = np.log1p(small, out=other)
            # max(x, 0) is half of x + |x|, exactly.
            np.add(np.multiply(np.add(size, x, out=l0), _HALF, out=l0), rest, out=l0)
            if self._positives:
                np.add(np.multiply(np.subtract(size, x, out=l1), _HALF, out=l1), rest, out=l1)
            whole = np.add(small, _ONE, out=one)
            np.copyto(small, _ONE, where=x >= _ZERO)
            np.divide(small, whole, out=p)
        else:
            p = value
            clipped = _clipped(value, CLIP, 1.0 - CLIP)
            np.log(clipped, out=x)
            if self._positives:
                np.negative(x, out=l1)
            np.negative(np.log1p(np.negative(clipped, out=l0), out=l0), out=l0)
            np.add(x, l0, out=x)
        self.probabilities, self.negative_losses, self.positive_losses, self.log_odds = p, l0, l1, x
