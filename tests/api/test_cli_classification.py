"""What programs get of schemas, names and assets on the command line; the README's examples show what people see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from modelfleet.cli import main
from tests.support.fleet import fleet

Run = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
async def run(database_url: str, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Run]:
    """Runs a command line against a registry with one team and one model type: its exit status, and what it printed."""
    async with fleet(database_url, ["registry"]) as running:

        async def command(*arguments: str) -> tuple[int, str]:
            capsys.readouterr()
            status = await asyncio.to_thread(main, [*arguments, "--address", running.services["registry"].address])
            printed = capsys.readouterr()
            return status, printed.out + printed.err

        await command("registry", "team", "create", "feed")
        await command("registry", "type", "create", "feed_ctr", "--set", "team=teams/feed")
        yield command


def written(path: Path, data: object) -> str:
    path.write_text(yaml.safe_dump(data))
    return str(path)


async def test_a_schema_is_checked_against_what_there_is_before_it_is_written(run: Run, tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["owner"], "properties": {"owner": {"type": "string"}}}
    file = written(tmp_path / "schema.yaml", {"target": "MODEL_TYPE", "schema": schema})
    status, printed = await run("registry", "schema", "check", "owners", "-f", file, "-o", "json")
    assert status == 1
    assert json.loads(printed) == {
        "schema": "extensionSchemas/owners",
        "count": 1,
        "entries": [
            {"entry": "modelTypes/feed_ctr", "problem": "attributes.owner is required (extensionSchemas/owners)"}
        ],
    }
    assert (await run("registry", "schema", "get", "owners"))[0] == 1, "a check writes nothing"
    await run("registry", "type", "update", "feed_ctr", "--set", "attributes.owner=ann")
    assert (await run("registry", "schema", "check", "owners", "-f", file))[0] == 0
    assert (await run("registry", "schema", "create", "owners", "-f", file))[0] == 0
    # Of a schema that exists, the change is checked.
    stricter = written(tmp_path / "schema.yaml", {"schema": schema | {"required": ["owner", "pii"]}})
    status, printed = await run("registry", "schema", "check", "owners", "-f", stricter, "-o", "json")
    assert (status, json.loads(printed)["count"]) == (1, 1)
    # What is shown can be sent back.
    _, shown = await run("registry", "schema", "get", "owners", "-o", "yaml")
    same = written(tmp_path / "schema.yaml", yaml.safe_load(shown))
    assert (await run("registry", "schema", "update", "owners", "-f", same))[1] == shown


async def test_an_id_is_explained_to_programs_with_its_status(run: Run, tmp_path: Path) -> None:
    assert (await run("registry", "name", "explain", "feed_ctr"))[0] == 0, "there is no scheme to fit"
    fields = [{"id": "surface", "words": [{"word": "feed", "meaning": "The feed"}]}, {"id": "what", "pattern": "c.*"}]
    file = written(tmp_path / "scheme.yaml", {"fields": fields})
    assert (await run("registry", "scheme", "create", "ours", "-f", file))[0] == 0
    status, printed = await run("registry", "name", "explain", "feed_ctr", "-o", "json")
    assert (status, json.loads(printed)["valid"]) == (0, True)
    status, printed = await run("registry", "name", "explain", "fed_ctr", "--scheme", "ours", "-o", "json")
    assert (status, json.loads(printed)["parts"][0]["accepted"]) == (1, ["feed"])


async def test_what_is_found_is_told_to_programs(run: Run) -> None:
    asset = ("kind=DATASET", "uri=s3://data", "team=teams/feed", "model_types=[modelTypes/feed_ctr]")
    fields = [part for assignment in asset for part in ("--set", assignment)]
    assert (await run("registry", "asset", "create", "data", *fields))[0] == 0
    status, printed = await run("registry", "find", "s3://data", "-o", "json")
    assert (status, json.loads(printed)) == (
        0,
        [
            {
                "resource": "modelTypes/feed_ctr",
                "basis": "ASSET_URI",
                "matched": "s3://data",
                "asset": "assets/data",
            }
        ],
    )
    assert json.loads((await run("registry", "find", "nothing", "-o", "json"))[1]) == []
