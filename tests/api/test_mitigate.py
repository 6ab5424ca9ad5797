"""Experiments are ended, launches taken back, baselines left alone: from the command line, on real services."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.cli import main
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.platform.model import DesiredModel, DesiredServing, Fence, ModelShare, TargetKind
from tests.support.front_door import door
from tests.support.launcher import CPU, CTR, EU, NEW, OLD, POOL, SPEC, TARGET, Fleet, launcher_fleet
from tests.support.wait import until

Run = Callable[..., Awaitable[tuple[int, str, str]]]


@asynccontextmanager
async def commands(
    database_url: str, folder: Path, capsys: pytest.CaptureFixture[str], **given: Any
) -> AsyncIterator[tuple[Fleet, Run]]:
    """A route, and `modelfleet mitigate` to be run on it."""
    async with launcher_fleet(database_url, **given) as fleet:
        addresses = {name: service.address for name, service in fleet.services.items()}
        async with door(folder, addresses | {"launcher": fleet.launcher.address}) as address:

            async def run(*arguments: str) -> tuple[int, str, str]:
                capsys.readouterr()
                status = await asyncio.to_thread(main, ["mitigate", *arguments, "--address", address])
                printed = capsys.readouterr()
                return status, printed.out, printed.err

            yield fleet, run


async def _revision(fleet: Fleet) -> int:
    return (await fleet.client.registry.list_revisions(page_size=1)).revisions[0].number


async def test_a_baseline_is_refused_with_whom_to_page_and_nothing_changes(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with commands(database_url, tmp_path, capsys) as (fleet, run):
        before = await _revision(fleet)
        status, out, err = await run("ctr", "--yes", "--reason", "it misbehaves")
        assert (status, err) == (1, "")
        assert out.startswith("ctr/old  BASELINE  no tier\nIt is the baseline of ctr: never simply turn it off.\n")
        assert "Page its owner now: pager (team feed)." in out
        status, out, _ = await run("ctr/old", "--yes", "-o", "json")
        data = json.loads(out)
        assert (status, data["done"], data["response"]["action"]) == (1, False, "PAGE_OWNER")
        assert data["response"]["on_call"] == "pager"

        status, out, _ = await run("ctr/new", "--yes")
        assert status == 0 and "It is a candidate that no launch is bringing in: it takes no traffic" in out
        assert await _revision(fleet) == before
        assert list((await fleet.client.launcher.list_launches()).launches) == []
        status, out, err = await run("ctr/nope", "--yes")
        assert (status, out) == (1, "") and "ctr/models/nope does not exist" in err and err.count("\n") == 1


async def test_what_a_launch_is_bringing_in_is_taken_back(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with commands(database_url, tmp_path, capsys) as (fleet, run):
        await fleet.create(bake=600)
        await fleet.reaches(launcher_pb2.Launch.SHIFTING)
        status, out, _ = await run("ctr/old", "--yes")
        assert status == 1 and 'modelfleet launch abort l1 --reason "…"' in out

        status, out, _ = await run("ctr/new", "--dry-run")
        assert status == 0 and "launches/l1 is bringing it in" in out and "nothing was changed" in out
        status, out, err = await run("ctr/new")
        assert status == 1 and "give --yes" in err
        assert not (await fleet.get()).HasField("abort")

        status, out, _ = await run("ctr/new", "--yes", "--reason", "it answers nonsense")
        assert status == 0 and out.endswith("follow it: modelfleet launch watch l1\n")

        async def back() -> bool:
            return (await fleet.get()).state == launcher_pb2.Launch.ROLLED_BACK

        await until(back, timeout=30)
        assert (await fleet.get()).abort.reason == "it answers nonsense"
        assert (await fleet.client.registry.get_model_type(name=CTR)).baseline == OLD


async def test_an_experiment_is_ended_in_one_action(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with commands(database_url, tmp_path, capsys, serving=False) as (fleet, run):
        await _serve_an_experiment(fleet)
        status, out, err = await run("ctr/new", "--dry-run")
        assert status == 0 and "It is an experiment: it may be ended in one action. Its 10% of the traffic" in out, err
        assert (await fleet.client.registry.get_model(name=NEW)).role == pb.Model.EXPERIMENT

        status, out, err = await run("ctr/new", "--yes", "--reason", "it answers nonsense", "-o", "json")
        launch = json.loads(out)["launch"]
        assert (status, launch["strategy"], launch["pool"], launch["candidate"]) == (
            0,
            "END_EXPERIMENT",
            "pools/feed",
            NEW,
        ), err
        await fleet.reaches(launcher_pb2.Launch.SUCCEEDED, launch["name"])
        assert (await fleet.client.registry.get_model(name=NEW)).role == pb.Model.RETIRED
        (split,) = (await fleet.client.registry.get_model_type(name=CTR)).splits
        assert [(share.model, share.share_basis_points) for share in split.shares] == [(OLD, 10_000)]
        await fleet.observe()
        status, out, _ = await run("ctr/new", "--yes")
        assert status == 0 and "It is retired: it takes no traffic" in out


async def _serve_an_experiment(fleet: Fleet) -> None:
    """The baseline with 90 % of the traffic and an experiment with 10 %, as served before there was a registry."""
    models = (DesiredModel(OLD, SPEC, 45), DesiredModel(NEW, SPEC, 5))
    await fleet.simulator.apply(TARGET, TargetKind.ROUTE, Fence(1, "before"), DesiredServing(models))

    async def up() -> bool:
        observed = await fleet.simulator.observe(TARGET)
        return [observed.model(name).available_replicas for name in (OLD, NEW)] == [45, 5]

    await until(up)
    shares = (ModelShare(OLD, 9_000), ModelShare(NEW, 1_000))
    await fleet.simulator.apply(TARGET, TargetKind.ROUTE, Fence(1, "traffic"), DesiredServing(models, shares))

    async def split() -> bool:
        return (await fleet.simulator.observe(TARGET)).model(NEW).acknowledged_basis_points == 1_000

    await until(split)
    await fleet.client.registry.adopt_serving(
        model_type=CTR,
        role_changes=[
            pb.RoleChange(model=OLD, role=pb.Model.BASELINE),
            pb.RoleChange(model=NEW, role=pb.Model.EXPERIMENT),
        ],
        splits=[
            serving_pb2.RegionSplit(
                region="regions/eu",
                shares=[
                    serving_pb2.ModelShare(model=OLD, share_basis_points=9_000),
                    serving_pb2.ModelShare(model=NEW, share_basis_points=1_000),
                ],
            )
        ],
    )
    await fleet.client.capacity.book_usage(
        pool=POOL,
        usages=[
            capacity_pb2.ModelUnits(model=model, flavor=CPU, region=EU, units=units)
            for model, units in ((OLD, 45), (NEW, 5))
        ],
    )
