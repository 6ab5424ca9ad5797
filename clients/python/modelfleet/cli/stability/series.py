"""Series of a model."""

from __future__ import annotations

import click
from google.protobuf.duration_pb2 import Duration

from modelfleet.cli import render
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import Session, with_session
from modelfleet.cli.stability.times import ago
from modelfleet.stability.v1 import stability_pb2 as pb


def figure(value: pb.Estimate) -> str:
    """A number with its interval: `1.02 [0.91, 1.15]`; or why there is none."""
    if value.state != pb.Estimate.VALUE:
        return render.enum(value, "state").lower().replace("_", " ")
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


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
        model=MODEL.name(model), prediction=prediction, start_time=ago(last), resolution=width
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
