"""`modelfleet evidence import`: reports from the output of evaluation tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from modelfleet.cli.evidence_add import add_report, complete, import_options, model_argument
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.registry.v1 import evidence_pb2 as pb

_files = click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False), metavar="FILE…")
_INTERVALS = "Intervals of 95 %: Wilson's for scores that are 0 or 1, else Student's t."


@click.group("import", cls=FleetGroup)
def imports() -> None:
    """Make a report of the output of an evaluation tool."""


@imports.command("fmeval")
@model_argument
@_files
@click.option("--suite", default="fmeval", show_default=True, help="Name of the suite.")
@click.option(
    "--direction",
    "directions",
    multiple=True,
    metavar="SCORE=DIRECTION",
    help="HIGHER_IS_BETTER or LOWER_IS_BETTER, for scores that FMEval does not have; may be repeated.",
)
@import_options
@with_session
def fmeval(
    session: Session,
    model: str,
    files: tuple[str, ...],
    suite: str,
    directions: tuple[str, ...],
    key: str,
    reason: str,
    dry_run: bool,
    **given: Any,
) -> None:
    """Import FMEval's output: summaries as JSON (`EvalOutput`), scores per sample as JSON Lines, or both."""
    from modelfleet.cli import evidence_fmeval

    output = evidence_fmeval.read(_read(files))
    for line in output.passed_over:
        click.echo(f"passed over: {line}", err=True)
    report = pb.EvaluationReport(suite=suite, results=evidence_fmeval.results(output, _directions(directions)))
    if not report.results:
        raise click.UsageError("the files hold no scores that could be imported")
    report.evaluator.name = "FMEval"
    if any(result.HasField("interval") for result in report.results):
        report.description = _INTERVALS
    complete(report, model=model, newest_file=_newest(files), **given)
    add_report(session, model, report, key, reason=reason, dry_run=dry_run)


@imports.command("mapped")
@model_argument
@_files
@click.option(
    "--mapping",
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    help="YAML: a report whose `results` say what each row gives, with {column: NAME} for what a column holds.",
)
@import_options
@with_session
def mapped(
    session: Session,
    model: str,
    files: tuple[str, ...],
    mapping: str,
    key: str,
    reason: str,
    dry_run: bool,
    **given: Any,
) -> None:
    """Import rows of CSV, JSON or JSON Lines files by a mapping that says what their columns are."""
    from modelfleet.cli import evidence_mapping

    template = evidence_mapping.read_mapping(mapping, Path(mapping).read_text(encoding="utf-8"))
    report = evidence_mapping.report_of(template, _read(files))
    if not report.results:
        raise click.UsageError("the files hold no rows")
    complete(report, model=model, newest_file=_newest(files), **given)
    add_report(session, model, report, key, reason=reason, dry_run=dry_run)


def _read(files: Sequence[str]) -> list[tuple[str, str]]:
    return [(file, Path(file).read_text(encoding="utf-8-sig")) for file in files]


def _newest(files: Sequence[str]) -> float:
    return max(Path(file).stat().st_mtime for file in files)


def _directions(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for each in given:
        name, _, direction = each.partition("=")
        if direction not in ("HIGHER_IS_BETTER", "LOWER_IS_BETTER"):
            raise click.UsageError(f"--direction takes SCORE=HIGHER_IS_BETTER or SCORE=LOWER_IS_BETTER, not '{each}'")
        found[name] = direction
    return found
