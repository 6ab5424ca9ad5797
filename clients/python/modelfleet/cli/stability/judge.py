"""`modelfleet stability judge`: is a model good enough to go on?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration

from modelfleet.cli import render
from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.parameters import SPAN
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import Session, with_session
from modelfleet.cli.stability.criteria import FLAGS, criteria, with_criteria
from modelfleet.cli.stability.times import ago
from modelfleet.common.v1.serving_pb2 import PASS
from modelfleet.healthy_ranges import USUAL_WINDOW, widest_window
from modelfleet.stability.v1 import stability_pb2 as pb


def baseline_of(model: str, baseline: str) -> str:
    """Returns the name of another model of the same type; empty where none is given."""
    return f"{model.rsplit('/', 1)[0]}/{render.short(baseline)}" if baseline else ""


@click.command("judge")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--baseline", default="", metavar="MODEL", help="Compare with this model on the same minutes.")
@click.option(
    "--last",
    type=SPAN,
    help="How far to look back. Default: the widest window of the healthy ranges in force; 1h with criteria.",
)
@with_criteria
@with_session
def judge(session: Session, model: str, baseline: str, last: Duration | None, **given: Any) -> None:
    """Judge a model as a launch's gate would. Exit status 1 unless it passes.

    By the healthy ranges in force, or by the criteria that are given here.
    """
    name = MODEL.name(model)
    demanded = criteria(session, name, **given)
    span = last or _usual_span(session, name, demanded)
    with told_in_flags(FLAGS | {"start_time": "--last"}):
        found = session.client.stability.judge_model(
            model=name, baseline=baseline_of(name, baseline), start_time=ago(span), criteria=demanded
        )
    if session.is_table:
        click.echo(f"{render.enum(found, 'verdict')}: {found.explanation}")
        for finding in _unsaid(found):
            click.echo(f"  {render.enum(finding, 'verdict')}: {finding.explanation}")
        if baseline and not any(finding.metric in _COMPARISONS for finding in found.findings):
            click.echo(
                "  Not compared with the baseline: give --max-ne-regression 1% or --max-calibration-difference 5%."
            )
        if last is None:
            click.echo(f"  Over the last {render.duration(span)}; for another span give --last.")
    else:
        render.dump(session, render.as_data(found))
    if found.verdict != PASS:
        raise click.exceptions.Exit(1)


def _usual_span(session: Session, model: str, demanded: Sequence[pb.Criterion]) -> Duration:
    """Returns how far to look back for the ranges to fit; criteria that are given here fit any span."""
    span = Duration()
    if demanded:
        span.FromTimedelta(USUAL_WINDOW)
        return span
    registry = session.client.registry
    model_type = registry.get_model_type(name=model.rsplit("/models/", 1)[0])
    span.FromTimedelta(widest_window(registry.get_model(name=model), model_type))
    return span


def _unsaid(found: pb.Judgement) -> list[pb.Finding]:
    """The findings without the one that the explanation begins with, which stands above them."""
    said = next((each for each in found.findings if each.verdict == found.verdict), None)
    return [each for each in found.findings if each is not said]


_COMPARISONS = {pb.Finding.NE_REGRESSION, pb.Finding.CALIBRATION_DIFFERENCE}
