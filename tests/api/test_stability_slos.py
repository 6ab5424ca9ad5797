"""Service level objectives: one set for every model that serves, from the registry and from what minutes counted as."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from modelfleet.cli import main
from modelfleet.common.v1.serving_pb2 import TIER2, TIER3, ModelShare, RegionSplit
from modelfleet.errors import InvalidArgument, NotFound
from modelfleet.registry.v1 import monitoring_pb2
from modelfleet.registry.v1 import registry_pb2 as registry_pb
from modelfleet.stability.v1 import slos_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.stability.budgets import BudgetKeeper
from modelfleetd.stability.domain.fleet import WatchedFleet
from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.slices import Objective, Slice, Slices
from modelfleetd.stability.fleet import Fleet
from tests.support.front_door import door
from tests.support.slices import write_history, write_minute
from tests.support.stability import CTR, NEW, NOW, OLD, RETRIEVAL, StabilityFleet, stability_fleet
from tests.support.wait import until
from tests.support.watched import watched, watched_fleet

BASELINE, EXPERIMENT, RETIRED = (
    registry_pb.Model.BASELINE,
    registry_pb.Model.EXPERIMENT,
    registry_pb.Model.RETIRED,
)
STABILITY, AVAILABILITY = Objective.STABILITY, Objective.AVAILABILITY
# The minute of NOW is evaluated at the start, while nothing serves yet. Days later all is read anew, so that histories
# can be written of a time that has been looked at.
MINUTE = minute_of(NOW) + 4 * 1440


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running:
        yield running


def minutes(*runs: tuple[int, Slice]) -> Slices:
    return np.concatenate([np.full(length, value, dtype=np.uint8) for length, value in runs])


def roles(**by_id: Any) -> list[registry_pb.RoleChange]:
    return [registry_pb.RoleChange(model=f"{CTR}/models/{model}", role=role) for model, role in by_id.items()]


def split(**shares: int) -> list[RegionSplit]:
    given = [ModelShare(model=f"{CTR}/models/{key}", share_basis_points=value) for key, value in shares.items()]
    return [RegionSplit(region="regions/eu", shares=given)]


async def serve(fleet: StabilityFleet) -> None:
    """Makes `old` the baseline and `new` an experiment."""
    await fleet.client.registry.adopt_serving(
        model_type=CTR, role_changes=roles(old=BASELINE, new=EXPERIMENT), splits=split(old=9000, new=1000)
    )
    await until(lambda: listed(fleet), timeout=20)


async def evaluate(fleet: StabilityFleet, slices: Mapping[tuple[str, Objective], Slices]) -> None:
    """Has minutes until MINUTE count as these."""
    await write_history(fleet.database_url, MINUTE, slices)
    await counted(fleet, MINUTE)


async def counted(fleet: StabilityFleet, minute: int) -> None:
    """Returns once a minute is counted, which is a moment after it was evaluated."""

    async def is_counted() -> bool:
        return {slo.evaluate_time.seconds for slo in await listed(fleet)} == {minute * 60}

    await until(is_counted, timeout=20)


async def listed(fleet: StabilityFleet, **asked: Any) -> Sequence[pb.Slo]:
    return list((await fleet.client.stability.list_slos(**asked)).slos)


def objective(slo: pb.Slo, kind: pb.Objective.Kind.ValueType) -> pb.Objective:
    (found,) = (each for each in slo.objectives if each.kind == kind)
    return found


async def test_every_model_that_serves_has_objectives_by_its_tier_before_any_minute_was_evaluated(
    fleet: StabilityFleet,
) -> None:
    with pytest.raises(NotFound):
        await fleet.client.stability.get_slo(name="slos/ctr")
    await fleet.client.registry.update_model_type(model_type=registry_pb.ModelType(name=CTR, tier=TIER2))
    await serve(fleet)
    old, new = await listed(fleet)
    assert (old.name, old.model, old.role, old.tier, old.team) == ("slos/ctr", OLD, BASELINE, TIER2, "teams/feed")
    assert (new.name, new.model, new.role) == ("slos/ctr.new", NEW, EXPERIMENT)
    assert old.period.seconds == 30 * 86400
    assert [each.target for each in old.objectives] == [0.99, 0.9, 0.99]
    for each in old.objectives:
        assert (each.good, each.bad, each.unknown) == (0, 0, 0)
        assert not each.HasField("budget_left")
    stability = objective(old, pb.Objective.STABILITY)
    assert len(stability.burn_rates) == 4 and not objective(old, pb.Objective.COVERAGE).burn_rates
    assert not stability.burn_rates[0].HasField("long_burn_rate")
    assert await fleet.client.stability.get_slo(name="slos/ctr") == old


async def test_a_type_without_predictions_has_an_objective_of_availability_alone(fleet: StabilityFleet) -> None:
    towers = registry_pb.RoleChange(model=f"{RETRIEVAL}/models/two_towers", role=BASELINE)
    await fleet.client.registry.adopt_serving(model_type=RETRIEVAL, role_changes=[towers])
    await until(lambda: listed(fleet), timeout=20)
    (slo,) = await listed(fleet)
    assert [each.kind for each in slo.objectives] == [pb.Objective.AVAILABILITY]


async def test_what_is_left_and_how_fast_it_burns_follow_from_the_slices(fleet: StabilityFleet) -> None:
    level = monitoring_pb2.ServiceLevel(stability=0.98, availability=0.999)
    await fleet.client.registry.update_model_type(model_type=registry_pb.ModelType(name=CTR, service_level=level))
    await serve(fleet)
    written = {
        ("slos/ctr", STABILITY): minutes((9900, Slice.GOOD), (500, Slice.UNKNOWN), (70, Slice.GOOD), (30, Slice.BAD)),
        ("slos/ctr", AVAILABILITY): minutes((1000, Slice.GOOD), (1, Slice.BAD), (99, Slice.GOOD)),
        ("slos/ctr.new", STABILITY): minutes((40, Slice.UNKNOWN)),
    }
    await evaluate(fleet, written)
    old, new = await listed(fleet)
    stability = objective(old, pb.Objective.STABILITY)
    assert (stability.good, stability.bad, stability.unknown) == (9970, 30, 500)
    assert stability.budget_left == pytest.approx(1 - 30 / (10_000 * 0.02))
    hour = stability.burn_rates[0]
    assert (hour.response, hour.long_window.seconds, hour.short_window.seconds) == (pb.BurnRate.PAGE, 3600, 300)
    assert hour.long_burn_rate == pytest.approx(25.0)
    assert hour.short_burn_rate == pytest.approx(50.0)
    assert hour.firing and hour.bad == 30
    coverage = objective(old, pb.Objective.COVERAGE)
    assert (coverage.good, coverage.bad, coverage.unknown) == (10_000, 500, 0)
    assert coverage.budget_left == pytest.approx(1 - 500 / 10_500 / 0.1)
    available = objective(old, pb.Objective.AVAILABILITY)
    assert available.target == 0.999
    assert available.budget_left == pytest.approx(1 - 1 / (1100 * 0.001))
    assert old.evaluate_time.seconds == MINUTE * 60
    unknown = objective(new, pb.Objective.STABILITY)
    assert not unknown.HasField("budget_left") and unknown.unknown == 40
    # The next minute is good.
    await write_minute(fleet.database_url, MINUTE + 1, {("slos/ctr.new", STABILITY): Slice.GOOD})
    await counted(fleet, MINUTE + 1)
    later = objective(await fleet.client.stability.get_slo(name="slos/ctr.new"), pb.Objective.STABILITY)
    assert (later.good, later.unknown, later.budget_left) == (1, 40, 1.0)


async def test_the_budget_passes_from_baseline_to_baseline_and_the_launch_changes_nothing_about_it(
    fleet: StabilityFleet,
) -> None:
    await serve(fleet)
    spent = minutes((5000, Slice.GOOD), (100, Slice.BAD))
    await evaluate(fleet, {("slos/ctr", STABILITY): spent, ("slos/ctr.new", STABILITY): spent[:10]})
    before = await fleet.client.stability.get_slo(name="slos/ctr")
    planned = await fleet.client.registry.get_model_type(name=CTR)
    await fleet.client.registry.finalize_launch(
        model_type=CTR,
        launch="launches/l1",
        outcome=registry_pb.FinalizeLaunchRequest.SUCCEEDED,
        expected_revision=planned.revision,
        role_changes=roles(new=BASELINE, old=RETIRED),
        splits=split(new=10_000),
    )

    async def handed_over() -> bool:
        return (await fleet.client.stability.get_slo(name="slos/ctr")).model == NEW

    await until(handed_over, timeout=20)
    after = await fleet.client.stability.get_slo(name="slos/ctr")
    assert objective(after, pb.Objective.STABILITY).bad == 100
    assert after.objectives == before.objectives
    # The experiment that it was has none any more.
    with pytest.raises(NotFound):
        await fleet.client.stability.get_slo(name="slos/ctr.new")


async def test_lists_are_filtered_ordered_and_paged(fleet: StabilityFleet) -> None:
    registry = fleet.client.registry
    await registry.update_model(model=registry_pb.Model(name=NEW, tier_override=TIER3))
    await serve(fleet)
    await evaluate(fleet, {("slos/ctr.new", STABILITY): minutes((90, Slice.GOOD), (10, Slice.BAD))})

    async def names(**asked: Any) -> list[str]:
        return [slo.name for slo in await listed(fleet, **asked)]

    await until(lambda: listed(fleet, filter="tier = TIER3"), timeout=20)
    assert await names(filter="role = BASELINE") == ["slos/ctr"]
    assert await names(filter="team = feed AND model_type = ctr AND tier >= TIER1") == ["slos/ctr.new"]
    assert await names(order_by="budget_left") == ["slos/ctr.new", "slos/ctr"]
    assert await names(order_by="budget_left desc") == ["slos/ctr", "slos/ctr.new"]
    for order in ("", "name desc", "budget_left", "budget_left desc"):
        first = await fleet.client.stability.list_slos(order_by=order, page_size=1)
        second = await fleet.client.stability.list_slos(order_by=order, page_size=1, page_token=first.next_page_token)
        assert [slo.name for slo in (*first.slos, *second.slos)] == await names(order_by=order)
        assert first.next_page_token and not second.next_page_token
    with pytest.raises(InvalidArgument, match=r"filter.*surface"):
        await names(filter="surface = feed")
    with pytest.raises(InvalidArgument, match="order_by"):
        await names(order_by="tier")


# --- as a user types it -----------------------------------------------------------------------------------------------


async def test_the_commands_show_budgets_and_what_fires_and_write_files(
    fleet: StabilityFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services = {"registry": fleet.registry.address, "stability": fleet.stability.address}
    async with door(tmp_path, services) as address:

        async def run(*arguments: str, status: int = 0) -> str:
            found = await asyncio.to_thread(main, ["stability", *arguments, "--address", address])
            printed = capsys.readouterr()
            assert found == status, printed.err
            return printed.out if status == 0 else printed.err

        assert "No model serves yet." in await run("slo", "list")
        await fleet.client.registry.update_model_type(model_type=registry_pb.ModelType(name=CTR, tier=TIER2))
        await serve(fleet)
        good, bad = (9970, Slice.GOOD), (30, Slice.BAD)
        await evaluate(fleet, {("slos/ctr", STABILITY): minutes(good, bad)})

        listing = (await run("slo", "list")).splitlines()
        assert listing[1].split() == ["ctr", "ctr/old", "BASELINE", "TIER2", "feed", "70%", "100%", "-", "PAGE"]
        assert "Nothing fits the filter." in await run("slo", "list", "--filter", "tier = TIER0")
        shown = await run("slo", "get", "ctr")
        assert shown.startswith("ctr: baseline ctr/old, TIER2, team feed; as of 2025-03-05 12:00:00 UTC\n")
        assert "STABILITY 99%  ██████████████······ 70% left: 30 of 10,000 minutes bad, 100 allowed" in shown
        assert [line.split() for line in shown.splitlines() if line.startswith("page")] == [
            ["page", "1h", "50.00", "5m", "100.00", "14.4", "30", "FIRES"],
            ["page", "6h", "8.33", "30m", "100.00", "6", "30", "FIRES"],
        ]
        assert "AVAILABILITY 99%: no minute counts yet" in shown
        # It has been the baseline for minutes only: no alert looks at what was before.
        assert "Burn rates are over the limits of a page, but no alert of ctr/old is open." in shown
        assert "How it stands, and what to do: modelfleet stability get ctr/old" in shown
        # By the name of the model, and of the objectives.
        assert await run("slo", "get", "ctr/old") == shown == await run("slo", "get", "slos/ctr")
        assert "ctr.new: experiment ctr/new" in await run("slo", "get", "ctr/new")
        assert f"{CTR}/models/nope does not exist" in await run("slo", "get", "ctr/nope", status=1)
        assert "slos/ctr.nope does not exist" in await run("slo", "get", "slos/ctr.nope", status=1)

        openslo = list(yaml.safe_load_all(await run("slo", "export", "--filter", "role = BASELINE")))
        assert [each["metadata"]["name"] for each in openslo if each["kind"] == "SLO"] == [
            "ctr-stability", "ctr-coverage", "ctr-availability",
        ]  # fmt: skip
        assert json.loads(await run("slo", "export", "--filter", "role = BASELINE", "-o", "json")) == openslo
        file = tmp_path / "rules.yml"
        assert f"wrote rules for 2 models to {file}" in await run("rules", "--out", str(file))
        assert "has the same rules for 2 models already" in await run("rules", "--out", str(file))
        assert yaml.safe_load(file.read_text()) == yaml.safe_load(await run("rules"))


# --- the whole fleet --------------------------------------------------------------------------------------------------


class StillFleet(Fleet):
    """A fleet that does not change, without a registry."""

    def __init__(self, view: WatchedFleet) -> None:
        self._still = view

    async def wait_ready(self, timeout: float, *, revision: int = 0) -> None:
        return

    def view(self) -> WatchedFleet:
        return self._still


class CountingDatabase(Database):
    """Counts the minutes that are read."""

    minutes_read = 0

    async def fetch(self, query: str, *args: object) -> Sequence[Any]:
        records = await super().fetch(query, *args)
        self.minutes_read += sum(len(record["minutes"]) for record in records)
        return records


async def test_thirty_days_are_read_once_and_then_each_minute_only_its_hour(fleet: StabilityFleet) -> None:
    view = watched_fleet(watched(f"type_{number}") for number in range(30))
    database = await CountingDatabase.open(fleet.database_url, "stability", max_size=2)
    try:
        chance = np.random.default_rng(5)
        month = chance.choice(np.array([1, 1, 1, 2, 3], dtype=np.uint8), size=(30, 720 * 60))
        kinds = (STABILITY, AVAILABILITY)
        written = {(model.slo, kind): month[row] for row, model in enumerate(view.models.values()) for kind in kinds}
        await write_history(fleet.database_url, MINUTE, written)
        keeper = BudgetKeeper(database, StillFleet(view))
        begun = await keeper.refresh()
        assert database.minutes_read == 60 * 720 * 60
        assert await keeper.refresh() is begun
        assert database.minutes_read == 60 * 720 * 60

        bad = {(model.slo, kind): Slice.BAD for model in view.models.values() for kind in kinds}
        await write_minute(fleet.database_url, MINUTE + 1, bad)
        later = await keeper.refresh()
        assert later.minute == MINUTE + 1
        assert database.minutes_read <= 60 * 722 * 60
        fresh = await BudgetKeeper(database, StillFleet(view)).refresh()
        for kind in kinds:
            assert (later.histories[kind].recent[:, -1] == Slice.BAD).all()
            assert (fresh.histories[kind].recent == later.histories[kind].recent).all()
            assert (fresh.histories[kind].hours == later.histories[kind].hours).all()
    finally:
        await database.close()
