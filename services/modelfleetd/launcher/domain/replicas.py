"""How many replicas a share needs, and what share replicas carry. Integer arithmetic (LAUNCH.md, Replicas)."""

from __future__ import annotations

from modelfleetd.launcher.domain.shares import FULL


def replicas_for(full: int, share: int, least: int) -> int:
    """R(x): replicas that a model needs for a share.

    Args:
        full: N, replicas for the whole route.
        share: x, in basis points.
        least: R_min, fewest replicas at any share above 0.
    """
    if share <= 0:
        return 0
    return max(least, -(-full * share // FULL))


def share_of(full: int, available: int, least: int, most: int = FULL) -> int:
    """The largest share x ≤ `most`, in basis points, with R(x) ≤ available: what available replicas can carry."""
    if available < max(least, 1):
        return 0
    if full <= 0:
        return most
    return max(0, min(most, available * FULL // full))


def inferred_full(replicas: int, share: int) -> int:
    """N of a model without a certificate: the replicas that serve over the share that they carry."""
    return replicas if share <= 0 else -(-replicas * FULL // share)
