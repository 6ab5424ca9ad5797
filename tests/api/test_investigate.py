"""Everything about a model on one screen, from real services, and from some that do not answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from modelfleet import AsyncClient, columns
from modelfleet.asking import Unknown
from modelfleet.cli import main
from modelfleet.common.v1 import serving_pb2
from modelfleet.incidents import Kind
from modelfleet.investigate import investigate
from modelfleet.lookup import Ambiguous, NothingFound
from modelfleet.mitigate import Action
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.assets_pb2 import Asset
from modelfleet.transport import Options, identity
from modelfleetd.kit.app import Service
from modelfleetd.registry.app import build as build_registry
from modelfleetd.stability.app import build as build_stability
from tests.support.addresses import free_address
from tests.support.black_hole import black_hole
from tests.support.front_door import door
from tests.support.incidents import shown
from tests.support.launcher import CTR, NEW, OLD, Fleet, launcher_fleet
from tests.support.registry_calls import Registry, populate
from tests.support.servers import channel_to, client_of, running
from tests.support.wait import until

# Long enough for a machine that does other things as well; what it takes is measured where that is what is tested.
PATIENT = 5.0


@dataclass
class Everything:
    """A route with a launch in flight, whose candidate predicts twice too much, and a type that depends on it."""

    fleet: Fleet
    services: dict[str, Service]

    def client(self, principal: str | None = None, **elsewhere: str) -> AsyncClient:
        """A client that tries once, of these services or of others at another address."""
        addresses: dict[str, Any] = {name: service.address for name, service in self.services.items()}
        return AsyncClient(
            "127.0.0.1:1", options=Options(metadata=identity(principal, None), attempts=1), **(addresses | elsewhere)
        )


@asynccontextmanager
async def everything(database_url: str) -> AsyncIterator[Everything]:
    async with AsyncExitStack() as stack:
        prediction = {"calibration_range": pb.Range(low=0.8, high=1.25)}
        fleet = await stack.enter_async_context(launcher_fleet(database_url, prediction=prediction))
        registry = fleet.registry
        stability = await stack.enter_async_context(
            running("stability", build_stability, database_url, registry_address=registry.address)
        )
        client = await stack.enter_async_context(client_of(registry, stability))
        await _describe(client)
        await _write(client, NEW, predicted=0.4, happened=0.2)
        await _write(client, OLD, predicted=0.2, happened=0.2)
        await fleet.create(bake=600)

        async def has_traffic() -> bool:
            progress = (await fleet.get()).progress
            return any(region.candidate.intended_basis_points for region in progress)

        await until(has_traffic, timeout=30)
        await fleet.client.launcher.pause_launch(name="launches/l1", reason="a look at the graphs")
        await fleet.observe()
        yield Everything(fleet, {**fleet.services, "launcher": fleet.launcher, "stability": stability})


async def _describe(client: AsyncClient) -> None:
    registry = client.registry
    await registry.update_team(team=pb.Team(name="teams/feed", contacts=["bob", "group:ranking"]))
    described = pb.ModelType(
        name=CTR,
        purpose="Ranks feed stories by the chance of a click.",
        funnel_stage=pb.LATE_STAGE_RANKING,
        tier=serving_pb2.TIER3,
        labels={"surface": "feed"},
    )
    await registry.update_model_type(model_type=described, reason="say what it is for")
    for name, upstream, tier in (("sourcing", [], serving_pb2.TIER4), ("home", [CTR], serving_pb2.TIER2)):
        made = pb.ModelType(team="teams/feed", regions=["regions/eu"], upstream_types=upstream, tier=tier)
        await registry.create_model_type(model_type_id=name, model_type=made)
    await registry.update_model_type(
        model_type=pb.ModelType(name=CTR, upstream_types=["modelTypes/sourcing"]), reason="it ranks what is found"
    )


async def _write(client: AsyncClient, model: str, *, predicted: float, happened: float) -> None:
    """Examples of an hour ago, as many as it takes to be sure."""
    count = 5_000
    label = np.zeros(count, dtype=np.uint8)
    label[: int(count * happened)] = 1
    request = columns.examples(
        model_type=CTR,
        producer=model,
        sequence=1,
        model=model,
        prediction="click",
        event_time=[datetime.now(UTC) - timedelta(minutes=100)] * count,
        score=np.full(count, predicted),
        label=label,
    )
    assert (await client.stability.write_examples(request)).accepted_rows == count


def known(value: Any) -> Any:
    assert not isinstance(value, Unknown), value
    return value


def reason(value: Any) -> str:
    assert isinstance(value, Unknown), value
    return value.reason


async def test_one_screen_answers_what_somebody_asks_who_was_just_paged(database_url: str) -> None:
    async with everything(database_url) as running_, running_.client() as client:
        found = await investigate(client, "ctr/new", within=PATIENT)

        assert (found.model, found.role) == (NEW, "CANDIDATE")
        assert known(found.type).purpose == "Ranks feed stories by the chance of a click."
        assert known(found.type).funnel_stage == pb.LATE_STAGE_RANKING
        assert (known(found.criticality).own, known(found.criticality).required) == ("TIER3", "TIER2")
        assert (known(found.team).on_call, list(known(found.team).contacts)) == ("pager", ["bob", "group:ranking"])
        (split,) = known(found.type).splits
        assert [(share.model, share.share_basis_points) for share in split.shares] == [(OLD, 10_000)]
        (status,) = known(found.statuses)
        assert NEW in [serving.model for serving in status.models]
        (judgement,) = known(found.judgements)
        assert judgement.verdict == serving_pb2.FAIL
        assert judgement.findings[0].candidate.calibration.value == pytest.approx(2.0)
        (launch,) = known(found.launches)
        assert launch.name == "launches/l1" and launch.summary
        assert known(found.ended_launches) == []
        assert "say what it is for" in [revision.reason for revision in known(found.changes)]
        assert [each.name for each in known(found.upstream).types] == ["modelTypes/sourcing"]
        assert [(each.name, each.tier) for each in known(found.downstream).types] == [("modelTypes/home", "TIER2")]
        assert known(found.certificate).max_qps > 0
        assert known(found.alerts) == []
        assert [problem.kind for problem in found.problems] == [Kind.IRRELEVANT, Kind.LAUNCH_PAUSED]
        assert known(found.response).action is Action.ABORT_LAUNCH

        lines = shown(found)
        assert len(lines) <= 40 and max(map(len, lines)) <= 100, "\n".join(lines)
        text = "\n".join(lines)
        for said in (
            "ctr/new  CANDIDATE  TIER2",
            "late stage ranking, surface feed",
            "unstable: calibration of click is 2 (99 % interval ",
            "launch paused: launches/l1 is paused by local: a look at the graphs, for ",
            "modelfleet mitigate ctr/new",
            "feed: on call pager, then bob, group:ranking",
            "own TIER3, required TIER2",
            "none fires",
            "click       FAIL",
            "home TIER2",
            "sourcing TIER2",
        ):
            assert said in text, text
        # What matters at once is above what explains it.
        assert text.index("WRONG NOW") < text.index("DO\n") < text.index("OWNER") < text.index("CHANGES")


async def test_a_model_type_stands_for_its_baseline(database_url: str) -> None:
    async with everything(database_url) as running_, running_.client() as client:
        for query in ("ctr", CTR, OLD, " ctr/old "):
            found = await investigate(client, query, within=PATIENT)
            assert (found.model, found.role) == (OLD, "BASELINE")
        assert known(found.response).action is Action.PAGE_OWNER
        assert 'modelfleet launch abort l1 --reason "…"' in known(found.response).commands

        home = await investigate(client, "home", within=PATIENT)
        assert (home.model, home.role, known(home.entry)) == ("", "", None)
        assert "home  no baseline  TIER2" in shown(home)[0]

        for query, said in (("ctr/nope", f"{CTR}/models/nope does not exist"), ("modelTypes/nope", "does not exist")):
            with pytest.raises(NothingFound, match=said):
                await investigate(client, query, within=PATIENT)


async def test_what_hangs_or_is_away_is_unknown_with_the_reason_and_the_rest_comes_within_300_ms(
    database_url: str,
) -> None:
    async with everything(database_url) as running_, black_hole() as hole:
        for address in (hole, "127.0.0.1:1"):
            async with running_.client(stability=address, launcher=address, capacity=address) as client:
                # The best of a few: other things run on the machine that tests.
                tries = [await investigate(client, "ctr/new") for _ in range(5)]
            found = min(tries, key=lambda each: each.elapsed)
            assert found.elapsed < 0.3
            assert reason(found.judgements).startswith("stability d")  # does not answer, or did not in time
            assert reason(found.launches).startswith("launcher d")
            assert reason(found.certificate).startswith("capacity d")
            assert known(found.team).on_call == "pager"
            assert known(found.changes) and known(found.statuses)
            # Nobody knows whether a launch brings it in, so people decide.
            assert known(found.response).action is Action.PAGE_OWNER
            text = "\n".join(shown(found))
            assert "(not seen: stability, launches, alerts)" in text
            assert "STABILITY   unknown: stability d" in text

        for address in (hole, "127.0.0.1:1"):
            async with running_.client(registry=address) as client:
                tries = [await investigate(client, NEW) for _ in range(5)]
            found = next(each for each in tries if not isinstance(each.judgements, Unknown))
            assert min(each.elapsed for each in tries) < 0.3
            assert reason(found.type) == reason(found.response) == reason(found.entry)
            assert [launch.name for launch in known(found.launches)] == ["launches/l1"]
            assert [judgement.verdict for judgement in known(found.judgements)] == [serving_pb2.FAIL]
            assert known(found.certificate).model == NEW
            assert "unknown: registry d" in "\n".join(shown(found))


async def test_a_model_is_found_by_whatever_somebody_knows_of_it(database_url: str, capsys: Any) -> None:
    async with running("registry", build_registry, database_url) as service, channel_to(service) as channel:
        calls = Registry(channel)
        await populate(calls)
        await calls.CreateModelType(
            model_type_id="ctr_late", model_type=pb.ModelType(team="teams/feed", regions=["regions/eu"])
        )
        serving = Asset(kind=Asset.INFERENCE_SERVICE, uri="10.0.0.7:8001", team="teams/feed", models=[NEW])
        board = Asset(kind=Asset.DASHBOARD, uri="https://boards.example.org/ctr", team="teams/feed", model_types=[CTR])
        await calls.CreateAsset(asset_id="serving", asset=serving)
        await calls.CreateAsset(asset_id="board", asset=board)
        async with AsyncClient("127.0.0.1:1", registry=service.address, options=Options(attempts=1)) as client:
            for query, model in (
                ("10.0.0.7:8001", NEW),
                ("https://boards.example.org/ctr", OLD),
                ("ctr", OLD),
                ("tr_lat", ""),
            ):
                assert (await investigate(client, query, within=PATIENT)).model == model, query
            with pytest.raises(Ambiguous):
                await investigate(client, "tr", within=PATIENT)
            with pytest.raises(NothingFound):
                await investigate(client, "https://boards.example.org/none", within=PATIENT)
        capsys.readouterr()
        assert await asyncio.to_thread(main, ["investigate", "tr", "--within", "5s", "--address", service.address]) == 1
        printed = capsys.readouterr()
        assert "ctr_late" in printed.out and "say which: modelfleet investigate" in printed.err


@asynccontextmanager
async def stability_process(of: Everything) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """One more stability on the same database, as a process of its own; gives its address too."""
    address = free_address()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modelfleetd", "stability", f"--listen={address}", "--log-level=warning"),
        *(f"--database-url={of.fleet.database_url}", f"--registry-address={of.services['registry'].address}"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
        yield process, address
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        await process.wait()


async def test_a_service_that_stops_in_the_middle_costs_no_more_than_the_time_that_is_given(database_url: str) -> None:
    async with (
        everything(database_url) as running_,
        stability_process(running_) as (process, address),
        running_.client(stability=address) as client,
    ):
        found = await investigate(client, "ctr/new", within=PATIENT)
        assert [judgement.verdict for judgement in known(found.judgements)] == [serving_pb2.FAIL]
        process.send_signal(signal.SIGSTOP)
        tries = [await investigate(client, "ctr/new") for _ in range(5)]
        found = min(tries, key=lambda each: each.elapsed)
        assert found.elapsed < 0.3
        assert reason(found.judgements) == "stability did not answer within 0.25 s"
        assert known(found.launches) and known(found.team).on_call == "pager"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    async def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = await asyncio.to_thread(main, list(arguments))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


async def test_the_command_prints_the_screen_or_the_same_as_data(
    database_url: str, tmp_path: Path, printed: Any
) -> None:
    async with everything(database_url) as running_:
        addresses = {name: service.address for name, service in running_.services.items()}
        async with door(tmp_path, addresses) as address:
            where = ["--within", "5s", "--address", address]
            status, out, err = await printed("investigate", "ctr/new", *where)
            assert (status, err) == (0, "") and out.startswith("ctr/new  CANDIDATE  TIER2"), out
            status, out, err = await printed("investigate", "ctr/new", "-o", "json", *where)
            data = json.loads(out)
            assert (status, err) == (0, "")
            assert data["model"] == NEW and data["team"]["on_call"] == "pager"
            assert data["alerts"] == []
            assert data["problems"][0]["kind"] == "IRRELEVANT"
            assert data["response"]["action"] == "ABORT_LAUNCH"
            status, out, err = await printed("investigate", "ctr/nope", *where)
            assert (status, out) == (1, "") and "ctr/models/nope does not exist" in err and err.count("\n") == 1
