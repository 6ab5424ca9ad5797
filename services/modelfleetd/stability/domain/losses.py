"""Probabilities and log losses of scores, row by row in float64.

Every result depends on its own row only, so that a row adds the same to a sum in whatever company it comes.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from modelfleetd.stability.domain.exact import Floats

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
