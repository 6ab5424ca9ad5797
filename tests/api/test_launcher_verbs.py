"""What people do to launches: every verb, in right and wrong states, once and twice."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from modelfleet.common.v1 import serving_pb2
from modelfleet.errors import ModelfleetError
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.launcher.store import Store
from tests.support.launcher import CPU, CTR, NEW, OLD, certify, launcher_fleet, refused
from tests.support.servers import client_of
from tests.support.wait import until

L1 = "launches/l1"


async def test_a_pause_holds_the_weights_until_its_author_resumes(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        await fleet.create(bake=1.0)
        await fleet.waits("Baking")
        launcher = fleet.client.launcher
        async with client_of(fleet.registry, fleet.launcher, principal="bob") as bob:
            await fleet.bind("bob", "ENGINEER")
            await bob.launcher.pause_launch(name=L1, reason="lunch")
            await launcher.pause_launch(name=L1, reason="a look at the graphs")
            launch = await fleet.waits("Paused")
            assert {(p.author, p.reason) for p in launch.pause_reasons} >= {("bob", "lunch")}
            assert "Paused" in launch.summary and "lunch" in launch.summary
            share = launch.progress[0].candidate.intended_basis_points
            left = await launcher.resume_launch(name=L1)
            assert [pause.author for pause in left.pause_reasons] == ["bob"]
            await bob.launcher.resume_launch(name=L1)
        assert share == 2_000
        await fleet.reaches(pb.Launch.SUCCEEDED)


async def test_a_step_is_skipped_once_and_not_by_who_is_too_late(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        await fleet.create(bake=600, policy=pb.LaunchPolicy(max_step_basis_points=5_000))
        await fleet.waits("Baking")
        launcher = fleet.client.launcher
        with refused("STEP_MOVED_ON"):
            await launcher.skip_launch_step(name=L1, expected_step=2, reason="it is fine")
        await launcher.skip_launch_step(name=L1, expected_step=1, reason="it is fine")

        async def second() -> bool:
            return (await fleet.get()).current_step == 2

        await until(second)
        with refused("STEP_MOVED_ON") as raised:
            await launcher.skip_launch_step(name=L1, expected_step=1, reason="it is fine")
        assert raised.value.metadata["current_step"] == "2"


async def test_an_approval_needs_somebody_else_and_the_envelope_that_they_saw(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        await fleet.create(policy=pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED))
        launch = await fleet.reaches(pb.Launch.AWAITING_APPROVAL)
        assert launch.plan.regions and launch.envelope.approved_by == ""
        digest = launch.envelope.digest
        with refused("SELF_APPROVAL"):
            await fleet.client.launcher.approve_launch(name=L1, envelope_digest=digest)
        with refused("ETAG_MISMATCH"):
            await fleet.approve("sha256:other")
        approved = await fleet.approve(digest)
        assert approved.envelope.approved_by == "carol"
        await fleet.reaches(pb.Launch.SUCCEEDED)


async def test_a_rejected_launch_is_cancelled_and_nothing_was_touched(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        await fleet.create(policy=pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED))
        await fleet.reaches(pb.Launch.AWAITING_APPROVAL)
        await fleet.client.launcher.reject_launch(name=L1, reason="not this week")
        launch = await fleet.reaches(pb.Launch.CANCELLED)
        assert launch.abort.reason == "rejected: not this week"
        assert len(fleet.simulator.ledger) == fleet.began
        assert (await fleet.usage()).held_units == 0


async def test_a_second_launch_on_a_route_is_refused_by_name_or_waits_its_turn(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        await fleet.create("first", bake=60)
        # By then it has changed something, so that there is a way back.
        await fleet.waits("Baking", "launches/first")
        with refused("ROUTE_BUSY") as raised:
            await fleet.create("second")
        assert raised.value.metadata["launch"] == "launches/first"
        await fleet.create("second", queue=True)
        queued = await fleet.waits("RouteBusy", "launches/second")
        assert queued.state == pb.Launch.PENDING
        assert queued.summary.startswith("Is queued behind launches/first"), "it names what it waits for"
        await fleet.create("third", queue=True)
        await fleet.client.launcher.abort_launch(name="launches/third", reason="not needed")
        await fleet.reaches(pb.Launch.CANCELLED, "launches/third")
        await fleet.client.launcher.abort_launch(name="launches/first", reason="make room")
        await fleet.reaches(pb.Launch.ROLLED_BACK, "launches/first")
        await fleet.reaches(pb.Launch.SHIFTING, "launches/second")


async def test_a_queued_launch_runs_after_one_that_has_succeeded(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        await fleet.create("first", bake=0.5)
        next_one = f"{CTR}/models/next"
        spec = serving_pb2.ServingSpec(command=["serve", "{port}"], flavor=CPU)
        await fleet.client.registry.create_model(
            parent=CTR, model_id="next", model=registry_pb2.Model(serving_spec=spec)
        )
        await certify(fleet.client, next_one, 10)
        # Nobody waits for what could never be launched.
        with refused("REFERENCE_NOT_FOUND") as raised:
            await fleet.create("typo", queue=True, candidate=f"{CTR}/models/nxet")
        assert "launch.candidate" in raised.value.message
        await fleet.create("second", queue=True, candidate=next_one)
        assert (await fleet.get("launches/second")).baseline == ""
        await fleet.reaches(pb.Launch.SUCCEEDED, "launches/first")
        second = await fleet.reaches(pb.Launch.SUCCEEDED, "launches/second")
        assert second.baseline == NEW
        assert (await fleet.client.registry.get_model_type(name=CTR)).baseline == next_one


async def test_a_launch_that_may_wait_waits_where_another_one_was_faster(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        await fleet.create("first", bake=60)

        async def nobody_yet(_store: Store, _model_type: str, *, only_mitigations: bool) -> None:
            return None

        monkeypatch.setattr(Store, "first_on", nobody_yet)
        await fleet.create("second", queue=True)
        queued = await fleet.waits("RouteBusy", "launches/second")
        assert queued.state == pb.Launch.PENDING and queued.baseline == ""


async def test_a_repeated_call_answers_the_same_and_does_nothing_twice(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        launcher, once = fleet.client.launcher, str(uuid.uuid4())
        request = pb.CreateLaunchRequest(launch_id="l1", launch=fleet.request(bake=60), request_id=once)
        first, second = await launcher.create_launch(request), await launcher.create_launch(request)
        assert first == second
        await fleet.waits("Baking")
        assert await launcher.create_launch(request) == first
        with refused("REQUEST_ID_REUSED"):
            await launcher.pause_launch(name=L1, reason="x", request_id=once)
        pause = pb.PauseLaunchRequest(name=L1, reason="x", request_id=str(uuid.uuid4()))
        assert await launcher.pause_launch(pause) == await launcher.pause_launch(pause)
        events = [event.type async for event in launcher.list_launch_events_all(name=L1)]
        assert events.count("Paused") == 1 and events.count("Created") == 1


async def test_a_verb_in_a_wrong_state_says_what_is_allowed_and_for_whom(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        await fleet.create(bake=60)
        await fleet.waits("Baking")
        launcher = fleet.client.launcher
        with refused("WRONG_STATE") as raised:
            await launcher.reject_launch(name=L1, reason="no")
        assert raised.value.metadata["state"] == "SHIFTING"
        assert "AbortLaunch (engineer, owner, oncall)" in raised.value.metadata["allowed"]
        await launcher.abort_launch(name=L1, reason="no")
        await fleet.reaches(pb.Launch.ROLLED_BACK)
        with refused("WRONG_STATE") as raised:
            await launcher.pause_launch(name=L1, reason="no")
        assert "allowed now: RetryLaunch (engineer, owner)" in raised.value.message


async def test_a_watch_begins_with_the_present_and_ends_with_the_launch(database_url: str) -> None:
    async with launcher_fleet(database_url) as fleet:
        await fleet.create(policy=pb.LaunchPolicy(max_step_basis_points=10_000))
        seen = [launch async for launch in fleet.client.launcher.watch_launch(name=L1)]
        states = [launch.state for launch in seen]
        assert states == sorted(states) and states[-1] == pb.Launch.SUCCEEDED
        assert {pb.Launch.SHIFTING, pb.Launch.SUCCEEDED} <= set(states)
        (again,) = [launch async for launch in fleet.client.launcher.watch_launch(name=L1)]
        assert again.state == pb.Launch.SUCCEEDED


async def test_lists_are_newest_first_by_pages_and_by_route(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        for name in ("a", "b", "c"):
            await fleet.create(name, policy=pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED), queue=True)
        launcher = fleet.client.launcher
        page = await launcher.list_launches(page_size=2)
        assert [launch.name for launch in page.launches] == ["launches/c", "launches/b"]
        rest = await launcher.list_launches(page_size=2, page_token=page.next_page_token)
        assert [launch.name for launch in rest.launches] == ["launches/a"] and not rest.next_page_token
        assert not (await launcher.list_launches(model_type="modelTypes/other")).launches
        with refused("INVALID_PAGE_TOKEN"):
            await launcher.list_launches(active_only=True, page_token=page.next_page_token)


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"candidate": OLD}, "INVALID_FIELDS", "launch.candidate"),
        ({"candidate": "modelTypes/other/models/new"}, "INVALID_FIELDS", "launch.candidate"),
        ({"candidate": "modelTypes/ctr/models/nope"}, "REFERENCE_NOT_FOUND", ""),
        ({"model_type": "modelTypes/nope", "candidate": "modelTypes/nope/models/x"}, "REFERENCE_NOT_FOUND", ""),
        ({"pool": "pools/nope"}, "REFERENCE_NOT_FOUND", ""),
        ({"regions": ["regions/mars"]}, "INVALID_FIELDS", "launch.regions[0]"),
        ({"regions": ["regions/eu", "regions/eu"]}, "INVALID_FIELDS", "launch.regions"),
        ({"policy": pb.LaunchPolicy(max_steps=101)}, "INVALID_FIELDS", "launch.policy.max_steps"),
        (
            {"policy": pb.LaunchPolicy(max_step_basis_points=-1)},
            "INVALID_FIELDS",
            "launch.policy.max_step_basis_points",
        ),
        ({"reason": "x" * 1_001}, "INVALID_FIELDS", "launch.reason"),
    ],
)
async def test_bad_launches_are_refused_and_nothing_is_stored(
    database_url: str, change: dict[str, object], reason: str, field: str
) -> None:
    async with launcher_fleet(database_url, old=4, new=4) as fleet:
        with refused(reason) as raised:
            await fleet.create(**change)  # type: ignore[arg-type]
        if field:
            assert field in [violation.field for violation in raised.value.violations]
        assert not (await fleet.client.launcher.list_launches()).launches


async def test_unknown_launches_are_not_found(database_url: str) -> None:
    async with launcher_fleet(database_url, old=4, new=4, serving=False) as fleet:
        launcher = fleet.client.launcher
        calls = [
            launcher.get_launch(name="launches/nope"),
            launcher.list_launch_events(name="launches/nope"),
            launcher.pause_launch(name="launches/nope", reason="x"),
            launcher.abort_launch(name="launches/nope", reason="x"),
        ]
        for found in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(found, ModelfleetError) and found.reason == "RESOURCE_NOT_FOUND", found
        with refused("INVALID_FIELDS"):
            await launcher.pause_launch(name="launches/nope", reason=" ")
