"""Recordings of live traffic."""

from __future__ import annotations

from modelfleetd.capacity.api.base import Base


class Recordings(Base):
    """Implements the methods of recordings."""
