"""`modelfleet stability show`: calibration and NE of a model over time, drawn with their ranges or as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import RenderableType
from rich.text import Text

from modelfleet import wording
from modelfleet.cli import render
from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.parameters import SPAN
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import Session, with_session
from modelfleet.cli.stability.charts import RangeWindows, best_calibration, charts, is_final, is_outside
from modelfleet.cli.stability.times import ago, moment
from modelfleet.healthy_ranges import HealthyRange, in_force, window_of
from modelfleet.plot import CannotPlot, Chart, check
from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import stability_pb2 as pb

_WIDTHS = {"1m": 60, "5m": 300, "1h": 3600}
_IN_WORDS = {"1m": "minute", "5m": "5 min", "1h": "hour"}
# More points than this are closer than a terminal's dots.
_MOST_POINTS = 350
# With fewer positives a point its interval is wider than most ranges.
_FEWEST_POSITIVES = 30
_ALL = "all"
_FLAGS = {"prediction": "--prediction", "start_time": "--last", "resolution": "--resolution"}


@click.command("show")
@click.argument("model", metavar="TYPE/MODEL")
@click.option(
    "--prediction", default="", metavar="P|all", help="Which task output. Default: the first of the model type."
)
@click.option("--last", type=SPAN, default="1d", show_default=True, help="How far to look back: 1h, 1d, 28d.")
@click.option(
    "--resolution",
    type=click.Choice(["auto", *_WIDTHS]),
    default="auto",
    show_default=True,
    help="Time of a point; auto: as fine as its positives allow.",
)
@click.option("--table", "as_table", is_flag=True, help="Numbers instead of drawings.")
@click.option("--plot", "path", type=click.Path(dir_okay=False), metavar="FILE", help="Write a picture: .png or .svg.")
@with_session
def show(
    session: Session, model: str, prediction: str, last: Duration, resolution: str, as_table: bool, path: str | None
) -> None:
    """Draw calibration and NE with their healthy ranges.

    Beneath them what they rest on: labels that have come, volume, and predicted against observed shares. Values whose
    labels are still to come are drawn apart, and corrected for the delay that labels had before.
    """
    if path is not None:
        try:
            check(path)
        except CannotPlot as error:
            raise click.ClickException(str(error)) from None
    name = MODEL.name(model)
    model_type = session.client.registry.get_model_type(name=name.rsplit("/models/", 1)[0])
    ranges = [each for _, each in in_force(session.client.registry.get_model(name=name), model_type)]
    found = [
        _Shown(session, name, each, last, resolution, _windows(ranges, each))
        for each in _predictions(model_type, prediction)
    ]
    if not session.is_table:
        answers = [render.as_data(each.answer) for each in found]
        render.dump(session, answers[0] if prediction != _ALL else answers)
        return
    panels: list[Chart] = []
    for each in found:
        for line in each.head():
            render.console().print(line, soft_wrap=True)
        if not each.answer.points:
            continue
        drawn = each.charts()
        panels += drawn
        if as_table:
            render.console().print(each.table())
        elif path is None:
            render.curves(drawn, beside=True)
    if path is not None and panels:
        render.picture(panels, path)


def _windows(ranges: Iterable[HealthyRange], prediction: str) -> RangeWindows:
    """Returns for which windows the ranges in force of a prediction are."""
    seconds = {each.metric: int(window_of(each).total_seconds()) for each in ranges if each.prediction == prediction}
    usual = RangeWindows()
    return RangeWindows(
        seconds.get(HealthyRange.CALIBRATION, usual.calibration), seconds.get(HealthyRange.NE, usual.ne)
    )


def _predictions(model_type: registry_pb2.ModelType, prediction: str) -> list[str]:
    """Returns which predictions to show; an empty name is the first that the model type declares."""
    if prediction and prediction != _ALL:
        return [prediction]
    ids = [each.id for each in model_type.predictions]
    return ids if prediction == _ALL else ids[:1] or [""]


class _Shown:
    """One prediction as it is shown."""

    def __init__(
        self,
        session: Session,
        model: str,
        prediction: str,
        last: Duration,
        resolution: str,
        windows: RangeWindows,
    ) -> None:
        self._last = last
        self._windows = windows
        self._what = f"{wording.short_model(model)} · {prediction}"
        self._resolution, self.answer = _asked(session, model, prediction, last, resolution)

    def head(self) -> Iterator[Text]:
        """What is shown, and its figures as a whole."""
        total = self.answer.total
        start, end = moment(total.start_time), moment(total.end_time)
        yield Text(f"{self._what}, {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC", style="bold")
        if not total.examples:
            refused = f"; {render.count(total.rejected_rows, 'row')} refused" if total.rejected_rows else ""
            yield Text(f"No predictions in the last {render.duration(self._last)}{refused}.")
            return
        yield Text(
            f"calibration {figure(total.calibration)}, NE {figure(total.ne)}, "
            f"{render.count(total.positives, 'positive')} among {render.count(total.examples, 'example')}"
        )
        if total.matured_share < 1:
            guess = (
                "" if self.answer.delay_positives else "; how long they take is not known yet, so nothing is corrected"
            )
            yield Text(f"{total.matured_share:.0%} mature; the labels of the others are still to come{guess}")
        outside = {
            "calibration": [self._is_uncalibrated(point) for point in self.answer.points],
            "NE": [self._is_poor(point) for point in self.answer.points],
        }
        for metric, points in outside.items():
            if any(points):
                yield Text(f"{metric} out of its range in {sum(points)} of {len(points)} points", style="red")

    def charts(self) -> list[Chart]:
        width, step = _WIDTHS[self._resolution], _IN_WORDS[self._resolution]
        return charts(self._what, self.answer, width, step, self._windows, datetime.now(UTC).timestamp())

    def _is_uncalibrated(self, point: pb.Point) -> bool:
        width = _WIDTHS[self._resolution]
        return is_outside(best_calibration(point), point.calibration_range, width, self._windows.calibration)

    def _is_poor(self, point: pb.Point) -> bool:
        return is_outside(point.ne, point.ne_range, _WIDTHS[self._resolution], self._windows.ne)

    def table(self) -> RenderableType:
        """A row a point, and one for all of them."""
        rows = [self._row(render.clock(point.start_time), point) for point in self.answer.points]
        return render.table(_HEADERS, [*rows, self._row("total", self.answer.total)])

    def _row(self, label: str, point: pb.Point) -> list[str]:
        base_rate = f"{point.base_rate.value:.4f}" if point.base_rate.state == pb.Estimate.VALUE else ""
        corrected = "" if is_final(point) else figure(point.corrected_calibration)
        marks = [
            " !" if self._is_uncalibrated(point) else "",
            " !" if self._is_poor(point) else "",
        ]
        return [
            label,
            figure(point.calibration) + marks[0],
            corrected,
            figure(point.ne) + marks[1],
            base_rate,
            f"{point.examples:,}",
            f"{point.positives:,}",
            f"{point.matured_share:.0%}",
            f"{point.label_coverage:.0%}",
        ]


def _asked(
    session: Session, model: str, prediction: str, last: Duration, resolution: str
) -> tuple[str, pb.QuerySeriesResponse]:
    """Returns the series at the resolution that is wished, or at the finest that is worth looking at."""
    span = last.ToTimedelta()
    fitting = [
        name for name, width in _WIDTHS.items() if span <= timedelta(seconds=width) * _MOST_POINTS or name == "1h"
    ]
    tried = fitting if resolution == "auto" else [resolution]
    for name in tried:
        with told_in_flags(_FLAGS):
            answer = session.client.stability.query_series(
                model=model,
                prediction=prediction,
                start_time=_whole(ago(last), _WIDTHS[name]),
                resolution=Duration(seconds=_WIDTHS[name]),
            )
        if not answer.delay_positives:
            _without_guesses(answer)
        if answer.total.positives >= _FEWEST_POSITIVES * len(answer.points):
            break
    return name, answer


def _without_guesses(answer: pb.QuerySeriesResponse) -> None:
    """Takes away values that are corrected for a delay which nobody has seen yet."""
    for point in (*answer.points, answer.total):
        point.ClearField("corrected_calibration")


def _whole(start: Timestamp, width: int) -> Timestamp:
    """Returns the beginning of the point that a moment lies in, so that the first one is as wide as the others."""
    return Timestamp(seconds=start.seconds // width * width)


_HEADERS = ["SINCE (UTC)", "CALIBRATION", "CORRECTED", "NE", "BASE RATE", "EXAMPLES", "POSITIVES", "MATURED", "COVERED"]


def figure(value: pb.Estimate) -> str:
    """A number with its interval: `1.02 [0.91, 1.15]`; or why there is none."""
    if value.state != pb.Estimate.VALUE:
        return render.enum(value, "state").lower().replace("_", " ")
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
