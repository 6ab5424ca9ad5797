"""Histories of SLOs in memory: however they were read, minute by minute or at once, they say the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.stability.domain import budget
from modelfleetd.stability.domain.budget import HOURS, History
from modelfleetd.stability.domain.slices import Slices
from modelfleetd.stability.domain.slo import LONGEST_WINDOW, tally

# Minutes since 1970 that slices exist of; the period ends somewhere in the second half.
FIRST, LAST = 100 * 60, 100 * 60 + 2 * HOURS * 60
MINUTES = st.integers(FIRST + HOURS * 60, LAST - 1)


def world(seed: int, slos: list[str]) -> dict[str, Slices]:
    """All that was ever written, by SLO."""
    chance = np.random.default_rng(seed)
    values = np.arange(4, dtype=np.uint8)
    return {slo: chance.choice(values, size=LAST - FIRST, p=[0.1, 0.6, 0.2, 0.1]) for slo in slos}


def read(written: dict[str, Slices], slos: list[str], start: int, end: int, newest: int) -> dict[str, Slices]:
    """What the database has from one minute to another, while the newest minute is this one."""
    found = {}
    for slo in slos:
        slices = written[slo].copy()
        slices[newest + 1 - FIRST :] = 0
        padded = np.concatenate([np.zeros(FIRST, dtype=np.uint8), slices, np.zeros(60, dtype=np.uint8)])
        found[slo] = padded[start:end]
    return found


def whole(written: dict[str, Slices], slos: list[str], minute: int) -> History:
    return budget.begun(slos, read(written, slos, *budget.whole_span(minute), minute), minute)


def step(before: History, written: dict[str, Slices], slos: list[str], minute: int) -> History:
    start = before.tail_start(minute)
    assert start is not None
    end = (minute // 60 + 1) * 60
    return budget.continued(before, slos, read(written, slos, start, end, minute), minute)


def same(one: History, other: History) -> None:
    assert (one.minute, one.rows) == (other.minute, other.rows)
    assert (one.recent == other.recent).all() and (one.hours == other.hours).all()


@given(st.integers(0, 1000), MINUTES, st.lists(st.integers(0, 900), min_size=1, max_size=6))
@settings(max_examples=25)
def test_minute_by_minute_is_the_same_as_all_at_once(seed: int, minute: int, steps: list[int]) -> None:
    slos = ["slos/a", "slos/b"]
    written = world(seed, slos)
    followed = whole(written, slos, minute)
    for width in steps:
        minute = min(minute + width, LAST - 1)
        followed = step(followed, written, slos, minute)
    same(followed, whole(written, slos, minute))


@given(st.integers(0, 1000), MINUTES)
@settings(max_examples=25)
def test_what_is_kept_is_what_was_written(seed: int, minute: int) -> None:
    written = world(seed, ["slos/a"])
    found = whole(written, ["slos/a"], minute)
    slices = written["slos/a"]
    assert (found.recent[0] == slices[minute + 1 - LONGEST_WINDOW - FIRST : minute + 1 - FIRST]).all()
    start, _ = budget.whole_span(minute)
    counted = tally(slices[start - FIRST : minute + 1 - FIRST])
    assert found.totals().tolist() == [[counted.good, counted.bad, counted.unknown]]


def test_models_come_and_go_without_a_trace_in_others() -> None:
    slos = ["slos/a", "slos/b", "slos/c"]
    written = world(1, slos)
    minute = FIRST + HOURS * 60 + 17
    before = whole(written, slos, minute)
    kept = step(before, written, ["slos/c", "slos/a"], minute + 5)
    added = budget.begun(["slos/b"], read(written, ["slos/b"], *budget.whole_span(minute + 5), minute + 5), minute + 5)
    same(budget.joined(kept, added), whole(written, ["slos/c", "slos/a", "slos/b"], minute + 5))
    assert budget.begun([], {}, minute).totals().shape == (0, 3)
    same(budget.joined(budget.begun([], {}, minute), before), before)


def test_after_a_long_absence_all_is_read_again() -> None:
    written = world(2, ["slos/a"])
    before = whole(written, ["slos/a"], FIRST + HOURS * 60)
    assert before.tail_start(before.minute + LONGEST_WINDOW) is None
    assert before.tail_start(before.minute - 1) is None
    assert before.tail_start(before.minute) is not None
    assert budget.blank(["slos/a"]).tail_start(before.minute) is None
