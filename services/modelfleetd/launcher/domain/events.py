"""What is told of a launch: its history, entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a launch."""

    type: str
    message: str
    time: datetime
    step: int = 0
    region: str = ""
    epoch: int = 0
    actor: str = ""
    sequence: int = 0
