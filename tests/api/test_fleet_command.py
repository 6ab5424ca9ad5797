"""`modelfleet fleet generate`: into a real registry, into files that the registry takes, and not over a real fleet."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.synthetic import generate, is_synthetic
from tests.api.test_cli import Run, runner
from tests.support.fleet import Fleet, fleet

GRANTED = (serving_pb2.TIER0, serving_pb2.TIER1)


@pytest.fixture
async def services(database_url: str) -> AsyncIterator[Fleet]:
    async with fleet(database_url, ["registry"]) as running:
        yield running


@pytest.fixture
def run(services: Fleet, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(services, "registry", capsys)


async def registered(services: Fleet) -> tuple[list[pb.ModelType], list[pb.Model]]:
    async with services.client() as client:
        types = [each async for each in client.registry.list_model_types_all(page_size=1000)]
        models = [each async for each in client.registry.list_models_all(parent="modelTypes/-", page_size=1000)]
    return types, models


async def test_a_fleet_is_written_and_grows_when_it_is_written_with_more_types(services: Fleet, run: Run) -> None:
    asked = ("fleet", "generate", "--models-per-type", "5", "--seed", "16", "--apply")
    first = await run(*asked, "--types", "10", "-o", "json")
    assert first.status == 0, first.err
    made = json.loads(first.out)
    assert (made["model_types"], made["models"], made["unchanged"]) == (10, 50, 0)
    second = await run(*asked, "--types", "40")
    assert second.status == 0, second.err
    assert "30 model types with 150 models, and" in second.out
    assert "10 model types were there already" in second.out
    types, models = await registered(services)
    expected = {each.name: each for each in generate(40, 5, seed=16).model_types()}
    assert {each.name for each in types} == expected.keys()
    for each in types:
        asked_for = expected[each.name]
        assert is_synthetic(each)
        assert each.naming["surface"] == each.labels["surface"], "the naming scheme came first"
        assert (each.baseline, list(each.holdouts)) == (asked_for.baseline, list(asked_for.holdouts))
        assert list(each.splits) == list(asked_for.splits)
        assert list(each.upstream_types) == list(asked_for.upstream_types)
        assert each.tier == (serving_pb2.TIER2 if asked_for.tier in GRANTED else asked_for.tier)
    wanted = {each.name: each.tier for each in expected.values() if each.tier in GRANTED}
    async with services.client() as client:
        requests = [each async for each in client.registry.list_criticality_requests_all()]
    assert {each.resource: each.tier for each in requests} == wanted and len(wanted) == 3
    assert len(models) == 200 and all(map(is_synthetic, models))
    again = await run(*asked, "--types", "40")
    assert "0 model types with 0 models" in again.out


async def test_a_registry_of_a_real_fleet_is_left_alone(services: Fleet, run: Run) -> None:
    async with services.client() as client:
        await client.registry.create_team(team_id="real", team=pb.Team(on_call="pager"))
    refused = await run("fleet", "generate", "--types", "5", "--apply")
    assert refused.status == 1 and "entries that are not synthetic (teams/real)" in refused.err
    assert await registered(services) == ([], [])
    forced = await run("fleet", "generate", "--types", "5", "--models-per-type", "2", "--apply", "--force")
    assert forced.status == 0, forced.err
    assert len((await registered(services))[0]) == 5


async def test_files_are_what_the_registry_takes(services: Fleet, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    asked = ("fleet", "generate", "--types", "12", "--models-per-type", "3", "--out", str(folder))
    written = await run(*asked)
    assert written.status == 0, written.err
    one = next((folder / "types").glob("*.yaml"))
    assert yaml.safe_load(one.read_text())["labels"]["synthetic"] == "true"
    assert (await run("registry", "validate", str(folder))).status == 0
    assert (await run(*asked)).status == 1, "a folder with something in it is left alone"


async def test_without_a_place_to_write_to_it_is_summed_up(run: Run) -> None:
    shown = await run("fleet", "generate", "--types", "30", "--models-per-type", "4", "--seed", "3")
    assert shown.status == 0 and "Nothing was written" in shown.out
    assert "fleet generate --types 30 --models-per-type 4 --seed 3 --apply" in shown.out
    data = json.loads((await run("fleet", "generate", "--types", "30", "-o", "json")).out)
    assert data["model_types"] == 30 and data["models"] == 600
    assert sum(data["by_stage"].values()) == sum(data["by_tier"].values()) == 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--types", "0"], "types"),
        (["--types", "3", "--force"], "--force goes with --apply"),
        (["--types", "3", "--apply", "--out", "x"], "--out or --apply"),
    ],
)
async def test_what_does_not_go_together_is_refused(run: Run, arguments: list[str], said: str) -> None:
    refused = await run("fleet", "generate", *arguments)
    assert refused.status == 1 and said in refused.err
