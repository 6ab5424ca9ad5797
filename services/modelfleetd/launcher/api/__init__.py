"""LauncherService: parse → decide → store → reply. A file per concept."""

from __future__ import annotations

from modelfleetd.launcher.api.creating import Creating
from modelfleetd.launcher.api.launches import Launches
from modelfleetd.launcher.api.notifications import Notifications
from modelfleetd.launcher.api.steering import Steering


class LauncherServicer(Creating, Launches, Steering, Notifications):
    """All of them."""
