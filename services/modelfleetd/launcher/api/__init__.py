"""LauncherService: parse → decide → store → reply. A file per concept."""

from __future__ import annotations

from modelfleetd.launcher.api.attempts import Attempts
from modelfleetd.launcher.api.creating import Creating
from modelfleetd.launcher.api.freezing import Freezing
from modelfleetd.launcher.api.holds import HoldsOnModels
from modelfleetd.launcher.api.launches import Launches
from modelfleetd.launcher.api.notifications import Notifications
from modelfleetd.launcher.api.rollback import RollingBack
from modelfleetd.launcher.api.statistics import Statistics


class LauncherServicer(Attempts, RollingBack, HoldsOnModels, Creating, Freezing, Launches, Statistics, Notifications):
    """All of them."""
