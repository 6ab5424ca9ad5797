"""Routes of the ledger and routes that agents report, side by side, a bounded number at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Final, TypeAlias, cast

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.codec import from_proto
from modelfleetd.registry import wire
from modelfleetd.registry.domain.inventory import InventoryFinding, Route, compare
from modelfleetd.registry.domain.lint import ModelView
from modelfleetd.registry.domain.observed import ServingStatus
from modelfleetd.registry.domain.resources import ModelRole, ModelType
from modelfleetd.registry.snapshot import MODEL_TYPES, Snapshot, type_of

ROUTES_AT_A_TIME: Final = 200
"""How many routes a page compares at most."""

Key: TypeAlias = tuple[str, str]
"""A route: model type and region."""


@dataclass(frozen=True, slots=True)
class Reports:
    """The newest reports of routes, in order, and where there are more of them."""

    statuses: Mapping[Key, pb.ServingStatus]
    horizon: Key | None

    @classmethod
    def of(cls, found: Sequence[pb.ServingStatus]) -> Reports:
        """Returns what up to ROUTES_AT_A_TIME + 1 statuses in order say: the one too many tells that there are more."""
        by_route = {(status.model_type, status.region): status for status in found}
        if len(found) <= ROUTES_AT_A_TIME:
            return cls(by_route, None)
        horizon = (found[-1].model_type, found[-1].region)
        del by_route[horizon]
        return cls(by_route, horizon)


class Survey:
    """Compares routes of a snapshot, which must not change meanwhile, with reports."""

    def __init__(self, snapshot: Snapshot, reports: Reports, now: datetime) -> None:
        self._snapshot = snapshot
        self._reports = reports
        self._now = now
        self._entries: dict[str, ModelType | None] = {}

    def routes(self, start: Key, model_type: str, region: str) -> tuple[list[Key], Key | None]:
        """Returns the routes to compare, and the one to go on with; None where these are all.

        Args:
            start: the first route that may count.
            model_type: only of this one; empty: of all.
            region: only of this one; empty: of all.
        """
        found: list[Key] = []
        ordered = heapq.merge(self._in_ledger(start, model_type), self._reports.statuses)
        horizon = self._reports.horizon
        for looked_at, (key, _) in enumerate(groupby(ordered)):
            if looked_at == ROUTES_AT_A_TIME or (horizon is not None and key > horizon):
                # Of the routes from the horizon on it is not known what was reported.
                return found, key if horizon is None else min(key, horizon)
            if key != horizon and region in ("", key[1]):
                found.append(key)
        return found, horizon

    def findings(self, key: Key) -> list[InventoryFinding]:
        """Returns the differences of one route, by model."""
        model_type, region = key
        status = self._reports.statuses.get(key)
        entry = self._entry(model_type)
        split = () if entry is None else (share.model for each in entry.splits for share in each.shares)
        served = () if status is None else (each.model for each in status.models)
        models = {name: self._snapshot.models.get(name) for name in {*split, *served} if type_of(name) == model_type}
        return compare(
            Route(
                model_type=model_type,
                region=region,
                entry=entry,
                region_exists=region in self._snapshot.regions,
                roles={name: _role(message) for name, message in models.items() if message is not None},
                status=None if status is None else from_proto(status, ServingStatus),
            ),
            self._now,
        )

    def _entry(self, name: str) -> ModelType | None:
        if name not in self._entries:
            message = self._snapshot.model_types.get(name)
            self._entries[name] = None if message is None else cast(ModelType, wire.resource_of(message))
        return self._entries[name]

    def _in_ledger(self, start: Key, model_type: str) -> Iterator[Key]:
        for name in (model_type,) if model_type else self._snapshot.names_from(MODEL_TYPES, start[0]):
            message = self._snapshot.model_types.get(name)
            if message is not None:
                regions = {*message.regions, *(split.region for split in message.splits)}
                yield from (key for region in sorted(regions) if (key := (name, region)) >= start)


def _role(message: pb.Model) -> ModelRole | None:
    return from_proto(message, ModelView).role
