"""What the launcher can do next. Exactly one of these is the answer of `next_action`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import Act


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again later. The reason is one CamelCase word for programs, the message says what would end the wait."""

    reason: str
    message: str
    seconds: float
    # People are needed, or will be soon.
    alarming: bool = False


@dataclass(frozen=True, slots=True)
class Apply:
    """Ask the region's agent for other replicas or shares of both sides. What other models have stays theirs."""

    act: Act
    region: str
    new_replicas: int
    old_replicas: int
    # The candidate's share; the baseline has the rest of what both have. None: nothing is served.
    share: int | None
    message: str
    raises: bool = False
    progress: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """Call registry or capacity."""

    act: Act
    message: str
    progress: bool = True


@dataclass(frozen=True, slots=True)
class Judge:
    """Ask the gates of the point where the launch is. Before the bake's end only a FAIL counts."""

    final: bool
    message: str = "asks its gates"


@dataclass(frozen=True, slots=True)
class Advance:
    """Only the record changes."""

    event: str
    message: str
    launch: Launch
    # Paused launches do not make it.
    progress: bool = True


Action: TypeAlias = Wait | Apply | Call | Judge | Advance
