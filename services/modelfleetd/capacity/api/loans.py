"""Loans: capacity of one pool that serves for another."""

from __future__ import annotations

from modelfleetd.capacity.api.base import Base


class Loans(Base):
    """Implements the methods of loans."""
