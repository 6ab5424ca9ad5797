"""The registry is killed while it applies a file set: all of it is there or nothing, and a repetition finishes it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelfleet import AsyncClient
from modelfleet.cli import main
from modelfleet.registry.v1 import registry_pb2 as pb
from tests.support.chance import chosen
from tests.support.processes import Part, registry_process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

TYPES, MODELS = 12, 10
ENTRIES = 1 + TYPES * (1 + MODELS)


def write_files(folder: Path, team: str) -> None:
    """A team with types and models; every type is in a file of its own."""
    folder.mkdir()
    (folder / "team.yaml").write_text(f"name: teams/{team}\non_call: pager\n")
    spec = "{command: [serve, '{port}'], flavor: flavors/cpu}"
    for number in range(TYPES):
        models = "".join(f"- id: m{each}\n  serving_spec: {spec}\n" for each in range(MODELS))
        upstream = f"upstream_types: [modelTypes/{team}-{number - 1}]\n" if number else ""
        text = f"name: modelTypes/{team}-{number}\nteam: teams/{team}\n{upstream}models:\n{models}"
        (folder / f"t{number}.yaml").write_text(text)


@dataclass
class Ground:
    """A registry's database and address, through all of its lives."""

    url: str
    address: str = "127.0.0.1:0"

    @asynccontextmanager
    async def alive(self, failpoint: str = "") -> AsyncIterator[Part]:
        environment = {"MODELFLEET_FAILPOINT": failpoint} if failpoint else {}
        async with registry_process(self.url, self.address, environment) as (process, self.address):
            yield process

    async def run(self, *arguments: str) -> int:
        return await asyncio.to_thread(main, ["registry", *arguments, "--address", self.address, "--timeout", "5"])

    async def count(self, team: str) -> tuple[int, int]:
        """How many entries of a team's set there are, and the newest revision."""
        async with AsyncClient(self.address) as client:
            registry = client.registry
            names = [each.name async for each in registry.list_teams_all()]
            names += [each.name async for each in registry.list_model_types_all(page_size=1000)]
            names += [each.name async for each in registry.list_models_all(parent="modelTypes/-", page_size=1000)]
            mine = [name for name in names if name == f"teams/{team}" or name.startswith(f"modelTypes/{team}-")]
            return len(mine), (await registry.list_teams()).revision

    async def revisions_of(self, team: str) -> list[pb.Revision]:
        async with AsyncClient(self.address) as client:
            return list((await client.registry.list_revisions(resource=f"teams/{team}")).revisions)


_COMMIT = [("registry.before_commit.ApplyEntries", 0), ("registry.after_commit.ApplyEntries", ENTRIES)]


@pytest.mark.parametrize(("place", "there"), chosen(_COMMIT, 1))
async def test_a_registry_that_dies_at_the_commit_leaves_all_or_nothing(
    database_url: str, tmp_path: Path, place: str, there: int
) -> None:
    folder, plan = tmp_path / "fleet", tmp_path / "plan.json"
    write_files(folder, "a")
    ground = Ground(database_url)
    async with ground.alive():
        assert await ground.run("plan", str(folder), "--out", str(plan)) == 2
    async with ground.alive(f"{place}:kill") as registry:
        assert await ground.run("apply", "--plan", str(plan), "--yes") == 1, "the registry died and nobody answered"
        await asyncio.wait_for(registry.process.wait(), 30)
    async with ground.alive():
        assert await ground.count("a") == (there, 1 if there else 0)
        # The plan holds its request_id: repeated it finishes, or learns that it was finished.
        assert await ground.run("apply", "--plan", str(plan), "--yes") == 0
        assert await ground.count("a") == (ENTRIES, 1)
        (revision,) = await ground.revisions_of("a")
        assert len(revision.changes) == ENTRIES
    assert "revision: 1\n" in (folder / "t3.yaml").read_text()


async def test_a_registry_that_dies_at_any_time_while_it_applies_leaves_all_or_nothing(
    database_url: str, tmp_path: Path
) -> None:
    ground, chance = Ground(database_url), random.Random(31)
    for attempt in range(3):
        team = f"r{attempt}"
        folder, plan = tmp_path / team, tmp_path / f"{team}.json"
        write_files(folder, team)
        async with ground.alive() as registry:
            assert await ground.run("plan", str(folder), "--out", str(plan)) == 2
            applying = asyncio.create_task(ground.run("apply", "--plan", str(plan), "--yes"))
            await asyncio.sleep(chance.uniform(0.0, 0.6))
            registry.process.kill()
            applied = await applying == 0
        async with ground.alive():
            count, before = await ground.count(team)
            assert count in (0, ENTRIES), "a part of a set is never there"
            # Where it was quicker than the death, its files say the new revision and there is nothing left to plan.
            again = ("plan", str(folder)) if applied else ("apply", "--plan", str(plan), "--yes")
            assert await ground.run(*again) == 0
            count, after = await ground.count(team)
            assert (count, len(await ground.revisions_of(team))) == (ENTRIES, 1)
            assert after == attempt + 1 and before in (attempt, attempt + 1)
