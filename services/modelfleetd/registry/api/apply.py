"""Several entries in one revision."""

from __future__ import annotations

from modelfleetd.registry.api.base import Base


class Apply(Base):
    """Several entries in one revision."""
