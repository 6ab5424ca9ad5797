"""Rules of the minimum standard that an entry need not keep to for a while."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

MAX_AHEAD: Final = timedelta(days=366)
"""How long a waiver may hold when it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LintWaiver:
    """A rule that an entry does not keep to, with leave and for a time."""

    rule: str
    reason: str = ""
    expire_time: datetime | None = None
