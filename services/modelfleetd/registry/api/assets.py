"""Assets, and entries found by what is known of them."""

from __future__ import annotations

from modelfleetd.registry.api.base import Base


class Assets(Base):
    """Assets, and entries found by what is known of them."""
