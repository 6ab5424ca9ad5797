"""Charts as files and as text."""

from __future__ import annotations

import math
import re
import struct
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.plot import CannotPlot, Chart, Limit, Series, terminal, write

RATES = [100.0, 132.0, 145.0, 160.0, 200.0]
LATENCY = Chart(
    title="Latency over rate",
    x_label="rate (requests/s)",
    y_label="latency (ms)",
    series=[
        Series("p50", RATES, [3.0, 4.0, 5.0, 9.0, 80.0]),
        Series("p99", RATES, [13.0, 20.0, math.nan, 90.0, 800.0], "points"),
        Series("spread $a$", RATES, [2.0] * 5, "band", [40.0] * 5),
    ],
    limits=[Limit(60.0, "p99 ≤ 60 ms")],
    log_x=True,
    log_y=True,
)
# From 2026-11-26 18:00 in UTC.
HOURS = [1_795_716_000.0 + 3600 * hour for hour in range(30)]
USAGE = Chart("Usage", "", "units", [Series("used", HOURS, [100.0 + hour for hour in range(30)], "steps")], time_x=True)
EMPTY = Chart("Nothing yet", "probe", "rate (requests/s)", [Series("within", [], [], "points")], log_y=True)


@pytest.mark.parametrize("charts", [LATENCY, [LATENCY, USAGE], EMPTY], ids=["one", "several", "empty"])
def test_a_png_has_a_panel_for_each_chart(charts: Chart | list[Chart], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write(charts, path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    panels = len(charts) if isinstance(charts, list) else 1
    assert (width, height) == (1350, 630 * panels)


def test_an_svg_says_everything_as_text_and_the_same_series_give_the_same_file(tmp_path: Path) -> None:
    write([LATENCY, USAGE], tmp_path / "first.svg")
    write([LATENCY, USAGE], tmp_path / "second.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    drawn = ElementTree.parse(tmp_path / "first.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    said = {"".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    labels = {"Latency over rate", "rate (requests/s)", "latency (ms)", "p50", "spread $a$", "p99 ≤ 60 ms"}
    assert labels | {"Usage", "units", "time (UTC)", "used"} <= said
    # Numbers as people write them, and hours in UTC.
    assert {"100", "200", "18:00"} <= said


def test_a_picture_of_another_kind_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(CannotPlot, match=r"picture.jpg: a picture's name ends in .png or .svg"):
        write(LATENCY, tmp_path / "picture.jpg")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CannotPlot, match=r"pip install 'modelfleet\[plots\]'"):
        write(LATENCY, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_text_has_title_axes_series_limits_and_a_legend() -> None:
    lines = terminal(LATENCY, 70, 16).splitlines()
    assert lines[:2] == ["Latency over rate", "latency (ms)"]
    assert lines[-2].strip() == "rate (requests/s)"
    assert lines[-1] == "⠒⠒ p50   × p99   + spread $a$   -- p99 ≤ 60 ms"
    drawn = "\n".join(lines[2:-2])
    assert "┌" in drawn
    assert "100" in drawn.splitlines()[-1]
    # Four of five points: the one that is not a number is a gap.
    assert drawn.count("×") == 4
    assert "-----" in drawn


def test_steps_hold_their_value_until_the_next_and_break_at_gaps() -> None:
    around = Series("around", [0.0, 10.0], [0.0, 2.0], "points")
    steps = Series("steps", [0.0, 4.0, 5.0, 10.0], [1.0, 1.0, math.nan, 1.0], "steps")
    drawn = terminal(Chart("t", "x (s)", "y", [around, steps]), 60, 11).splitlines()
    row = max(drawn, key=lambda line: line.count("*"))
    # A line over four tenths of some 50 columns, nothing in the gap, and a lone point at the end.
    assert re.search(r"[┤│] *\*{18,24} {27,34}\* *│", row), row


def test_time_is_in_utc() -> None:
    assert "27 Nov 00:00" in terminal(USAGE, 100, 10)
    assert "time (UTC)" in terminal(USAGE, 100, 10)


def test_colours_are_only_there_when_they_are_asked_for() -> None:
    assert "\033[" not in terminal(LATENCY, 80, 12)
    assert "\033[38;2;0;114;178m" in terminal(LATENCY, 80, 12, color=True)


_VALUES = st.one_of(st.floats(allow_nan=True, allow_infinity=True, width=32), st.sampled_from([0.0, -1.0, 1e-30, 1e30]))


@settings(max_examples=60)
@given(
    points=st.lists(st.tuples(_VALUES, _VALUES), max_size=12),
    kind=st.sampled_from(["line", "steps", "points"]),
    logs=st.tuples(st.booleans(), st.booleans()),
    width=st.integers(30, 140),
    label=st.text(st.characters(codec="ascii", min_codepoint=32), min_size=1, max_size=200),
)
def test_whatever_is_drawn_stays_within_its_width(
    points: list[tuple[float, float]], kind: str, logs: tuple[bool, bool], width: int, label: str
) -> None:
    series = Series(label, [x for x, _ in points], [y for _, y in points], kind)  # type: ignore[arg-type]
    chart = Chart(f"of {label}", "x (s)", "y (ms)", [series], [Limit(5.0, label)], log_x=logs[0], log_y=logs[1])
    lines = terminal(chart, width, 9).splitlines()
    assert max(map(len, lines)) <= width
    assert any("└" in line for line in lines)


def test_a_series_with_more_places_than_values_is_refused() -> None:
    with pytest.raises(ValueError, match="as many values"):
        Series("p99", [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="as many values"):
        Series("spread", [1.0], [1.0], "band")


def test_an_axis_that_begins_at_0_shows_heights_in_proportion(tmp_path: Path) -> None:
    chart = Chart("Usage", "", "units", USAGE.series, time_x=True, zero_y=True)
    # Of values from 100 to 129 the lowest mark is that of 0.
    marks = [float(found[1]) for line in terminal(chart).splitlines() if (found := re.match(r"\s*([\d.]+)[┤┼]", line))]
    assert min(marks) == 0 and max(marks) >= 100
    write(chart, tmp_path / "usage.svg")
    assert re.search(r">0</text>", (tmp_path / "usage.svg").read_text())
