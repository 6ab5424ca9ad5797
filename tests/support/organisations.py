"""Organisations with teams, and what their rows must say: the rule recomputed over all pools."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelfleetd.capacity.domain.pool import Flavor, Place, Pool, Quota
from modelfleetd.capacity.domain.quota import Share, available_in_parent, available_to_child
from modelfleetd.capacity.store import flavors, pools
from modelfleetd.kit.db import Database

CPU = "flavors/cpu"
EU, US = Place(CPU, "regions/eu"), Place(CPU, "regions/us")


@dataclass
class Member:
    """A pool as a test thinks of it: its parent, and by place what it owns and uses."""

    parent: str | None = None
    quotas: dict[Place, Quota] = field(default_factory=dict)
    used: dict[Place, int] = field(default_factory=dict)

    def share(self, place: Place) -> Share:
        quota = self.quotas.get(place, Quota(place.flavor, place.region, 0, borrowing_limit_units=0))
        return Share(
            quota.nominal_units, self.used.get(place, 0), quota.lending_limit_units, quota.borrowing_limit_units
        )


def available(fleet: Mapping[str, Member], name: str, place: Place) -> int:
    """What a pool may still use, by the rule over all pools of its organisation."""
    member = fleet[name]
    if member.parent is None:
        return available_in_parent(member.share(place), shares_below(fleet, name, place))
    parent = fleet[member.parent].share(place)
    return available_to_child(member.share(place), parent, shares_below(fleet, member.parent, place))


def shares_below(fleet: Mapping[str, Member], parent: str, place: Place) -> list[Share]:
    return [member.share(place) for member in fleet.values() if member.parent == parent]


def quota(place: Place, nominal: int, *, borrows: int | None = None, lends: int | None = None) -> Quota:
    return Quota(place.flavor, place.region, nominal, borrows, lends)


async def make_flavor(database: Database) -> None:
    async with database.transaction() as conn:
        await flavors.insert(conn, Flavor(CPU, "", 1.0))


async def make(database: Database, name: str, parent: str | None = None, quotas: Iterable[Quota] = ()) -> None:
    """Makes a pool of teams/feed."""
    async with database.transaction() as conn:
        await pools.insert(conn, Pool(name, "teams/feed", parent, tuple(quotas)))


async def change(database: Database, name: str, parent: str | None, quotas: Iterable[Quota]) -> None:
    """Gives a pool other quotas, or another parent."""
    async with database.transaction() as conn:
        current = await pools.lock(conn, name, "")
        await pools.update(conn, Pool(name, current.team, parent, tuple(quotas)))


def nodes_of(plan: str) -> list[dict[str, Any]]:
    """A plan's nodes."""

    def below(node: dict[str, Any]) -> list[dict[str, Any]]:
        return [node, *itertools.chain.from_iterable(map(below, node.get("Plans", ())))]

    return below(json.loads(plan)[0]["Plan"])
