"""Stability's methods: parse, decide, store, reply. A file per concept."""

from __future__ import annotations

from modelfleetd.stability.api.ranges import Ranges
from modelfleetd.stability.api.series import Series
from modelfleetd.stability.api.writes import Writes


class StabilityServicer(Writes, Series, Ranges):
    """All of them."""
