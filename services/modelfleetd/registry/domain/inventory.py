"""What platforms really serve, compared with the ledger, route by route."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.registry.domain.observed import ModelServing, ServingStatus
from modelfleetd.registry.domain.resources import ModelRole, ModelType

STALE_AFTER: Final = timedelta(minutes=10)
"""How old a report may be and still say what is served now."""


class FindingKind(enum.Enum):
    """What differs."""

    UNREGISTERED_MODEL_TYPE = "UNREGISTERED_MODEL_TYPE"
    UNREGISTERED_MODEL = "UNREGISTERED_MODEL"
    UNREGISTERED_REGION = "UNREGISTERED_REGION"
    MISSING = "MISSING"
    SHARE_CONFLICT = "SHARE_CONFLICT"
    ROLE_CONFLICT = "ROLE_CONFLICT"
    STALE = "STALE"
    NEVER_REPORTED = "NEVER_REPORTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryFinding:
    """A difference between what the platforms serve and what the ledger says."""

    kind: FindingKind
    model_type: str
    region: str
    model: str = ""
    message: str = ""
    mend: str = ""
    observe_time: datetime | None = None
    ledger_share_basis_points: int = 0
    observed_share_basis_points: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A model type in a region, by the ledger and by the newest report; at least one of them knows it."""

    model_type: str
    region: str
    entry: ModelType | None = None
    region_exists: bool = False
    # Of the registered models of the type that the split or the report names.
    roles: Mapping[str, ModelRole | None] = field(default_factory=dict)
    status: ServingStatus | None = None

    @property
    def split(self) -> dict[str, int]:
        """The shares by the ledger, in basis points by model."""
        splits = () if self.entry is None else self.entry.splits
        return {
            share.model: share.share_basis_points
            for split in splits
            if split.region == self.region
            for share in split.shares
            if share.share_basis_points
        }

    @property
    def served(self) -> dict[str, ModelServing]:
        """What the report says of each model that takes traffic or has replicas."""
        models = () if self.status is None else self.status.models
        return {each.model: each for each in models if each.share_basis_points or each.total_replicas}


def compare(route: Route, now: datetime) -> list[InventoryFinding]:
    """Returns the differences of one route, by model; what concerns the whole route stands alone.

    A report older than ten minutes says nothing of what is served now, so nothing but its age is found.
    """
    fresh = route.status is not None and _observed(route.status) > now - STALE_AFTER
    if not fresh:
        return [_unheard(route, now)] if route.split else []
    if not route.served and not route.split:
        return []
    if route.entry is None:
        return [_unknown_type(route)]
    if not route.region_exists or route.region not in route.entry.regions:
        return [_unknown_region(route, route.entry)]
    found = (_of_model(route, name) for name in sorted(route.split.keys() | route.served.keys()))
    return [finding for finding in found if finding is not None]


def _observed(status: ServingStatus) -> datetime:
    if status.observe_time is None:
        raise ValueError("a status without observe_time was not stored")
    return status.observe_time


def _id(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _percent(basis_points: int) -> str:
    return f"{basis_points / 100:g}%"


def _made(route: Route, kind: FindingKind, message: str, mend: str, model: str = "") -> InventoryFinding:
    serving = route.served.get(model)
    return InventoryFinding(
        kind=kind,
        model_type=route.model_type,
        region=route.region,
        model=model,
        message=message,
        mend=mend,
        observe_time=None if route.status is None else route.status.observe_time,
        ledger_share_basis_points=route.split.get(model, 0),
        observed_share_basis_points=0 if serving is None else serving.share_basis_points,
    )


def _unheard(route: Route, now: datetime) -> InventoryFinding:
    shares = ", ".join(f"{_id(model)} {_percent(share)}" for model, share in sorted(route.split.items()))
    mend = f"look at the agent, and whether the launcher reaches it: modelfleet registry region get {route.region}"
    if route.status is None:
        message = f"by the ledger it serves {shares}, and no agent has ever reported on it"
        return _made(route, FindingKind.NEVER_REPORTED, message, mend)
    minutes = int((now - _observed(route.status)).total_seconds() // 60)
    message = f"by the ledger it serves {shares}, and its newest report is {minutes:,} minutes old"
    return _made(route, FindingKind.STALE, message, mend)


def _unknown_type(route: Route) -> InventoryFinding:
    models = ", ".join(map(_id, sorted(route.served)))
    message = f"{models} served, and the model type is not registered"
    mend = (
        f"modelfleet registry type create {route.model_type} --set team=teams/TEAM --set 'regions=[{route.region}]'; "
        "or stop what serves it"
    )
    return _made(route, FindingKind.UNREGISTERED_MODEL_TYPE, message, mend)


def _unknown_region(route: Route, entry: ModelType) -> InventoryFinding:
    models = ", ".join(map(_id, sorted(route.served)))
    if not route.region_exists:
        message = f"{models} served in a region that is not registered"
        mend = f"modelfleet registry region create {route.region} --set agent_address=HOST:PORT"
    else:
        message = f"{models} served in a region that the model type does not name"
        regions = ", ".join((*entry.regions, route.region))
        mend = f"modelfleet registry type update {route.model_type} --set 'regions=[{regions}]'; or stop what serves it"
    return _made(route, FindingKind.UNREGISTERED_REGION, message, mend)


def _of_model(route: Route, model: str) -> InventoryFinding | None:
    """Returns what differs of one model, the most fundamental thing first."""
    share, serving = route.split.get(model, 0), route.served.get(model)
    observed = 0 if serving is None else serving.share_basis_points
    replicas = 0 if serving is None else serving.total_replicas
    if model not in route.roles:
        message = f"it takes {_percent(observed)} with {replicas} replicas, and is no registered model of the type"
        mend = f"modelfleet registry model create {model} -f model.yaml; or stop what serves it"
        return _made(route, FindingKind.UNREGISTERED_MODEL, message, mend, model)
    if observed == share:
        return None
    figures = f"by the ledger it has {_percent(share)}, by its agent {_percent(observed)}"
    # A launch writes the ledger when it is finalised: until then its traffic goes ahead of it.
    reason = "a launch in flight may be the reason"
    launches = f"modelfleet launch list {_id(route.model_type)} --active"
    role = route.roles[model]
    if observed and (role is None or not role.serves):
        shown = "no role" if role is None else f"the role {role.name}"
        message = f"it takes {_percent(observed)} with {shown}; {reason}"
        return _made(route, FindingKind.ROLE_CONFLICT, message, launches, model)
    kind = FindingKind.SHARE_CONFLICT if observed else FindingKind.MISSING
    return _made(route, kind, f"{figures}; {reason}", launches, model)
