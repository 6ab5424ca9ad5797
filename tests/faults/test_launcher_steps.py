"""Aborts, pauses, promotions, mitigations, gates that fail, stalled calls and lost answers at every step of every
strategy, in virtual time: properties 1 to 3 hold at every event, and in the end launch, registry, capacity and platform
say the same. `make faults` goes through all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest

from tests.support.chance import chosen
from tests.support.steps.cases import CASES, INCIDENTS, RECYCLING, ROOM, Accident
from tests.support.steps.stories import (
    aborted,
    aborted_once,
    aborted_unanswered,
    gone_bad,
    mitigated,
    paused,
    promoted,
    stalled,
    unanswered,
    undisturbed,
    with_another_baseline,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

PLACES = list(product(CASES, (ROOM, RECYCLING)))
STORIES = list(product(CASES, (ROOM, RECYCLING), Accident))
# What people do otherwise than to abort, with one accident each beside none.
PROMOTIONS = list(product(CASES, (ROOM, RECYCLING), (Accident.NOTHING, Accident.CANDIDATES_DIE)))
PAUSES = list(product(CASES, (ROOM, RECYCLING), (Accident.NOTHING, Accident.BASELINES_DIE)))


def some(places: Sequence[int], count: int) -> list[int]:
    """A few of the places of a launch, or all of them."""
    return chosen(places, min(count, len(places)))


@pytest.mark.parametrize(("name", "free", "accident"), chosen(STORIES, 3))
async def test_an_abort_after_any_change_gives_everybody_back_what_they_had_and_the_launch_can_be_begun_once_more(
    name: str, free: int, accident: Accident
) -> None:
    whole = await undisturbed(CASES[name], free, accident)
    again = accident is Accident.NOTHING
    assert await aborted(CASES[name], free, accident, some(whole.turns, 2), again=again) == []


@pytest.mark.parametrize(("name", "free", "accident"), chosen(PAUSES, 1))
async def test_a_launch_that_is_paused_at_any_moment_can_be_aborted(name: str, free: int, accident: Accident) -> None:
    whole = await undisturbed(CASES[name], free, accident)
    assert await paused(CASES[name], free, accident, some(whole.turns, 2)) == []


@pytest.mark.parametrize(("name", "free", "accident"), chosen(PROMOTIONS, 1))
async def test_a_promotion_at_any_moment_skips_neither_capacity_nor_availability(
    name: str, free: int, accident: Accident
) -> None:
    whole = await undisturbed(CASES[name], free, accident)
    assert await promoted(CASES[name], free, accident, some(whole.turns, 2)) == []


JUDGED = [name for name in CASES if name.startswith(("replacing", "starting", "ramping up"))]


@pytest.mark.parametrize(
    ("name", "free", "accident"),
    chosen(list(product(JUDGED, (ROOM, RECYCLING), (Accident.NOTHING, Accident.BASELINES_DIE))), 1),
)
async def test_a_candidate_that_gets_bad_at_any_moment_is_found_by_the_next_bake_and_taken_back(
    name: str, free: int, accident: Accident
) -> None:
    whole = await undisturbed(CASES[name], free, accident)
    assert await gone_bad(CASES[name], free, accident, some(whole.turns, 2)) == []


@pytest.mark.parametrize("aborts", [False, True])
@pytest.mark.parametrize(("name", "free"), chosen(PLACES, 1))
async def test_a_call_that_comes_through_when_the_launch_is_over_does_no_harm(
    name: str, free: int, aborts: bool
) -> None:
    whole = await undisturbed(CASES[name], free)
    assert await stalled(CASES[name], free, some(range(1, whole.calls + 1), 2), aborts=aborts) == []


@pytest.mark.parametrize(("name", "free"), chosen(PLACES, 1))
async def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_done_twice(name: str, free: int) -> None:
    whole = await undisturbed(CASES[name], free)
    assert await unanswered(CASES[name], free, range(1, whole.world.answered + 1)) == []
    # Of the way back: that its reservation is cancelled or released, and that the registry is told.
    assert await aborted_unanswered(CASES[name], free, some(whole.turns, 1), (1, 2)) == []


@pytest.mark.parametrize(("name", "free"), chosen(PLACES, 1))
async def test_where_only_words_have_changed_an_abort_does_the_same_as_right_before(name: str, free: int) -> None:
    """So those moments are left out everywhere else."""
    whole = await undisturbed(CASES[name], free)
    words = [moment for moment in range(1, whole.moments) if moment not in whole.turns]
    for moment in some(words, 2):
        before = max(turn for turn in whole.turns if turn < moment)
        assert await aborted_once(CASES[name], free, moment) == await aborted_once(CASES[name], free, before), moment


SWAPS = ["replacing the baseline", "replacing with a holdout", "starting an experiment"]


@pytest.mark.parametrize(("name", "free"), chosen(list(product(SWAPS, (ROOM, RECYCLING))), 1))
async def test_the_way_back_leads_to_the_baseline_that_was_pinned_whatever_it_is_now(name: str, free: int) -> None:
    whole = await undisturbed(CASES[name], free)
    assert await with_another_baseline(CASES[name], free, some(whole.turns, 2)) == []


@pytest.mark.parametrize(("name", "free"), chosen(list(product(INCIDENTS, (ROOM, RECYCLING))), 1))
async def test_a_mitigation_at_any_moment_comes_first_and_both_end_whoever_is_aborted_meanwhile(
    name: str, free: int
) -> None:
    whole = await undisturbed(INCIDENTS[name].case, free)

    def aborts(moment: int) -> list[tuple[str, int]]:
        # Each change of the mitigation has its turn, as the moments pass.
        return list(product(("launches/l", "launches/m"), (1 + moment % 7, 8 + moment % 23)))

    assert await mitigated(INCIDENTS[name], free, Accident.NOTHING, some(whole.turns, 1), aborts) == []


@pytest.mark.parametrize(("name", "free"), chosen(list(product(INCIDENTS, (ROOM, RECYCLING))), 1))
async def test_a_mitigation_at_any_moment_comes_first_and_both_end_while_replicas_die(name: str, free: int) -> None:
    whole = await undisturbed(INCIDENTS[name].case, free, Accident.CANDIDATES_DIE)
    assert await mitigated(INCIDENTS[name], free, Accident.CANDIDATES_DIE, some(whole.turns, 2)) == []


async def test_a_region_that_had_its_share_when_a_mitigation_came_still_gives_up_old_replicas_afterwards() -> None:
    incident = INCIDENTS["an experiment ends while the baseline is replaced region by region"]
    # Right after the last shift in the first region, whose old replicas have not been taken away yet.
    aborts = [("launches/m", 13)]
    assert await mitigated(incident, RECYCLING, Accident.NOTHING, [28], lambda moment: aborts) == []
