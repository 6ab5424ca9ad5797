"""Launch policies and the decisions that they make."""

from __future__ import annotations

from modelfleetd.capacity.api.base import Base


class Policies(Base):
    """Implements the methods of launch policies and decisions."""
