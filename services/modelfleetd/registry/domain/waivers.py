"""Rules of the minimum standard that an entry need not keep to for a while."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LintWaiver:
    """A rule that an entry does not keep to, with leave and for a time."""

    rule: str
    reason: str = ""
    expire_time: datetime | None = None
