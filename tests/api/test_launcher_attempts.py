"""Launches that are tried again or taken back, and models on hold: with real registry and capacity."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.cli import main
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import holds_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.errors import StaleEpoch
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.platform.model import Fence, TargetKind
from tests.support.launcher import CPU, CTR, EU, NEW, OLD, Fleet, certify, launcher_fleet, refused
from tests.support.servers import client_of
from tests.support.wait import until

L1 = "launches/l1"


@contextlib.asynccontextmanager
async def small(database_url: str, **config: object) -> AsyncIterator[Fleet]:
    """Ten replicas for ten, so that launches are quick."""
    async with launcher_fleet(database_url, old=10, new=10, **config) as fleet:  # type: ignore[arg-type]
        yield fleet


async def agree(fleet: Fleet, baseline: str, other: str) -> None:
    """Registry, capacity and platform say the same of who serves."""
    registry, platform = fleet.client.registry, fleet.simulator
    type_ = await registry.get_model_type(name=CTR)
    assert type_.baseline == baseline
    assert [(share.model, share.share_basis_points) for share in type_.splits[0].shares] == [(baseline, 10_000)]
    seen = await platform.observe("targets/ctr")
    assert seen.model(baseline).available_replicas == 10 and seen.model(baseline).acknowledged_basis_points == 10_000
    assert seen.model(other).existing_replicas == 0
    usage = await fleet.usage()
    assert (usage.serving_units, usage.held_units) == (10, 0)


async def test_a_launch_that_was_rolled_back_succeeds_in_its_second_attempt_and_the_first_stays_readable(
    database_url: str,
) -> None:
    async with small(database_url) as fleet:
        launcher = fleet.client.launcher
        fleet.judge.verdicts = [Verdict.FAIL]
        await fleet.create(gate=True, policy=pb.LaunchPolicy(max_step_basis_points=5_000))
        first = await fleet.reaches(pb.Launch.ROLLED_BACK)
        assert first.abort.author == "gate/stability"
        assert [verb.split()[0] for verb in first.allowed_verbs] == ["RetryLaunch"]
        fleet.judge.verdicts = [Verdict.PASS]
        again = await launcher.retry_launch(name=L1, reason="the labels were wrong")
        assert (again.attempt, again.state, again.uid) == (2, pb.Launch.PENDING, first.uid)
        assert not again.abort.author and not again.gate_verdicts and not again.reservation
        second = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert second.reservation != first.reservation and second.revision > 0
        assert {verdict.verdict for verdict in second.gate_verdicts} == {1}, "verdicts of the first are the first's"
        await agree(fleet, NEW, OLD)

        before = await launcher.get_attempt(name=f"{L1}/attempts/1")
        assert before.launch.state == pb.Launch.ROLLED_BACK and before.launch.abort == first.abort
        assert before.launch.gate_verdicts == first.gate_verdicts and before.launch.plan == first.plan
        assert not before.launch.allowed_verbs, "nobody steers an attempt that is over"
        listed = [attempt async for attempt in launcher.list_attempts_all(parent=L1)]
        assert [attempt.name for attempt in listed] == [f"{L1}/attempts/2", f"{L1}/attempts/1"]
        assert listed[0].launch.state == pb.Launch.SUCCEEDED and listed[1] == before
        paged = await launcher.list_attempts(parent=L1, page_size=1)
        assert len(paged.attempts) == 1 and paged.next_page_token
        with refused("RESOURCE_NOT_FOUND"):
            await launcher.get_attempt(name=f"{L1}/attempts/3")
        retried = [event async for event in launcher.list_launch_events_all(name=L1) if event.type == "Retried"]
        assert [event.message for event in retried] == ["attempt 2: the labels were wrong"]


async def test_what_comes_late_from_an_attempt_that_is_over_touches_nothing_of_the_next(database_url: str) -> None:
    async with small(database_url) as fleet:
        client = fleet.client
        await fleet.create(bake=60)
        await fleet.waits("Baking")
        await client.launcher.abort_launch(name=L1, reason="wrong checkpoint")
        first = await fleet.reaches(pb.Launch.ROLLED_BACK)
        newest = max(entry.epoch for entry in fleet.simulator.ledger)
        await client.launcher.retry_launch(name=L1, reason="the right one")
        second = await fleet.waits("Baking")
        held = await fleet.usage()
        # The registry: the first attempt has gone back, for ever.
        revision = (await client.registry.get_model_type(name=CTR)).revision
        with refused("LAUNCH_ENDED"):
            await client.registry.finalize_launch(
                model_type=CTR,
                launch=L1,
                attempt=1,
                outcome=registry_pb2.FinalizeLaunchRequest.SUCCEEDED,
                expected_revision=revision,
                role_changes=[registry_pb2.RoleChange(model=NEW, role=registry_pb2.Model.EXPERIMENT)],
            )
        # Capacity: it gets nothing any more, and what it had is not what the second one has.
        reservation = await client.capacity.get_reservation(name=first.reservation)
        with refused("LAUNCH_ENDED"):
            late = capacity_pb2.Reservation(pool=reservation.pool, launch=L1, attempt=1)
            late.items.add(flavor=CPU, region=EU, hold_units=1)
            await client.capacity.create_reservation(reservation=late, may_wait=True)
        await client.capacity.settle_reservation(name=first.reservation, outcome="ROLLED_BACK")
        assert second.reservation != first.reservation and await fleet.usage() == held
        # The platform: its agent knows the second attempt's epoch by now.
        desired = (await fleet.simulator.observe("targets/ctr")).desired
        assert desired is not None
        with pytest.raises(StaleEpoch):
            await fleet.simulator.apply("targets/ctr", TargetKind.ROUTE, Fence(newest, "l1/1/1/shift.9"), desired)
        await client.launcher.abort_launch(name=L1, reason="enough")
        assert (await fleet.reaches(pb.Launch.ROLLED_BACK)).attempt == 2
        await agree(fleet, OLD, NEW)


async def test_a_retry_is_repeated_queued_or_refused_like_a_new_launch(database_url: str) -> None:
    async with small(database_url) as fleet:
        launcher = fleet.client.launcher
        with refused("RESOURCE_NOT_FOUND"):
            await launcher.retry_launch(name=L1, reason="why not")
        await fleet.create(bake=60)
        with refused("WRONG_STATE") as raised:
            await launcher.retry_launch(name=L1, reason="too early")
        assert "AbortLaunch" in raised.value.message
        await launcher.abort_launch(name=L1, reason="not now")

        async def over() -> bool:
            return (await fleet.get()).state in (pb.Launch.ROLLED_BACK, pb.Launch.CANCELLED)

        await until(over)
        await fleet.create("other", bake=60)
        with refused("ROUTE_BUSY"):
            await launcher.retry_launch(name=L1, reason="now")
        await fleet.create("patient", queue=True)
        request_id = str(uuid.uuid4())
        calls = [launcher.retry_launch(name=L1, reason="now", queue=True, request_id=request_id) for _ in range(2)]
        once, twice = await asyncio.gather(*calls)
        assert once == twice and once.attempt == 2 and once.baseline == ""
        queued = await fleet.waits("RouteBusy")
        assert queued.attempt == 2 and "Is queued" in queued.summary
        # It has a new place in line: whoever is queued already goes first.
        await launcher.abort_launch(name="launches/other", reason="make room")

        async def patient() -> bool:
            return (await fleet.get("launches/patient")).state != pb.Launch.PENDING

        await until(patient)
        assert (await fleet.get()).state == pb.Launch.PENDING


async def test_who_asked_for_an_attempt_does_not_approve_it(database_url: str) -> None:
    async with small(database_url) as fleet:
        await fleet.bind("carol", "OWNER")
        await fleet.create(policy=pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED))
        launch = await fleet.reaches(pb.Launch.AWAITING_APPROVAL)
        approved = await fleet.approve(launch.envelope.digest)
        assert approved.envelope.approved_by == "carol"
        await fleet.client.launcher.abort_launch(name=L1, reason="not today")

        async def over() -> bool:
            return (await fleet.get()).state in (pb.Launch.ROLLED_BACK, pb.Launch.CANCELLED)

        await until(over)
        async with client_of(fleet.registry, fleet.launcher, principal="carol") as carol:
            await carol.launcher.retry_launch(name=L1, reason="tomorrow")
            # A fresh approval, which is neither hers nor the creator's to give.
            launch = await fleet.reaches(pb.Launch.AWAITING_APPROVAL)
            assert launch.attempt == 2 and launch.envelope.approved_by == ""
            with refused("SELF_APPROVAL"):
                await carol.launcher.approve_launch(name=L1, envelope_digest=launch.envelope.digest)
        with refused("SELF_APPROVAL"):
            await fleet.client.launcher.approve_launch(name=L1, envelope_digest=launch.envelope.digest)


async def test_a_finished_launch_is_taken_back_and_its_model_stays_on_hold_until_somebody_lifts_it(
    database_url: str,
) -> None:
    async with small(database_url, spare=2) as fleet:
        launcher = fleet.client.launcher
        await fleet.create()
        finished = await fleet.reaches(pb.Launch.SUCCEEDED)
        # Nothing is free: what the launch keeps for its rollback is all that there is.
        kept = await fleet.usage()
        assert (kept.serving_units, kept.retained_units, kept.held_units) == (10, 2, 0)
        assert [verb.split()[0] for verb in finished.allowed_verbs] == ["RollBackLaunch"]
        planned = await launcher.roll_back_launch(name=L1, reason="it crashes", validate_only=True)
        assert planned.plan.regions and not planned.plan.wait
        assert (planned.candidate, planned.rolls_back) == (OLD, L1)
        assert not (await launcher.list_holds()).holds, "only planned"
        request_id = str(uuid.uuid4())
        back = await launcher.roll_back_launch(name=L1, reason="it crashes", launch_id="b1", request_id=request_id)
        assert back == await launcher.roll_back_launch(
            name=L1, reason="it crashes", launch_id="b1", request_id=request_id
        )
        assert (back.strategy, back.candidate, back.baseline, back.rolls_back) == (pb.Launch.ROLL_BACK, OLD, NEW, L1)
        await fleet.reaches(pb.Launch.SUCCEEDED, "launches/b1")
        await agree(fleet, OLD, NEW)
        assert (await fleet.client.registry.get_model(name=NEW)).role == registry_pb2.Model.RETIRED

        (hold,) = (await launcher.list_holds(model=NEW)).holds
        assert (hold.launch, hold.reason, hold.lifted_by) == ("launches/b1", "it crashes", "")
        with refused("WRONG_STATE") as raised:
            await launcher.roll_back_launch(name=L1, reason="again")
        assert "followed by launches/b1" in raised.value.message
        for only_planned in (False, True):
            with refused("MODEL_ON_HOLD") as raised:
                await launcher.create_launch(launch=fleet.request(), validate_only=only_planned)
            short = hold.name.removeprefix("holds/")
            assert (
                f"modelfleet launch hold lift {short}" in raised.value.message and "it crashes" in raised.value.message
            )
            assert raised.value.metadata["hold"] == hold.name
        lifted = await launcher.lift_hold(name=hold.name, reason="fixed in the data")
        assert lifted.lifted_by and lifted.lift_reason == "fixed in the data" and lifted.HasField("lift_time")
        assert await launcher.lift_hold(name=hold.name, reason="me too") == lifted, "who lifted it first has"
        assert not (await launcher.list_holds()).holds
        assert [found.name for found in (await launcher.list_holds(include_lifted=True)).holds] == [hold.name]
        await fleet.create("l2")
        await fleet.reaches(pb.Launch.SUCCEEDED, "launches/l2")
        await agree(fleet, NEW, OLD)


async def test_a_launch_is_taken_back_at_once_though_the_one_after_it_has_all_that_is_free(database_url: str) -> None:
    async with small(database_url, spare=2) as fleet:
        keeps_nothing = pb.LaunchPolicy()
        keeps_nothing.rollback_window.FromTimedelta(timedelta(0))
        await fleet.create(policy=keeps_nothing)
        await fleet.reaches(pb.Launch.SUCCEEDED)
        third = f"{CTR}/models/third"
        spec = serving_pb2.ServingSpec(command=["serve", "{port}"], flavor=CPU)
        model = registry_pb2.Model(serving_spec=spec)
        await fleet.client.registry.create_model(parent=CTR, model_id="third", model=model)
        await certify(fleet.client, third, 10)
        await fleet.create("l2", candidate=third, bake=600.0)
        await fleet.waits("Baking", "launches/l2")
        assert (await fleet.usage()).available_units == 0
        newest = max(entry.epoch for entry in fleet.simulator.ledger)
        desired = (await fleet.simulator.observe("targets/ctr")).desired
        assert desired is not None
        # It moves the model that is taken away, so it goes back first, and gives back what it holds.
        await fleet.client.launcher.roll_back_launch(name=L1, reason="it crashes", launch_id="b1")
        # As with an abort, nothing that was on its way for it is done any more once that is answered.
        with pytest.raises(StaleEpoch):
            await fleet.simulator.apply("targets/ctr", TargetKind.ROUTE, Fence(newest, "l2/1/1/shift.9"), desired)
        await fleet.reaches(pb.Launch.ROLLED_BACK, "launches/l2")
        await fleet.reaches(pb.Launch.SUCCEEDED, "launches/b1")
        await agree(fleet, OLD, NEW)


async def test_the_first_launch_of_a_route_and_one_that_went_back_have_nothing_to_be_taken_back_to(
    database_url: str,
) -> None:
    async with small(database_url, serving=False) as fleet:
        await fleet.create()
        first = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert not first.allowed_verbs
        with refused("WRONG_STATE"):
            await fleet.client.launcher.roll_back_launch(name=L1, reason="it crashes")
        assert not (await fleet.client.launcher.list_holds()).holds


async def test_a_hold_stops_what_has_not_begun_and_a_retry_and_nothing_that_serves(database_url: str) -> None:
    async with small(database_url) as fleet:
        launcher = fleet.client.launcher
        with refused("REFERENCE_NOT_FOUND"):
            await launcher.create_hold(hold=holds_pb2.Hold(model=f"{CTR}/models/nope", reason="it crashes"))
        await fleet.create("running", bake=60)
        await fleet.waits("Baking", "launches/running")
        await fleet.create("queued", queue=True)
        hold = await launcher.create_hold(hold_id="h1", hold=holds_pb2.Hold(model=NEW, reason="it crashes"))
        assert (await launcher.get_hold(name="holds/h1")) == hold and not hold.launch
        with refused("RESOURCE_EXISTS") as raised:
            await launcher.create_hold(hold=holds_pb2.Hold(model=NEW, reason="it crashes again"))
        assert raised.value.metadata["resource"] == "holds/h1"
        stopped = await fleet.reaches(pb.Launch.CANCELLED, "launches/queued")
        assert stopped.abort.author == "holds/h1" and "it crashes" in stopped.abort.reason
        running = await fleet.get("launches/running")
        assert running.state == pb.Launch.SHIFTING and not running.abort.author
        await launcher.abort_launch(name="launches/running", reason="on hold")
        await fleet.reaches(pb.Launch.ROLLED_BACK, "launches/running")
        with refused("MODEL_ON_HOLD"):
            await launcher.retry_launch(name="launches/queued", reason="please")
        await launcher.lift_hold(name="holds/h1", reason="fixed")
        assert (await launcher.retry_launch(name="launches/queued", reason="please")).attempt == 2


@pytest.mark.parametrize("fails", [False, True])
async def test_a_promoted_launch_skips_its_bakes_and_still_goes_back_when_its_gate_fails(
    database_url: str, fails: bool
) -> None:
    async with small(database_url) as fleet:
        launcher = fleet.client.launcher
        fleet.judge.verdicts = [Verdict.INCONCLUSIVE]
        await fleet.create(gate=True, bake=600)
        await fleet.waits("Baking")
        with refused("INVALID_FIELDS"):
            await launcher.promote_launch(name=L1, reason="")
        fleet.judge.verdicts = [Verdict.FAIL if fails else Verdict.ERROR]
        request_id = str(uuid.uuid4())
        promoted = await launcher.promote_launch(name=L1, reason="the incident is worse", request_id=request_id)
        assert promoted == await launcher.promote_launch(name=L1, reason="the incident is worse", request_id=request_id)
        ended = await fleet.reaches(pb.Launch.ROLLED_BACK if fails else pb.Launch.SUCCEEDED)
        assert not fleet.broken_promises(ended)
        events = [event async for event in launcher.list_launch_events_all(name=L1)]
        (said,) = [event for event in events if event.type == "Promoted"]
        assert said.message == "the incident is worse" and said.actor
        if fails:
            assert ended.abort.author == "gate/stability"
            await agree(fleet, OLD, NEW)
        else:
            await agree(fleet, NEW, OLD)


async def test_what_is_typed_says_what_to_type_next(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    async with small(database_url) as fleet:

        async def run(*arguments: str) -> str:
            """What is printed, whatever the exit status."""
            capsys.readouterr()
            await asyncio.to_thread(main, ["launch", *arguments, "--address", fleet.launcher.address])
            printed = capsys.readouterr()
            return printed.out + printed.err

        fleet.judge.verdicts = [Verdict.FAIL]
        await fleet.create(gate=True)
        await fleet.reaches(pb.Launch.ROLLED_BACK)
        refusal = await run("promote", "l1", "--reason", "it is fine")
        assert "ROLLED_BACK" in refusal and "allowed now: retry (engineer, owner)" in refusal
        fleet.judge.verdicts = [Verdict.PASS]
        said = await run("retry", "l1", "--reason", "labels are right now")
        assert "attempt 2 begins" in said and "modelfleet launch attempts l1" in said
        await fleet.reaches(pb.Launch.SUCCEEDED)
        listed = await run("attempts", "l1")
        assert "SUCCEEDED" in listed and "ROLLED_BACK" in listed and "gate/stability" in listed
        assert "Rolled back" in (await run("attempts", "l1/1")).splitlines()[0]
        first = json.loads(await run("attempts", "l1/1", "-o", "json"))
        assert first["name"] == f"{L1}/attempts/1" and first["launch"]["state"] == "ROLLED_BACK"
        said = await run("rollback", "l1", "--reason", "null scores", "--id", "b1")
        assert "launches/b1" in said and "modelfleet launch hold list ctr/new" in said
        await fleet.reaches(pb.Launch.SUCCEEDED, "launches/b1")
        listed = await run("hold", "list")
        assert "ctr/new" in listed and "null scores" in listed and "modelfleet launch hold lift" in listed
        (hold,) = json.loads(await run("hold", "list", "ctr/new", "-o", "json"))
        key = hold["name"].removeprefix("holds/")
        assert f"modelfleet launch hold lift {key}" in await run("create", "ctr/new", "--pool", "feed")
        assert "launches/b1" in await run("hold", "get", key)
        assert "modelfleet launch create ctr/new" in await run("hold", "lift", key, "--reason", "fixed")
        assert "No model is on hold" in await run("hold", "list")
        said = await run("hold", "create", "ctr/new", "--reason", "not this week", "--id", "h1")
        assert "modelfleet launch hold lift h1" in said
        assert "fixed" in await run("hold", "list", "--all")
