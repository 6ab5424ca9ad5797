"""Freeze windows from end to end: who may make them, and launches that wait, are let through, and go on."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.cli import main
from modelfleet.errors import InvalidArgument, PermissionDenied
from modelfleet.launcher.v1 import freeze_pb2, gates_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.platform.model import EffectKind
from tests.support.launcher import Fleet, launcher_fleet, refused
from tests.support.servers import client_of
from tests.support.wait import until

WINDOW = "freezeWindows/holidays"


def holidays(**fields: Any) -> freeze_pb2.FreezeWindow:
    """A window that has been open for an hour, and stays so for a day."""
    window = freeze_pb2.FreezeWindow(reason="few people are there", start=local(-1), **fields)
    window.duration.FromTimedelta(timedelta(days=1))
    return window


def local(hours: float) -> str:
    """A time so many hours from now, as windows have it."""
    return f"{datetime.now(UTC) + timedelta(hours=hours):%Y-%m-%dT%H:%M:%S}"


async def freeze(fleet: Fleet, window_id: str = "holidays", **fields: Any) -> freeze_pb2.FreezeWindow:
    made: freeze_pb2.FreezeWindow = await fleet.client.launcher.create_freeze_window(
        freeze_window_id=window_id, freeze_window=holidays(**fields)
    )
    return made


async def events_of(fleet: Fleet, name: str = "launches/l1") -> list[pb.LaunchEvent]:
    return [event async for event in fleet.client.launcher.list_launch_events_all(name=name)]


async def test_a_window_is_made_read_changed_and_deleted(database_url: str) -> None:
    async with launcher_fleet(database_url, serving=False) as fleet:
        launcher = fleet.client.launcher
        wanted = holidays(teams=["teams/feed"], surfaces=["feed"], tiers=["TIER0"], rrule="RRULE:FREQ=YEARLY")
        dry = await launcher.create_freeze_window(freeze_window_id="holidays", freeze_window=wanted, validate_only=True)
        assert dry.time_zone == "UTC" and dry.rrule == "FREQ=YEARLY"
        with refused("RESOURCE_NOT_FOUND"):
            await launcher.get_freeze_window(name=WINDOW)

        once = str(uuid.uuid4())
        made = await launcher.create_freeze_window(freeze_window_id="holidays", freeze_window=wanted, request_id=once)
        again = await launcher.create_freeze_window(freeze_window_id="holidays", freeze_window=wanted, request_id=once)
        assert made == again and made.uid and made.etag and made.actor
        assert made.next_start_time.ToDatetime() == datetime.fromisoformat(made.start)
        assert made.next_end_time.ToDatetime() == datetime.fromisoformat(made.start) + timedelta(days=1)
        with refused("RESOURCE_EXISTS"):
            await freeze(fleet)
        with refused("REFERENCE_NOT_FOUND"):
            await freeze(fleet, "other", teams=["teams/nope"])

        change = freeze_pb2.FreezeWindow(name=WINDOW, reason="an audit", etag=made.etag)
        changed = await launcher.update_freeze_window(
            freeze_window=change, update_mask=FieldMask(paths=["reason", "surfaces"])
        )
        assert changed.reason == "an audit" and not changed.surfaces and changed.tiers == ["TIER0"]
        with refused("ETAG_MISMATCH"):
            await launcher.update_freeze_window(freeze_window=change, update_mask=FieldMask(paths=["reason"]))
        with refused("ETAG_MISMATCH"):
            await launcher.delete_freeze_window(name=WINDOW, etag=made.etag)

        await launcher.create_freeze_window(
            freeze_window_id="past",
            freeze_window=freeze_pb2.FreezeWindow(reason="was", start="2020-01-01T00:00", duration=made.duration),
        )
        listed = await launcher.list_freeze_windows(page_size=1)
        assert [window.name for window in listed.freeze_windows] == [WINDOW] and listed.next_page_token
        everything = [window.name async for window in launcher.list_freeze_windows_all(page_size=1)]
        assert everything == [WINDOW, "freezeWindows/past"]
        active = await launcher.list_freeze_windows(active_only=True)
        assert [window.name for window in active.freeze_windows] == [WINDOW]
        once = str(uuid.uuid4())
        await launcher.delete_freeze_window(name=WINDOW, etag=changed.etag, request_id=once)
        await launcher.delete_freeze_window(name=WINDOW, etag=changed.etag, request_id=once)
        with refused("RESOURCE_NOT_FOUND"):
            await launcher.get_freeze_window(name=WINDOW)

        with pytest.raises(InvalidArgument) as raised:
            await launcher.create_freeze_window(
                freeze_window_id="bad",
                freeze_window=freeze_pb2.FreezeWindow(
                    reason="r", start="20 December", rrule="FREQ=FORTNIGHTLY", duration=made.duration, exdates=["x"],
                    time_zone="Mars/Olympus",
                ),
            )  # fmt: skip
        wrong = {violation.field for violation in raised.value.violations}
        assert wrong == {f"freeze_window.{field}" for field in ("start", "exdates[0]", "time_zone", "rrule")}


async def test_owners_make_windows_for_their_teams_and_admins_for_everybody(database_url: str) -> None:
    async with launcher_fleet(database_url, serving=False) as fleet:
        await fleet.client.registry.create_team(team_id="ads", team=registry_pb2.Team())
        await fleet.bind("olga", "OWNER")
        await fleet.bind("erik", "ENGINEER")
        ours = holidays(teams=["teams/feed"])
        async with (
            client_of(fleet.registry, fleet.launcher, principal="olga") as olga,
            client_of(fleet.registry, fleet.launcher, principal="erik") as erik,
        ):

            async def bound() -> bool:
                # For a moment, the launcher may go by the roles that it has read just before.
                try:
                    await olga.launcher.create_freeze_window(freeze_window_id="ours", freeze_window=ours)
                except PermissionDenied:
                    return False
                return True

            await until(bound)
            for teams in ([], ["teams/feed", "teams/ads"]):
                with refused("ROLE_MISSING"):
                    await olga.launcher.create_freeze_window(
                        freeze_window_id="wide", freeze_window=holidays(teams=teams)
                    )
                # Neither may she widen what is hers.
                wide = freeze_pb2.FreezeWindow(name="freezeWindows/ours", teams=teams)
                with refused("ROLE_MISSING"):
                    await olga.launcher.update_freeze_window(freeze_window=wide, update_mask=FieldMask(paths=["teams"]))
            with refused("ROLE_MISSING"):
                await erik.launcher.create_freeze_window(freeze_window_id="hers", freeze_window=ours)
            with refused("ROLE_MISSING"):
                await erik.launcher.delete_freeze_window(name="freezeWindows/ours")
            assert (await erik.launcher.get_freeze_window(name="freezeWindows/ours")).actor == "olga"
            # Whoever may only launch may not override at the creation, either.
            let = [gates_pb2.FreezeOverride(freeze_window="freezeWindows/ours", reason="a fix")]
            with refused("ROLE_MISSING"):
                await erik.launcher.create_launch(launch=fleet.request(freeze_overrides=let))
            await freeze(fleet)
            with refused("ROLE_MISSING"):
                await olga.launcher.delete_freeze_window(name=WINDOW)
            await olga.launcher.delete_freeze_window(name="freezeWindows/ours")


async def test_a_launch_waits_for_the_end_of_a_window_unless_somebody_lets_it_through(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        await freeze(fleet, teams=["teams/feed"])
        planned = await fleet.client.launcher.create_launch(launch=fleet.request(), validate_only=True)
        (conflict,) = planned.plan.freeze_conflicts
        assert conflict.freeze_window == WINDOW and conflict.reason == "few people are there"
        assert not conflict.overridden

        await fleet.create()
        waiting = await fleet.waits("Frozen")
        assert waiting.state == pb.Launch.PREPARING and not waiting.reservation
        assert f"when {WINDOW} closes (few people are there)" in waiting.summary
        assert [each.overridden for each in waiting.plan.freeze_conflicts] == [False]
        with refused("REFERENCE_NOT_FOUND"):
            await fleet.client.launcher.override_launch_freeze(
                name="launches/l1", freeze_window="freezeWindows/nope", reason="a fix"
            )
        found = await fleet.client.launcher.override_launch_freeze(
            name="launches/l1", freeze_window=WINDOW, reason="a fix"
        )
        (override,) = found.freeze_overrides
        assert override.freeze_window == WINDOW and override.reason == "a fix" and override.author
        await fleet.reaches(pb.Launch.SUCCEEDED)
        said = {event.type: event for event in await events_of(fleet)}
        assert said["FreezeOverridden"].message == f"{WINDOW}: a fix" and said["FreezeOverridden"].actor
        assert WINDOW in said["Frozen"].message and WINDOW in said["Thawed"].message
        with refused("WRONG_STATE"):
            await fleet.client.launcher.override_launch_freeze(
                name="launches/l1", freeze_window=WINDOW, reason="too late"
            )


async def _is_paused(fleet: Fleet) -> bool:
    """Whether a round has seen the pause."""
    return any(condition.type == "Paused" for condition in (await fleet.get()).conditions)


async def _is_looked_at(fleet: Fleet) -> bool:
    """Whether a round has seen that the pause is over."""
    return not await _is_paused(fleet)


async def test_a_launch_goes_on_when_its_window_is_gone_and_is_aborted_inside_one(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        await fleet.create(bake=0.5)
        await fleet.waits("Baking")
        await freeze(fleet)
        stopped = await fleet.waits("Frozen")
        assert stopped.state == pb.Launch.SHIFTING
        share = stopped.progress[0].candidate.intended_basis_points
        assert 0 < share < 10_000
        before = len(fleet.simulator.ledger)
        # Each verb has the launch looked at anew, at least once.
        await fleet.client.launcher.pause_launch(name="launches/l1", reason="looks at it")
        await until(lambda: _is_paused(fleet))
        await fleet.client.launcher.resume_launch(name="launches/l1")
        await until(lambda: _is_looked_at(fleet))
        asked = [e for e in fleet.simulator.ledger[before:] if e.kind is EffectKind.ACCEPTED]
        assert asked == []
        await fleet.client.launcher.delete_freeze_window(name=WINDOW)

        async def more() -> bool:
            return (await fleet.get()).progress[0].candidate.intended_basis_points > share

        await until(more)
        await freeze(fleet)
        await fleet.waits("Frozen")
        await fleet.client.launcher.abort_launch(name="launches/l1", reason="wrong checkpoint")
        await fleet.reaches(pb.Launch.ROLLED_BACK)
        assert fleet.broken_promises(await fleet.get()) == []


@pytest.mark.parametrize("change", ["deleted", "made shorter"])
async def test_a_launch_that_a_window_holds_back_goes_on_at_once_when_it_is_gone(
    database_url: str, change: str
) -> None:
    """It looks once a minute by itself; what its launcher has heard a moment ago does not hold it back."""
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        window = await freeze(fleet)
        await fleet.create(bake=0.0)
        stopped = await fleet.waits("Frozen")
        assert stopped.state == pb.Launch.PREPARING
        if change == "deleted":
            await fleet.client.launcher.delete_freeze_window(name=WINDOW)
        else:
            window.duration.FromTimedelta(timedelta(minutes=30))
            await fleet.client.launcher.update_freeze_window(
                freeze_window=window, update_mask=FieldMask(paths=["duration"])
            )
        await fleet.reaches(pb.Launch.SUCCEEDED, timeout=20)
        assert [event.type for event in await events_of(fleet)].count("Thawed") == 1


async def test_windows_by_command(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:

        async def run(*arguments: str, status: int = 0) -> str:
            capsys.readouterr()
            command = ["launch", *arguments, "--address", fleet.launcher.address]
            assert await asyncio.to_thread(main, command) == status
            printed = capsys.readouterr()
            return printed.err if status else printed.out

        assert "No freeze windows. Create one" in await run("freeze", "list")
        berlin = ("--time-zone", "Europe/Berlin", "--reason", "few people are there")
        wrong = await run("freeze", "create", "xmas", "--start", "2030-12-20", "--duration", "14d", *berlin,
                          "--rrule", "FREQ=WEEKLY;BYDAY=MO", status=1)  # fmt: skip
        assert "--start: must be an occurrence of rrule itself; the first one from then on is 2030-12-23" in wrong
        dry = await run("freeze", "create", "xmas", "--start", "2030-12-20", "--duration", "14d", *berlin, "--dry-run")
        assert "freezeWindows/xmas would be open in " in dry and "from 2030-12-19 23:00 UTC for 14d" in dry
        opened = await run("freeze", "create", "xmas", "--start", local(-1.25)[:16], "--duration", "14d",
                           "--team", "feed", "--reason", "few people are there")  # fmt: skip
        assert "freezeWindows/xmas is open until " in opened and "(13d 22h more)" in opened
        listed = await run("freeze", "list", "--active")
        assert "open until" in listed and "feed" in listed and "once" in listed
        assert json.loads(await run("freeze", "get", "xmas", "-o", "json"))["teams"] == ["teams/feed"]

        launch = ("ctr/new", "--pool", "feed", "--no-stability-gate", "--bake", "1s")
        plan = await run("plan", *launch)
        assert "freeze window xmas is open: " in plan and "it goes on when xmas closes; to let it through: " in plan
        assert "create … --override xmas='why'" in plan
        await run("freeze", "update", "xmas", "--start", local(0.001)[:19], "--rrule", "FREQ=DAILY", "--duration", "1h")
        await run("create", *launch, "--id", "l1")
        await fleet.waits("Frozen")
        described = await run("describe", "l1")
        assert "to let it through: modelfleet launch override l1 --window xmas --reason 'why'" in described
        taken = await run("override", "l1", "--window", "xmas", "--reason", "a fix")
        assert "launches/l1: freezeWindows/xmas does not hold for it" in taken
        await fleet.reaches(pb.Launch.SUCCEEDED)
        assert "deleted freezeWindows/xmas" in await run("freeze", "delete", "xmas")
