"""Evaluation reports, risk assessments, and verdicts on them."""

from __future__ import annotations

from modelfleetd.registry.api.base import Base


class Evidence(Base):
    """Evaluation reports, risk assessments, and verdicts on them."""
