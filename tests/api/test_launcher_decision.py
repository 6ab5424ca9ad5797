"""The team's launch policy decides on a launch: real capacity says what, and whom to ask."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import policies_pb2
from modelfleet.common.v1 import permission_pb2
from modelfleet.errors import PermissionDenied
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import evidence_pb2, registry_pb2
from tests.support.launcher import NEW, OLD, Fleet, launcher_fleet, refused
from tests.support.servers import client_of
from tests.support.wait import until

L1 = "launches/l1"
INFRA = policies_pb2.PolicyApprover(role=permission_pb2.CAPACITY_OWNER, team="teams/infra")


async def with_policy(fleet: Fleet, **rule: Any) -> None:
    """Makes a policy the default of the route's team; what it does not accept, owners of capacity may approve."""
    members = [registry_pb2.RoleBinding(role=permission_pb2.CAPACITY_OWNER, members=["dora"])]
    await fleet.client.registry.create_team(team_id="infra", team=registry_pb2.Team(role_bindings=members))
    policy = policies_pb2.LaunchPolicy(
        team="teams/feed", team_default=True, approvers=[INFRA], rollback_window=Duration(seconds=1800), **rule
    )
    await fleet.client.capacity.create_launch_policy(launch_policy_id="strict", launch_policy=policy)


async def once_known(call: Callable[[], Awaitable[pb.Launch]]) -> pb.Launch:
    """Calls until the launcher has read the roles that were bound just before."""

    async def answered() -> pb.Launch | None:
        with contextlib.suppress(PermissionDenied):
            return await call()
        return None

    answer: pb.Launch = await until(answered)
    return answer


async def test_what_the_policy_does_not_accept_waits_for_those_whom_it_names(database_url: str) -> None:
    async with launcher_fleet(database_url, old=20, new=25, spare=60) as fleet:
        await with_policy(fleet, no_regression=policies_pb2.NoRegression())
        launcher = fleet.client.launcher
        planned = await launcher.create_launch(launch=fleet.request(), validate_only=True)
        assert planned.plan.needs_approval and planned.launch_decision == ""
        assert planned.plan.policy_decision.startswith("NEEDS_APPROVAL by launchPolicies/strict: It costs 25 an hour")
        await fleet.create()
        waiting = await fleet.waits("AwaitingApproval")
        assert waiting.plan.needs_approval and waiting.state == pb.Launch.AWAITING_APPROVAL
        assert "CAPACITY_OWNER of teams/infra" in waiting.summary and "costs 25 an hour" in waiting.summary
        decision = await fleet.client.capacity.get_launch_decision(name=waiting.launch_decision)
        assert (decision.launch, decision.outcome) == (L1, policies_pb2.LaunchDecision.NEEDS_APPROVAL)
        digest = waiting.envelope.digest
        await fleet.bind("carol", "APPROVER")
        async with client_of(fleet.registry, fleet.launcher, principal="carol") as carol:
            with refused("ROLE_MISSING") as raised:
                await carol.launcher.approve_launch(name=L1, envelope_digest=digest)
            assert "the role CAPACITY_OWNER" in str(raised.value) and "on teams/infra" in str(raised.value)
            with refused("ROLE_MISSING"):
                await carol.launcher.reject_launch(name=L1, reason="too much")
        async with client_of(fleet.registry, fleet.launcher, principal="dora") as dora:
            await once_known(lambda: dora.launcher.approve_launch(name=L1, envelope_digest=digest))
        done = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert done.envelope.approved_by == "dora"
        # The policy says how long it may be taken back; the launch itself names nothing.
        assert done.policy.rollback_window.ToTimedelta() == timedelta(minutes=30)
        # The way back to what costs less is accepted; what its launch names itself, counts.
        own = pb.LaunchPolicy(rollback_window=Duration(seconds=60))
        await fleet.create("l2", candidate=OLD, policy=own)
        back = await fleet.reaches(pb.Launch.SUCCEEDED, "launches/l2")
        assert back.envelope.approved_by == "policy" and not back.plan.needs_approval
        assert back.plan.policy_decision.startswith("ACCEPTED by launchPolicies/strict")
        assert back.policy.rollback_window.ToTimedelta() == timedelta(minutes=1)


async def test_without_the_evidence_that_the_policy_asks_for_people_are_asked(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=12) as fleet:
        gain = policies_pb2.GainAgainstCost(metric="time_spent", min_gain_per_doubling=0.005)
        await with_policy(fleet, gain_against_cost=gain)
        await fleet.create()
        waiting = await fleet.waits("EvidenceMissing")
        assert waiting.plan.policy_decision.startswith("EVIDENCE_MISSING by launchPolicies/strict")
        assert "time_spent" in waiting.summary and "other than" in waiting.summary
        async with client_of(fleet.registry, fleet.launcher, principal="dora") as dora:
            await once_known(lambda: dora.launcher.reject_launch(name=L1, reason="bring the evidence"))
        ended = await fleet.reaches(pb.Launch.CANCELLED)
        assert ended.abort.author == "dora"


async def test_evidence_that_comes_later_is_asked_for_again_and_lets_the_launch_on(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=12) as fleet:
        gain = policies_pb2.GainAgainstCost(metric="time_spent", min_gain_per_doubling=0.005)
        await with_policy(fleet, gain_against_cost=gain)
        await fleet.create()
        waiting = await fleet.waits("EvidenceMissing")
        assert "asks again at" in waiting.summary and "CAPACITY_OWNER of teams/infra" in waiting.summary
        # Asked before it is there: nothing changes, and nothing is kept of the question.
        resumed = await fleet.client.launcher.resume_launch(name=L1)
        await until(lambda: _asked_since(fleet, resumed))
        await report(fleet.client, NEW, OLD)
        await fleet.client.launcher.resume_launch(name=L1)
        done = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert done.envelope.approved_by == "policy"
        assert done.plan.policy_decision.startswith("ACCEPTED by launchPolicies/strict")
        events = [event.type async for event in fleet.client.launcher.list_launch_events_all(name=L1)]
        assert events.count("EvidenceFound") == 1 and events.count("Estimated") == 2


async def _asked_since(fleet: Fleet, resumed: pb.Launch) -> bool:
    """Whether the answer of capacity has been recorded."""
    now = await fleet.get()
    return now.state == pb.Launch.AWAITING_APPROVAL and now.etag != resumed.etag


async def report(client: AsyncClient, model: str, baseline: str) -> None:
    """Has an experiment say that one per cent more time is spent with a model."""
    result = evidence_pb2.EvaluationResult(
        metric="time_spent",
        value=1.01,
        direction=evidence_pb2.EvaluationResult.HIGHER_IS_BETTER,
        form=evidence_pb2.EvaluationResult.RATIO,
        relative_to="baseline",
        interval=evidence_pb2.ConfidenceInterval(low=1.008, high=1.012),
    )
    made = evidence_pb2.EvaluationReport(
        suite="ab",
        evaluator=evidence_pb2.Evaluator(kind=evidence_pb2.Evaluator.INTERNAL),
        baseline=baseline,
        results=[result],
    )
    made.evaluate_time.GetCurrentTime()
    made.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=30))
    await client.registry.create_evaluation_report(parent=model, report_id="ab", evaluation_report=made)


async def test_what_is_asked_for_by_the_launch_itself_stays_whatever_the_policy_accepts(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        await fleet.create(policy=pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED))
        waiting = await fleet.waits("AwaitingApproval")
        assert waiting.plan.policy_decision.startswith("ACCEPTED by free within quota")
        assert waiting.plan.needs_approval and waiting.launch_decision
        await fleet.bind("eve", "ENGINEER")
        async with client_of(fleet.registry, fleet.launcher, principal="eve") as eve:
            with refused("ROLE_MISSING"):
                await eve.launcher.approve_launch(name=L1, envelope_digest=waiting.envelope.digest)
        await fleet.approve(waiting.envelope.digest)
        launch = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert launch.envelope.candidate == NEW
