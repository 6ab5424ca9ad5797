"""The kinds of resources that several commands name."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import policies_pb2
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


def _rule(policy: policies_pb2.LaunchPolicy) -> str:
    """What a policy accepts, in a few words."""
    free, same, gain = policy.free_within_quota, policy.no_regression, policy.gain_against_cost
    which = policy.WhichOneof("rule")
    if which == "free_within_quota":
        return "what fits the pool" + (f", up to {free.max_cost_ratio:g} × cost" if free.max_cost_ratio else "")
    if which == "no_regression":
        tolerance = f" + {render.percent(same.tolerance_basis_points)}" if same.tolerance_basis_points else ""
        return f"cost up to what it replaces{tolerance}"
    return f"{gain.metric} {gain.min_gain_per_doubling * 100:+.3g} % for each doubling of the cost"


POLICY = Resource(
    "capacity",
    "launch_policy",
    "launch_policies",
    "launchPolicies/{}",
    policies_pb2.LaunchPolicy,
    [
        ("POLICY", lambda m: render.short(m.name)),
        ("TEAM", lambda m: render.short(m.team)),
        ("DEFAULT", lambda m: "yes" if m.team_default else ""),
        ("ACCEPTS", _rule),
    ],
    "No launch policies yet. Create one: modelfleet capacity policy create careful --set team=teams/TEAM --set "
    "no_regression.tolerance_basis_points=200",
    reasons=False,
)
