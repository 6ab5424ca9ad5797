"""`modelfleet registry lint|report|waive|discover`: what the fleet lacks, and what really serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import click
from google.protobuf.field_mask_pb2 import FieldMask
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.parameters import ENTRY, SCOPE, UNTIL
from modelfleet.cli.session import Session, with_session
from modelfleet.registry.v1 import registry_pb2
from modelfleet.registry.v1 import standard_pb2 as pb

_SEVERITIES = {"info": pb.INFO, "warning": pb.WARNING, "error": pb.ERROR}
_COLORS = {pb.INFO: "cyan", pb.WARNING: "yellow", pb.ERROR: "red"}


@click.command("lint")
@click.argument("resource", metavar="[RESOURCE|rules]", required=False, default="")
@click.option("--team", default="", help="Only this team and what it owns.")
@click.option("--surface", default="", help="Only model types of this surface, and their models.")
@click.option(
    "--severity", type=click.Choice(list(_SEVERITIES)), default="info", show_default=True, help="At least this bad."
)
@click.option("--waived", is_flag=True, help="Also what is waived.")
@with_session
def lint(session: Session, resource: str, team: str, surface: str, severity: str, waived: bool) -> int:
    """Say what entries lack by the minimum standard, and how to mend it.

    RESOURCE is a model type, TYPE/MODEL, or the full name of a team or region; without it the whole fleet. `rules`
    lists the rules instead. The exit status is 1 where an error is found that nobody has waived.
    """
    if resource == "rules":
        _rules(session)
        return 0
    found = session.client.registry.lint_entries_all(
        resource=SCOPE.convert(resource, None, None),
        team=_team(team),
        surface=surface,
        min_severity=_SEVERITIES[severity],
        show_waived=True,
        page_size=1000,
    )
    counts: Counter[int] = Counter()
    shown = _counted(found, counts, waived)
    if session.is_table:
        _print_findings(shown)
        click.echo(_summary(counts, waived))
    else:
        render.dump(session, [render.as_data(finding) for finding in shown])
    return 1 if counts[pb.ERROR] else 0


def _team(value: str) -> str:
    return value if not value or "/" in value else f"teams/{value}"


def _counted(found: Iterator[pb.LintFinding], counts: Counter[int], waived: bool) -> Iterator[pb.LintFinding]:
    """What is to be shown, as it comes; counts what is below the standard, and as 0 what is waived."""
    for finding in found:
        is_waived = finding.HasField("waiver")
        counts[0 if is_waived else finding.severity] += 1
        if waived or not is_waived:
            yield finding


def _print_findings(findings: Iterator[pb.LintFinding]) -> None:
    """Entry by entry, as the answers come."""
    console, resource = render.console(), ""
    for finding in findings:
        if finding.resource != resource:
            resource = finding.resource
            words = (("team", render.short(finding.team)), ("surface", finding.surface))
            owner = ", ".join(f"{word} {value}" for word, value in words if value)
            about = f" ({owner})" if owner and not resource.startswith("teams/") else ""
            console.print(Text(resource, style="bold") + Text(about), soft_wrap=True)
        severity = render.enum(finding, "severity").lower()
        line = Text(f"  {severity:<8}", style=_COLORS.get(finding.severity, ""))
        console.print(line + Text(f"{finding.rule}: {finding.message}"), soft_wrap=True)
        if finding.HasField("waiver"):
            waiver = f"waived until {render.day(finding.waiver.expire_time)}: {finding.waiver.reason}"
            console.print(Text(f"          {waiver}", style="dim"), soft_wrap=True)
        else:
            console.print(Text(f"          → {finding.mend}", style="dim"), soft_wrap=True)


def _summary(counts: Counter[int], waived: bool) -> str:
    if not counts:
        return "Nothing is below the standard."
    words = ((pb.ERROR, "error"), (pb.WARNING, "warning"), (pb.INFO, "hint"))
    parts = [f"{counts[key]:,} {word}{'' if counts[key] == 1 else 's'}" for key, word in words if counts[key]]
    hidden = "" if waived else "; --waived shows them"
    parts += [f"{counts[0]:,} waived{hidden}"] if counts[0] else []
    return ", ".join(parts)


def _rules(session: Session) -> None:
    columns: list[render.Column] = [
        ("RULE", lambda m: m.id),
        ("SEVERITY", lambda m: render.enum(m, "severity")),
        ("OF", lambda m: ", ".join(kind.replace("_", " ") for kind in m.applies_to)),
        ("EXPECTS", lambda m: m.description),
    ]
    render.listing(session, session.client.registry.list_lint_rules().rules, columns, "No rules.")


@click.command("report")
@click.option("--by", type=click.Choice(["team", "surface"]), default="team", show_default=True, help="How to group.")
@with_session
def report(session: Session, by: str) -> None:
    """Count the fleet by team or surface: tiers, baselines, coverage of monitoring, findings."""
    request = pb.GetFleetReportRequest
    answer = session.client.registry.get_fleet_report(group_by=request.SURFACE if by == "surface" else request.TEAM)
    if not session.is_table:
        render.dump(session, render.as_data(answer))
        return
    headers = [by.upper(), "TYPES", "MODELS", "SERVING", "TIER0-4", "NO TIER", "BASELINE", "STABILITY", "DEMAND"]
    headers += ["ON-CALL", "OBSERVED", "ERRORS", "WARNINGS", "WAIVED", "CONFORMING"]
    rows = [_row(row, render.short(row.group) or "(none)") for row in answer.groups]
    render.console().print(render.table(headers, [*rows, _row(answer.total, "all")]))
    if answer.total.errors or answer.total.warnings:
        click.echo(
            f"what is wrong, and how to mend it: modelfleet registry lint{' --team TEAM' if by == 'team' else ''}"
        )


def _row(row: pb.FleetReportRow, name: str) -> list[str]:
    *tiers, without = row.model_types_by_tier
    return [
        name,
        f"{row.model_types:,}",
        f"{row.models:,}",
        f"{row.serving_models:,}",
        "/".join(map(str, tiers)),
        f"{without:,}",
        _part(row.with_baseline, row.model_types),
        _part(row.with_stability, row.model_types - row.stability_not_applicable),
        _part(row.with_demand_source, row.model_types),
        _part(row.with_on_call, row.model_types),
        _part(row.observed, row.expected_to_serve),
        f"{row.errors:,}",
        f"{row.warnings:,}",
        f"{row.waived:,}",
        _part(row.conforming, row.model_types),
    ]


def _part(count: int, of: int) -> str:
    """A part as people say it, never rounded up to all of it."""
    return "" if not of else f"{count * 100 // of}%"


@click.command("waive")
@click.argument("entry", metavar="TYPE[/MODEL]", type=ENTRY)
@click.argument("rule")
@click.option("--reason", default="", help="Why; 1 to 1000 characters.")
@click.option("--until", type=UNTIL, help="A day (2026-12-31) or a span from now (90d); at most 366 days ahead.")
@click.option("--remove", is_flag=True, help="Take the waiver away instead.")
@with_session
def waive(session: Session, entry: str, rule: str, reason: str, until: datetime | None, remove: bool) -> None:
    """Let an entry break a rule of the minimum standard for a while; the finding counts again afterwards."""
    if not remove and not (reason and until):
        raise click.UsageError("give --reason and --until, or --remove")
    registry = session.client.registry
    is_model = "/models/" in entry
    current: registry_pb2.Model | registry_pb2.ModelType
    current = registry.get_model(name=entry) if is_model else registry.get_model_type(name=entry)
    others = [waiver for waiver in current.lint_waivers if waiver.rule != rule]
    if remove and len(others) == len(current.lint_waivers):
        raise click.UsageError(f"{entry} has no waiver of {rule}")
    waivers = list(others)
    if until is not None and not remove:
        waivers.append(pb.LintWaiver(rule=rule, reason=reason))
        waivers[-1].expire_time.FromDatetime(until)
    mask = FieldMask(paths=["lint_waivers"])
    why = f"{'unwaive' if remove else 'waive'} {rule}" + (f": {reason}" if reason else "")
    made: registry_pb2.Model | registry_pb2.ModelType
    if is_model:
        model = registry_pb2.Model(name=entry, etag=current.etag, lint_waivers=waivers)
        made = registry.update_model(model=model, update_mask=mask, reason=why)
    else:
        model_type = registry_pb2.ModelType(name=entry, etag=current.etag, lint_waivers=waivers)
        made = registry.update_model_type(model_type=model_type, update_mask=mask, reason=why)
    if not session.is_table:
        render.dump(session, render.as_data(made))
    elif remove:
        click.echo(f"{rule} counts again for {entry}")
    else:
        click.echo(f"{rule} is waived for {entry} until {until:%Y-%m-%d}")
        click.echo(f"take it back: modelfleet registry waive {entry} {rule} --remove")


@click.command("discover")
@click.argument("model_type", required=False, default="")
@click.option("--region", default="", help="Only this region.")
@with_session
def discover(session: Session, model_type: str, region: str) -> None:
    """Compare what the platforms really serve with the ledger: what is unregistered, missing or in conflict."""
    found = list(
        session.client.registry.list_inventory_findings_all(
            model_type=f"modelTypes/{render.short(model_type)}" if model_type else "",
            region=f"regions/{render.short(region)}" if region else "",
            page_size=1000,
        )
    )
    columns: list[render.Column] = [
        ("FINDING", lambda m: render.enum(m, "kind")),
        ("MODEL TYPE", lambda m: render.short(m.model_type)),
        ("REGION", lambda m: render.short(m.region)),
        ("MODEL", lambda m: render.short(m.model)),
        ("OBSERVED", lambda m: f"{render.age(m.observe_time)} ago" if m.HasField("observe_time") else "never"),
        ("WHAT", lambda m: m.message),
    ]
    render.listing(session, found, columns, "What the platforms serve is what the ledger says.")
    if session.is_table and found:
        click.echo("what to do:")
        for mend in dict.fromkeys(finding.mend for finding in found):
            click.echo(f"  {mend}")
