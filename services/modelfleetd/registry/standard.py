"""The minimum standard over the snapshot: which entries there are, in order, and the findings of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import assets_pb2, classification_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.codec import from_proto
from modelfleetd.registry import wire
from modelfleetd.registry.domain.lint import Finding, ModelFacts, ModelView, RegionFacts, TeamFacts, TypeFacts, lint
from modelfleetd.registry.domain.lint_rules import MODEL_RULES, REGION_RULES, TEAM_RULES, TYPE_RULES
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import ModelType, Region, Team
from modelfleetd.registry.snapshot import MODEL_TYPES, REGIONS, TEAMS, Snapshot, models_of, type_of


def surface_of(model_type: pb.ModelType) -> str:
    """Returns the surface of a model type: as its id says by the naming scheme, else as its label says; or nothing."""
    return model_type.naming.get("surface") or model_type.labels.get("surface", "")


def is_quiet(model: pb.Model) -> bool:
    """Says that no rule has anything to say of a model, without a closer look: most models of a fleet are retired."""
    return model.role == pb.Model.RETIRED and not model.tier_override and not model.lint_waivers


@dataclass(frozen=True, slots=True)
class Around:
    """What the rules for a model type ask of the rest of the ledger."""

    idle_upstream: tuple[str, ...]
    has_dashboard: bool
    several_regions: bool
    naming_in_force: bool


class Inspector:
    """Lints entries of a snapshot at a time. It keeps nothing: make a new one for each revision."""

    def __init__(self, snapshot: Snapshot, now: datetime) -> None:
        self._snapshot = snapshot
        self._now = now
        self._several_regions = len(snapshot.regions) > 1
        self._naming_in_force = bool(snapshot.table(classification_pb2.NamingScheme))

    def findings(self, name: str) -> list[Finding]:
        """Returns the findings of a team, region, model type or model, the worst first; none where it is gone."""
        message = self._snapshot.find(name)
        if isinstance(message, pb.Model):
            if is_quiet(message):
                return []
            tier = self._tier_of(type_of(name))
            return lint(MODEL_RULES, ModelFacts(entry=from_proto(message, ModelView), now=self._now, tier=tier))
        if isinstance(message, pb.ModelType):
            return lint(TYPE_RULES, self.type_facts(message, self.around(message)))
        if isinstance(message, pb.Team):
            return lint(TEAM_RULES, TeamFacts(entry=cast(Team, wire.resource_of(message)), now=self._now))
        if isinstance(message, pb.Region):
            region = cast(Region, wire.resource_of(message))
            facts = RegionFacts(entry=region, now=self._now, several_regions=self._several_regions)
            return lint(REGION_RULES, facts)
        return []

    def type_facts(self, message: pb.ModelType, around: Around) -> TypeFacts:
        """Returns what the rules for a model type look at."""
        return TypeFacts(
            entry=cast(ModelType, wire.resource_of(message)),
            now=self._now,
            has_models=bool(self._snapshot.page(models_of(message.name), None, 1)),
            idle_upstream=around.idle_upstream,
            has_dashboard=around.has_dashboard,
            several_regions=around.several_regions,
            naming_in_force=around.naming_in_force,
        )

    def _tier_of(self, name: str) -> Tier | None:
        model_type = self._snapshot.model_types.get(name)
        return None if model_type is None or not model_type.tier else Tier[serving_pb2.Tier.Name(model_type.tier)]

    def around(self, message: pb.ModelType) -> Around:
        """Returns what the rules for a model type ask of other entries: what is known of it changes only with these."""
        types, assets = self._snapshot.model_types, self._snapshot.table(assets_pb2.Asset)
        return Around(
            idle_upstream=tuple(name for name in message.upstream_types if name in types and not types[name].baseline),
            has_dashboard=any(
                assets[name].kind == assets_pb2.Asset.DASHBOARD
                for name in self._snapshot.referrers(message.name)
                if name in assets
            ),
            several_regions=self._several_regions,
            naming_in_force=self._naming_in_force,
        )


@dataclass(frozen=True, slots=True)
class Scope:
    """Which entries are looked at: all that are left empty count."""

    resource: str = ""
    team: str = ""
    surface: str = ""

    def admits(self, model_type: pb.ModelType) -> bool:
        """Says whether a model type, with its models, belongs to it."""
        if self.team and model_type.team != self.team:
            return False
        return not self.surface or surface_of(model_type) == self.surface


def entries_from(snapshot: Snapshot, scope: Scope, start: str = "") -> Iterator[str]:
    """Yields names of entries: teams, regions, then each model type followed by its models.

    Types that do not belong to the scope are yielded too, without their models, so that whoever counts what it gets
    has a bound on what it costs; `Scope.admits` tells them.

    Args:
        snapshot: must not change meanwhile.
        scope: what to look at.
        start: the entry to begin with, or with the next one where it is gone; empty: from the first one on.
    """
    if scope.resource and not scope.resource.startswith("modelTypes/"):
        yield scope.resource
        return
    first = not start or start.startswith("teams/")
    # A team has no surface.
    if scope.team and not (scope.resource or scope.surface) and first:
        yield scope.team
    if not (scope.resource or scope.team or scope.surface):
        if first:
            yield from snapshot.names_from(TEAMS, start)
        if first or start.startswith("regions/"):
            yield from snapshot.names_from(REGIONS, "" if first else start)
    start = start if start.startswith("modelTypes/") else ""
    for name in _types(snapshot, scope, type_of(start) if start else ""):
        model = start if start and type_of(start) == name and start != name else ""
        if not model and scope.resource in ("", name):
            yield name
        if scope.resource not in ("", name):
            yield scope.resource
        elif scope.admits(snapshot.model_types[name]):
            yield from snapshot.names_from(models_of(name), model)


def _types(snapshot: Snapshot, scope: Scope, start: str) -> Iterator[str]:
    """Yields the model types that may belong to a scope."""
    if scope.resource:
        names: Iterator[str] | Sequence[str] = (type_of(scope.resource),)
    elif scope.team:
        names = snapshot.referrers(scope.team)
    else:
        names = snapshot.names_from(MODEL_TYPES, start)
    return (name for name in names if name >= start and name in snapshot.model_types)
