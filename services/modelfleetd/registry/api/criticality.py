"""Requests for TIER0 and TIER1."""

from __future__ import annotations

from modelfleetd.registry.api.base import Base


class Criticality(Base):
    """Requests for TIER0 and TIER1."""
