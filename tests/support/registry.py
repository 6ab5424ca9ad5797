"""Builders of ledger entries, and a ledger held in a dict: what it says is found by looking at everything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from modelfleetd.registry.domain import tiers
from modelfleetd.registry.domain.assets import Asset
from modelfleetd.registry.domain.criticality import OPEN, CriticalityEvidence, CriticalityRequest
from modelfleetd.registry.domain.evidence import EvaluationReport, EvidenceHead, RiskAssessment
from modelfleetd.registry.domain.naming import NamingField, NamingScheme, NamingWord
from modelfleetd.registry.domain.resource import Tier, parent_of
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelRole, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Edits, Stamp, revise
from modelfleetd.registry.domain.serving import ModelShare, RegionSplit, ServingSpec

R = TypeVar("R", bound=AnyResource)
START = datetime(2025, 1, 1, tzinfo=UTC)


def team(key: str = "feed", **fields: Any) -> Team:
    return Team(name=f"teams/{key}", **fields)


def region(key: str = "eu", **fields: Any) -> Region:
    return Region(name=f"regions/{key}", **({"agent_address": "127.0.0.1:9000"} | fields))


def model_type(key: str = "ctr", **fields: Any) -> ModelType:
    return ModelType(name=f"modelTypes/{key}", **({"team": "teams/feed", "regions": ("regions/eu",)} | fields))


def spec(**fields: Any) -> ServingSpec:
    return ServingSpec(**({"command": ("serve", "{port}"), "flavor": "flavors/cpu"} | fields))


def model(key: str = "v1", of: str = "ctr", **fields: Any) -> Model:
    return Model(name=f"modelTypes/{of}/models/{key}", **({"serving_spec": spec()} | fields))


def split(region: str = "eu", *, of: str = "ctr", **shares: int) -> RegionSplit:
    return RegionSplit(
        region=f"regions/{region}",
        shares=tuple(
            ModelShare(model=f"modelTypes/{of}/models/{key}", share_basis_points=share) for key, share in shares.items()
        ),
    )


def naming_scheme(key: str, *fields: tuple[str, Sequence[str]], **more: Any) -> NamingScheme:
    """A scheme with fields of these ids and words."""
    parts = (
        NamingField(id=id_, words=tuple(NamingWord(word=word, meaning=word.upper()) for word in words))
        for id_, words in fields
    )
    return NamingScheme(name=f"namingSchemes/{key}", separator="_", fields=tuple(parts), **more)


def serving(role: ModelRole, key: str = "v1", of: str = "ctr") -> Model:
    return model(key, of, role=role, serving_spec=spec().complete())


class LedgerOf:
    """A ledger with these entries (`domain.ledger.Ledger`)."""

    follows_up_later = False

    def __init__(self, *entries: AnyResource, revision: int = 0) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self.revision = revision

    def apply(self, edits: Edits) -> None:
        """Writes edits, as one revision."""
        self.revision += 1
        stamp = Stamp(self.revision, START + timedelta(seconds=self.revision))
        for change in revise(edits, stamp):
            if change.after is None:
                del self.entries[change.resource]
            else:
                self.entries[change.resource] = change.after

    def _of(self, kind: type[R], name: str) -> R | None:
        found = self.entries.get(name)
        return found if isinstance(found, kind) else None

    def team(self, name: str) -> Team | None:
        return self._of(Team, name)

    def region(self, name: str) -> Region | None:
        return self._of(Region, name)

    def model_type(self, name: str) -> ModelType | None:
        return self._of(ModelType, name)

    def model(self, name: str) -> Model | None:
        return self._of(Model, name)

    def models_of(self, model_type: str) -> Sequence[Model]:
        models = [entry for entry in self.entries.values() if isinstance(entry, Model)]
        return sorted((each for each in models if parent_of(each.name) == model_type), key=lambda each: each.name)

    def referrers(self, name: str) -> Sequence[str]:
        return sorted(entry.name for entry in self.entries.values() if name in set(references(entry)))

    def open_requests(self, name: str) -> Sequence[CriticalityRequest]:
        return [each for each in self.every(CriticalityRequest) if each.resource == name and each.state in OPEN]

    def find(self, name: str) -> AnyResource | None:
        return self.entries.get(name)

    def every(self, kind: type[R]) -> Sequence[R]:
        found = [entry for entry in self.entries.values() if isinstance(entry, kind)]
        return sorted(found, key=lambda each: each.name)

    def pending(self) -> Edits:
        return ()

    def asset_at(self, uri: str) -> str | None:
        found = [each.name for each in self.every(Asset) if each.uri.rstrip("/") == uri.rstrip("/")]
        return found[0] if found else None

    def evidence_of(self, model: str) -> Sequence[EvidenceHead]:
        found = [*self.every(EvaluationReport), *self.every(RiskAssessment)]
        heads = (EvidenceHead(each.name, each.revision, 0) for each in found if parent_of(each.name) == model)
        return sorted(heads, key=lambda head: head.name)


def references(entry: AnyResource) -> Iterable[str]:
    if isinstance(entry, Region):
        return [share.region for share in entry.failover_shares]
    if isinstance(entry, ModelType):
        stated = () if entry.demand_source is None else entry.demand_source.stated
        regions = [*(each.region for each in stated), *(each.region for each in entry.splits)]
        return [entry.team, *entry.regions, *entry.upstream_types, *regions]
    if isinstance(entry, Asset):
        return [entry.team, *entry.model_types, *entry.models]
    return ()


def fleet(*more: AnyResource) -> LedgerOf:
    """A team, a region, the type `ctr` with a baseline `old` and a candidate `new`, and whatever else is given."""
    old = serving(ModelRole.BASELINE, "old")
    new = serving(ModelRole.CANDIDATE, "new")
    ctr = model_type(
        baseline=old.name, splits=(split(old=10_000),), revision=7, serving_revision=5, etag="r7", create_time=START
    )
    return LedgerOf(team(), region(), ctr, replace(old, revision=5), replace(new, revision=6), *more, revision=7)


EVIDENCE = CriticalityEvidence(on_call_24x7="pager", business_metric="time spent", contribution="carries it")


def raise_tier(ledger: LedgerOf, name: str, tier: Tier, now: datetime = START, **fields: Any) -> str:
    """Raises an entry to TIER0 or TIER1: one person asks, another one approves. Returns the request's name."""
    request = f"criticalityRequests/r{ledger.revision}"
    asked = CriticalityRequest(name=request, resource=name, tier=tier, **({"evidence": EVIDENCE} | fields))
    ledger.apply(tiers.request_tier(ledger, asked, "alice", "u"))
    ledger.apply(tiers.approve(ledger, request, tiers.Decision(by="bob", identities={"bob"}, time=now)))
    return request
