"""Healthy ranges through real services: proposed from what was written, accepted into the registry, in force."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet.cli import main
from modelfleet.common.v1.serving_pb2 import ModelShare, RegionSplit
from modelfleet.errors import FailedPrecondition, InvalidArgument
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleet.stability.v1 import stability_pb2 as pb
from tests.support.front_door import door
from tests.support.stability import CLICK, CTR, NEW, NOW, OLD, StabilityFleet, stability_fleet
from tests.support.wait import until

CALIBRATION, NE, VOLUME = (
    monitoring_pb2.HealthyRange.CALIBRATION,
    monitoring_pb2.HealthyRange.NE,
    monitoring_pb2.HealthyRange.VOLUME,
)
DAYS = 16
RATE = 20  # examples in five minutes, one in four a positive
Run = Callable[..., Coroutine[Any, Any, str]]


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    """A baseline with sixteen healthy days behind it, six hours of which, ten days ago, were not."""
    async with stability_fleet(database_url) as running:
        await running.client.registry.adopt_serving(
            model_type=CTR,
            role_changes=[registry_pb2.RoleChange(model=OLD, role=registry_pb2.Model.BASELINE)],
            splits=[RegionSplit(region="regions/eu", shares=[ModelShare(model=OLD, share_basis_points=10_000)])],
        )
        await until(lambda: _serves(running))
        rng = np.random.default_rng(7)
        steps = np.repeat(np.arange(DAYS * 288), RATE)
        times = (int(NOW.timestamp()) // 300 * 300 - DAYS * 86400 + steps * 300) * 1_000_000
        score = rng.beta(2.0, 6.0, len(steps))
        bad = (steps >= 6 * 288) & (steps < 6 * 288 + 72)
        label = rng.random(len(steps)) < np.where(bad, score / 3.0, score)
        await running.write(
            running.examples([], [], score=score, label=label.astype(np.int8), model=OLD, event_time=times)
        )
        yield running


async def _serves(running: StabilityFleet) -> bool:
    answer = await running.client.stability.propose_ranges(model=OLD, predictions=[CLICK])
    # A baseline's volume is proposed for too.
    return len(answer.proposals) == 2 or None  # type: ignore[return-value]


async def test_a_history_gives_ranges_with_their_replay_and_none_gives_defaults(
    fleet: StabilityFleet,
) -> None:
    answer = await fleet.client.stability.propose_ranges(model=OLD, predictions=[CLICK], include_history=True)
    found = {proposal.range.metric: proposal for proposal in answer.proposals}
    assert list(found) == [CALIBRATION, NE, VOLUME]
    calibration = found[CALIBRATION]
    range_ = calibration.range
    assert calibration.basis == pb.RangeProposal.LEVEL  # nothing varies by the hour
    assert 0.6 < range_.low < 0.95 < 1.05 < range_.high < 1.5
    assert (range_.prediction, range_.pages_per_week) == (CLICK, 0.05)
    assert range_.residuals >= 200 and range_.history_end_time.ToDatetime() <= NOW.replace(tzinfo=None)
    assert (calibration.current.low, calibration.current.high) == (0.5, 2.0)
    # The hours in which two thirds of the positives were lost do not widen the range; they lie outside.
    (outside,) = [one for one in calibration.outside if one.worst > 2.0]
    ten_days_ago = NOW - timedelta(days=10)
    assert abs((outside.start_time.ToDatetime() - ten_days_ago.replace(tzinfo=None)).total_seconds()) <= 6 * 3600
    assert 0 < len(calibration.history) <= 2000 and all(
        point.range.high == range_.high for point in calibration.history
    )
    assert calibration.pages == len(calibration.page_times)
    assert f"{range_.residuals:,} windows of 16 days" in calibration.explanation
    # Of the volume nothing varies at all, and a range has some width all the same.
    assert found[VOLUME].range.low < RATE * found[VOLUME].range.window.seconds / 300 < found[VOLUME].range.high

    async def width(**wish: Any) -> float:
        answer = await fleet.client.stability.propose_ranges(
            model=OLD, predictions=[CLICK], window=Duration(seconds=21_600), **wish
        )
        range_ = answer.proposals[0].range
        assert range_.window.seconds == 21_600
        return float(np.log(range_.high / range_.low))

    assert await width(pages_per_week=0.001) > await width() > await width(pages_per_week=5.0)
    # A candidate has no history, and no say in the volume of the route.
    answer = await fleet.client.stability.propose_ranges(model=NEW)
    assert {proposal.basis for proposal in answer.proposals} == {pb.RangeProposal.DEFAULT}
    assert {proposal.range.metric for proposal in answer.proposals} == {CALIBRATION, NE}
    assert {(p.range.low, p.range.high) for p in answer.proposals if p.range.metric == CALIBRATION} == {(0.5, 2.0)}
    assert all("no history" in proposal.explanation for proposal in answer.proposals)

    # All that cannot be is named at once.
    with pytest.raises(InvalidArgument) as refused:
        await fleet.client.stability.propose_ranges(
            model=OLD,
            predictions=[CLICK, "nope"],
            pages_per_week=11.0,
            window=Duration(seconds=400),
            start_time=NOW - timedelta(days=60),
        )
    said = {violation.field: violation.description for violation in refused.value.violations}
    assert set(said) == {"predictions[1]", "pages_per_week", "window", "start_time"}
    assert "click" in said["predictions[1]"] and "35 days" in said["start_time"]
    with pytest.raises(FailedPrecondition, match="predictions"):
        await fleet.client.stability.propose_ranges(model="modelTypes/retrieval/models/two_towers")


@pytest.fixture
async def run(
    fleet: StabilityFleet, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Run]:
    """Runs `modelfleet stability ranges …`; returns what it prints."""
    addresses = {"registry": fleet.registry.address, "stability": fleet.stability.address}
    async with door(tmp_path_factory.mktemp("door"), addresses) as address:

        async def run(*arguments: str, status: int = 0) -> str:
            words = ["stability", "ranges", *arguments, "--address", address, "--timeout", "60"]
            assert await asyncio.to_thread(main, words) == status
            printed = capsys.readouterr()
            return printed.out if status == 0 else printed.err

        yield run


async def test_accepted_ranges_are_a_revision_with_its_reason_and_in_force(
    fleet: StabilityFleet, run: Run, tmp_path: Path
) -> None:
    # The command line goes by the real time.
    span = ("--from", f"{NOW - timedelta(days=16):%Y-%m-%dT%H:%MZ}", "--to", f"{NOW:%Y-%m-%dT%H:%MZ}")
    picture = tmp_path / "ranges.png"
    table = await run("propose", "ctr/old", "--prediction", CLICK, *span, "--plot", str(picture))
    assert "WOULD HAVE PAGED" in table and "0.5 to 2" in table and f"wrote {picture}" in table
    assert "modelfleet stability ranges accept ctr/old" in table
    assert picture.read_bytes().startswith(b"\x89PNG")
    proposed = json.loads(await run("propose", "ctr/old", "--prediction", CLICK, *span, "-o", "json"))

    assert "is not in the range" in await run("propose", "ctr/old", "--pages-per-week", "0", status=1)
    assert "nobody is there to confirm" in await run("accept", "ctr/old", "--reason", "first", status=1)
    accepting = ("accept", "ctr/old", "--prediction", CLICK, *span, "--reason", "a healthy fortnight", "--yes")
    accepted = await run(*accepting)
    assert f"{OLD} has 2 healthy ranges since revision" in accepted
    assert "candidates are judged by their model type's until they have their own" in accepted
    registry = fleet.client.registry
    model, model_type = await registry.get_model(name=OLD), await registry.get_model_type(name=CTR)
    assert [range_.metric for range_ in model.healthy_ranges] == [CALIBRATION, NE]
    assert [range_.metric for range_ in model_type.healthy_ranges] == [VOLUME]
    assert model.healthy_ranges[0].low == proposed[0]["range"]["low"]
    for entry in (model, model_type):
        revision = await registry.get_revision(name=f"revisions/{entry.revision}")
        assert revision.reason == "a healthy fortnight" and revision.actor
    shown = json.loads(await run("show", "ctr/old", "-o", "json"))
    sources = {(row["range"]["prediction"], row["range"]["metric"]): row["source"] for row in shown}
    assert sources[CLICK, "CALIBRATION"] == "the model" and sources[CLICK, "VOLUME"] == "its model type"
    assert sources["buy", "CALIBRATION"] == "the prediction"

    # A second proposal is held against the ranges that are in force by now.
    async def current() -> float | None:
        answer = await fleet.client.stability.propose_ranges(model=OLD, predictions=[CLICK])
        low = answer.proposals[0].current.low
        return low if low != 0.5 else None

    assert await until(current) == model.healthy_ranges[0].low
    # For every model of the type; the model's own go before them.
    for_all = await run(*accepting, "--for-type")
    assert f"{CTR} has 3 healthy ranges since revision" in for_all and "stay in force for it" in for_all
    assert "has 0 healthy ranges" in await run("clear", "ctr/old", "--reason", "by hand from now on")
    assert "has no such range" in await run("clear", "ctr/old", "--reason", "again")
    assert "has 0 healthy ranges" in await run("clear", "ctr", "--prediction", CLICK, "--reason", "and its type")

    # Where stability does not apply, that is said.
    for verb in ("propose", "show"):
        assert "NOT_APPLICABLE: modelTypes/retrieval declares no predictions" in await run(verb, "retrieval/two_towers")
    assert "NOT_APPLICABLE" in await run("accept", "retrieval/two_towers", "--reason", "x", "--yes", status=1)
