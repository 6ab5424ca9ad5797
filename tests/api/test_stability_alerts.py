"""Alerts and silences as callers see them, and what a launch does to alerts in the registry's own words."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.common.v1.permission_pb2 import ONCALL, VIEWER
from modelfleet.common.v1.serving_pb2 import TIER1, ModelShare, RegionSplit
from modelfleet.errors import FailedPrecondition, InvalidArgument, ModelfleetError, NotFound, PermissionDenied
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleet.stability.v1 import alerts_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.alert import Alert, Kind, Resolution, Severity, State
from modelfleetd.stability.domain.fleet import Metric, Role, Tier
from modelfleetd.stability.fleet import Fleet
from modelfleetd.stability.store import alerts as store
from tests.support.alerting import alerting
from tests.support.servers import client_of
from tests.support.stability import CTR, NEW, NOW, OLD, RETRIEVAL, StabilityFleet, stability_fleet
from tests.support.wait import until


@pytest.fixture
async def running(database_url: str) -> AsyncIterator[StabilityFleet]:
    """Both services."""
    async with stability_fleet(database_url) as found:
        yield found


def alert(name: str, minutes: int = 0, **changes: Any) -> Alert:
    """A page of the old model that began some minutes ago."""
    made = Alert(
        name=f"alerts/{name}",
        kind=Kind.UNSTABLE,
        severity=Severity.PAGE,
        model_type=CTR,
        model=OLD,
        prediction="click",
        metric=Metric.CALIBRATION,
        role=Role.BASELINE,
        tier=Tier.TIER1,
        team="teams/feed",
        on_call="ada",
        summary="Calibration of click is 1.31.",
        response="Page its owner.",
        start_time=NOW - timedelta(minutes=minutes),
        revision=7,
    )
    return replace(made, **changes)


def over(name: str, minutes: int, **changes: Any) -> Alert:
    """One that is over."""
    ended = {"state": State.RESOLVED, "resolution": Resolution.RECOVERED, "end_time": NOW}
    return alert(name, minutes, **ended | changes)


async def write(running: StabilityFleet, *alerts: Alert) -> None:
    """Writes alerts, the first one first. From then on none is derived, so none ends since its model does not serve."""
    database = await Database.open(running.database_url, "stability", max_size=1)
    try:
        async with database.transaction() as conn:
            # As another replica leaves it that has seen more of the registry.
            await conn.execute("UPDATE alerting SET revision = 1000000")
            for one in alerts:
                await store.write(conn, [one])
    finally:
        await database.close()


def stamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


def silence(resource: str = CTR, hours: float = 2, **fields: Any) -> pb.Silence:
    made = pb.Silence(resource=resource, reason="migration", end_time=stamp(NOW + timedelta(hours=hours)))
    made.MergeFrom(pb.Silence(**fields))
    return made


def names(found: Sequence[pb.Alert]) -> list[str]:
    return [one.name.removeprefix("alerts/") for one in found]


# --- alerts -----------------------------------------------------------------------------------------------------------


async def test_an_alert_is_read_as_it_was_derived(running: StabilityFleet) -> None:
    await write(running, alert("a1", 5))
    found = await running.client.stability.get_alert(name="alerts/a1")
    assert (found.kind, found.severity, found.state) == (pb.Alert.UNSTABLE, pb.Alert.PAGE, pb.Alert.FIRING)
    assert (found.tier, found.role, found.team) == (TIER1, registry_pb2.Model.BASELINE, "teams/feed")
    assert found.start_time.ToDatetime(tzinfo=NOW.tzinfo) == NOW - timedelta(minutes=5)
    assert not found.HasField("end_time") and not found.HasField("deliver_time") and not found.silence
    with pytest.raises(NotFound):
        await running.client.stability.get_alert(name="alerts/a2")


async def test_those_that_fire_are_listed_first_then_the_newest_page_by_page(running: StabilityFleet) -> None:
    first, second = over("o1", 90), over("o2", 80)
    await write(running, first, alert("f1", 70), second, alert("f2", 60, model=NEW), over("o3", 10))
    token, found = "", []
    while True:
        page = await running.client.stability.list_alerts(page_size=2, page_token=token)
        found += names(page.alerts)
        token = page.next_page_token
        if not token:
            break
    assert found == ["f2", "f1", "o3", "o2", "o1"]


async def test_alerts_are_filtered(running: StabilityFleet) -> None:
    towers = f"{RETRIEVAL}/models/two_towers"
    experiment = {"role": Role.EXPERIMENT, "severity": Severity.TICKET, "tier": Tier.TIER2}
    await write(
        running,
        over("o1", 90),
        alert("f1", 70),
        alert("f2", 60, model=NEW, kind=Kind.NOT_OBSERVED, **experiment),
        alert("f3", 50, model=towers, model_type=RETRIEVAL, severity=Severity.TICKET, tier=Tier.UNSTATED, team=""),
    )
    for expression, expected in (
        ("state = FIRING", ["f3", "f2", "f1"]),
        ("state = FIRING AND severity = PAGE", ["f1"]),
        ("tier <= TIER1", ["f1", "o1"]),
        ("tier > TIER1", ["f2"]),
        ("NOT tier:*", ["f3"]),
        ('model_type = "ctr"', ["f2", "f1", "o1"]),
        ('model_type = "modelTypes/retrieval" OR kind = NOT_OBSERVED', ["f3", "f2"]),
        (f'model = "{NEW}"', ["f2"]),
        ('model:"NEW"', ["f2"]),
        ("model = *_towers", ["f3"]),
        ("team = feed AND role != BASELINE", ["f2"]),
        ('team = "fe%"', []),
        ("team = f_*", []),
    ):
        found = (await running.client.stability.list_alerts(filter=expression)).alerts
        assert names(found) == expected, expression


async def test_a_filter_by_something_else_is_refused_with_what_there_is(running: StabilityFleet) -> None:
    with pytest.raises(InvalidArgument, match="filter") as refused:
        await running.client.stability.list_alerts(filter="summary = x")
    assert "kind, model, model_type, role, severity, state, team, tier" in str(refused.value.violations)


async def test_what_has_been_over_for_90_days_is_forgotten(running: StabilityFleet) -> None:
    from modelfleetd.stability.alerts import Deriving

    long_ago = NOW - timedelta(days=91)
    await write(
        running,
        over("o1", 10, start_time=long_ago, end_time=long_ago),
        over("o2", 10, start_time=long_ago),
        alert("f1", 10, start_time=long_ago),
    )
    database = await Database.open(running.database_url, "stability", max_size=1)
    try:
        await Deriving(database, None, None, running.clock, lambda: None).forget()  # type: ignore[arg-type]
    finally:
        await database.close()
    assert names((await running.client.stability.list_alerts()).alerts) == ["f1", "o2"]


# --- silences ---------------------------------------------------------------------------------------------------------


async def test_a_silence_is_seen_at_the_alerts_that_it_keeps_quiet_until_it_is_ended(running: StabilityFleet) -> None:
    await write(running, over("o1", 9), alert("f1", 8), alert("f2", 7, model=NEW))
    stability = running.client.stability
    made = await stability.create_silence(silence=silence(NEW))
    assert (made.creator, made.reason, made.start_time) == ("local", "migration", stamp(NOW))

    async def silenced() -> dict[str, str]:
        return {one.name.removeprefix("alerts/"): one.silence for one in (await stability.list_alerts()).alerts}

    assert await silenced() == {"f2": made.name, "f1": "", "o1": ""}
    of_type = await stability.create_silence(silence=silence(CTR, hours=1))
    assert await silenced() == {"f2": made.name, "f1": of_type.name, "o1": ""}, "the one that ends last is told"
    assert names((await stability.list_alerts()).alerts) == ["f2", "f1", "o1"]

    ended = await stability.end_silence(name=made.name)
    assert (ended.ended_by, ended.end_time) == ("local", stamp(NOW))
    assert (await silenced())["f2"] == of_type.name
    assert await stability.end_silence(name=made.name) == ended, "ending it again changes nothing"
    assert await stability.get_silence(name=made.name) == ended
    listed = await stability.list_silences()
    assert [one.name for one in listed.silences] == [of_type.name, made.name]
    assert [one.name for one in (await stability.list_silences(active=True)).silences] == [of_type.name]
    assert [one.name for one in (await stability.list_silences(resource=NEW)).silences] == [made.name]
    # It ends by itself.
    running.clock.set(3601)
    assert (await silenced())["f1"] == ""


async def test_a_repeated_call_makes_one_silence_also_when_that_is_over(running: StabilityFleet) -> None:
    stability, wanted, request_id = running.client.stability, silence(hours=1), str(uuid.uuid4())
    made = await stability.create_silence(silence=wanted, request_id=request_id)
    running.clock.set(7200)
    assert await stability.create_silence(silence=wanted, request_id=request_id) == made
    with pytest.raises(ModelfleetError) as reused:
        await stability.create_silence(silence=silence(OLD), request_id=request_id)
    assert reused.value.reason == "REQUEST_ID_REUSED"
    assert len((await stability.list_silences()).silences) == 1
    dry = await stability.create_silence(silence=silence(hours=9), validate_only=True)
    assert dry.reason == "migration"
    assert len((await stability.list_silences()).silences) == 1


async def test_what_cannot_be_a_silence_is_told_all_that_is_wrong(running: StabilityFleet) -> None:
    for wanted, paths in (
        (silence("teams/feed"), {"silence.resource"}),
        (silence(hours=-1), {"silence.end_time"}),
        (silence(hours=31 * 24), {"silence.end_time"}),
        (silence(reason="x" * 1001), {"silence.reason"}),
        (
            silence("teams/feed", hours=-1, reason="x" * 1001),
            {"silence.resource", "silence.end_time", "silence.reason"},
        ),
        (silence(start_time=stamp(NOW + timedelta(hours=3))), {"silence.end_time"}),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await running.client.stability.create_silence(silence=wanted)
        assert {violation.field for violation in refused.value.violations} == paths


async def test_a_silence_of_nothing_is_refused(running: StabilityFleet) -> None:
    for resource in ("modelTypes/nope", f"{CTR}/models/nope"):
        with pytest.raises(FailedPrecondition) as refused:
            await running.client.stability.create_silence(silence=silence(resource))
        assert refused.value.reason == "REFERENCE_NOT_FOUND"


async def test_whoever_is_on_call_for_the_team_may_keep_its_models_quiet_and_nobody_else(
    running: StabilityFleet,
) -> None:
    bindings = [
        registry_pb2.RoleBinding(role=ONCALL, members=["ada"]), registry_pb2.RoleBinding(role=VIEWER, members=["eve"]),
    ]  # fmt: skip
    await running.client.registry.update_team(team=registry_pb2.Team(name="teams/feed", role_bindings=bindings))
    services = (running.registry, running.stability)
    async with client_of(*services, principal="ada") as ada, client_of(*services, principal="eve") as eve:
        made = await ada.stability.create_silence(silence=silence(OLD))
        assert made.creator == "ada"
        assert await eve.stability.get_silence(name=made.name) == made
        for refused in (
            eve.stability.create_silence(silence=silence(OLD)),
            eve.stability.end_silence(name=made.name),
        ):
            with pytest.raises(PermissionDenied):
                await refused
        assert (await ada.stability.end_silence(name=made.name)).ended_by == "ada"


# --- from examples to an alert ----------------------------------------------------------------------------------------


async def test_examples_that_went_wrong_become_an_alert_within_minutes_with_nothing_but_the_registry(
    running: StabilityFleet,
) -> None:
    client, clock = running.client, running.clock
    await client.registry.update_team(team=registry_pb2.Team(name="teams/feed", on_call="ada"))
    level = monitoring_pb2.ServiceLevel(stability=0.999)
    await client.registry.update_model_type(model_type=registry_pb2.ModelType(name=CTR, service_level=level))
    await client.registry.adopt_serving(
        model_type=CTR,
        role_changes=[registry_pb2.RoleChange(model=OLD, role=registry_pb2.Model.BASELINE)],
        splits=[RegionSplit(region="regions/eu", shares=[ModelShare(model=OLD, share_basis_points=10_000)])],
    )

    async def minute(positives: int) -> None:
        """Writes what happened in it, and lets it be evaluated."""
        times = [clock.now() - timedelta(minutes=1)] * 400
        labels = [1] * positives + [0] * (400 - positives)
        await running.write(running.examples([0.25] * 400, labels, model=OLD, event_time=times))
        await clock.advance(60)

        async def is_evaluated() -> bool:
            await clock.advance(0.05)
            (found,) = (await client.stability.list_model_stabilities()).models
            return found.evaluate_time.seconds == int(clock.now().replace(second=0, microsecond=0).timestamp())

        await until(is_evaluated)

    async def unstable() -> Sequence[pb.Alert]:
        return (await client.stability.list_alerts(filter="kind = UNSTABLE")).alerts

    await minute(100)
    assert not await unstable()
    # The window of an hour turns with it: minute by minute it holds more of what is wrong.
    for _ in range(8):
        await minute(0)
    (fires,) = await until(unstable)
    assert (fires.model, fires.severity, fires.prediction) == (OLD, pb.Alert.PAGE, "click")
    assert fires.metric == monitoring_pb2.HealthyRange.CALIBRATION
    assert (fires.on_call, fires.role) == ("ada", registry_pb2.Model.BASELINE)
    assert "Calibration of click is" in fires.summary and "above 0.5 to 2" in fires.summary
    assert (
        "ctr/old was unstable in" in fires.summary and "what its objective of 99.9 % stability allows" in fires.summary
    )


# --- a launch hands over ----------------------------------------------------------------------------------------------


async def test_a_finished_launch_ends_the_old_baseline_s_alert_and_arms_the_new_one_without_gap_or_false_alarm(
    running: StabilityFleet,
) -> None:
    """The registry says who the baseline is, and nothing else is told to anybody."""
    registry = running.client.registry

    async def finalize(launch: str, baseline: str, retired: str = "") -> int:
        roles = [registry_pb2.RoleChange(model=baseline, role=registry_pb2.Model.BASELINE)]
        if retired:
            roles.append(registry_pb2.RoleChange(model=retired, role=registry_pb2.Model.RETIRED))
        share = ModelShare(model=baseline, share_basis_points=10_000)
        done = await registry.finalize_launch(
            model_type=CTR,
            launch=launch,
            outcome=registry_pb2.FinalizeLaunchRequest.SUCCEEDED,
            expected_revision=(await registry.get_model_type(name=CTR)).revision,
            role_changes=roles,
            splits=[RegionSplit(region="regions/eu", shares=[share])],
        )
        return int(done.revision)

    async with Fleet(running.client) as watched, alerting(running.database_url, replicas=2, minutes=90) as course:
        await watched.wait_ready(10, revision=await finalize("launches/first", OLD))
        course.view = watched.view()
        await course.pass_minutes(1)
        # TIER4 by default: an objective of 95 % takes long to burn.
        await course.evaluate(45, bad=[OLD])
        await course.derive()
        assert await course.alerts() == [(OLD, "PAGE", "FIRING")]

        revision = await finalize("launches/second", NEW, retired=OLD)
        await watched.wait_ready(10, revision=revision)
        before, course.view = course.view, watched.view()
        # Whoever evaluates has not seen that revision yet: it still counts a minute of the old one.
        course.evaluated_by = before.revision
        await course.pass_minutes(1, bad=[NEW])
        assert await course.alerts() == [(OLD, "PAGE", "HANDED_OVER")]
        course.evaluated_by = None
        ended = await running.client.stability.list_alerts()
        assert ended.alerts[0].revision == revision

        # The budget of the type is as it was, most of it bad minutes: none of them is the new one's.
        await course.pass_minutes(10)
        assert await course.alerts() == [(OLD, "PAGE", "HANDED_OVER")], "a false alarm"
        # It is found as fast as with any model that was well before: 14.4 × 5 % of an hour, which is 43.2 minutes.
        await course.evaluate(42, bad=[NEW])
        await course.pass_minutes(1, bad=[NEW])
        assert len(await course.alerts()) == 1
        await course.pass_minutes(1, bad=[NEW])
        assert (await course.alerts())[1:] == [(NEW, "PAGE", "FIRING")], "a gap"
