"""Import of a team's own list: doubts are listed before anything is written, and a repetition writes nothing."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.cli import main
from modelfleet.client import AsyncClient
from modelfleet.code.importing import WrongInput, valid_id
from modelfleet.code.kinds import ID
from modelfleet.code.mlflow import MlflowRegistry
from modelfleet.registry.v1 import registry_pb2 as pb
from tests.api.test_cli import Run, runner
from tests.support import mlflow_server
from tests.support.fleet import Fleet, fleet

LIST = """\
surface,task,version,team,uri,owner,role
Feed,CTR,1,Feed Ranking,s3://models/ctr/1,ann,BASELINE
Feed,CTR,2,Feed Ranking,s3://models/ctr/2,ann,
Stories,Like Rate,2026-10,Feed Ranking,s3://models/like/a,,
"""
MAPPING = """\
type:
  id: ${surface}_${task}
  team: teams/${team}
model:
  id: ${version}
  role: ${role}
  labels: {owner: "${owner}"}
  serving_spec:
    artifact: ${uri}
    command: [serve, "{port}"]
    flavor: flavors/cpu
"""


@pytest.fixture
async def running(database_url: str) -> AsyncIterator[Fleet]:
    async with fleet(database_url, ["registry"]) as found:
        async with found.client() as client:
            await client.registry.create_team(team_id="feed_ranking", team=pb.Team())
        yield found


@pytest.fixture
async def run(running: Fleet, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(running, "registry", capsys)


@pytest.fixture
async def client(running: Fleet) -> AsyncIterator[AsyncClient]:
    async with running.client() as found:
        yield found


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "list.csv").write_text(LIST)
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    return str(tmp_path / "list.csv"), str(tmp_path / "mapping.yaml")


async def revision(client: AsyncClient) -> int:
    return int((await client.registry.list_teams()).revision)


async def names(client: AsyncClient) -> list[str]:
    return [model.name async for model in client.registry.list_models_all(parent="modelTypes/-")]


async def test_a_list_becomes_types_and_models_and_a_repetition_changes_nothing(
    run: Run, client: AsyncClient, files: tuple[str, str]
) -> None:
    file, mapping = files
    command = ("registry", "import", "csv", file, "--mapping", mapping, "--adopt")
    looked = await run(*command, "--dry-run")
    assert looked.status == 0 and await revision(client) == 1
    assert "2 types and 3 models new, 0 entries there already, 0 doubts." in looked.out
    assert (
        "'Feed_CTR' becomes modelTypes/feed_ctr" in looked.out
        and "'1' becomes modelTypes/feed_ctr/models/v1" in looked.out
    )
    assert (await run(*command)).status == 1, "nobody is there to ask"
    done = await run(*command, "--yes")
    assert done.status == 0 and "5 of 5 entries written" in done.out, done.out + done.err
    assert await names(client) == [
        "modelTypes/feed_ctr/models/v1",
        "modelTypes/feed_ctr/models/v2",
        "modelTypes/stories_like_rate/models/v2026-10",
    ]
    ctr = await client.registry.get_model_type(name="modelTypes/feed_ctr")
    assert (ctr.team, ctr.baseline) == ("teams/feed_ranking", "modelTypes/feed_ctr/models/v1")
    model = await client.registry.get_model(name="modelTypes/feed_ctr/models/v2")
    assert (model.serving_spec.artifact, dict(model.labels)) == ("s3://models/ctr/2", {"owner": "ann"})
    before = await revision(client)
    again = await run(*command, "--yes")
    assert again.status == 0 and "0 types and 0 models new, 5 entries there already" in again.out
    assert await revision(client) == before
    # Cut off in the middle: what is missing is written, and no more.
    await client.registry.delete_model(name="modelTypes/feed_ctr/models/v2")
    assert "1 of 1 entries written" in (await run(*command, "--yes")).out
    assert (await client.registry.get_model_type(name="modelTypes/feed_ctr")).revision == ctr.revision


async def test_doubts_are_listed_before_anything_is_written_and_left_out_when_asked(
    run: Run, client: AsyncClient, tmp_path: Path
) -> None:
    spec = pb.Model().serving_spec
    spec.MergeFrom(type(spec)(command=["serve", "{port}"], flavor="flavors/cpu", artifact="s3://in-ledger"))
    registry = client.registry
    await registry.create_model_type(
        model_type_id="known", model_type=pb.ModelType(team="teams/feed_ranking", purpose="theirs")
    )
    await registry.create_model(parent="modelTypes/known", model_id="v1", model=pb.Model(serving_spec=spec))
    before = await revision(client)
    rows: list[dict[str, Any]] = [
        {"type": "fine", "model": "v1", "uri": "s3://fine"},
        {"type": "fine", "model": "v1", "uri": "s3://fine"},  # twice
        {"type": "fine", "model": "v2", "uri": "s3://fine"},  # the same artifact
        {"type": "fine", "model": "v3", "uri": "s3://3"},
        {"type": "fine", "model": "v3", "uri": "s3://other"},  # says otherwise
        {"type": "fine", "model": "V 4", "uri": "s3://4"},
        {"type": "fine", "model": "v_4", "uri": "s3://4b"},  # becomes the same id
        {"type": "fine", "model": "v-4", "uri": "s3://4c"},  # looks like it
        {"type": "Fi-ne", "model": "v1", "uri": "s3://5"},  # a type that looks like another
        {"type": "known", "model": "v1", "uri": "s3://changed"},  # otherwise in the ledger
        {"type": "kno_wn", "model": "v1", "uri": "s3://6"},  # looks like one in the ledger
        {"type": "fine", "model": "v7", "uri": "s3://in-ledger"},  # the artifact of one in the ledger
        {"type": "fine", "model": "", "uri": "s3://8"},  # no id
        {"type": "lost", "model": "v1", "uri": "s3://9", "team": "nobody"},  # a team that does not exist
        {"type": "odd", "model": "v1", "uri": "s3://10", "tier": "TIER9"},
    ]
    file = tmp_path / "list.jsonl"
    columns = {"team": "feed_ranking", "tier": ""}
    file.write_text("".join(json.dumps(columns | row) + "\n" for row in rows))
    command = ["registry", "import", "jsonl", str(file)]
    for part in (
        "type.id=${type}", "type.team=teams/${team}", "type.tier=${tier}", "model.id=${model}",
        "model.serving_spec.artifact=${uri}", 'model.serving_spec.command=[serve, "{port}"]',
        "model.serving_spec.flavor=flavors/cpu",
    ):  # fmt: skip
        command += ["--map", part]
    done = await run(*command, "--yes", "-o", "json")
    assert done.status == 1 and await revision(client) == before
    found = {(each["place"].rpartition(":")[2], each["kind"]) for each in json.loads(done.out)["findings"]}
    assert found == {
        ("2", "DUPLICATE"),
        ("3", "SAME_URI"),
        ("5", "DISAGREES"),
        ("7", "COLLISION"),
        ("8", "LOOKALIKE"),
        ("9", "LOOKALIKE"),
        ("10", "IN_LEDGER"),
        ("11", "LOOKALIKE"),
        ("12", "SAME_URI"),
        ("13", "INVALID"),
        ("14", "INVALID"),
        ("15", "INVALID"),
    }
    shown = await run(*command, "--yes")
    assert shown.status == 1 and "Nothing was written" in shown.out and "COLLISION" in shown.out
    assert "'s3://in-ledger' there and 's3://changed' here" in shown.out
    skipped = await run(*command, "--yes", "--skip")
    assert skipped.status == 0, skipped.out + skipped.err
    assert await names(client) == ["modelTypes/fine/models/v1", "modelTypes/known/models/v1"]
    anyway = await run(*command, "--yes", "--skip", "--anyway")
    assert anyway.status == 0, anyway.out + anyway.err
    assert "modelTypes/fine/models/v2" in await names(client) and "modelTypes/fi-ne/models/v1" in await names(client)
    assert (await registry.get_model(name="modelTypes/known/models/v1")).serving_spec.artifact == "s3://in-ledger"


async def test_what_the_registry_refuses_is_told_by_row(run: Run, client: AsyncClient, files: tuple[str, str]) -> None:
    file, mapping = files
    command = ("registry", "import", "csv", file, "--mapping", mapping, "--yes")
    wrong = await run(*command, "--map", "model.serving_spec.units_per_replica=-1")
    assert wrong.status == 1 and "list.csv:2: modelTypes/feed_ctr/models/v1 model.serving_spec.units" in wrong.err
    assert await names(client) == []


@pytest.mark.parametrize(
    ("text", "mapping", "said"),
    [
        ("a,b\n1,2,3\n", "type.id=${a}", "list.csv:2: has more fields than the header"),
        ("a,b\n1,2\n", "type.id=${c}", "list.csv:2: has no column 'c'; there are: a, b"),
        ("a,b\n1,2\n", "typ.id=${a}", "the mapping needs type.id"),
        ("a,b\n1,2\n", "type.id", "--map takes FIELD=VALUE"),
    ],
)
async def test_a_list_that_cannot_be_read_is_told_with_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, mapping: str, said: str
) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text)
    arguments = ["registry", "import", "csv", str(file), "--map", mapping, "--map", "model.id=${b}"]
    assert await asyncio.to_thread(main, arguments) == 1
    assert said in capsys.readouterr().err


@given(st.text(max_size=80))
def test_whatever_a_list_calls_it_becomes_a_valid_id_or_none(text: str) -> None:
    made = valid_id(text, "v")
    assert made == "" or ID.fullmatch(made)
    assert valid_id(made, "v") == made


# MLflow.


@pytest.fixture
async def mlflow(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a real MLflow server, which wants the token `sesame`."""
    assert mlflow_server.INSTALLED.is_dir(), "made by `make test`; alone: make build/mlflow/.installed"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", mlflow_server.__file__, str(tmp_path), "sesame",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield (await asyncio.wait_for(process.stdout.readline(), 90)).decode().strip()
    finally:
        process.kill()
        await process.wait()


def post(url: str, path: str, **body: Any) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sesame"}
    request = urllib.request.Request(f"{url}/api/2.0/mlflow/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def fill(url: str) -> None:
    for name in ("Feed CTR", "feed.like"):
        post(url, "registered-models/create", name=name, description=f"{name} of the feed")
        for number in (1, 2, 3):
            tags = [{"key": "owner", "value": "ann"}]
            post(url, "model-versions/create", name=name, source=f"s3://mlflow/{name}/{number}", tags=tags)
    post(url, "registered-models/alias", name="Feed CTR", alias="champion", version="2")
    post(url, "registered-models/alias", name="feed.like", alias="champion", version="3")
    post(url, "model-versions/transition-stage", name="Feed CTR", version="2", stage="Production",
         archive_existing_versions=False)  # fmt: skip


@pytest.mark.timeout(240)
async def test_a_real_mlflow_registry_is_imported_page_by_page(
    mlflow: str, run: Run, client: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(fill, mlflow)
    monkeypatch.setattr("modelfleet.code.mlflow._PAGE", 2)
    monkeypatch.setattr("modelfleet.code.mlflow._MODELS_PAGE", 1)
    token = tmp_path / "token"
    token.write_text("sesame\n")
    mapped = (
        "--map", "type.team=teams/feed_ranking", "--map", "model.serving_spec.flavor=flavors/cpu",
        "--map", 'model.serving_spec.command=[serve, "{port}"]', "--map", "model.labels.owner=${tags.owner}",
    )  # fmt: skip
    command = ("registry", "import", "mlflow", mlflow, *mapped, "--baseline-alias", "champion", "--adopt", "--yes")
    refused = await run(*command)
    assert refused.status == 1 and "401" in refused.err and "MLFLOW_TRACKING_TOKEN" in refused.err
    done = await run(*command, "--mlflow-token-file", str(token))
    assert done.status == 0 and "8 of 8 entries written" in done.out, done.out + done.err
    assert "sesame" not in done.out + done.err
    ctr = await client.registry.get_model_type(name="modelTypes/feed_ctr")
    assert (ctr.purpose, ctr.baseline) == ("Feed CTR of the feed", "modelTypes/feed_ctr/models/v2")
    like = await client.registry.get_model_type(name="modelTypes/feed_like")
    assert like.baseline == "modelTypes/feed_like/models/v3"
    model = await client.registry.get_model(name=ctr.baseline)
    assert model.checkpoint == model.serving_spec.artifact == "s3://mlflow/Feed CTR/2"
    assert dict(model.labels) == {"mlflow_stage": "Production", "owner": "ann"}
    before = await revision(client)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "sesame")
    again = await run(*command)
    assert again.status == 0 and "8 entries there already" in again.out, again.out + again.err
    assert await revision(client) == before
    nowhere = await run("registry", "import", "mlflow", f"{mlflow}/nowhere", *mapped)
    assert nowhere.status == 1 and "404" in nowhere.err


def test_credentials_are_neither_taken_from_an_address_nor_sent_in_plain_text() -> None:
    with pytest.raises(WrongInput, match="do not belong in the URL"):
        MlflowRegistry("https://user:secret@mlflow.example.com")
    with pytest.raises(WrongInput, match="without encryption"):
        MlflowRegistry("http://mlflow.example.com", "secret")
    with pytest.raises(WrongInput, match="must be http"):
        MlflowRegistry("mlflow.example.com")
