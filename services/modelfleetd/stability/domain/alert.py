"""Alerts: something is wrong with a model, and who must act."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.stability.domain.fleet import Metric, Role, Tier


class Kind(enum.Enum):
    """What is wrong. The numbers are those of the protos, and stored."""

    UNSTABLE = 1
    UNAVAILABLE = 2
    NOT_OBSERVED = 3


class Severity(enum.Enum):
    """How urgent it is. The numbers are those of the protos, and stored."""

    PAGE = 1
    TICKET = 2


class State(enum.Enum):
    """Where an alert stands. The numbers are those of the protos, and stored."""

    FIRING = 1
    RESOLVED = 2


class Resolution(enum.Enum):
    """How an alert came to its end. The numbers are those of the protos, and stored."""

    RECOVERED = 1
    HANDED_OVER = 2


@dataclass(frozen=True, slots=True)
class Alert:
    """Something is wrong with a model, and who must act."""

    name: str
    kind: Kind
    severity: Severity
    model_type: str
    model: str
    prediction: str  # the culprit; empty where it is not about one
    metric: Metric | None
    role: Role
    tier: Tier
    team: str
    on_call: str
    summary: str
    response: str
    start_time: datetime
    revision: int
    state: State = State.FIRING
    end_time: datetime | None = None
    resolution: Resolution | None = None
    calm_since: datetime | None = None  # since when what fired at its severity does not any more
    deliver_time: datetime | None = None
    silence: str = ""
