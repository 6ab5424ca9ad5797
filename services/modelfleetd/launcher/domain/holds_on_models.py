"""Holds on models: what was rolled back is not launched again until a person says so.

Not to be taken for `hold.py`, which is the capacity that a launch holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from modelfleetd.launcher.domain.launch import Launch, going_back
from modelfleetd.launcher.domain.states import UNCHANGED
from modelfleetd.launcher.domain.strategies import Goal, Strategy


@dataclass(frozen=True, slots=True)
class ModelHold:
    """Forbids to launch a model.

    Attributes:
        launch: that made it; empty where a person did.
        lift_time: None while it is in force.
    """

    name: str
    uid: str
    model: str
    reason: str
    actor: str
    create_time: datetime
    launch: str = ""
    lifted_by: str = ""
    lift_reason: str = ""
    lift_time: datetime | None = None


def forbids(strategy: Strategy) -> bool:
    """Whether a hold on the candidate forbids such a launch: whether it may bring the model more traffic."""
    return strategy.rule.goal not in (Goal.NOTHING, Goal.SAME)


def lift(hold: ModelHold, author: str, reason: str, now: datetime) -> ModelHold:
    """Ends a hold. One that was lifted stays as it is: who did that first has done it."""
    if hold.lift_time is not None:
        return hold
    return replace(hold, lifted_by=author, lift_reason=reason, lift_time=now)


def stopped(launch: Launch, hold: ModelHold, now: datetime) -> Launch:
    """A launch of a model that is held from now on: one that has not begun yet never does; others go on."""
    if launch.state not in UNCHANGED or not forbids(launch.strategy):
        return launch
    return going_back(launch, hold.name, f"{hold.model} is on hold: {hold.reason}", now)
