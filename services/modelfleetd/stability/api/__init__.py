"""Stability's methods: parse, decide, store, reply. A file per concept."""

from __future__ import annotations

from modelfleetd.stability.api.alerts import Alerts
from modelfleetd.stability.api.judge import Judging
from modelfleetd.stability.api.ranges import Ranges
from modelfleetd.stability.api.series import Series
from modelfleetd.stability.api.slos import Slos
from modelfleetd.stability.api.standings import Standings
from modelfleetd.stability.api.writes import Writes


class StabilityServicer(Writes, Series, Judging, Standings, Slos, Alerts, Ranges):
    """All of them."""
