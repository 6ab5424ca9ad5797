"""The fleet as files, as a team works with it: exported, edited, planned, applied, and kept in step as Git commits."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelfleet.cli import main
from modelfleet.client import AsyncClient
from modelfleet.registry.v1 import registry_pb2 as pb
from tests.api.test_cli import Done
from tests.support.fleet import Fleet, fleet
from tests.support.registry_calls import CTR, NEW, OLD, spec, split, swap
from tests.support.wait import until


@dataclass
class Desk:
    """A person with a folder of files, a command line, and a registry in which somebody else works as well."""

    folder: Path
    client: AsyncClient
    address: str
    capsys: pytest.CaptureFixture[str]

    async def run(self, *arguments: str) -> Done:
        self.capsys.readouterr()
        status = await asyncio.to_thread(main, ["registry", *arguments, "--address", self.address])
        printed = self.capsys.readouterr()
        return Done(status, printed.out, printed.err)

    async def export(self, *arguments: str) -> Done:
        return await self.run("export", str(self.folder), *arguments)

    def file(self, name: str) -> Path:
        return self.folder / name

    def edit(self, name: str, old: str, new: str) -> None:
        text = self.file(name).read_text()
        assert old in text, text
        self.file(name).write_text(text.replace(old, new, 1))

    async def revision(self) -> int:
        return int((await self.client.registry.list_teams()).revision)

    async def launch(self, launch: str = "launches/l1") -> None:
        ctr = await self.client.registry.get_model_type(name=CTR)
        await self.client.registry.finalize_launch(**swap(ctr.revision, launch, reason="better clicks"))


async def populate(client: AsyncClient) -> None:
    registry = client.registry
    await registry.create_team(team_id="feed", team=pb.Team(on_call="pager"))
    await registry.create_region(region_id="eu", region=pb.Region(agent_address="127.0.0.1:9000"))
    ctr = pb.ModelType(
        team="teams/feed", regions=["regions/eu"], purpose="clicks", predictions=[pb.Prediction(id="click")]
    )
    await registry.create_model_type(model_type_id="ctr", model_type=ctr)
    for key in ("old", "new"):
        await registry.create_model(parent=CTR, model_id=key, model=pb.Model(serving_spec=spec()))
    roles = [pb.RoleChange(model=OLD, role=pb.Model.BASELINE)]
    await registry.adopt_serving(model_type=CTR, role_changes=roles, splits=[split(old=10_000)])


@pytest.fixture
async def running(database_url: str) -> AsyncIterator[Fleet]:
    async with fleet(database_url, ["registry"]) as found:
        yield found


@pytest.fixture
async def desk(running: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Desk]:
    async with running.client() as client:
        await populate(client)
        yield Desk(tmp_path / "fleet", client, running.services["registry"].address, capsys)


async def test_what_is_exported_is_valid_and_nothing_to_change(desk: Desk) -> None:
    made = await desk.export()
    assert made.status == 0 and "3 files written" in made.out, made.err
    assert sorted(str(path.relative_to(desk.folder)) for path in desk.folder.rglob("*.yaml")) == [
        "regions/eu.yaml", "teams/feed.yaml", "types/ctr.yaml",
    ]  # fmt: skip
    ctr = yaml.safe_load(desk.file("types/ctr.yaml").read_text())
    assert (ctr["name"], ctr["purpose"], ctr["baseline"]) == (CTR, "clicks", OLD)
    assert ctr["revision"] == (await desk.client.registry.get_model_type(name=CTR)).revision
    assert {model["id"]: model["role"] for model in ctr["models"]} == {"old": "BASELINE", "new": "CANDIDATE"}
    assert "uid" not in ctr and "etag" not in ctr and "digest" not in str(ctr)
    for command in (("validate",), ("validate", "--offline"), ("plan",), ("drift",), ("apply",)):
        done = await desk.run(*command, str(desk.folder))
        assert done.status == 0, f"{command}: {done.out}{done.err}"
    assert "No changes" in (await desk.run("plan", str(desk.folder))).out
    before = {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*.yaml")}
    assert "0 files written" in (await desk.export()).out
    assert {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*.yaml")} == before


async def test_an_edit_is_planned_as_a_diff_and_applied_in_one_revision_that_leaves_the_comments(desk: Desk) -> None:
    await desk.export()
    desk.edit("types/ctr.yaml", "purpose: clicks", "# Said by the ranking guild.\npurpose: clicks of the feed")
    desk.edit("types/ctr.yaml", "- id: new\n", "- id: new\n  description: a wider tower\n")
    desk.file("teams/ads.yaml").write_text("name: teams/ads  # new here\non_call: pager-ads\n")
    before = desk.file("types/ctr.yaml").read_text()
    planned = await desk.run("plan", str(desk.folder))
    assert planned.status == 2
    assert f"updated {CTR}" in planned.out and f"updated {NEW}" in planned.out and "created teams/ads" in planned.out
    assert "  - purpose: clicks\n  + purpose: clicks of the feed\n" in planned.out
    assert "1 to create, 2 to change, 0 to delete." in planned.out
    data = json.loads((await desk.run("plan", str(desk.folder), "-o", "json")).out)
    assert data["summary"] == {"created": 1, "changed": 2, "deleted": 0}
    revision = await desk.revision()
    refused = await desk.run("apply", str(desk.folder))
    assert refused.status == 1 and "--yes" in refused.err and await desk.revision() == revision
    applied = await desk.run("apply", str(desk.folder), "--yes", "--reason", "wider")
    assert applied.status == 0 and f"Applied as revision {revision + 1}" in applied.out, applied.err
    stored = await desk.client.registry.get_revision(name=f"revisions/{revision + 1}")
    assert {change.resource for change in stored.changes} == {"teams/ads", CTR, NEW} and stored.reason == "wider"
    after = desk.file("types/ctr.yaml").read_text()
    assert after == before.replace(f"revision: {revision}\n", f"revision: {revision + 1}\n")
    written = desk.file("teams/ads.yaml").read_text()
    assert written == f"name: teams/ads  # new here\nrevision: {revision + 1}\non_call: pager-ads\n"
    assert (await desk.run("plan", str(desk.folder))).status == 0


async def test_what_the_registry_refuses_is_told_at_the_line_of_the_file(desk: Desk) -> None:
    await desk.export()
    desk.edit("types/ctr.yaml", "team: teams/feed", "team: teams/nope")
    desk.edit("types/ctr.yaml", "- serve", "- other")
    lines = desk.file("types/ctr.yaml").read_text().splitlines()
    for command in ("validate", "plan", "apply"):
        done = await desk.run(command, str(desk.folder))
        assert done.status == 1
        team, model = done.out.splitlines()[:2]
        assert team.startswith(f"{desk.folder}/types/ctr.yaml:{lines.index('team: teams/nope') + 1}: team: ")
        assert "teams/nope, which does not exist" in team and "serving_spec" in model and "cannot change" in model
    offline = await desk.run("validate", str(desk.folder), "--offline")
    assert offline.status == 0, "what does not exist only the registry knows"
    desk.edit("types/ctr.yaml", "purpose: clicks", "purpse: clicks")
    mistaken = await desk.run("validate", str(desk.folder), "-o", "json")
    (problem,) = json.loads(mistaken.out)
    assert problem["line"] == lines.index("purpose: clicks") + 1 and "did you mean 'purpose'?" in problem["text"]
    assert mistaken.status == 1


async def test_files_are_checked_without_a_registry(desk: Desk) -> None:
    await desk.export()
    status = await asyncio.to_thread(
        main, ["registry", "validate", str(desk.folder), "--address", "127.0.0.1:1", "--timeout", "1"]
    )
    printed = desk.capsys.readouterr()
    assert status == 0 and "does not answer" in printed.err and "Valid: 1 team, 1 region, 1 model type" in printed.out


async def test_what_both_changed_is_shown_three_ways_and_nothing_is_written(desk: Desk) -> None:
    await desk.export()
    was = await desk.revision()
    await desk.client.registry.update_model_type(
        model_type=pb.ModelType(name=CTR, purpose="taps", labels={"site": "zrh"}), reason="renamed"
    )
    desk.edit("types/ctr.yaml", "purpose: clicks", "purpose: views\nfunnel_stage: SOURCING")
    revision = await desk.revision()
    for command in (("plan",), ("apply", "--yes")):
        done = await desk.run(*command, str(desk.folder))
        assert done.status == 1
        assert f"in step at {was}: clicks\n    ledger now: taps\n    file: views\n" in done.out
        assert f"{CTR} labels.site" in done.out, "the label is newer in the ledger, and no conflict"
    assert await desk.revision() == revision
    # Settled in the file: the rest goes, and what is newer in the ledger stays as it is there.
    desk.edit("types/ctr.yaml", "purpose: views", "purpose: taps")
    assert (await desk.run("apply", str(desk.folder), "--yes")).status == 0
    ctr = await desk.client.registry.get_model_type(name=CTR)
    assert (ctr.purpose, ctr.funnel_stage, dict(ctr.labels)) == ("taps", pb.SOURCING, {"site": "zrh"})
    done = await desk.run("plan", str(desk.folder))
    assert done.status == 0 and "labels.site" in done.out, "the file still lacks the label, and does not take it away"
    assert (await desk.run("drift", str(desk.folder))).status == 2
    assert (await desk.export()).status == 0
    assert (await desk.run("drift", str(desk.folder))).status == 0


async def test_a_kept_plan_is_applied_exactly_or_not_at_all(desk: Desk, tmp_path: Path) -> None:
    await desk.export()
    desk.edit("teams/feed.yaml", "on_call: pager", "on_call: alice")
    kept = tmp_path / "plan.json"
    assert (await desk.run("plan", str(desk.folder), "--out", str(kept))).status == 2
    first = kept.read_text()
    desk.edit("teams/feed.yaml", "on_call: alice", "on_call: bob")
    changed = await desk.run("apply", "--plan", str(kept), "--yes")
    assert changed.status == 1 and "has changed since" in changed.err
    desk.edit("teams/feed.yaml", "on_call: bob", "on_call: alice")
    assert (await desk.run("apply", "--plan", str(kept), "--yes")).status == 0
    assert (await desk.client.registry.get_team(name="teams/feed")).on_call == "alice"
    # Somebody is faster than the next one.
    desk.edit("teams/feed.yaml", "on_call: alice", "on_call: carol")
    assert (await desk.run("plan", str(desk.folder), "--out", str(kept))).status == 2
    assert kept.read_text() != first
    await desk.client.registry.update_team(team=pb.Team(name="teams/feed", display_name="Feed"))
    late = await desk.run("apply", "--plan", str(kept), "--yes")
    assert late.status == 1 and "teams/feed has changed since the plan; nothing was applied" in late.err
    assert (await desk.client.registry.get_team(name="teams/feed")).on_call == "alice"
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert "is no plan" in (await desk.run("apply", "--plan", str(other), "--yes")).err


async def test_what_launches_own_is_never_applied_and_a_launch_shows_in_files_left_behind(desk: Desk) -> None:
    await desk.export()
    desk.edit("types/ctr.yaml", f"baseline: {OLD}", f"baseline: {NEW}")
    done = await desk.run("apply", str(desk.folder), "--yes")
    assert done.status == 0 and f"to have it so: modelfleet launch create {NEW}" in done.out
    assert (await desk.client.registry.get_model_type(name=CTR)).baseline == OLD
    desk.edit("types/ctr.yaml", f"baseline: {NEW}", f"baseline: {OLD}")
    await desk.launch()
    differs = await desk.run("drift", str(desk.folder), "-o", "json")
    rows = json.loads(differs.out)
    assert differs.status == 2 and {row["field"] for row in rows} == {"baseline", "splits", "role"}
    assert {row["what"] for row in rows} == {"a launch moved on"}
    planned = await desk.run("plan", str(desk.folder))
    assert planned.status == 0 and "a launch has moved on" in planned.out
    assert (await desk.export()).status == 0
    assert yaml.safe_load(desk.file("types/ctr.yaml").read_text())["baseline"] == NEW


async def test_what_the_files_lack_is_deleted_with_prune_alone(desk: Desk) -> None:
    await desk.export()
    text = desk.file("types/ctr.yaml").read_text()
    models = yaml.safe_load(text)["models"]
    at = text.index("- id: new"), text.index("- id: old")
    desk.file("types/ctr.yaml").write_text(text[: at[0]] + text[at[1] :] if at[0] < at[1] else text[: at[0]])
    assert len(models) == 2
    planned = await desk.run("plan", str(desk.folder))
    assert planned.status == 0 and f"kept without --prune: {NEW}" in planned.out
    pruned = await desk.run("plan", str(desk.folder), "--prune")
    assert pruned.status == 2 and f"deleted {NEW}" in pruned.out
    assert (await desk.run("apply", str(desk.folder), "--prune", "--yes")).status == 0
    assert [model.name for model in (await desk.client.registry.list_models(parent=CTR)).models] == [OLD]


async def test_assets_are_kept_in_files_and_a_uri_moves_from_one_to_another(desk: Desk) -> None:
    folder = desk.folder
    folder.mkdir()
    uri = "s3://data/clicks"
    text = f"name: assets/clicks\nkind: DATASET\nuri: {uri}\nteam: teams/feed\nmodel_types: [{CTR}]\n"
    desk.file("clicks.yaml").write_text(f"{text}---\nname: teams/feed\non_call: pager\n")
    assert (await desk.run("apply", str(folder), "--yes")).status == 0
    assert (await desk.client.registry.get_asset(name="assets/clicks")).uri == uri
    desk.edit("clicks.yaml", "assets/clicks", "assets/taps")
    desk.edit("clicks.yaml", f"revision: {await desk.revision()}\n", "")
    without = await desk.run("plan", str(folder), "--prune")
    assert without.status == 1 and "in use by" in without.out, "the team's type is not in the files either, and serves"
    assert (await desk.run("export", str(folder), "--type", "ctr")).status == 0
    planned = await desk.run("plan", str(folder), "--prune")
    assert "deleted assets/clicks" in planned.out and "created assets/taps" in planned.out, planned.out + planned.err
    done = await desk.run("apply", str(folder), "--prune", "--yes")
    assert done.status == 0, done.out + done.err
    assert [each.name async for each in desk.client.registry.list_assets_all()] == ["assets/taps"]


async def test_a_whole_fleet_is_set_up_from_files_with_what_serves_already(desk: Desk) -> None:
    fresh = desk.folder.parent / "fresh"
    fresh.mkdir()
    (fresh / "all.yaml").write_text(
        """
name: modelTypes/rank
team: teams/ads
regions: [regions/us]
upstream_types: [modelTypes/source]
baseline: modelTypes/rank/models/v1
splits: [{region: regions/us, shares: [{model: modelTypes/rank/models/v1, share_basis_points: 10000}]}]
models:
- id: v1
  serving_spec: &spec {command: [serve, "{port}"], flavor: flavors/cpu}
- id: v2
  role: HOLDOUT
  serving_spec: *spec
---
name: modelTypes/source
team: teams/ads
---
name: regions/us
agent_address: us.example.com:8443
---
name: teams/ads
on_call: pager-ads
"""
    )
    without = await desk.run("plan", str(fresh))
    assert without.status == 2 and "Drift" in without.out and "6 to create" in without.out, without.out + without.err
    done = await desk.run("apply", str(fresh), "--adopt", "--yes")
    assert done.status == 0, done.out + done.err
    rank = await desk.client.registry.get_model_type(name="modelTypes/rank")
    assert rank.baseline == "modelTypes/rank/models/v1" and list(rank.holdouts) == ["modelTypes/rank/models/v2"]
    again = await desk.run("apply", str(fresh), "--adopt", "--yes")
    assert again.status == 0 and "No changes" in again.out


async def test_an_export_keeps_edits_that_nobody_has_applied_and_removes_what_is_gone(desk: Desk) -> None:
    await desk.export()
    desk.edit("teams/feed.yaml", "on_call: pager", "on_call: alice")
    desk.file("teams/mine.yaml").write_text("name: teams/mine\n")
    await desk.client.registry.update_team(team=pb.Team(name="teams/feed", display_name="Feed"))
    kept = await desk.export()
    assert kept.status == 1 and f"kept {desk.folder}/teams/feed.yaml" in kept.out
    assert "on_call: alice" in desk.file("teams/feed.yaml").read_text()
    assert (await desk.export("--force")).status == 0
    assert "display_name: Feed" in desk.file("teams/feed.yaml").read_text()
    assert not desk.file("teams/mine.yaml").exists(), "--force writes over everything"
    await desk.client.registry.create_team(team_id="gone", team=pb.Team())
    await desk.export()
    assert desk.file("teams/gone.yaml").exists()
    await desk.client.registry.delete_team(name="teams/gone")
    assert "1 removed" in (await desk.export()).out
    assert not desk.file("teams/gone.yaml").exists()


async def test_an_export_is_of_any_revision_and_of_a_part(desk: Desk) -> None:
    was = await desk.revision()
    await desk.launch()
    assert (await desk.export("--as-of", str(was))).status == 0
    assert yaml.safe_load(desk.file("types/ctr.yaml").read_text())["baseline"] == OLD
    await desk.client.registry.create_team(team_id="ads", team=pb.Team())
    await desk.client.registry.create_model_type(model_type_id="x", model_type=pb.ModelType(team="teams/ads"))
    part = desk.folder.parent / "part"
    assert (await desk.run("export", str(part), "--team", "ads")).status == 0
    assert sorted(path.name for path in part.rglob("*.yaml")) == ["ads.yaml", "x.yaml"]
    one = desk.folder.parent / "one"
    assert (await desk.run("export", str(one), "--type", "ctr")).status == 0
    assert [path.name for path in one.rglob("*.yaml")] == ["ctr.yaml"]


# Git.


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.com", *arguments],
        cwd=folder, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def commits(folder: Path) -> list[str]:
    return git(folder, "log", "--reverse", "--format=%an <%ae>|%s|%(trailers:separator=%x2C,only)").splitlines()


@asynccontextmanager
async def following(desk: Desk) -> AsyncIterator[asyncio.subprocess.Process]:
    """`modelfleet registry export --follow --commit` as a process of its own."""
    command = "import sys; from modelfleet.cli import main; sys.exit(main())"
    arguments = ["registry", "export", str(desk.folder), "--follow", "--commit", "--address", desk.address]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", command, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def in_step(desk: Desk, revision: int) -> None:
    def committed() -> bool:
        found = git(desk.folder, "log", "--format=%(trailers:key=Modelfleet-Revision,valueonly)", "--all")
        return str(revision) in found.split()

    await until(committed, timeout=60)


async def test_each_revision_becomes_a_commit_of_its_author_with_launch_and_reason(desk: Desk) -> None:
    desk.folder.mkdir()
    git(desk.folder, "init", "--quiet", "--initial-branch=main")
    started = await desk.revision()
    async with following(desk) as process:
        await in_step(desk, started)
        await desk.client.registry.update_team(
            team=pb.Team(name="teams/feed", on_call="alice"), reason="rotation\n\nModelfleet-Revision: 999"
        )
        await desk.launch()
        await in_step(desk, started + 2)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 130
    first, rotated, launched = commits(desk.folder)
    assert first.endswith(f"3 files as of revision {started}|Modelfleet-Revision: {started}")
    assert rotated == f"local <local@modelfleet>|rotation|Modelfleet-Revision: {started + 1}"
    trailers = f"Modelfleet-Revision: {started + 2},Modelfleet-Launch: launches/l1"
    assert launched == f"local <local@modelfleet>|better clicks|{trailers}"
    assert git(desk.folder, "show", "--format=%b", "--stat", "HEAD").count("types/ctr.yaml") == 1
    assert f"+baseline: {NEW}" in git(desk.folder, "show", "HEAD")
    assert (await desk.run("plan", str(desk.folder))).status == 0
    # What came while nobody followed comes first, a commit each; a person's comments stay.
    desk.edit("types/ctr.yaml", "purpose: clicks", "# We mean taps.\npurpose: clicks")
    git(desk.folder, "commit", "--quiet", "--all", "--message", "a remark")
    for name in ("Feed", "The feed"):
        await desk.client.registry.update_team(team=pb.Team(name="teams/feed", display_name=name))
    await desk.client.registry.delete_model(name=OLD)
    async with following(desk):
        await in_step(desk, started + 5)
    subjects = [line.split("|")[1] for line in commits(desk.folder)]
    assert subjects[3:] == ["a remark", *subjects[4:]] and len(subjects) == 7
    assert subjects[-1] == f"{OLD} deleted"
    assert "# We mean taps.\n" in desk.file("types/ctr.yaml").read_text()
    assert not git(desk.folder, "status", "--porcelain")


async def test_a_dirty_tree_is_refused_and_one_that_an_earlier_run_left_is_mended(desk: Desk) -> None:
    desk.folder.mkdir()
    assert "git init" in (await desk.export("--commit")).err
    git(desk.folder, "init", "--quiet", "--initial-branch=main")
    assert (await desk.export("--commit")).status == 0
    assert len(commits(desk.folder)) == 1
    assert (await desk.export("--commit")).status == 0
    assert len(commits(desk.folder)) == 1, "nothing differs"
    desk.edit("teams/feed.yaml", "on_call: pager", "on_call: alice")
    for arguments in (("--commit",), ("--commit", "--follow")):
        dirty = await desk.export(*arguments)
        assert dirty.status == 1 and "teams/feed.yaml" in dirty.err and "not committed" in dirty.err
    git(desk.folder, "checkout", "--quiet", ".")
    # As if it had been killed between two files and the commit.
    desk.edit("teams/feed.yaml", "on_call: pager", "on_call: half")
    desk.file("teams/half.yaml").write_text("name: teams/half\n")
    git(desk.folder, "add", "teams/half.yaml")
    (desk.folder / ".git" / "modelfleet-export").write_text("")
    mended = await desk.export("--commit")
    assert mended.status == 0 and "died while it wrote" in mended.err
    assert len(commits(desk.folder)) == 1 and not git(desk.folder, "status", "--porcelain")


async def test_following_survives_a_registry_that_is_away(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "fleet"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")

    async def a_change(listen: str, **fields: Any) -> tuple[str, int]:
        async with fleet(database_url, ["registry"], listen=listen) as found, found.client() as client:
            made = await client.registry.create_team(**fields)
            desk = Desk(folder, client, found.services["registry"].address, capsys)
            if "process" not in state:
                state["context"] = following(desk)
                state["process"] = await state["context"].__aenter__()
            await in_step(desk, made.revision)
            return desk.address, made.revision

    state: dict[str, Any] = {}
    try:
        address, _ = await a_change("127.0.0.1:0", team_id="a", team=pb.Team())
        assert state["process"].returncode is None
        await a_change(address, team_id="b", team=pb.Team())
        assert state["process"].returncode is None
    finally:
        if "context" in state:
            await state["context"].__aexit__(None, None, None)
    assert len(commits(folder)) == 2
