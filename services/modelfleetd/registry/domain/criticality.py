"""Criticality: how an entry comes to TIER0 or TIER1, and stays there."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.registry.domain.resource import DERIVED, Resource, Tier

BY_REQUEST: Final = (Tier.TIER0, Tier.TIER1)
"""Tiers that somebody else has to approve."""

GRACE: Final = timedelta(days=14)
"""How long after its grant has expired an entry keeps its tier."""


def request_command(resource: str, tier: Tier) -> str:
    """Returns the command that asks for a tier."""
    return (
        f"modelfleet registry criticality request {resource} --tier {tier.name} "
        "--on-call ROTATION --metric METRIC --contribution WHY"
    )


class RequestState(enum.Enum):
    """Where a request stands."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    WITHDRAWN = "WITHDRAWN"
    EXPIRED = "EXPIRED"
    SUPERSEDED = "SUPERSEDED"


OPEN: Final = frozenset({RequestState.PENDING, RequestState.APPROVED})
"""States of requests that wait or are in force: at most one of each for an entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierGrant:
    """What an entry in TIER0 or TIER1 owes its tier to."""

    request: str = ""
    expire_time: datetime | None = None
    overdue: bool = False
    falls_to: Tier | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalityEvidence:
    """What shows that an entry is that critical."""

    on_call_24x7: str = ""
    business_metric: str = ""
    contribution: str = ""
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalityRequest(Resource):
    """A request to raise an entry to TIER0 or TIER1, decided by another person."""

    resource: str = ""
    tier: Tier | None = None
    evidence: CriticalityEvidence | None = None
    lifetime: timedelta | None = None
    state: RequestState | None = field(default=None, metadata=DERIVED)
    requester: str = field(default="", metadata=DERIVED)
    decided_by: str = field(default="", metadata=DERIVED)
    decide_time: datetime | None = field(default=None, metadata=DERIVED)
    decide_reason: str = field(default="", metadata=DERIVED)
    expire_time: datetime | None = field(default=None, metadata=DERIVED)
    tier_before: Tier | None = field(default=None, metadata=DERIVED)
