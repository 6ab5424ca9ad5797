"""Launch policies and the decisions that they make."""

from __future__ import annotations

from dataclasses import replace

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.capacity.v1 import policies_pb2 as pb
from modelfleet.registry.v1.evidence_pb2 import EvaluationReport
from modelfleetd import names
from modelfleetd.capacity import fits
from modelfleetd.capacity.api.base import Base, Context, actor, after_name, before, new_name
from modelfleetd.capacity.domain.estimate import NOTHING, Wanted
from modelfleetd.capacity.domain.gain import Gain, Lacking, gain
from modelfleetd.capacity.domain.policy import (
    Facts,
    FreeWithinQuota,
    GainAgainstCost,
    LaunchPolicy,
    built_in,
    completed,
    decide,
)
from modelfleetd.capacity.estimator import Estimated
from modelfleetd.capacity.registry import Route
from modelfleetd.capacity.store import decisions, estimates, policies
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import estimates as estimates_wire
from modelfleetd.capacity.wire import policies as wire
from modelfleetd.errors import ReferenceNotFound, invalid
from modelfleetd.kit import paging
from modelfleetd.kit.auth import expect_role_on_destination
from modelfleetd.kit.db import Connection
from modelfleetd.kit.updates import updated

# A decision may come before there is a launch; what is asked of the pool names one all the same.
_NO_LAUNCH = "launches/none"


class Policies(Base):
    """Implements the methods of launch policies and decisions."""

    async def GetLaunchPolicy(self, request: pb.GetLaunchPolicyRequest, context: Context) -> pb.LaunchPolicy:
        return wire.policy_to_proto(await policies.get(self._database, request.name))

    async def ListLaunchPolicies(
        self, request: pb.ListLaunchPoliciesRequest, context: Context
    ) -> pb.ListLaunchPoliciesResponse:
        page = paging.read(request, str)
        found = await policies.page(self._database, request.team, after_name(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.name,), wire.policy_to_proto)
        return pb.ListLaunchPoliciesResponse(launch_policies=shown, next_page_token=token)

    async def CreateLaunchPolicy(self, request: pb.CreateLaunchPolicyRequest, context: Context) -> pb.LaunchPolicy:
        wanted = wire.policy_from_proto(request.launch_policy, names.LAUNCH_POLICY.format(request.launch_policy_id))
        await self._check_teams(wanted)

        async def act(conn: Connection) -> pb.LaunchPolicy:
            return wire.policy_to_proto(await policies.insert(conn, wanted))

        return await change(self._database, request, pb.LaunchPolicy, act)

    async def UpdateLaunchPolicy(self, request: pb.UpdateLaunchPolicyRequest, context: Context) -> pb.LaunchPolicy:
        given, mask = request.launch_policy, request.update_mask
        await expect_role_on_destination(given.team, mask.paths)
        current = wire.policy_to_proto(await policies.get(self._database, given.name))
        await self._check_teams(_changed(current, given, mask))

        async def act(conn: Connection) -> pb.LaunchPolicy:
            locked = await policies.lock(conn, given.name, given.etag)
            wanted = _changed(wire.policy_to_proto(locked), given, mask)
            return wire.policy_to_proto(await policies.update(conn, wanted))

        return await change(self._database, request, pb.LaunchPolicy, act)

    async def DeleteLaunchPolicy(self, request: pb.DeleteLaunchPolicyRequest, context: Context) -> Empty:
        async def act(conn: Connection) -> Empty:
            await policies.delete(conn, await policies.lock(conn, request.name, request.etag))
            return Empty()

        return await change(self._database, request, Empty, act)

    async def _check_teams(self, policy: LaunchPolicy) -> None:
        """Checks the teams that a policy names, before any transaction is open."""
        await self._registry.check_team(policy.team, "launch_policy.team")
        known = {policy.team, ""}
        for index, approver in enumerate(policy.approvers):
            if approver.team not in known:
                await self._registry.check_team(approver.team, f"launch_policy.approvers[{index}].team")
                known.add(approver.team)

    async def CreateLaunchDecision(
        self, request: pb.CreateLaunchDecisionRequest, context: Context
    ) -> pb.LaunchDecision:
        asked = wire.asked_from_proto(request.launch_decision)
        wanted = Wanted(asked.candidate, share_basis_points=asked.share_basis_points)
        found = await self._estimator.estimate(new_name(names.ESTIMATE, "e"), wanted, "launch_decision.candidate")
        policy = completed(await self._policy(asked, found.route), found.route.tier)
        decided = decide(policy, await self._facts(asked, policy, found))
        estimate = estimates_wire.estimate_to_proto(found.estimate)
        made = wire.decision_to_proto(
            new_name(names.LAUNCH_DECISION, "d"), asked, policy, found.estimate, decided, actor(), self._clock.now()
        )

        async def act(conn: Connection) -> pb.LaunchDecision:
            await estimates.insert(conn, estimate.name, estimate.model, estimate.SerializeToString())
            await decisions.insert(conn, made.name, made.candidate, made.launch, made.SerializeToString())
            return made

        answer = await change(self._database, request, pb.LaunchDecision, act)
        if request.validate_only:
            answer.ClearField("name")
            answer.ClearField("estimate")
            for value in answer.values:
                value.source = "estimate" if value.source == estimate.name else value.source
        return answer

    async def _policy(self, asked: wire.AskedDecision, route: Route) -> LaunchPolicy:
        """The policy of the request, else of the model type, else of its team, else the one that is built in."""
        async with self._database.transaction(readonly=True) as reads:
            of_pool = await policies.teams_of_pool(reads, asked.pool)
            if not of_pool:
                raise ReferenceNotFound("launch_decision.pool", asked.pool)
            named = asked.launch_policy or route.launch_policy
            if not named:
                return await policies.default_of(reads, route.team) or built_in(route.team)
            found = await policies.find(reads, named)
        field = "launch_decision.launch_policy" if asked.launch_policy else "model_type.launch_policy"
        if found is None:
            raise ReferenceNotFound(field, named)
        teams = list(dict.fromkeys([route.team, *of_pool]))
        if found.team not in teams:
            raise invalid(field, f"must be a policy of {' or '.join(teams)}; {named} is of {found.team}")
        return found

    async def _facts(self, asked: wire.AskedDecision, policy: LaunchPolicy, found: Estimated) -> Facts:
        estimate, rule = found.estimate, policy.rule
        # Read whatever the rule: a report that does not exist is a mistake of the request.
        named = await self._registry.report(asked.evaluation_report) if asked.evaluation_report else None
        facts = Facts(estimate.name, estimate.costs)
        if isinstance(rule, GainAgainstCost):
            try:
                return replace(facts, gain=await self._gain(asked, rule, named, estimate.replaces))
            except Lacking as lacking:
                return replace(facts, lacks=str(lacking))
        facts = replace(facts, unused_report=asked.evaluation_report)
        if isinstance(rule, FreeWithinQuota):
            async with self._database.transaction(readonly=True) as reads:
                launch = asked.launch or _NO_LAUNCH
                fit = await fits.fit(reads, estimate, asked.pool, launch, found.route.tier)
            return replace(facts, fit=fit)
        return facts

    async def _gain(
        self, asked: wire.AskedDecision, rule: GainAgainstCost, named: EvaluationReport | None, replaces: str
    ) -> Gain:
        reports = [named] if named is not None else await self._registry.reports(asked.candidate, rule.metric)
        replaced = "" if replaces == NOTHING else replaces
        known = [wire.report_from_proto(report, rule.metric) for report in reports]
        return gain(known, rule.metric, replaced, rule.max_evidence_age, self._clock.now())

    async def GetLaunchDecision(self, request: pb.GetLaunchDecisionRequest, context: Context) -> pb.LaunchDecision:
        return pb.LaunchDecision.FromString(await decisions.get(self._database, request.name))

    async def ListLaunchDecisions(
        self, request: pb.ListLaunchDecisionsRequest, context: Context
    ) -> pb.ListLaunchDecisionsResponse:
        page = paging.read(request, int)
        found = await decisions.page(self._database, request.candidate, request.launch, before(page), page.size + 1)
        shown, token = page.answer(
            found, lambda row: (row.sequence,), lambda row: pb.LaunchDecision.FromString(row.answer)
        )
        return pb.ListLaunchDecisionsResponse(launch_decisions=shown, next_page_token=token)


def _changed(current: pb.LaunchPolicy, given: pb.LaunchPolicy, mask: FieldMask) -> LaunchPolicy:
    return wire.policy_from_proto(updated(current, given, mask, wire.POLICY_FIELDS), current.name)
