"""Aborts, pauses, promotions, mitigations, stalled calls and lost answers at every step of every strategy, in virtual
time: properties 1 to 3 hold at every event, and in the end launch, registry, capacity and platform say the same.
`make faults` goes through all.
"""

from __future__ import annotations

from itertools import product

import pytest

from tests.support.chance import chosen
from tests.support.steps import (
    CASES,
    INCIDENTS,
    RECYCLING,
    ROOM,
    Accident,
    aborted,
    mitigated,
    paused,
    promoted,
    stalled,
    unanswered,
    undisturbed,
    with_another_baseline,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

PLACES = list(product(CASES, (ROOM, RECYCLING)))
STORIES = list(product(CASES, (ROOM, RECYCLING), Accident))
# What people do otherwise than to abort, with one accident each beside none.
PROMOTIONS = list(product(CASES, (ROOM, RECYCLING), (Accident.NOTHING, Accident.CANDIDATES_DIE)))
PAUSES = list(product(CASES, (ROOM, RECYCLING), (Accident.NOTHING, Accident.BASELINES_DIE)))


def some(places: range, count: int) -> list[int]:
    """A few of the places of a launch, or all of them."""
    return chosen(places, min(count, len(places)))


@pytest.mark.parametrize(("name", "free", "accident"), chosen(STORIES, 3))
async def test_an_abort_after_any_change_gives_everybody_back_what_they_had(
    name: str, free: int, accident: Accident
) -> None:
    case = CASES[name]
    whole = await undisturbed(case, free, accident)
    assert await whole.what_is_wrong() == []
    for moment in some(range(1, whole.moments), 2):
        assert await aborted(case, free, accident, moment) == [], moment


@pytest.mark.parametrize(("name", "free"), chosen(PLACES, 1))
async def test_an_aborted_launch_that_is_begun_once_more_succeeds(name: str, free: int) -> None:
    whole = await undisturbed(CASES[name], free)
    for moment in some(range(1, whole.moments), 2):
        assert await aborted(CASES[name], free, Accident.NOTHING, moment, again=True) == [], moment


@pytest.mark.parametrize(("name", "free", "accident"), chosen(PAUSES, 1))
async def test_a_launch_that_is_paused_at_any_moment_can_be_aborted(name: str, free: int, accident: Accident) -> None:
    whole = await undisturbed(CASES[name], free, accident)
    for moment in some(range(1, whole.moments), 2):
        assert await paused(CASES[name], free, accident, moment) == [], moment


@pytest.mark.parametrize(("name", "free", "accident"), chosen(PROMOTIONS, 1))
async def test_a_promotion_at_any_moment_skips_neither_capacity_nor_availability(
    name: str, free: int, accident: Accident
) -> None:
    whole = await undisturbed(CASES[name], free, accident)
    for moment in some(range(1, whole.moments), 2):
        assert await promoted(CASES[name], free, accident, moment) == [], moment


@pytest.mark.parametrize("aborts", [False, True])
@pytest.mark.parametrize(("name", "free"), chosen(PLACES, 1))
async def test_a_call_that_comes_through_when_the_launch_is_over_does_no_harm(
    name: str, free: int, aborts: bool
) -> None:
    whole = await undisturbed(CASES[name], free)
    for call in some(range(1, whole.calls + 1), 2):
        assert await stalled(CASES[name], free, call, aborts=aborts) == [], call


@pytest.mark.parametrize(("name", "free"), chosen(PLACES, 1))
async def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_done_twice(name: str, free: int) -> None:
    whole = await undisturbed(CASES[name], free)
    for answer in range(1, whole.world.answered + 1):
        assert await unanswered(CASES[name], free, answer) == [], answer
    for moment in some(range(1, whole.moments), 1):
        # Of the way back: that its reservation is cancelled or released, and that the registry is told.
        before = whole.answered[moment - 1]
        for answer in range(before + 1, before + 3):
            assert await unanswered(CASES[name], free, answer, moment=moment) == [], (answer, moment)


SWAPS = ["replacing the baseline", "replacing with a holdout", "starting an experiment"]


@pytest.mark.parametrize(("name", "free"), chosen(list(product(SWAPS, (ROOM, RECYCLING))), 1))
async def test_the_way_back_leads_to_the_baseline_that_was_pinned_whatever_it_is_now(name: str, free: int) -> None:
    whole = await undisturbed(CASES[name], free)
    for moment in some(range(1, whole.moments), 2):
        assert await with_another_baseline(CASES[name], free, moment) == [], moment


DURING = list(product(INCIDENTS, (ROOM, RECYCLING), (Accident.NOTHING, Accident.CANDIDATES_DIE)))


@pytest.mark.parametrize(("name", "free", "accident"), chosen(DURING, 1))
async def test_a_mitigation_at_any_moment_comes_first_and_both_end(name: str, free: int, accident: Accident) -> None:
    whole = await undisturbed(INCIDENTS[name].case, free, accident)
    for moment in some(range(1, whole.moments), 2):
        assert await mitigated(INCIDENTS[name], free, accident, moment) == [], moment


@pytest.mark.parametrize("aborts", ["launches/l", "launches/m"])
@pytest.mark.parametrize(("name", "free"), chosen(list(product(INCIDENTS, (ROOM, RECYCLING))), 1))
async def test_during_a_mitigation_both_it_and_the_launch_can_be_aborted_at_any_moment(
    name: str, free: int, aborts: str
) -> None:
    whole = await undisturbed(INCIDENTS[name].case, free)
    for moment in some(range(1, whole.moments), 1):
        # Each change of the mitigation has its turn, as the moments pass.
        for later in (1 + moment % 7, 8 + moment % 23):
            wrong = await mitigated(INCIDENTS[name], free, Accident.NOTHING, moment, aborts=aborts, later=later)
            assert wrong == [], (moment, later)


async def test_a_region_that_had_its_share_when_a_mitigation_came_still_gives_up_old_replicas_afterwards() -> None:
    incident = INCIDENTS["an experiment ends while the baseline is replaced region by region"]
    # Right after the last shift in the first region, whose old replicas have not been taken away yet.
    assert await mitigated(incident, RECYCLING, Accident.NOTHING, 28, aborts="launches/m", later=13) == []
