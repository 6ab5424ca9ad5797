"""The kinds of resources that several commands name."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.resources import Resource

FLAVOR = Resource(
    "capacity",
    "flavor",
    "flavors",
    "flavors/{}",
    pb.Flavor,
    [
        ("FLAVOR", lambda m: render.short(m.name)),
        ("COST/UNIT/H", lambda m: f"{m.unit_cost:g}"),
        ("DESCRIPTION", lambda m: m.description),
    ],
    "No flavors yet. Create one: modelfleet capacity flavor create cpu --set unit_cost=0.04",
    reasons=False,
)
POOL = Resource(
    "capacity",
    "pool",
    "pools",
    "pools/{}",
    pb.Pool,
    [
        ("POOL", lambda m: render.short(m.name)),
        ("TEAM", lambda m: render.short(m.team)),
        ("QUOTAS", lambda m: ", ".join(
            f"{render.short(q.flavor)}@{render.short(q.region)}: {q.nominal_units}" for q in m.quotas)),
        ("AVAILABLE", lambda m: ", ".join(
            f"{render.short(u.flavor)}@{render.short(u.region)}: {u.available_units}" for u in m.usages)),
    ],
    "No pools yet. Create one: modelfleet capacity pool create ranking -f pool.yaml",
    reasons=False,
)  # fmt: skip
