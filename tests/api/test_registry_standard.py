"""Lint, waivers, the fleet report and the inventory, through a real channel and the command line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import assets_pb2, standard_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.clock import ManualClock
from modelfleetd.registry import inventory
from modelfleetd.registry.api import standard
from tests.api.test_cli import Run, runner
from tests.support import registry_calls
from tests.support.fleet import Fleet, fleet
from tests.support.registry_calls import CTR, NEW, OLD, Registry, bind, populate, refused, spec

INVALID = grpc.StatusCode.INVALID_ARGUMENT
DAY = 86400.0
Finding = standard_pb2.InventoryFinding
SURFACE = standard_pb2.GetFleetReportRequest.SURFACE


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime.now(UTC))


@pytest.fixture
async def registry(database_url: str, clock: ManualClock) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url, clock=clock) as found:
        await populate(found)
        yield found


async def linted(registry: Registry, **fields: Any) -> list[standard_pb2.LintFinding]:
    """All findings, page after page."""
    found: list[standard_pb2.LintFinding] = []
    token = ""
    while True:
        page = await registry.LintEntries(page_token=token, **fields)
        assert len(page.findings) <= fields.get("page_size", 50)
        found += page.findings
        token = page.next_page_token
        if not token:
            return found


def keys(findings: list[standard_pb2.LintFinding]) -> list[tuple[str, str]]:
    return [(finding.resource, finding.rule) for finding in findings]


def rules_of(findings: list[standard_pb2.LintFinding], resource: str) -> set[str]:
    return {finding.rule for finding in findings if finding.resource == resource}


def in_days(clock: ManualClock, days: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(clock.now() + timedelta(days=days))
    return stamp


async def test_entries_are_linted_in_order_with_whose_they_are_and_how_to_mend_them(registry: Registry) -> None:
    found = await linted(registry)
    order = list(dict.fromkeys(finding.resource for finding in found))
    assert order == ["teams/feed", CTR, OLD]
    assert {"owner-missing", "contacts-missing"} <= rules_of(found, "teams/feed")
    assert {"purpose-missing", "tier-missing", "demand-missing"} <= rules_of(found, CTR)
    assert rules_of(found, OLD) == {"provenance-missing", "description-missing"}
    for resource in order:
        severities = [finding.severity for finding in found if finding.resource == resource]
        assert severities == sorted(severities, reverse=True)
    (purpose,) = [finding for finding in found if finding.rule == "purpose-missing"]
    assert (purpose.team, purpose.severity) == ("teams/feed", standard_pb2.ERROR)
    assert purpose.mend == f"modelfleet registry type update {CTR} --set purpose='WHAT IT IS FOR'"
    errors = await linted(registry, min_severity=standard_pb2.ERROR)
    assert keys(errors) == keys([each for each in found if each.severity == standard_pb2.ERROR])


async def test_pages_of_any_size_and_of_few_entries_hold_the_same_findings(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.CreateModelType(model_type_id="ctr-2", model_type=pb.ModelType(team="teams/feed"))
    await registry.CreateRegion(region_id="us", region=pb.Region(agent_address="127.0.0.1:9000"))
    found = keys(await linted(registry, page_size=1000))
    assert len(found) > 10
    for size in (1, 2, 7):
        assert keys(await linted(registry, page_size=size)) == found
    monkeypatch.setattr(standard, "_MOST_COST", 1)
    for size in (1, 1000):
        assert keys(await linted(registry, page_size=size)) == found
    # A page looks at one entry now, and says so.
    first = await registry.LintEntries(page_size=1000)
    assert {finding.resource for finding in first.findings} <= {"teams/feed"}
    assert first.next_page_token
    wrong = registry.LintEntries(page_token=first.next_page_token, surface="feed")
    await refused(wrong, INVALID, "INVALID_PAGE_TOKEN")


async def test_what_vanishes_between_two_pages_is_passed_over(registry: Registry) -> None:
    for key in ("a", "b", "c"):
        await registry.CreateModelType(model_type_id=key, model_type=pb.ModelType(team="teams/feed"))
    token = ""
    seen: list[str] = []
    while True:
        page = await registry.LintEntries(page_size=1, page_token=token)
        seen += [finding.resource for finding in page.findings]
        if seen[-1] == "modelTypes/b" and seen.count("modelTypes/b") == 1:
            await registry.DeleteModelType(name="modelTypes/b")
        token = page.next_page_token
        if not token:
            break
    assert seen.count("modelTypes/b") == 1
    assert {"modelTypes/a", "modelTypes/c", CTR} <= set(seen)


async def test_lint_keeps_to_an_entry_a_team_or_a_surface(registry: Registry) -> None:
    await registry.CreateTeam(team_id="ads", team=pb.Team())
    ads = pb.ModelType(team="teams/ads", labels={"surface": "home"})
    await registry.CreateModelType(model_type_id="ads", model_type=ads)
    await registry.CreateModel(parent="modelTypes/ads", model_id="m", model=pb.Model(serving_spec=spec()))

    async def resources(**fields: Any) -> set[str]:
        return {finding.resource for finding in await linted(registry, **fields)}

    assert await resources(resource=CTR) == {CTR, OLD}
    assert await resources(resource=OLD) == {OLD}
    assert await resources(resource="teams/ads") == {"teams/ads"}
    assert await resources(team="teams/ads") == {"teams/ads", "modelTypes/ads"}
    assert await resources(surface="home") == {"modelTypes/ads"}
    assert await resources(surface="home", team="teams/feed") == set()
    assert await resources(surface="nowhere") == set()
    assert await resources(resource=CTR, team="teams/ads") == set()
    for fields in ({"resource": "modelTypes/nope"}, {"team": "teams/nope"}):
        await refused(registry.LintEntries(**fields), grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    await refused(registry.LintEntries(resource="revisions/1"), INVALID, "INVALID_FIELDS")


async def test_a_waiver_is_written_like_any_field_holds_until_it_expires_and_is_shown(
    registry: Registry, clock: ManualClock
) -> None:
    async def waive(days: float, rule: str = "purpose-missing") -> pb.ModelType:
        waiver = standard_pb2.LintWaiver(rule=rule, reason="soon", expire_time=in_days(clock, days))
        asked = pb.ModelType(name=CTR, lint_waivers=[waiver])
        made: pb.ModelType = await registry.UpdateModelType(
            model_type=asked, update_mask=FieldMask(paths=["lint_waivers"])
        )
        return made

    too_late = await refused(waive(367), INVALID, "INVALID_FIELDS")
    assert "at most 366 days ahead" in too_late.paths["model_type.lint_waivers[0].expire_time"]
    unknown = await refused(waive(1, "nope"), INVALID, "INVALID_FIELDS")
    assert "purpose-missing" in unknown.paths["model_type.lint_waivers[0].rule"]
    far = standard_pb2.LintWaiver(rule="purpose-missing", reason="soon", expire_time=in_days(clock, 367))
    together = [pb.EntryChange(model_type=pb.ModelType(name=CTR, lint_waivers=[far]), etag="r1")]
    apart = await refused(registry.ApplyEntries(changes=together), INVALID, "INVALID_FIELDS")
    assert list(apart.paths) == ["changes[0].model_type.lint_waivers[0].expire_time"]
    made = await waive(10)
    assert "purpose-missing" not in rules_of(await linted(registry), CTR)
    (shown,) = [each for each in await linted(registry, show_waived=True) if each.rule == "purpose-missing"]
    assert shown.waiver == made.lint_waivers[0]
    clock.set(11 * DAY)
    found = {each.rule: each for each in await linted(registry, resource=CTR)}
    assert found["purpose-missing"].expired_waiver == made.lint_waivers[0]
    assert "waiver-stale" in found
    # What was read may be sent back, also long after.
    assert (await registry.UpdateModelType(model_type=made)).revision == made.revision


async def test_what_other_entries_say_counts(registry: Registry, clock: ManualClock) -> None:
    assert "candidate-idle" not in rules_of(await linted(registry), NEW)
    await registry.CreateModelType(model_type_id="early", model_type=pb.ModelType(team="teams/feed"))
    consumes = pb.ModelType(name=CTR, tier=serving_pb2.TIER2, upstream_types=["modelTypes/early"])
    await registry.UpdateModelType(model_type=consumes)
    clock.set(31 * DAY)
    found = await linted(registry)
    assert rules_of(found, NEW) == {"candidate-idle"}
    assert "upstream-idle" in rules_of(found, CTR)
    (tier,) = [each for each in found if (each.resource, each.rule) == ("modelTypes/early", "tier-missing")]
    assert tier.message == "its criticality is not stated; it must be TIER2 because ctr depends on it"
    assert tier.mend == "modelfleet registry type update modelTypes/early --set tier=TIER2"


async def test_the_rules_are_listed_with_what_they_are_about(registry: Registry) -> None:
    listed = (await registry.ListLintRules()).rules
    assert [rule.id for rule in listed] == sorted(rule.id for rule in listed)
    found = {rule.id: rule for rule in listed}
    assert list(found["tier-overdue"].applies_to) == ["model_type", "model"]
    assert found["on-call-missing"].severity == standard_pb2.ERROR
    assert all(rule.description and rule.mend for rule in listed)


async def test_the_report_counts_the_fleet_by_team_and_surface_and_follows_every_change(
    registry: Registry, clock: ManualClock
) -> None:
    await registry.CreateTeam(team_id="ads", team=pb.Team())
    ads = pb.ModelType(team="teams/ads", labels={"surface": "home"}, tier=serving_pb2.TIER4)
    await registry.CreateModelType(model_type_id="ads", model_type=ads)
    first = await registry.GetFleetReport()
    assert (first.total.model_types, first.total.models, first.total.serving_models) == (2, 2, 1)
    assert list(first.total.model_types_by_tier) == [0, 0, 0, 0, 1, 1]
    assert (first.total.with_baseline, first.total.expected_to_serve, first.total.observed) == (1, 1, 0)
    assert {row.group: row.with_on_call for row in first.groups} == {"teams/feed": 1, "teams/ads": 0}
    by_surface = await registry.GetFleetReport(group_by=SURFACE)
    assert {row.group: row.model_types for row in by_surface.groups} == {"home": 1, "": 1}
    everything = await linted(registry, page_size=1000)
    for severity, count in ((standard_pb2.ERROR, first.total.errors), (standard_pb2.WARNING, first.total.warnings)):
        assert count == len([each for each in everything if each.severity == severity]) > 0
    # The team's own findings are those of its group.
    assert sum(row.errors for row in first.groups) == first.total.errors
    assert [row.errors for row in first.groups] == sorted((row.errors for row in first.groups), reverse=True)

    await bind(registry, "ads", OWNER="alice", APPROVER="bob")
    await registry.UpdateTeam(team=pb.Team(name="teams/ads", on_call="pager", contacts=["mei"]))
    await registry.DeleteModel(name=NEW)
    done = pb.ModelType(
        name="modelTypes/ads",
        purpose="Ranks ads.",
        regions=["regions/eu"],
        predictions=[pb.Prediction(id="click")],
        demand_source=pb.DemandSource(stated=[pb.RegionDemand(region="regions/eu", peak_qps=1)]),
    )
    made = await registry.UpdateModelType(model_type=done)
    second = await registry.GetFleetReport(min_revision=made.revision)
    assert second.revision >= made.revision
    (of_ads,) = [row for row in second.groups if row.group == "teams/ads"]
    assert (of_ads.errors, of_ads.conforming, of_ads.with_stability, of_ads.with_demand_source) == (0, 1, 1, 1)
    assert (second.total.models, second.total.conforming) == (1, 1)
    await registry.DeleteModelType(name="modelTypes/ads")
    assert (await registry.GetFleetReport()).total.model_types == 1


async def test_the_report_knows_when_a_waiver_ends_and_a_candidate_has_waited_too_long(
    registry: Registry, clock: ManualClock
) -> None:
    waiver = standard_pb2.LintWaiver(rule="purpose-missing", reason="soon", expire_time=in_days(clock, 10))
    before = (await registry.GetFleetReport()).total
    await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, lint_waivers=[waiver]))
    waived = (await registry.GetFleetReport()).total
    assert (waived.errors, waived.waived) == (before.errors - 1, 1)
    clock.set(11 * DAY)
    after = (await registry.GetFleetReport()).total
    assert (after.errors, after.waived) == (before.errors, 0)


def serving_status(
    clock: ManualClock, region: str = "eu", *, of: str = CTR, minutes: float = 0, **shares: int
) -> pb.ServingStatus:
    """What an agent reports: three replicas of each model."""
    models = [
        pb.ModelServing(model=f"{of}/models/{key}", share_basis_points=share, total_replicas=3)
        for key, share in shares.items()
    ]
    moment = in_days(clock, -minutes / 1440)
    return pb.ServingStatus(model_type=of, region=f"regions/{region}", models=models, observe_time=moment)


async def inventory_of(registry: Registry, **fields: Any) -> list[standard_pb2.InventoryFinding]:
    found: list[standard_pb2.InventoryFinding] = []
    token = ""
    while True:
        page = await registry.ListInventoryFindings(page_token=token, **fields)
        found += page.findings
        token = page.next_page_token
        if not token:
            return found


def kinds(findings: list[standard_pb2.InventoryFinding]) -> list[tuple[str, str, str]]:
    return [
        (Finding.Kind.Name(each.kind), each.model_type.split("/")[1], each.region.split("/")[1]) for each in findings
    ]


async def test_what_platforms_serve_is_compared_with_the_ledger_route_by_route(
    registry: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (silent,) = await inventory_of(registry)
    assert kinds([silent]) == [("NEVER_REPORTED", "ctr", "eu")]
    await registry.ReportServing(statuses=[serving_status(clock, old=10_000)])
    assert await inventory_of(registry) == []
    assert (await registry.GetFleetReport()).total.observed == 1

    for key in ("quiet", "zeta"):
        kind = pb.ModelType(team="teams/feed", regions=["regions/eu"])
        await registry.CreateModelType(model_type_id=key, model_type=kind)
    for key in ("m",):
        await registry.CreateModel(parent="modelTypes/zeta", model_id=key, model=pb.Model(serving_spec=spec()))
    role = pb.RoleChange(model="modelTypes/zeta/models/m", role=pb.Model.BASELINE)
    whole = serving_pb2.RegionSplit(
        region="regions/eu", shares=[serving_pb2.ModelShare(model=role.model, share_basis_points=10_000)]
    )
    await registry.AdoptServing(model_type="modelTypes/zeta", role_changes=[role], splits=[whole])
    clock.set(60)
    await registry.ReportServing(
        statuses=[
            serving_status(clock, old=7_000, new=2_000, ghost=1_000),
            serving_status(clock, "mars", old=10_000),
            serving_status(clock, of="modelTypes/unknown", v1=10_000),
        ]
    )
    found = await inventory_of(registry, page_size=1000)
    assert kinds(found) == [
        ("UNREGISTERED_MODEL", "ctr", "eu"),
        ("ROLE_CONFLICT", "ctr", "eu"),
        ("SHARE_CONFLICT", "ctr", "eu"),
        ("UNREGISTERED_REGION", "ctr", "mars"),
        ("UNREGISTERED_MODEL_TYPE", "unknown", "eu"),
        ("NEVER_REPORTED", "zeta", "eu"),
    ]
    conflict = found[2]
    assert (conflict.ledger_share_basis_points, conflict.observed_share_basis_points) == (10_000, 7_000)
    assert "a launch in flight may be the reason" in conflict.message

    for size in (1, 2, 4):
        assert await inventory_of(registry, page_size=size) == found
    for module in (inventory, standard):
        monkeypatch.setattr(module, "ROUTES_AT_A_TIME", 1)
    for size in (1, 1000):
        assert await inventory_of(registry, page_size=size) == found
    assert await inventory_of(registry, region="regions/mars") == [found[3]]
    assert await inventory_of(registry, model_type=CTR) == found[:4]
    assert await inventory_of(registry, model_type="modelTypes/zeta", region="regions/eu") == [found[5]]
    monkeypatch.undo()
    clock.set(60 + 660)
    assert kinds(await inventory_of(registry)) == [("STALE", "ctr", "eu"), ("NEVER_REPORTED", "zeta", "eu")]
    assert (await registry.GetFleetReport()).total.observed == 0


async def test_a_dashboard_counts_for_the_type_that_it_is_tagged_with(database_url: str) -> None:
    from modelfleetd.registry.snapshot import Snapshot
    from modelfleetd.registry.standard import Inspector

    ctr = pb.ModelType(name=CTR, team="teams/feed", tier=serving_pb2.TIER1)
    board = assets_pb2.Asset(name="assets/board", kind=assets_pb2.Asset.DASHBOARD, model_types=[CTR])
    other = assets_pb2.Asset(name="assets/flow", kind=assets_pb2.Asset.TRAINING_FLOW, model_types=[CTR])
    for assets, has in (([board, other], True), ([other], False)):
        snapshot = Snapshot.of([ctr, *assets], 1, b"")
        found = {each.rule.id for each in Inspector(snapshot, datetime.now(UTC)).findings(CTR)}
        assert ("dashboard-missing" not in found) is has


@pytest.fixture
async def typed(database_url: str, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[tuple[Run, Fleet]]:
    async with fleet(database_url, ["registry"]) as running:
        yield runner(running, "registry", capsys), running


async def test_the_command_line_says_what_is_below_the_standard_and_exits_with_1(typed: tuple[Run, Fleet]) -> None:
    run, _ = typed
    nothing = await run("registry", "lint")
    assert (nothing.status, nothing.out) == (0, "Nothing is below the standard.\n")
    await run("registry", "team", "create", "feed")
    found = await run("registry", "lint")
    assert found.status == 1
    assert found.out.splitlines()[:3] == [
        "teams/feed",
        "  error   on-call-missing: nobody is on call for what it owns",
        "          → modelfleet registry team update teams/feed --set on_call=ROTATION",
    ]
    assert found.out.splitlines()[-1] == "2 errors, 2 warnings"
    as_json = await run("registry", "lint", "-o", "json", "--severity", "error")
    assert [each["rule"] for each in json.loads(as_json.out)] == ["on-call-missing", "owner-missing"]
    await run("registry", "type", "create", "ctr", "--set", "team=teams/feed")
    waived = await run("registry", "waive", "ctr", "purpose-missing", "--reason", "soon", "--until", "30d")
    assert waived.status == 0
    assert waived.out.splitlines()[1] == (
        "take it back: modelfleet registry waive modelTypes/ctr purpose-missing --remove"
    )
    assert "purpose-missing" not in (await run("registry", "lint", "ctr")).out
    assert "purpose-missing" in (await run("registry", "lint", "ctr", "--waived")).out
    again = await run("registry", "waive", "ctr", "purpose-missing", "--remove")
    assert again.out == "purpose-missing counts again for modelTypes/ctr\n"
    assert "no waiver of purpose-missing" in (await run("registry", "waive", "ctr", "purpose-missing", "--remove")).err
    assert "give --reason and --until" in (await run("registry", "waive", "ctr", "purpose-missing")).err
    assert "TIER0 and TIER1 have a dashboard" in (await run("registry", "lint", "rules")).out


async def test_the_command_line_shows_the_report_and_what_really_serves(typed: tuple[Run, Fleet]) -> None:
    run, running = typed
    assert (await run("registry", "discover")).out == "What the platforms serve is what the ledger says.\n"
    async with running.channel("registry") as channel:
        registry = Registry(channel)
        await populate(registry)
        status = serving_status(ManualClock(datetime.now(UTC)), old=7_000)
        await registry.ReportServing(statuses=[status])
    shown = (await run("registry", "discover", "ctr", "--region", "eu")).out.splitlines()
    assert shown[0].split() == ["FINDING", "MODEL", "TYPE", "REGION", "MODEL", "OBSERVED", "WHAT"]
    assert shown[1].split()[:4] == ["SHARE_CONFLICT", "ctr", "eu", "old"]
    assert shown[-1].strip() == "modelfleet launch list ctr --active"
    rows = (await run("registry", "report")).out.splitlines()
    assert rows[0].split()[:4] == ["TEAM", "TYPES", "MODELS", "SERVING"]
    assert [row.split()[:4] for row in rows[1:3]] == [["feed", "1", "2", "1"], ["all", "1", "2", "1"]]
    by_surface = await run("registry", "report", "--by", "surface", "-o", "json")
    assert json.loads(by_surface.out)["total"]["models"] == 2
