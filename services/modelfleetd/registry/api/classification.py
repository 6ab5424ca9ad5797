"""Schemas of attributes, and naming schemes."""

from __future__ import annotations

from modelfleetd.registry.api.base import Base


class Classification(Base):
    """Schemas of attributes, and naming schemes."""
