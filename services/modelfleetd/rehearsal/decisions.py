"""What a team's launch policy says of a launch, in memory: by capacity's own estimate and policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from modelfleetd.capacity.domain import fitting
from modelfleetd.capacity.domain.demand import Demand, MeasuredDemand
from modelfleetd.capacity.domain.estimate import Costs, Estimate, Replaced, Replica, Wanted, estimate
from modelfleetd.capacity.domain.exact import BASIS_POINTS
from modelfleetd.capacity.domain.policy import Facts, LaunchPolicy, built_in, completed, decide
from modelfleetd.capacity.domain.reservation import Asked
from modelfleetd.capacity.domain.waiting import Prospect
from modelfleetd.launcher.domain.decision import Approver, Decision, Outcome
from modelfleetd.registry.domain.resources import ModelType
from modelfleetd.rehearsal.trained import PEAK_QPS, UNIT_COST, Trained

# Nobody reads it: what a replica carries is certified here for every model.
_CERTIFICATE: Final = "certificates/rehearsed"


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be decided on.

    Attributes:
        launch: its name.
        candidate: the model that it launches.
        baseline: of the route; None where there is none but the candidate.
        route: the model type.
        pool: that it takes units of.
        share: basis points of the route that the candidate is to have.
    """

    launch: str
    candidate: Trained
    baseline: Trained | None
    route: ModelType
    pool: str
    share: int

    @property
    def tier(self) -> str:
        return self.route.tier.name if self.route.tier is not None else ""


def decision(
    asked: Question, policy: LaunchPolicy | None, prospect_of: Callable[[Asked], Prospect], now: datetime
) -> Decision:
    """Returns what is decided on a launch.

    Args:
        asked: which launch.
        policy: of its team, by costs alone; None: free within quota.
        prospect_of: what a reservation in the pool would be answered.
        now: when it is decided.
    """
    assert policy is None or policy.gain_against_cost is None, "there are no reports here to judge a gain by"
    whole = completed(policy or built_in(asked.route.team or ""), asked.tier)
    made = _estimated(asked, now)
    facts = Facts(made.name, made.costs)
    if whole.free_within_quota is not None:
        first = fitting.asked(made, asked.pool, asked.launch, asked.tier, made.max_step_basis_points)
        facts = replace(facts, fit=fitting.fit(made, first, prospect_of, now, asked.tier))
    decided = decide(whole, facts)
    outcome = Outcome[decided.outcome.name]
    return Decision(
        name="",
        outcome=outcome,
        explanation=decided.explanation,
        approvers=_approvers(whole) if outcome is not Outcome.ACCEPTED else (),
        policy=whole.name,
        rollback_window=whole.rollback_window,
    )


def _approvers(policy: LaunchPolicy) -> tuple[Approver, ...]:
    return tuple(Approver(one.role.value, one.team) for one in policy.approvers if one.role is not None)


def _estimated(asked: Question, now: datetime) -> Estimate:
    """Region by region, since here a replica may carry more in one than in another."""
    candidate, baseline, route = asked.candidate, asked.baseline, asked.route
    shares = {split.region: {one.model: one.share_basis_points for one in split.shares} for split in route.splits}
    found = [
        estimate(
            "",
            Wanted(candidate.name, share_basis_points=asked.share),
            Demand(route.name, (MeasuredDemand(region, PEAK_QPS),)),
            _replica(candidate, region),
            None if baseline is None or region not in baseline.max_qps else _replaced(baseline, region, shares),
            {region: shares.get(region, {}).get(candidate.name, 0)},
            now,
        )
        for region in route.regions
        if region in candidate.max_qps
    ]
    return replace(
        found[0],
        regions=tuple(region for each in found for region in each.regions),
        costs=sum((each.costs for each in found), Costs()),
    )


def _replica(model: Trained, region: str) -> Replica:
    return Replica(model.max_qps[region], _CERTIFICATE, model.spec.flavor, UNIT_COST, model.spec.units)


def _replaced(baseline: Trained, region: str, shares: Mapping[str, Mapping[str, int]]) -> Replaced:
    # Where nobody says how a route is split, its baseline has it whole.
    share = shares[region].get(baseline.name, 0) if region in shares else BASIS_POINTS
    return Replaced(
        baseline.name,
        baseline.spec.flavor,
        UNIT_COST,
        baseline.spec.units,
        replica=_replica(baseline, region),
        shares={region: share},
        assumed_shares=frozenset() if region in shares else frozenset({region}),
    )
