"""What all resources of the ledger have in common, and who may set a field."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

Json: TypeAlias = Any
"""None, bool, int, float, str, list or dict with string keys."""


class Owner(enum.Enum):
    """Who sets a field. Fields without an owner are the caller's."""

    STAMP = "identity, times and numbers, which the registry keeps; no part of what is compared"
    DERIVED = "follows from other resources"
    LAUNCHES = "set by launches only"
    CREATION = "set once, when the resource is created"


STAMP: Final = {"owner": Owner.STAMP}
DERIVED: Final = {"owner": Owner.DERIVED}
LAUNCHES: Final = {"owner": Owner.LAUNCHES}
CREATION: Final = {"owner": Owner.CREATION}


class Tier(enum.IntEnum):
    """The worst incident that a model can cause. The lower, the more critical."""

    TIER0 = 0
    TIER1 = 1
    TIER2 = 2
    TIER3 = 3
    TIER4 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What all resources have in common."""

    name: str = field(metadata=STAMP)
    uid: str = field(default="", metadata=STAMP)
    create_time: datetime | None = field(default=None, metadata=STAMP)
    update_time: datetime | None = field(default=None, metadata=STAMP)
    etag: str = field(default="", metadata=STAMP)
    revision: int = field(default=0, metadata=STAMP)


def parent_of(name: str) -> str:
    """Returns the name of the resource that a name is below."""
    return name.rsplit("/", 2)[0]
