"""Series and judgements of a model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.cli import render
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import Session, with_session
from modelfleet.stability.v1 import stability_pb2 as pb


def figure(value: pb.Estimate) -> str:
    """A number with its interval: `1.02 [0.91, 1.15]`; or why there is none."""
    if value.state != pb.Estimate.VALUE:
        return render.enum(value, "state").lower().replace("_", " ")
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _since(span: Duration) -> Timestamp:
    start = Timestamp()
    start.FromDatetime(datetime.now(UTC) - timedelta(seconds=span.seconds, microseconds=span.nanos // 1000))
    return start


@click.command("show")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--prediction", default="", help="Which task output. Default: the first that the model type declares.")
@click.option("--last", type=DURATION, default="1h", show_default=True, help="How far to look back.")
@click.option(
    "--resolution", type=click.Choice(["1m", "5m", "1h"]), default="1m", show_default=True, help="Width of a row."
)
@with_session
def show(session: Session, model: str, prediction: str, last: Duration, resolution: str) -> None:
    """Show calibration and NE of a model with their intervals."""
    width = Duration(seconds={"1m": 60, "5m": 300, "1h": 3600}[resolution])
    answer = session.client.stability.query_series(
        model=MODEL.name(model), prediction=prediction, start_time=_since(last), resolution=width
    )
    if not session.is_table:
        render.dump(session, render.as_data(answer))
        return
    if not answer.points:
        click.echo(f"No predictions of {model} in the last {render.duration(last)}.")
        return
    rows = [_row(render.clock(point.start_time), point) for point in answer.points]
    rows.append(_row("total", answer.total))
    headers = ["SINCE (UTC)", "CALIBRATION", "NE", "BASE RATE", "EXAMPLES", "POSITIVES", "MATURED"]
    render.console().print(render.table(headers, rows))


def _row(label: str, point: pb.Point) -> list[str]:
    base_rate = f"{point.base_rate.value:.4f}" if point.base_rate.state == pb.Estimate.VALUE else ""
    numbers = [base_rate, str(point.examples), str(point.positives), f"{point.matured_share:.0%}"]
    return [label, figure(point.calibration), figure(point.ne), *numbers]


@click.command("judge")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--baseline", default="", help="Compare with this model on the same span.")
@click.option("--last", type=DURATION, default="1h", show_default=True, help="How far to look back.")
@with_session
def judge(session: Session, model: str, baseline: str, last: Duration) -> None:
    """Judge a model as a launch's gate would. Exit status 1 unless it passes."""
    name = MODEL.name(model)
    other = f"{name.rsplit('/', 1)[0]}/{render.short(baseline)}" if baseline else ""
    found = session.client.stability.judge_model(model=name, baseline=other, start_time=_since(last))
    if session.is_table:
        click.echo(f"{render.enum(found, 'verdict')}: {found.explanation}")
        for finding in found.findings if len(found.findings) > 1 else ():
            click.echo(f"  {render.enum(finding, 'verdict')}: {finding.explanation}")
        if other and not any(finding.HasField("baseline") for finding in found.findings):
            click.echo("  Not compared with the baseline: the registry demands no NE of this prediction (ne_range).")
    else:
        render.dump(session, render.as_data(found))
    if render.enum(found, "verdict") != "PASS":
        raise click.exceptions.Exit(1)
