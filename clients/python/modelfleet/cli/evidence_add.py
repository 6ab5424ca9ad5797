"""What every way of adding evidence shares."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.cli import render
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import Session
from modelfleet.registry.v1 import evidence_pb2 as pb

model_argument = click.argument("model", metavar="TYPE/MODEL")
id_option = click.option(
    "--id", "key", default="", help="Id of the new one. Default: the suite and the time of evaluation."
)
reason_option = click.option("--reason", default="", help="Why; kept in the history.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only check, and show what would be written.")


def add_report(
    session: Session, model: str, report: pb.EvaluationReport, key: str, *, reason: str, dry_run: bool
) -> None:
    """Creates a report, and says what was done and what to type next."""
    parent = MODEL.name(model)
    made = session.client.registry.create_evaluation_report(
        parent=parent,
        report_id=key or id_of(report.suite, report.evaluate_time),
        evaluation_report=report,
        reason=reason,
        validate_only=dry_run,
    )
    if dry_run or not session.is_table:
        render.show(session, made)
        return
    results = "1 result" if len(made.results) == 1 else f"{len(made.results):,} results"
    click.echo(f"added {made.name}: {results}. Judge the model: modelfleet evidence check {typed(parent)}")


def import_options(command: Any) -> Any:
    """Adds the options of every importer: what the output of a tool does not say."""
    for option in reversed(
        (
            click.option("--suite-version", default="", help="Version of the suite."),
            click.option(
                "--evaluator",
                type=click.Choice(["INTERNAL", "PUBLIC", "THIRD_PARTY", "HUMAN"]),
                help="What kind of evaluator. Default: as the mapping says, else INTERNAL.",
            ),
            click.option(
                "--evaluated",
                type=click.DateTime(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d"]),
                help="When, in UTC. Default: as the mapping says, else when the newest file was written.",
            ),
            click.option(
                "--expires-in", type=DURATION, help="How long it is evidence, such as 90d. Default: for ever."
            ),
            click.option("--baseline", default="", help="The model that it was measured against."),
            id_option,
            reason_option,
            dry_run_option,
        )
    ):
        command = option(command)
    return command


def complete(
    report: pb.EvaluationReport,
    *,
    model: str,
    newest_file: float,
    suite_version: str,
    evaluator: str | None,
    evaluated: datetime | None,
    expires_in: Duration | None,
    baseline: str,
) -> None:
    """Fills in what was given on the command line, and what nobody has said."""
    if suite_version:
        report.suite_version = suite_version
    if evaluator or not report.evaluator.kind:
        report.evaluator.kind = pb.Evaluator.Kind.Value(evaluator or "INTERNAL")
    if evaluated is not None:
        report.evaluate_time.FromDatetime(evaluated)
    elif not report.HasField("evaluate_time"):
        report.evaluate_time.FromSeconds(int(newest_file))
    if expires_in is not None:
        lasts = timedelta(seconds=expires_in.seconds, microseconds=expires_in.nanos // 1000)
        report.expire_time.FromDatetime(report.evaluate_time.ToDatetime() + lasts)
    if baseline:
        own_type = typed(MODEL.name(model)).split("/")[0]
        report.baseline = MODEL.name(baseline if "/" in baseline else f"{own_type}/{baseline}")


def id_of(suite: str, moment: Timestamp) -> str:
    """An id in the order of time: `red_team-20250530t080000`."""
    stamp = moment.ToDatetime(tzinfo=UTC) if moment.seconds else datetime.now(UTC)
    return f"{suite[:47]}-{stamp:%Y%m%dt%H%M%S}"


def typed(name: str) -> str:
    """A model's name as people type it: `ctr/new`."""
    return name.removeprefix("modelTypes/").replace("/models/", "/")
