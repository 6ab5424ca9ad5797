"""Tables on narrow and wide terminals: nothing that was to be shown is lost."""

from __future__ import annotations

import io
import string
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from modelfleet.cli.tables import FittedTable

TIME = "2026-11-26 20:13:22"
RESERVATION = "r-0193f2a4c1d27e6b9a10"
MESSAGE = "Waits for 84 units of flavors/cpu in regions/eu that launches/a frees at about 14:00 UTC; second in line"
HEADERS = ["RESERVATION", "LAUNCH", "POOL", "STATE", "UNITS", "CREATED", "MESSAGE"]
ROWS = [
    [RESERVATION, "feed-v8-canary", "feed", "PENDING", "584", TIME, MESSAGE],
    ["r-2", "l2", "feed", "ROLLED_BACK", "10", TIME, ""],
]


def drawn(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, terminal: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None, highlight=False)
    console.print(FittedTable(headers, rows))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 140, 400])
def test_identifiers_states_and_numbers_stand_whole_at_every_width(width: int) -> None:
    text = drawn(HEADERS, ROWS, width)
    words = text.split()
    for whole in (RESERVATION, "r-2", "PENDING", "ROLLED_BACK", "584", *HEADERS, *TIME.split(), *MESSAGE.split()):
        assert whole in words, text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("width", "first"),
    [
        (160, "RESERVATION             LAUNCH          POOL  STATE        UNITS  CREATED              MESSAGE"),
        (100, "RESERVATION             LAUNCH          POOL  STATE        UNITS  CREATED       MESSAGE"),
        (80, "RESERVATION             LAUNCH          POOL  STATE        UNITS  CREATED"),
        (65, "RESERVATION            LAUNCH   POOL STATE       UNITS CREATED"),
        (50, f"RESERVATION  {RESERVATION}"),
    ],
    ids=["as it is", "wrapped", "message beneath", "close together", "blocks"],
)
def test_less_room_takes_first_what_is_missed_least(width: int, first: str) -> None:
    assert drawn(HEADERS, ROWS, width).splitlines()[0].rstrip() == first


def test_names_are_broken_between_their_parts_and_what_is_short_stays_in_its_row() -> None:
    headers = ["LAUNCH", "CANDIDATE", "STATE", "SIDE", "TOOK"]
    rows = [
        ["l1", "ranking-home-feed/new", "SHIFTING (paused)", "candidate", "3.4s"],
        ["l2", "ctr/new", "AWAITING_APPROVAL", "baseline", "1d 4h"],
    ]
    lines = [line.split() for line in drawn(headers, rows, 48).splitlines()]
    assert lines == [
        headers,
        ["l1", "ranking-", "SHIFTING", "candidate", "3.4s"],
        ["home-feed/", "(paused)"],
        ["new"],
        ["l2", "ctr/new", "AWAITING_", "baseline", "1d", "4h"],
        ["APPROVAL"],
    ]


names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=30)
sentences = st.lists(names, max_size=12).map(" ".join)


@given(
    rows=st.lists(st.tuples(names, names, st.integers(0, 10**9).map(str), sentences, sentences), max_size=4),
    width=st.integers(30, 200),
)
def test_every_character_is_printed_and_the_first_column_in_one_piece(rows: list[tuple[str, ...]], width: int) -> None:
    text = drawn(["NAME", "OTHER", "UNITS", "SOURCE", "MESSAGE"], rows, width)
    printed = text.translate({ord(letter): None for letter in string.whitespace})
    assert len(printed) >= sum(len("".join(cell.split())) for row in rows for cell in row)
    # A block takes the longest header and the gap beside it.
    if width >= 30 + len("MESSAGE") + 2:
        assert {name for name, *_ in rows} <= set(text.split())


def test_a_column_without_a_header_goes_where_there_is_no_room_for_it() -> None:
    headers, rows = ["FLAVOR", "NOMINAL", "AVAILABLE", ""], [["cpu", "30", "-60", "████████│████████████"]]
    assert "████████│████████████" in drawn(headers, rows, 80)
    narrow = drawn(headers, rows, 40)
    assert "█" not in narrow and len(narrow.splitlines()) == 2


def test_a_terminal_is_told_that_times_are_in_utc_and_a_pipe_gets_rows_only() -> None:
    assert drawn(HEADERS, ROWS, 200).splitlines()[-1].startswith("Times are in UTC.")
    assert drawn(["TIME", "UNITS"], [[TIME, "1"]], 80).splitlines()[-1].startswith("Times are in UTC.")
    assert "UTC." not in drawn(HEADERS, ROWS, 400, terminal=False)
    assert "UTC." not in drawn(["NAME", "UNITS"], [["a", "1"]], 200)
