"""What `modelfleet stability show` draws of a series."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from modelfleet.cli import render
from modelfleet.cli.stability.charts import RangeWindows, charts, is_outside
from modelfleet.plot import Chart, Series, write
from modelfleet.stability.v1 import stability_pb2 as pb

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
HOUR = 3600
LATER = NOON.timestamp() + 100 * HOUR
NO_DATA = pb.Estimate(state=pb.Estimate.NO_DATA)


def estimate(value: float, reach: float = 0.05) -> pb.Estimate:
    return pb.Estimate(state=pb.Estimate.VALUE, value=value, low=value - reach, high=value + reach)


def point(
    hour: int, calibration: float, *, mature: bool = True, corrected: float = 0.0, positives: int = 500
) -> pb.Point:
    made = pb.Point(
        calibration=estimate(calibration),
        ne=estimate(0.8) if mature else NO_DATA,
        corrected_calibration=estimate(corrected) if corrected else NO_DATA,
        examples=10_000,
        positives=positives,
        matured_share=float(mature),
        mature=mature,
        label_coverage=1.0 if mature else 0.4,
        calibration_range=pb.Limits(low=0.9, high=1.1),
        ne_range=pb.Limits(low=0.7, high=0.9),
    )
    made.start_time.FromDatetime(NOON + timedelta(hours=hour))
    return made


def answer(*points: pb.Point) -> pb.QuerySeriesResponse:
    bins = [pb.CalibrationBin(bin=b, weight=9, mean_prediction=p, mean_label=p * 1.1) for b, p in ((4, 0.01), (9, 0.1))]
    return pb.QuerySeriesResponse(points=points, bins=bins)


def drawn(given: pb.QuerySeriesResponse) -> dict[str, Chart]:
    return {chart.title: chart for chart in charts("feed/v7 · like", given, HOUR, "hour", RangeWindows(), LATER)}


def series(chart: Chart) -> dict[str, Series]:
    return {each.label: each for each in chart.series}


DAY = answer(
    *(point(hour, 1.0 + 0.01 * (hour % 3)) for hour in range(8)),
    point(8, 1.4),
    # Two hours without traffic.
    point(11, 1.02),
    point(12, 1.6, mature=False, corrected=1.03),
    point(13, 3.9, mature=False, corrected=1.2),
)


def test_there_is_a_panel_for_each_thing_to_look_at() -> None:
    titles = [
        "Calibration of feed/v7 · like",
        "Normalized entropy of feed/v7 · like",
        "Labels that have come",
        "Volume",
    ]
    assert [*drawn(DAY)] == [*titles, "Reliability"]
    assert charts("x", pb.QuerySeriesResponse(), HOUR, "hour", RangeWindows(), LATER) == []
    assert charts("x", answer(pb.Point(rejected_rows=7)), HOUR, "hour", RangeWindows(), LATER) == []


def test_what_labels_can_still_change_is_drawn_apart_and_corrected() -> None:
    by_label = series(drawn(DAY)["Calibration of feed/v7 · like"])
    firm, waiting = by_label["calibration"], by_label["labels still to come"]
    corrected = by_label["corrected for their delay"]
    assert [math.isnan(value) for value in firm.y[-2:]] == [True, True]
    # Both begin where the firm line ends.
    assert waiting.x[0] == corrected.x[0] == firm.x[-3]
    assert waiting.y[0] == corrected.y[0] == 1.02
    assert corrected.y[1:] == pytest.approx([1.03, 1.2])
    assert (waiting.mark, corrected.mark, firm.mark) == ("immature", "corrected", "value")


def test_values_out_of_range_are_marked_by_what_is_known_best() -> None:
    outside = series(drawn(DAY)["Calibration of feed/v7 · like"])["out of range"]
    hours = [(x - NOON.timestamp()) / HOUR for x in outside.x]
    # Not that of 12:00, which looks high only until its labels are there.
    assert list(zip(hours, outside.y, strict=True)) == [(8.0, 1.4), (13.0, 1.2)]
    assert "out of range" not in series(drawn(DAY)["Normalized entropy of feed/v7 · like"])


def test_a_point_of_less_time_than_its_range_is_for_is_out_of_it_with_its_whole_interval_only() -> None:
    limits = pb.Limits(low=0.9, high=1.1)
    near, far = estimate(1.12), estimate(1.2)
    assert [is_outside(each, limits, HOUR, HOUR) for each in (near, far)] == [True, True]
    assert [is_outside(each, limits, HOUR, 6 * HOUR) for each in (near, far)] == [False, True]
    points = [point(hour, 1.12) for hour in range(3)]
    panels = charts("x", answer(*points), HOUR, "hour", RangeWindows(calibration=6 * HOUR), LATER)
    assert "out of range" not in series(panels[0])


def test_the_hour_that_goes_on_is_no_drop_in_volume() -> None:
    now = NOON.timestamp() + 13.5 * HOUR
    panels = charts("x", DAY, HOUR, "hour", RangeWindows(), now)
    volume = next(series(panel)["examples"] for panel in panels if panel.title == "Volume")
    assert math.isnan(volume.y[-1])
    assert volume.y[-2] == 10_000


def test_time_without_points_is_a_gap() -> None:
    line = series(drawn(DAY)["Calibration of feed/v7 · like"])["calibration"]
    gap = line.x.index(NOON.timestamp() + 9 * HOUR)
    assert math.isnan(line.y[gap])
    assert line.x[gap + 1] == NOON.timestamp() + 11 * HOUR


def test_values_that_say_little_do_not_make_the_scale() -> None:
    wild = point(9, 40.0, positives=2)
    highest = max(
        value
        for each in drawn(answer(*DAY.points, wild))["Calibration of feed/v7 · like"].series
        for value in (*each.y, *each.upper)
        if not math.isnan(value)
    )
    assert highest < 2.0


def test_files_have_every_panel_and_name_what_is_in_it(tmp_path: Path) -> None:
    write([*drawn(DAY).values()], tmp_path / "show.svg")
    root = ElementTree.parse(tmp_path / "show.svg").getroot()
    said = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
    panels = {*drawn(DAY), "predicted / observed", "lower is better", "of those that will", "per hour"}
    legend = {"healthy range", "99 % interval", "labels still to come", "corrected for their delay", "out of range"}
    assert panels | legend | {"calibrated", "bins of the whole span", "label coverage", "examples"} <= said
    write([*drawn(DAY).values()], tmp_path / "show.png")
    assert (tmp_path / "show.png").stat().st_size < 120_000


@pytest.mark.parametrize(("columns", "coloured"), [(80, False), (200, False), (80, True)])
def test_it_fits_its_terminal_and_is_read_without_colours(
    columns: int, coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    if coloured:
        # A terminal that has colours, whose user does not want them.
        for name, value in {"TERM": "xterm-256color", "FORCE_COLOR": "1", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)
    render.curves(drawn(DAY).values(), beside=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    assert "\033[" not in text
    # What is out of range, the range's edges and what is not final differ by their characters.
    for legend in ("× out of range", "- healthy range", "o labels still to come", "* calibration"):
        assert legend in text
    titles = [line for line in lines if "Calibration of feed" in line]
    assert len(titles) == 1
    assert ("Normalized entropy" in titles[0]) == (columns == 200)
