"""Shares of a route's traffic: integer basis points, everywhere. With floats ceil(420 × (0.2 + 0.2 + 0.2)) is 253."""

from __future__ import annotations

from typing import Final

FULL: Final = 10_000

# A share counts as observed when it is this close, however many requests there were.
TOLERANCE: Final = 100
# Below this many requests since the split, the proxy's acknowledgement is all the evidence there is.
LOW_TRAFFIC: Final = 100


def agrees(intended: int, observed: int, requests: int) -> bool:
    """Says whether an observed share is the intended one, up to chance: |o − x| ≤ max(1 point, 3·√(x(1−x)/n)).

    Args:
        intended: x, in basis points.
        observed: o, in basis points.
        requests: n, all requests that were split since the split came into force.
    """
    off = abs(observed - intended)
    return off <= TOLERANCE or off * off * requests <= 9 * intended * (FULL - intended)
