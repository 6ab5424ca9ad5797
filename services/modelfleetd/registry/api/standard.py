"""The minimum standard: lint, the fleet report, the inventory."""

from __future__ import annotations

from modelfleetd.registry.api.base import Base


class Standard(Base):
    """The minimum standard: lint, the fleet report, the inventory."""
