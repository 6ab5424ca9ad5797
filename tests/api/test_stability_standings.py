"""Whether models are stable: evaluated each minute, read, listed, counted, watched; availability beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient
from modelfleet.common.v1.serving_pb2 import TIER3, ModelShare, RegionSplit, ServingSpec
from modelfleet.errors import InvalidArgument, NotFound
from modelfleet.incidents import Kind
from modelfleet.investigate import investigate
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleet.transport import Options
from modelfleet.triage import triage
from modelfleetd.kit.codec import timestamp_to_proto
from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.looks import Reach
from modelfleetd.stability.domain.maturity import minute_of, moment_of
from modelfleetd.stability.recent import Recent
from tests.support.incidents import shown
from tests.support.servers import client_of, running
from tests.support.stability import CLICK, NOW, StabilityFleet, stability_fleet
from tests.support.wait import until

STABLE, UNSTABLE, UNKNOWN, NOT_APPLICABLE = (
    pb.ModelStability.STABLE,
    pb.ModelStability.UNSTABLE,
    pb.ModelStability.UNKNOWN,
    pb.ModelStability.NOT_APPLICABLE,
)
# Two types with one prediction each, and one without; of the first also an experiment and a candidate.
FEED, REELS, SOURCE = "modelTypes/feed", "modelTypes/reels", "modelTypes/source"
A, B, C = f"{FEED}/models/a", f"{FEED}/models/b", f"{FEED}/models/c"
R, S = f"{REELS}/models/r", f"{SOURCE}/models/s"
MINUTE = timedelta(minutes=1)
# One example in four is a positive.
STATED, LABELS = [0.25] * 400, ([1, 0, 0, 0] * 100)


async def make_types(client: AsyncClient) -> None:
    click = registry_pb2.Prediction(id=CLICK, attribution_window=Duration(seconds=600))
    spec = ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
    made: list[tuple[str, dict[str, Any], list[str]]] = [
        (
            FEED,
            {"predictions": [click], "tier": TIER3, "labels": {"surface": "home", "product": "app"}},
            ["a", "b", "c"],
        ),
        (REELS, {"predictions": [click], "labels": {"surface": "reels", "product": "app"}}, ["r"]),
        (SOURCE, {"labels": {"surface": "home"}, "funnel_stage": registry_pb2.SOURCING}, ["s"]),
    ]
    for name, fields, models in made:
        type_ = registry_pb2.ModelType(team="teams/feed", regions=["regions/eu"], **fields)
        await client.registry.create_model_type(model_type_id=name.split("/")[1], model_type=type_)
        for model in models:
            await client.registry.create_model(parent=name, model_id=model, model=registry_pb2.Model(serving_spec=spec))
    await adopt(client, FEED, {A: 9000, B: 1000})
    await adopt(client, REELS, {R: 10_000})
    await adopt(client, SOURCE, {S: 10_000})


async def adopt(client: AsyncClient, model_type: str, shares: dict[str, int]) -> None:
    """Has models served: the first is the baseline, the others are experiments."""
    roles = [registry_pb2.Model.BASELINE] + [registry_pb2.Model.EXPERIMENT] * (len(shares) - 1)
    split = [ModelShare(model=model, share_basis_points=share) for model, share in shares.items()]
    changes = zip(shares, roles, strict=True)
    await client.registry.adopt_serving(
        model_type=model_type,
        role_changes=[registry_pb2.RoleChange(model=model, role=role) for model, role in changes],
        splits=[RegionSplit(region="regions/eu", shares=split)],
    )


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running_:
        await make_types(running_.client)
        yield running_


async def examples(fleet: StabilityFleet, model: str, positives: list[int], **fields: Any) -> None:
    """Writes examples of the last ten minutes, a quarter of which are said to be positive."""
    now = fleet.clock.now()
    times = [now - MINUTE * (1 + index % 10) for index in range(len(positives))]
    given = {"model": model, "model_type": model.rsplit("/models/", 1)[0], "event_time": times} | fields
    await fleet.write(fleet.examples([0.25] * len(positives), positives, **given))


async def evaluated(fleet: StabilityFleet, *, models: int = 4) -> dict[str, pb.ModelStability]:
    """Lets the next minute begin; returns what is said of each model then."""
    await fleet.clock.advance(60)
    return await said_at(fleet, fleet.clock.now(), models=models)


async def said_at(fleet: StabilityFleet, now: datetime, *, models: int = 4) -> dict[str, pb.ModelStability]:
    minute = now.replace(second=0)

    async def said() -> pb.ListModelStabilitiesResponse | None:
        # Whoever was at work when the clock moved looks at it again a second later.
        await fleet.clock.advance(0.05)
        answer = await fleet.client.stability.list_model_stabilities(show_metrics=True)
        times = {model.evaluate_time.seconds for model in answer.models}
        return answer if len(answer.models) == models and times == {int(minute.timestamp())} else None

    answer: pb.ListModelStabilitiesResponse = await until(said)
    return {model.model: model for model in answer.models}


async def test_each_minute_says_of_each_model_whether_it_is_stable_and_what_decided(fleet: StabilityFleet) -> None:
    await examples(fleet, A, LABELS)
    await examples(fleet, B, [1] * 20 + [0] * 380)
    found = await evaluated(fleet)
    assert {name: model.state for name, model in found.items()} == {
        A: STABLE, B: UNSTABLE, R: UNKNOWN, S: NOT_APPLICABLE,
    }  # fmt: skip
    assert list(found) == [B, R, A, S]  # the worst first
    culprit = found[B]
    assert (culprit.culprit_prediction, culprit.culprit_metric) == (CLICK, monitoring_pb2.HealthyRange.CALIBRATION)
    [metric] = culprit.metrics
    assert (metric.value.value, metric.range.low, metric.range.high) == (5.0, 0.5, 2.0)
    assert (metric.positives, metric.examples, metric.state) == (20, 400, UNSTABLE)
    assert "calibration of click is 5" in culprit.explanation
    assert "above 0.5 to 2" in culprit.explanation
    assert f"Since {culprit.since.ToDatetime():%Y-%m-%d %H:%M} UTC" in culprit.explanation
    assert found[A].share_basis_points == 9000
    assert not found[A].culprit_prediction
    assert "no example" in found[R].explanation

    # A state that goes on keeps its beginning.
    later = (await evaluated(fleet))[B]
    assert later.since == culprit.since
    assert later.evaluate_time.seconds == culprit.evaluate_time.seconds + 60

    # Its labels come: it is well again, from now on.
    await examples(fleet, B, [1] * 200 + [0] * 200)
    again = (await evaluated(fleet))[B]
    assert again.state == STABLE
    assert again.since == again.evaluate_time


async def test_what_changes_in_minutes_that_were_read_is_read_again_bit_for_bit(fleet: StabilityFleet) -> None:
    await examples(fleet, A, LABELS)
    await evaluated(fleet)
    then = fleet.clock.now() - 5 * MINUTE
    for _ in range(3):
        # Late, and into minutes that an evaluation has read before.
        await examples(fleet, A, [1, 0, 0, 0, 0, 0, 0, 0] * 50, event_time=[then] * 400)
        found = (await evaluated(fleet))[A].metrics[0]
        exact = await fleet.client.stability.query_series(
            model=A, prediction=CLICK, start_time=found.start_time, end_time=found.end_time
        )
        assert (found.positives, found.examples) == (exact.total.positives, exact.total.examples)
        assert found.value.value == pytest.approx(exact.total.calibration.value, rel=1e-12)
    assert found.examples == 1600


async def test_minutes_in_memory_are_those_of_the_database_whatever_was_written_when(
    fleet: StabilityFleet, database_url: str
) -> None:
    database = await Database.open(database_url, "stability", max_size=2)
    wanted = {Reach(180): [(A, CLICK), (B, CLICK), (R, CLICK)], Reach(300, 60): [(B, CLICK), (A, CLICK)]}
    kept, chance = Recent(database), np.random.default_rng(4)
    now = minute_of(fleet.clock.now())
    for passed in (0, 1, 1, 2, 7, 1):
        now += passed
        for model in (A, B):
            ages = chance.integers(1, 200, 60).tolist()
            await examples(fleet, model, [1, 0] * 30, event_time=[moment_of(now - age) for age in ages])
        # What has matured is looked through every tenth round; here in every one.
        for block in kept.blocks.values():
            block.rounds = 0
        found = await kept.read(wanted, now)
        fresh = await Recent(database).read(wanted, now)
        for reach, block in found.items():
            assert np.array_equal(block.sums, fresh[reach].sums), (passed, reach)
            assert block.sums.any()
    total = found[Reach(180)].series().examples.sum()
    rows = await fleet.fetch("SELECT sum(n)::int AS n FROM exposure WHERE minute >= $1 AND minute < $2", now - 180, now)
    # But for what lies across the first minute, five of which are read as one.
    assert abs(total - rows[0]["n"]) <= 12
    await database.close()


async def test_a_model_that_does_not_serve_is_not_watched_and_one_that_does_not_exist_is_not_found(
    fleet: StabilityFleet,
) -> None:
    found = await evaluated(fleet)
    assert C not in found
    said = await fleet.client.stability.get_model_stability(model=C)
    assert said.state == UNKNOWN
    assert "does not serve" in said.explanation
    with pytest.raises(NotFound):
        await fleet.client.stability.get_model_stability(model=f"{FEED}/models/nope")
    got = await fleet.client.stability.get_model_stability(model=A)
    assert len(got.metrics) == 1


async def test_lists_are_filtered_paged_and_refuse_what_they_do_not_know(fleet: StabilityFleet) -> None:
    await examples(fleet, B, [1] * 20 + [0] * 380)
    await evaluated(fleet)
    stability = fleet.client.stability

    async def names(filter: str) -> list[str]:  # noqa: A002
        return [model.model async for model in stability.list_model_stabilities_all(filter=filter)]

    assert await names("state = UNSTABLE AND tier <= TIER3") == [B]
    assert await names("surface = home") == [B, A, S]
    assert await names("role = BASELINE AND NOT state = NOT_APPLICABLE") == [A, R]
    assert await names("tier <= TIER3") == [B, A]  # R states none
    assert await names("funnel_stage = SOURCING OR culprit_metric = CALIBRATION") == [B, A, R, S]
    assert await names("team = feed AND product = app AND availability.state = UNKNOWN") == [B, A, R]
    with pytest.raises(InvalidArgument, match="cannot be filtered by 'traffic'"):
        await names("traffic > 3")
    with pytest.raises(InvalidArgument, match="cannot be filtered by 'colour'"):
        await stability.roll_up_stability(filter="colour = red")

    seen, token = [], ""
    while True:
        page = await stability.list_model_stabilities(page_size=1, page_token=token)
        seen += [model.model for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert seen == [B, A, R, S]


async def test_roll_ups_count_what_is_stable_by_surface_tier_and_the_rest(fleet: StabilityFleet) -> None:
    await examples(fleet, A, LABELS)
    await examples(fleet, B, [1] * 20 + [0] * 380)
    await evaluated(fleet)
    answer = await fleet.client.stability.roll_up_stability(group_by=pb.RollUpStabilityRequest.SURFACE)
    total = answer.total
    assert (total.models, total.stable, total.unstable, total.unknown, total.not_applicable) == (4, 1, 1, 1, 1)
    assert total.stable_share == 0.5
    assert not total.HasField("stable_traffic_share")  # no agent reports any
    assert list(total.worst) == [B]
    assert [group.group for group in answer.groups] == ["home", "reels"]
    assert not answer.groups[1].HasField("stable_share")
    by_tier = await fleet.client.stability.roll_up_stability(
        group_by=pb.RollUpStabilityRequest.TIER, filter="tier <= TIER3"
    )
    assert [(group.group, group.models) for group in by_tier.groups] == [("TIER3", 2)]
    by_team = await fleet.client.stability.roll_up_stability()
    assert [group.group for group in by_team.groups] == ["teams/feed"]


async def report(fleet: StabilityFleet, **counted: tuple[int, int]) -> None:
    """Reports requests and errors since the beginning, of the models of the first type."""
    models = [
        registry_pb2.ModelServing(model=f"{FEED}/models/{model}", requests=requests, errors=errors)
        for model, (requests, errors) in counted.items()
    ]
    status = registry_pb2.ServingStatus(
        model_type=FEED, region="regions/eu", models=models, observe_time=timestamp_to_proto(fleet.clock.now())
    )
    await fleet.client.registry.report_serving(statuses=[status])


async def test_availability_stands_beside_stability(fleet: StabilityFleet) -> None:
    await examples(fleet, A, LABELS)
    await examples(fleet, B, [1] * 20 + [0] * 380)
    await report(fleet, a=(1000, 0), b=(50, 0))
    first = await evaluated(fleet)
    assert first[A].availability.state == pb.Availability.UNKNOWN  # one report says nothing of a minute
    await report(fleet, a=(4000, 300), b=(1050, 1))
    found = await evaluated(fleet)
    assert found[A].availability.state == pb.Availability.UNAVAILABLE
    assert (found[A].availability.success_share, found[A].availability.requests) == (0.9, 3000)
    assert found[B].availability.state == pb.Availability.AVAILABLE
    assert 40 < found[A].request_rate <= 50  # 3,000 in a minute, or a little more
    answer = await fleet.client.stability.roll_up_stability(filter="model_type = feed")
    total = answer.total
    assert (total.unavailable_stable, total.available_unstable) == (1, 1)
    assert total.stable_traffic_share == pytest.approx(0.75)
    assert list(total.worst) == [B, A]
    # Nobody reports any more.
    for _ in range(3):
        found = await evaluated(fleet)
    assert found[A].availability.state == pb.Availability.UNKNOWN


async def test_each_minute_has_a_slice_and_what_was_not_evaluated_has_none(fleet: StabilityFleet) -> None:
    await examples(fleet, A, LABELS)
    await examples(fleet, B, [1] * 20 + [0] * 380)
    await evaluated(fleet)
    first = int(NOW.timestamp()) // 60 + 1
    # Nobody was there for three minutes.
    fleet.clock.set(fleet.clock.monotonic() + 240)
    await said_at(fleet, fleet.clock.now())
    rows = await fleet.fetch("SELECT slo, objective, minutes FROM slices WHERE hour = $1", first // 60)
    place = first % 60
    found = {(row["slo"], row["objective"]): list(row["minutes"][place : place + 5]) for row in rows}
    assert found["slos/feed", 1] == [1, 0, 0, 0, 1]
    assert found["slos/feed.b", 1] == [2, 0, 0, 0, 2]
    assert found["slos/reels", 1] == [3, 0, 0, 0, 3]
    assert ("slos/source", 1) not in found
    assert found["slos/source", 3] == [3, 0, 0, 0, 3]


async def test_a_watch_tells_all_first_then_what_changes_and_what_fits_no_more(fleet: StabilityFleet) -> None:
    await examples(fleet, A, LABELS)
    await examples(fleet, B, LABELS)
    await evaluated(fleet)
    everything = aiter(fleet.client.stability.watch_stability(filter="model_type = feed"))
    stable = aiter(fleet.client.stability.watch_stability(filter="model_type = feed AND state = STABLE"))
    for stream in (everything, stable):
        first = await anext(stream)
        assert {model.model: model.state for model in first.models} == {A: STABLE, B: STABLE}
        heartbeat = await anext(stream)
        assert not heartbeat.models and heartbeat.evaluate_time == first.evaluate_time

    await examples(fleet, B, [0] * 1200)
    await evaluated(fleet)
    changed = await next_change(everything)
    assert [(model.model, model.state) for model in changed.models] == [(B, UNSTABLE)]
    assert len(changed.models[0].metrics) == 1  # the culprit, with its figures
    gone = await next_change(stable)
    assert list(gone.removed) == [B]


async def next_change(stream: AsyncIterator[pb.WatchStabilityResponse]) -> pb.WatchStabilityResponse:
    """Returns the next message that is no heartbeat."""
    while True:
        message = await anext(stream)
        if message.models or message.removed:
            return message


async def test_whoever_is_paged_sees_the_same_state_with_culprit_value_range_and_since(fleet: StabilityFleet) -> None:
    await examples(fleet, A, LABELS)
    await examples(fleet, B, [1] * 20 + [0] * 380)
    await report(fleet, b=(1_000, 0))
    await evaluated(fleet)
    await report(fleet, b=(2_000, 900))
    at_once = (await evaluated(fleet))[B]
    # Once each: launcher and capacity are away.
    services = (fleet.registry, fleet.stability)
    async with client_of(*services, options=Options(attempts=1)) as client:
        found = await investigate(client, "feed/b", within=5.0)
        assert found.stability == at_once and found.judgements == ()
        assert at_once.availability.state == pb.Availability.UNAVAILABLE
        wrong = {problem.kind: problem for problem in found.problems}
        assert wrong[Kind.IRRELEVANT].since == at_once.since.ToDatetime(tzinfo=UTC)
        assert wrong[Kind.IRRELEVANT].message.startswith("calibration of click is 5 ")
        assert Kind.FAILING in wrong
        text = "\n".join(shown(found))
        assert "UNSTABLE for " in text and "; requests: UNAVAILABLE " in text
        [line] = [line for line in text.splitlines() if line.split()[:3] == ["click", "CALIBRATION", "UNSTABLE"]]
        assert "5" in line.split() and "0.5 to 2" in line
        # A candidate is not evaluated, so it is judged.
        assert (await investigate(client, "feed/c", within=5.0)).stability is None

        queue = await triage(client)
        assert [(incident.model, incident.worst.kind) for incident in queue.incidents if incident.model == B] == [
            (B, Kind.FAILING)
        ]
        (incident,) = (incident for incident in queue.incidents if incident.model == B)
        assert Kind.IRRELEVANT in {problem.kind for problem in incident.problems}
        # R has no example yet; S predicts nothing.
        assert queue.judged == 2
        assert [what for what in queue.not_seen if what.startswith("stability of 1 model: the evidence")]
        assert B in {incident.model for incident in (await triage(client, ["feed/b"])).incidents}


async def test_a_replica_without_the_lease_answers_the_same_and_goes_on_when_the_other_stops(
    fleet: StabilityFleet, database_url: str
) -> None:
    from modelfleetd.stability.app import build

    await examples(fleet, A, LABELS)
    await examples(fleet, B, [1] * 20 + [0] * 380)
    mine = await evaluated(fleet)
    async with (
        running("stability", build, database_url, clock=fleet.clock, registry_address=fleet.registry.address) as other,
        client_of(fleet.registry, other) as client,
    ):

        async def seen() -> Any:
            await fleet.clock.advance(0.05)
            answer = await client.stability.list_model_stabilities(show_metrics=True)
            return answer.models if answer.HasField("evaluate_time") else None

        theirs = await until(seen)
        assert {model.model: model for model in theirs} == mine
        holders = {row["holder"] for row in await fleet.fetch("SELECT holder FROM evaluation")}
        assert holders == {fleet.stability.id}
        assert [model.model async for model in client.stability.list_model_stabilities_all()]


async def test_a_clock_that_was_ahead_is_complained_of_until_its_time_has_come(
    fleet: StabilityFleet, caplog: pytest.LogCaptureFixture
) -> None:
    await evaluated(fleet)
    # As a replica leaves it whose clock is put right afterwards.
    [row] = await fleet.fetch("UPDATE evaluation SET minute = minute + 90 RETURNING minute")

    async def complained() -> bool:
        await fleet.clock.advance(1)
        return "nothing is evaluated until 2025-03-01 13:31:00+00:00" in caplog.text

    await until(complained)
    assert fleet.stability.id in caplog.text
    await fleet.clock.advance(row["minute"] * 60 - fleet.clock.now().timestamp())
    await evaluated(fleet)
