"""The dashboard that comes with the product, and what it asks Prometheus for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

DASHBOARD: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "deploy" / "grafana" / "modelfleet.json").read_text()
)


def expressions() -> list[str]:
    """All expressions, with everything chosen."""
    return [
        re.sub(r"\$\w+", ".*", target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
    ]
