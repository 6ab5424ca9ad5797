"""Launch policies and their decisions over gRPC and on the command line."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.capacity.v1 import capacity_pb2 as capacity_pb
from modelfleet.capacity.v1 import policies_pb2 as pb
from modelfleet.cli import main
from modelfleet.common.v1 import permission_pb2, serving_pb2
from modelfleet.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from modelfleet.registry.v1 import evidence_pb2, registry_pb2
from modelfleetd.kit.db import Database
from tests.support.capacity import CPU, CTR, EU, NEW, OLD, POOL, CapacityFleet, capacity_fleet, hold, make_pool, uses
from tests.support.front_door import door

P = pb.LaunchDecision
SUCCEEDED = registry_pb2.FinalizeLaunchRequest.SUCCEEDED


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[CapacityFleet]:
    """A route whose baseline needs 50 replicas, and a candidate that needs twice as many; a pool with room for both."""
    async with capacity_fleet(database_url) as running:
        registry, capacity = running.client.registry, running.client.capacity
        baseline = registry_pb2.RoleChange(model=OLD, role=registry_pb2.Model.BASELINE)
        split = serving_pb2.RegionSplit(
            region=EU, shares=[serving_pb2.ModelShare(model=OLD, share_basis_points=10_000)]
        )
        await registry.finalize_launch(
            model_type=CTR,
            launch="launches/first",
            outcome=SUCCEEDED,
            expected_revision=(await registry.get_model_type(name=CTR)).revision,
            role_changes=[baseline],
            splits=[split],
        )
        for model, qps in ((OLD, 20.0), (NEW, 10.0)):
            stated = capacity_pb.Certificate(model=model, flavor=CPU, max_qps=qps)
            await capacity.create_certificate(certificate=stated)
        await make_pool(running.client, 150)
        await capacity.book_usage(pool=POOL, usages=[uses(OLD, 50)])
        yield running


async def report(fleet: CapacityFleet, low: float, high: float, *, report_id: str = "ab", days: int = 30) -> None:
    """Has an experiment say how much more time is spent with the new model, as a ratio."""
    result = evidence_pb2.EvaluationResult(
        metric="time_spent",
        value=(low + high) / 2,
        direction=evidence_pb2.EvaluationResult.HIGHER_IS_BETTER,
        form=evidence_pb2.EvaluationResult.RATIO,
        relative_to="baseline",
        interval=evidence_pb2.ConfidenceInterval(low=low, high=high),
    )
    made = evidence_pb2.EvaluationReport(
        suite="ab",
        evaluator=evidence_pb2.Evaluator(kind=evidence_pb2.Evaluator.INTERNAL),
        baseline=OLD,
        results=[result],
        evaluate_time=stamp(datetime.now(UTC)),
        expire_time=stamp(datetime.now(UTC) + timedelta(days=days)),
    )
    await fleet.client.registry.create_evaluation_report(parent=NEW, report_id=report_id, evaluation_report=made)


def stamp(moment: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def worth(gain: float = 0.005) -> pb.LaunchPolicy:
    rule = pb.GainAgainstCost(metric="time_spent", min_gain_per_doubling=gain)
    return pb.LaunchPolicy(team="teams/feed", gain_against_cost=rule)


def free(*, team_default: bool = False) -> pb.LaunchPolicy:
    return pb.LaunchPolicy(team="teams/feed", free_within_quota=pb.FreeWithinQuota(), team_default=team_default)


async def make(fleet: CapacityFleet, id_: str, policy: pb.LaunchPolicy) -> pb.LaunchPolicy:
    return await fleet.client.capacity.create_launch_policy(launch_policy_id=id_, launch_policy=policy)


async def decided(fleet: CapacityFleet, policy: str = "", **fields: str | int) -> pb.LaunchDecision:
    wanted = pb.LaunchDecision(candidate=NEW, pool=POOL, launch_policy=policy, **fields)  # type: ignore[arg-type]
    return await fleet.client.capacity.create_launch_decision(launch_decision=wanted)


def values(decision: pb.LaunchDecision) -> dict[str, float]:
    return {value.id: value.value for value in decision.values}


async def test_twice_the_cost_is_worth_one_percent_and_not_a_twentieth_of_one(fleet: CapacityFleet) -> None:
    policy = (await make(fleet, "worth", worth())).name
    lacking = await decided(fleet, policy)
    assert lacking.outcome == P.EVIDENCE_MISSING
    assert "no evaluation result of time_spent" in lacking.explanation
    await report(fleet, 1.008, 1.012)
    accepted = await decided(fleet, policy)
    assert (accepted.outcome, list(accepted.approvers)) == (P.ACCEPTED, [])
    assert values(accepted)["cost_ratio"] == 2.0
    assert values(accepted)["gain_low"] == values(accepted)["gain_per_doubling"] == 0.008
    sources = {value.id: value.source for value in accepted.values}
    assert sources["gain_low"] == f"{NEW}/evaluationReports/ab"
    assert sources["cost_after"] == accepted.estimate
    kept = await fleet.client.capacity.get_estimate(name=accepted.estimate)
    assert (kept.cost_ratio, kept.replaces) == (2.0, OLD)
    await report(fleet, 1.0003, 1.0007, report_id="later")
    refused = await decided(fleet, policy)
    assert refused.outcome == P.NEEDS_APPROVAL
    assert "+0.03 % for each, +0.5 % is asked for" in refused.explanation
    assert {(one.role, one.team) for one in refused.approvers} == {
        (permission_pb2.APPROVER, "teams/feed"),
        (permission_pb2.CAPACITY_OWNER, "teams/feed"),
    }
    # The report that counts may be named.
    named = await decided(fleet, policy, evaluation_report=f"{NEW}/evaluationReports/ab")
    assert named.outcome == P.ACCEPTED


async def test_a_decision_stays_as_it_is_whatever_becomes_of_the_policy(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    await make(fleet, "worth", worth())
    await report(fleet, 1.008, 1.012)
    made = await decided(fleet, "launchPolicies/worth", launch="launches/l1")
    harder = worth(0.5)
    harder.name = "launchPolicies/worth"
    await capacity.update_launch_policy(launch_policy=harder, update_mask=FieldMask(paths=["gain_against_cost"]))
    assert (await decided(fleet, "launchPolicies/worth")).outcome == P.NEEDS_APPROVAL
    await capacity.delete_launch_policy(name="launchPolicies/worth")
    again = await capacity.get_launch_decision(name=made.name)
    assert again == made
    assert again.policy.gain_against_cost.min_gain_per_doubling == 0.005
    found = [one.name async for one in capacity.list_launch_decisions_all(launch="launches/l1")]
    assert found == [made.name]
    assert len([one async for one in capacity.list_launch_decisions_all(candidate=NEW, page_size=1)]) == 2
    database = await Database.open(fleet.database_url, "capacity", max_size=1)
    try:
        for statement in ("UPDATE launch_decisions SET launch = ''", "DELETE FROM launch_decisions"):
            with pytest.raises(asyncpg.RaiseError, match="append-only"):
                await database.execute(statement)
    finally:
        await database.close()


async def test_the_same_question_by_the_same_id_gets_the_same_answer_and_a_dry_run_keeps_nothing(
    fleet: CapacityFleet,
) -> None:
    capacity, key = fleet.client.capacity, str(uuid.uuid4())
    wanted = pb.LaunchDecision(candidate=NEW, pool=POOL)
    dry = await capacity.create_launch_decision(launch_decision=wanted, validate_only=True, request_id=key)
    assert (dry.name, dry.estimate, dry.outcome) == ("", "", P.ACCEPTED)
    made = await capacity.create_launch_decision(launch_decision=wanted, request_id=key)
    assert await capacity.create_launch_decision(launch_decision=wanted, request_id=key) == made
    assert len((await capacity.list_launch_decisions()).launch_decisions) == 1
    assert len((await capacity.list_estimates()).estimates) == 1


async def test_free_within_quota_accepts_what_fits_also_in_smaller_steps_and_asks_otherwise(
    fleet: CapacityFleet,
) -> None:
    capacity = fleet.client.capacity
    fits = await decided(fleet)
    # 20 new beside 50, then 40 beside 40 … up to 100 beside 10: the peak is 110 of 150.
    assert fits.outcome == P.ACCEPTED
    assert "110 units of flavors/cpu in regions/eu = 50 moved + 60 new of 100 available" in fits.explanation
    await capacity.update_pool(pool=capacity_pb.Pool(name=POOL, quotas=[quota(104)]))
    assert "In steps of 5 %" in (await decided(fleet)).explanation
    await capacity.update_pool(pool=capacity_pb.Pool(name=POOL, quotas=[quota(99)]))
    refused = await decided(fleet)
    assert refused.outcome == P.NEEDS_APPROVAL
    assert "Does not fit now: pools/feed has 49 free units" in refused.explanation
    assert "Nothing that is held would ever free enough" in refused.explanation
    assert (await fleet.usage()).held_units == 0
    assert (await decided(fleet, share_basis_points=500)).outcome == P.ACCEPTED


async def test_free_within_quota_accepts_what_will_fit_once_another_launch_has_ended(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    other = hold("other", 60)
    other.items[0].end_units = 0
    other.expected_release_time.CopyFrom(stamp(datetime.now(UTC) + timedelta(hours=1)))
    held = await capacity.create_reservation(reservation=other)
    later = await decided(fleet)
    # 40 are free: not even the end state, which is 50 more, fits now.
    assert later.outcome == P.ACCEPTED
    assert "launches/other frees" in later.explanation
    await capacity.cancel_reservation(name=held.name)
    assert "Fits now" in (await decided(fleet)).explanation


def quota(units: int) -> capacity_pb.Quota:
    return capacity_pb.Quota(flavor=CPU, region=EU, nominal_units=units)


async def test_no_regression_compares_the_cost_with_what_is_replaced(fleet: CapacityFleet) -> None:
    same = pb.LaunchPolicy(team="teams/feed", no_regression=pb.NoRegression(tolerance_basis_points=500))
    await make(fleet, "same", same)
    refused = await decided(fleet, "launchPolicies/same")
    assert refused.outcome == P.NEEDS_APPROVAL
    assert refused.explanation.startswith("It costs 250 an hour after 125 before; only up to 131.25 is accepted")
    # A share of 5 %: 5 of the new, 48 of the old.
    assert (await decided(fleet, "launchPolicies/same", share_basis_points=500)).outcome == P.NEEDS_APPROVAL
    better = capacity_pb.Certificate(model=NEW, flavor=CPU, max_qps=20.0)
    await fleet.client.capacity.create_certificate(certificate=better)
    assert (await decided(fleet, "launchPolicies/same")).outcome == P.ACCEPTED


async def test_the_policy_is_that_of_the_request_else_of_the_type_else_of_the_team_else_built_in(
    fleet: CapacityFleet,
) -> None:
    registry, capacity = fleet.client.registry, fleet.client.capacity
    built_in = await decided(fleet)
    assert (built_in.launch_policy, built_in.policy.WhichOneof("rule")) == ("", "free_within_quota")
    assert built_in.policy.rollback_window.seconds == 2 * 3600
    await make(fleet, "usual", free(team_default=True))
    assert (await decided(fleet)).launch_policy == "launchPolicies/usual"
    await make(fleet, "of-type", free())
    of_type = registry_pb2.ModelType(name=CTR, launch_policy="launchPolicies/of-type", tier=serving_pb2.TIER3)
    await registry.update_model_type(model_type=of_type)
    assert (await decided(fleet)).launch_policy == "launchPolicies/of-type"
    assert (await decided(fleet, "launchPolicies/usual")).launch_policy == "launchPolicies/usual"
    await capacity.delete_launch_policy(name="launchPolicies/of-type")
    with pytest.raises(FailedPrecondition) as gone:
        await decided(fleet)
    assert gone.value.metadata["field"] == "model_type.launch_policy"


async def test_a_policy_of_another_team_decides_nothing_here(fleet: CapacityFleet) -> None:
    registry, capacity = fleet.client.registry, fleet.client.capacity
    for team in ("other", "org"):
        await registry.create_team(team_id=team, team=registry_pb2.Team())
        policy = pb.LaunchPolicy(team=f"teams/{team}", free_within_quota=pb.FreeWithinQuota())
        await make(fleet, team, policy)
    with pytest.raises(InvalidArgument) as refused:
        await decided(fleet, "launchPolicies/other")
    assert "must be a policy of teams/feed; launchPolicies/other is of teams/other" in refused.value.message
    # That of the organisation that the pool belongs to does.
    await capacity.create_pool(pool_id="org", pool=capacity_pb.Pool(team="teams/org"))
    await capacity.update_pool(pool=capacity_pb.Pool(name=POOL, parent="pools/org"))
    assert (await decided(fleet, "launchPolicies/org")).outcome == P.ACCEPTED


async def test_what_a_decision_refers_to_must_exist(fleet: CapacityFleet) -> None:
    async def refused(**fields: str) -> str:
        wanted = pb.LaunchDecision(**{"candidate": NEW, "pool": POOL, **fields})  # type: ignore[arg-type]
        with pytest.raises(FailedPrecondition) as caught:
            await fleet.client.capacity.create_launch_decision(launch_decision=wanted)
        assert caught.value.reason == "REFERENCE_NOT_FOUND"
        return caught.value.metadata["field"]

    assert await refused(candidate=f"{CTR}/models/nope") == "launch_decision.candidate"
    assert await refused(pool="pools/nope") == "launch_decision.pool"
    assert await refused(launch_policy="launchPolicies/nope") == "launch_decision.launch_policy"
    await make(fleet, "worth", worth())
    nope = f"{NEW}/evaluationReports/nope"
    named = await refused(launch_policy="launchPolicies/worth", evaluation_report=nope)
    assert named == "launch_decision.evaluation_report"
    # Also where the rule asks for no evidence.
    assert await refused(evaluation_report=nope) == "launch_decision.evaluation_report"
    await report(fleet, 1.008, 1.012)
    unused = await decided(fleet, evaluation_report=f"{NEW}/evaluationReports/ab")
    assert unused.explanation.endswith(f" {NEW}/evaluationReports/ab was not used: this rule asks for no evidence.")
    with pytest.raises(InvalidArgument):
        await decided(fleet, evaluation_report=f"{OLD}/evaluationReports/ab")


async def test_a_decision_keeps_and_shows_what_its_estimate_warns_of(
    fleet: CapacityFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    long_ago = stamp(datetime.now(UTC) - timedelta(days=545))
    stated = registry_pb2.RegionDemand(region=EU, peak_qps=686.0, measure_time=long_ago)
    await fleet.client.registry.update_model_type(
        model_type=registry_pb2.ModelType(name=CTR, demand_source=registry_pb2.DemandSource(stated=[stated])),
        update_mask=FieldMask(paths=["demand_source.stated"]),
    )
    made = await decided(fleet)
    (warning,) = made.warnings
    assert f"Demand of {EU}: stated 545 days ago" in warning
    assert await fleet.client.capacity.get_launch_decision(name=made.name) == made
    show = ("capacity", "decision", "show", made.name, "--address", fleet.capacity.address)
    assert await asyncio.to_thread(main, list(show)) == 0
    assert f"note: {warning}" in capsys.readouterr().err


async def test_a_policy_is_changed_field_by_field_and_one_rule_takes_the_place_of_another(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    wanted = worth()
    wanted.approvers.add(role=permission_pb2.OWNER)
    wanted.rollback_window.CopyFrom(Duration(seconds=7200))
    made = await make(fleet, "worth", wanted)
    assert (made.approvers[0].role, made.rollback_window.seconds, made.team_default) == (
        permission_pb2.OWNER,
        7200,
        False,
    )
    assert await capacity.get_launch_policy(name=made.name) == made
    other = free()
    other.name, other.etag = made.name, made.etag
    changed = await capacity.update_launch_policy(
        launch_policy=other, update_mask=FieldMask(paths=["free_within_quota"])
    )
    assert changed.WhichOneof("rule") == "free_within_quota"
    assert (changed.rollback_window.seconds, changed.uid) == (7200, made.uid)
    with pytest.raises(Aborted):
        await capacity.update_launch_policy(launch_policy=other)
    for index in range(3):
        await make(fleet, f"p{index}", free())
    found = [one.name async for one in capacity.list_launch_policies_all(page_size=2)]
    assert found == [f"launchPolicies/{id_}" for id_ in ("p0", "p1", "p2", "worth")]
    assert not (await capacity.list_launch_policies(team="teams/nope")).launch_policies


async def test_a_team_has_one_default_which_is_not_deleted_while_it_is_that(fleet: CapacityFleet) -> None:
    capacity = fleet.client.capacity
    made = await asyncio.gather(
        *(make(fleet, f"p{index}", free(team_default=True)) for index in range(4)), return_exceptions=True
    )
    assert sum(isinstance(one, pb.LaunchPolicy) for one in made) == 1
    assert all("has a default already" in one.message for one in made if isinstance(one, InvalidArgument))
    (default,) = (one for one in made if isinstance(one, pb.LaunchPolicy))
    with pytest.raises(FailedPrecondition) as refused:
        await capacity.delete_launch_policy(name=default.name)
    assert "team_default" in refused.value.message
    plain = pb.LaunchPolicy(name=default.name)
    await capacity.update_launch_policy(launch_policy=plain, update_mask=FieldMask(paths=["team_default"]))
    await capacity.delete_launch_policy(name=default.name)
    with pytest.raises(NotFound):
        await capacity.get_launch_policy(name=default.name)


async def test_the_command_line_shows_what_was_decided_and_why(
    fleet: CapacityFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services = {"registry": fleet.registry.address, "capacity": fleet.capacity.address}
    async with door(tmp_path, services) as address:

        async def run(*arguments: str) -> str:
            capsys.readouterr()
            await asyncio.to_thread(main, ["capacity", *arguments, "--address", address])
            printed = capsys.readouterr()
            return printed.out + printed.err

        rule: Sequence[str] = ("--set", "no_regression.tolerance_basis_points=200")
        await run("policy", "create", "careful", "--set", "team=teams/feed", *rule)
        assert "cost up to what it replaces + 2%" in await run("policy", "list")
        said = await run("decide", "ctr/new", "--pool", "feed", "--policy", "careful", "--launch", "l1")
        assert "NEEDS_APPROVAL by launchPolicies/careful: It costs 250 an hour after 125 before" in said
        assert "may approve: APPROVER of teams/feed, CAPACITY_OWNER of teams/feed" in said
        assert "what a rollback needs is kept for: 2h" in said
        name = said.rsplit("kept as launchDecisions/", 1)[1].strip()
        listed = await run("decision", "list", "ctr/new")
        assert name in listed and "careful" in listed and "l1" in listed
        assert "allowed_cost" in await run("decision", "show", name)
        assert "ACCEPTED by the built-in policy" in await run("decide", "ctr/new", "--pool", "feed", "--dry-run")
        estimated = await run("estimate", "ctr/new", "--share", "5%", "--explain")
        assert "ctr/new with 5% of its route, taking over from ctr/old" in estimated
        assert "to 5%: 5 × 1 + 50 × 1 = 55" in estimated
        kept = (await run("estimate", "ctr/new", "--share", "5%", "--keep")).rsplit(" ", 1)[1].strip()
        assert [kept in line for line in (await run("estimates", "list", "ctr/new")).splitlines()][1]
        assert await run("estimates", "show", kept, "--explain") == estimated
        alone = await run("estimate", "ctr/new", "--replaces", "-", "--explain")
        assert "peak = max over steps of R_new(share after the step)\n" in alone
        assert "replaced_max_qps" in estimated
