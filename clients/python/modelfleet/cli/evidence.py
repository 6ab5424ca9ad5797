"""`modelfleet evidence`: evaluations and risk assessments of models, and what rules say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.cli import render
from modelfleet.cli.evidence_add import (
    add_report,
    dry_run_option,
    id_of,
    id_option,
    model_argument,
    reason_option,
    typed,
)
from modelfleet.cli.evidence_import import imports
from modelfleet.cli.evidence_view import assessment_lines, judgement_rows, report_lines, result_table, risk_table
from modelfleet.cli.registry import MODEL
from modelfleet.cli.resources import Resource, parse, read_fields
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.registry.v1 import evidence_pb2 as pb

_STAMPS = {"name", "uid", "create_time", "update_time", "etag", "revision"}
_OF_RISK = {"inherent", "residual"}

REPORT = Resource(
    "registry",
    "evaluation_report",
    "evaluation_reports",
    "modelTypes/{}/models/{}/evaluationReports/{}",
    pb.EvaluationReport,
    [
        ("REPORT", lambda m: render.short(m.name)),
        ("SUITE", lambda m: f"{m.suite} {m.suite_version}".strip()),
        ("EVALUATOR", lambda m: render.enum(m.evaluator, "kind")),
        ("RESULTS", lambda m: str(len(m.results))),
        ("EVALUATED", lambda m: render.clock(m.evaluate_time)),
        ("EXPIRES", lambda m: render.clock(m.expire_time) or "never"),
    ],
    "No evaluation reports yet. Add one: modelfleet evidence add TYPE/MODEL -f report.yaml",
)
ASSESSMENT = Resource(
    "registry",
    "risk_assessment",
    "risk_assessments",
    "modelTypes/{}/models/{}/riskAssessments/{}",
    pb.RiskAssessment,
    [
        ("ASSESSMENT", lambda m: render.short(m.name)),
        ("ASSESSOR", lambda m: m.assessor),
        ("RISKS", lambda m: str(len(m.risks))),
        ("HIGHEST RESIDUAL", lambda m: f"{max(risk.residual for risk in m.risks)} of {m.levels**2}"),
        ("ASSESSED", lambda m: render.clock(m.assess_time)),
        ("EXPIRES", lambda m: render.clock(m.expire_time) or "never"),
    ],
    "No risk assessments yet. Add one: modelfleet evidence risk add TYPE/MODEL -f risks.yaml",
)


_filter = click.option(
    "--filter", "fits", default="", metavar="EXPRESSION", help="Only those that fit, such as 'suite = offline'."
)
_file = click.option(
    "-f", "--file", required=True, help="YAML or JSON with the fields of the proto; '-' is standard input."
)


@click.group(cls=FleetGroup)
def group() -> None:
    """Evaluations and risk assessments of models, and what rules say of them."""


group.add_command(imports)


@group.group(cls=FleetGroup)
def risk() -> None:
    """Risk assessments: what could go wrong, for whom, how bad, and what was done about it."""


@group.command("add")
@model_argument
@_file
@click.option("--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="One field; may be repeated.")
@id_option
@reason_option
@dry_run_option
@with_session
def add(
    session: Session, model: str, file: str, assignments: tuple[str, ...], key: str, reason: str, dry_run: bool
) -> None:
    """Add an evaluation report."""
    report = pb.EvaluationReport()
    parse(_asked(read_fields(file, assignments)), report)
    add_report(session, model, report, key, reason=reason, dry_run=dry_run)


@group.command("list")
@model_argument
@_filter
@with_session
def list_reports(session: Session, model: str, fits: str) -> None:
    """List the evaluation reports of a model."""
    _list(session, REPORT, model, fits)


@group.command("show")
@model_argument
@click.argument("report", required=False, default="")
@with_session
def show(session: Session, model: str, report: str) -> None:
    """Show a report with all its results; without REPORT the newest one."""
    found = _one(session, REPORT, model, report, lambda each: each.evaluate_time)
    _present(session, found, report_lines, result_table)


@group.command("delete")
@model_argument
@click.argument("report")
@reason_option
@dry_run_option
@with_session
def delete(session: Session, model: str, report: str, reason: str, dry_run: bool) -> None:
    """Delete a report; the history keeps what it said."""
    _delete(session, REPORT, model, report, reason, dry_run=dry_run)


@risk.command("add")
@model_argument
@_file
@click.option("--id", "key", default="", help="Id of the new one. Default: `risks` and the time of assessment.")
@reason_option
@dry_run_option
@with_session
def add_risks(session: Session, model: str, file: str, key: str, reason: str, dry_run: bool) -> None:
    """Add a risk assessment."""
    data = _asked(read_fields(file, ()))
    rows = data.get("risks")
    if isinstance(rows, list):
        data["risks"] = [_without(row, _OF_RISK) if isinstance(row, dict) else row for row in rows]
    assessment = pb.RiskAssessment()
    parse(data, assessment)
    parent = MODEL.name(model)
    made = session.client.registry.create_risk_assessment(
        parent=parent,
        assessment_id=key or id_of("risks", assessment.assess_time),
        risk_assessment=assessment,
        reason=reason,
        validate_only=dry_run,
    )
    if dry_run or not session.is_table:
        render.show(session, made)
        return
    risks = "1 risk" if len(made.risks) == 1 else f"{len(made.risks)} risks"
    highest = max(each.residual for each in made.risks)
    click.echo(f"added {made.name}: {risks}, the highest residual one is {highest} of {made.levels**2}.")


@risk.command("list")
@model_argument
@_filter
@with_session
def list_risks(session: Session, model: str, fits: str) -> None:
    """List the risk assessments of a model."""
    _list(session, ASSESSMENT, model, fits)


@risk.command("show")
@model_argument
@click.argument("assessment", required=False, default="")
@with_session
def show_risks(session: Session, model: str, assessment: str) -> None:
    """Show a risk assessment, the highest residual risk first; without ASSESSMENT the newest one."""
    found = _one(session, ASSESSMENT, model, assessment, lambda each: each.assess_time)
    _present(session, found, assessment_lines, risk_table)


@risk.command("delete")
@model_argument
@click.argument("assessment")
@reason_option
@dry_run_option
@with_session
def delete_risks(session: Session, model: str, assessment: str, reason: str, dry_run: bool) -> None:
    """Delete a risk assessment; the history keeps what it said."""
    _delete(session, ASSESSMENT, model, assessment, reason, dry_run=dry_run)


@group.command("check")
@model_argument
@click.option(
    "--rules", "file", default="", help="YAML with a list of rules. Default: evidence_rules of the model type."
)
@click.option("--baseline", default="", help="Compare with this model. Default: the baseline of the model type.")
@with_session
def check(session: Session, model: str, file: str, baseline: str) -> None:
    """Judge a model by its evidence, rule by rule. Exit status 1 unless it passes."""
    name = MODEL.name(model)
    request = pb.EvaluateEvidenceRequest()
    if file:
        parse({"rules": _rules(file)}, request)
        if not request.rules:
            raise click.UsageError(f"{file} holds no rules; expected a list of rules, or evidence_rules: with one")
    other = baseline if "/" in baseline or not baseline else f"{typed(name).split('/')[0]}/{baseline}"
    found = session.client.registry.evaluate_evidence(
        model=name, rules=request.rules, baseline=MODEL.name(other) if other else ""
    )
    if not session.is_table:
        render.dump(session, render.as_data(found))
    else:
        if found.judgements:
            headers = ["RULE", "VERDICT", "JUDGED", "BOUND", "EVIDENCE", "WHY"]
            render.console().print(render.table(headers, judgement_rows(found)))
        click.echo(f"{render.enum(found, 'verdict')}: {found.explanation}")
    if found.verdict != pb.PASS:
        raise click.exceptions.Exit(1)


def _asked(data: dict[str, Any]) -> dict[str, Any]:
    """What a file says but for what the registry sets: so that what `show` prints may be added again."""
    return _without(data, _STAMPS)


def _without(data: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in keys}


def _rules(file: str) -> Any:
    import yaml

    try:
        with click.open_file(file, encoding="utf-8") as opened:
            data = yaml.safe_load(opened)
    except yaml.YAMLError as error:
        raise click.UsageError(f"{file} is not YAML: {error}") from None
    return data.get("evidence_rules", data.get("rules", [data])) if isinstance(data, dict) else data or []


def _list(session: Session, resource: Resource, model: str, fits: str) -> None:
    found = resource.pages(session, parent=MODEL.name(model), filter=fits)
    render.listing(session, found, resource.columns, "Nothing fits the filter." if fits else resource.nothing)


def _one(session: Session, resource: Resource, model: str, key: str, moment: Callable[[Any], Timestamp]) -> Any:
    parent = MODEL.name(model)
    if key:
        return resource.call(session, "get", name=resource.name(key if "/" in key else f"{typed(parent)}/{key}"))
    found = list(resource.pages(session, parent=parent))
    if not found:
        raise click.ClickException(resource.nothing)
    return max(found, key=lambda each: (moment(each).ToNanoseconds(), each.name))  # type: ignore[attr-defined]


def _present(session: Session, found: Any, lines: Callable[[Any], Sequence[str]], table: Callable[[Any], Any]) -> None:
    if not session.is_table:
        render.show(session, found)
        return
    for line in lines(found):
        click.echo(line)
    render.console().print(table(found))


def _delete(session: Session, resource: Resource, model: str, key: str, reason: str, *, dry_run: bool) -> None:
    full = resource.name(key if "/" in key else f"{typed(MODEL.name(model))}/{key}")
    resource.call(session, "delete", name=full, reason=reason, validate_only=dry_run)
    if session.is_table:
        click.echo(f"{'would delete' if dry_run else 'deleted'} {full}")
    else:
        render.dump(session, {"name": full, "deleted": not dry_run})
