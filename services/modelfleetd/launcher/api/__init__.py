"""LauncherService: parse → decide → store → reply. A file per concept."""

from __future__ import annotations

from modelfleetd.launcher.api.creating import Creating
from modelfleetd.launcher.api.freezing import Freezing
from modelfleetd.launcher.api.launches import Launches


class LauncherServicer(Creating, Freezing, Launches):
    """All of them."""
