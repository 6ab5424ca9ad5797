"""Demand: how much traffic a route must carry."""

from __future__ import annotations

from modelfleetd.capacity.api.base import Base


class DemandMethods(Base):
    """Implements the methods of demand."""
