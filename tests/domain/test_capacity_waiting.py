"""Who is held, who waits and for what: the rule with its examples, and what must hold in every state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.quota import Headroom, Share
from modelfleetd.capacity.domain.reservation import Asked, HoldItem, Tier
from modelfleetd.capacity.domain.room import Room, Seat, room_of
from modelfleetd.capacity.domain.simulation import RegionSwap, When, in_steps, simulate
from modelfleetd.capacity.domain.waiting import Claim, Line, Prospect, Release

CPU, EU, US = "flavors/cpu", "regions/eu", "regions/us"
HERE, THERE = Place(CPU, EU), Place(CPU, US)
NOW = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)
FEED, ADS, ORG = "pools/feed", "pools/ads", "pools/org"
MUCH = 10**6


def room(units: int, *, there: int = 0, end_room: int = MUCH) -> Room:
    """A pool alone with so many free units."""
    return Room({(FEED, HERE): Seat(Share(units), None, end_room), (FEED, THERE): Seat(Share(there), None, end_room)})


def claim(number: int, units: int, *, tier: Tier | None = None, pool: str = FEED, there: int = 0) -> Claim:
    items = [HoldItem(CPU, EU, units, end_units=0)] if units else []
    items += [HoldItem(CPU, US, there, end_units=0)] if there else []
    return Claim(f"reservations/w{number}", number, Asked(pool, f"launches/w{number}", tuple(items), (), tier))


def release(name: str, units: int, hours: float = 1, *, pool: str = FEED, region: str = EU) -> Release:
    return Release(NOW + timedelta(hours=hours), f"reservations/{name}", CPU, region, pool, f"launches/{name}", units)


def promised(prospect: Prospect) -> list[tuple[str, int]]:
    return [(promise.reservation, promise.units) for promise in prospect.promises]


def test_what_does_not_fit_now_waits_for_what_a_held_launch_will_free_and_says_so() -> None:
    prospect = Line(room(16), (), [release("a", 164, 2)]).prospect_of(claim(1, 100))
    assert (prospect.fits, prospect.can_wait) == (False, True)
    assert promised(prospect) == [("reservations/a", 84)]
    assert prospect.expected_time(NOW) == NOW + timedelta(hours=2)
    assert prospect.explain(NOW) == (
        "Waits for 84 units of flavors/cpu in regions/eu that launches/a frees at about 2025-06-01 14:00 UTC; "
        "first in line."
    )


def test_the_nearest_releases_are_promised_first_and_no_more_of_them_than_is_needed() -> None:
    line = Line(room(0), (), [release("late", 50, 3), release("soon", 30, 1)])
    prospect = line.prospect_of(claim(1, 40))
    assert promised(prospect) == [("reservations/soon", 30), ("reservations/late", 10)]
    line.wait(prospect)
    assert promised(line.prospect_of(claim(2, 40))) == [("reservations/late", 40)]
    assert not line.prospect_of(claim(2, 41)).can_wait


def test_free_units_that_one_who_waits_needs_are_not_given_to_later_ones() -> None:
    line = Line(room(30), [claim(1, 100)], [release("a", 70)])
    small = line.prospect_of(claim(2, 1))
    assert not small.fits
    (fit,) = small.admission.fits
    assert (fit.available_units, fit.kept_units, fit.missing_units) == (0, 30, 1)
    assert small.admission.explain() == (
        "Does not fit now: pools/feed has 0 free units of flavors/cpu in regions/eu (30 more are kept for launches "
        "that wait), 1 were requested."
    )


def test_what_those_who_wait_do_not_need_is_given_to_later_ones_at_once() -> None:
    line = Line(room(30, there=10), [claim(1, 40)], [release("a", 20)])
    assert line.prospect_of(claim(2, 0, there=10)).fits
    assert promised(line.prospect_of(claim(2, 10))) == [("reservations/a", 10)]


def test_a_more_important_one_goes_before_those_who_wait_and_they_are_planned_anew() -> None:
    line = Line(room(30), [claim(1, 40, tier=Tier.TIER2)], [release("a", 10), release("b", 50, 5)])
    urgent = line.prospect_of(claim(2, 25, tier=Tier.TIER0))
    assert (urgent.fits, urgent.position) == (True, 1)
    line.hold(urgent)
    (left,) = line.prospects()
    assert promised(left) == [("reservations/a", 10), ("reservations/b", 25)]
    assert left.expected_time(NOW) == NOW + timedelta(hours=5)


def test_a_tier_that_is_not_stated_is_the_least_important() -> None:
    order = [claim(1, 5), claim(2, 5, tier=Tier.TIER4), claim(3, 5, tier=Tier.TIER0)]
    prospects = Line(room(0), order, [release("a", 15)]).prospects()
    assert [prospect.claim.sequence for prospect in prospects] == [3, 2, 1]
    assert [prospect.position for prospect in prospects] == [1, 2, 3]
    assert prospects[2].explain(NOW).endswith("number 3 in line.")


def test_one_for_whom_nothing_would_free_enough_is_in_nobodys_way_and_keeps_its_place() -> None:
    line = Line(room(30), [claim(1, 100)], [release("a", 60)])
    (stuck,) = line.prospects()
    assert (stuck.can_wait, stuck.lacking) == (False, ((HERE, 10),))
    assert stuck.explain(NOW) == (
        "Nothing that is held will free 10 units of flavors/cpu in regions/eu any more: it keeps its place, but needs "
        "more quota, or another launch to end."
    )
    assert line.prospect_of(claim(2, 30)).fits


def test_a_holder_that_is_overdue_is_still_waited_for_but_nobody_says_until_when() -> None:
    prospect = Line(room(0), (), [release("a", 5, -1), release("b", 5, 2)]).prospect_of(claim(1, 10))
    assert prospect.can_wait
    assert prospect.expected_time(NOW) is None
    assert "launches/a was expected to free by 2025-06-01 11:00 UTC and has not" in prospect.explain(NOW)


def test_an_end_state_beyond_quota_and_loans_is_not_waited_for() -> None:
    line = Line(room(0, end_room=9), (), [release("a", 50)])
    wanted = Asked(FEED, "launches/w", (HoldItem(CPU, EU, 20, end_units=10),))
    prospect = line.prospect_of(Claim("reservations/w", 1, wanted))
    assert not prospect.can_wait
    assert prospect.admission.fits[0].end_excess_units == 1
    assert "leave room for 9: ask a lender for a loan" in prospect.explain(NOW)


def test_what_serves_already_may_be_swapped_within_itself_also_after_a_cut() -> None:
    wanted = Asked(FEED, "launches/w", (HoldItem(CPU, EU, 50, end_units=50),), ("old",))
    booked = (ModelUnits("old", CPU, EU, 50),)
    line = Line(Room({(FEED, HERE): Seat(Share(40, 50), None, -10)}))
    assert line.prospect_of(Claim("reservations/w", 1, wanted, booked)).fits
    grown = replace(wanted, items=(HoldItem(CPU, EU, 51, end_units=51),))
    assert not line.prospect_of(Claim("reservations/w", 1, grown, booked)).fits


def test_a_sibling_frees_for_others_only_what_it_borrows_or_lends() -> None:
    """Ads owns 50, lends none of it and uses 60: of the 30 that its launch frees, 10 are the organisation's."""
    seats = {
        (ORG, HERE): Seat(Share(20, 20)),
        (ADS, HERE): Seat(Share(50, 60, lending_limit=0), ORG, MUCH),
        (FEED, HERE): Seat(Share(0, 10), ORG, MUCH),
    }
    line = Line(Room(seats), (), [release("a", 30, pool=ADS)])
    assert promised(line.prospect_of(claim(1, 10))) == [("reservations/a", 10)]
    assert not line.prospect_of(claim(1, 11)).can_wait


def test_what_is_held_may_be_waited_for_at_once() -> None:
    line = Line(room(10))
    asked = Asked(FEED, "launches/a", (HoldItem(CPU, EU, 10, end_units=4),), (), None, NOW + timedelta(hours=1))
    line.hold(line.prospect_of(Claim("reservations/a", 1, replace(asked, expected_retain_duration=timedelta(hours=2)))))
    prospect = line.prospect_of(claim(2, 6))
    assert promised(prospect) == [("reservations/a", 6)]
    assert prospect.expected_time(NOW) == NOW + timedelta(hours=3)


SWAP = RegionSwap(EU, CPU, 420, 1, CPU, 500, 1)


def test_simulation_says_now_in_steps_later_or_never() -> None:
    wanted = Asked(FEED, "launches/w", (HoldItem(CPU, EU, 920, end_units=420),), ("old",))
    booked = (ModelUnits("old", CPU, EU, 500),)

    def answer(free: int, *releases: Release, swaps: Sequence[RegionSwap] = (SWAP,)) -> tuple[When, int]:
        line = Line(room(free), (), releases)
        made = simulate(wanted, swaps, lambda each: line.prospect_of(Claim("", 1, each, booked)))
        assert made.explain(NOW)
        return made.answer, made.step

    assert answer(420) == (When.NOW, 0)
    assert answer(210) == (When.IN_STEPS, 5_000)
    assert answer(100) == (When.IN_STEPS, 2_000)
    assert answer(84) == (When.IN_STEPS, 2_000)
    assert answer(83) == (When.IN_STEPS, 1_000)
    assert answer(3, release("a", 420)) == (When.LATER, 0)
    assert answer(100, release("a", 420), swaps=()) == (When.LATER, 0)
    assert answer(3) == (When.NEVER, 0)


def test_steps_change_only_items_that_are_swapped_and_never_go_below_the_end() -> None:
    wanted = Asked(FEED, "launches/w", (HoldItem(CPU, EU, 920, end_units=600), HoldItem(CPU, US, 7)))
    assert [item.hold_units for item in in_steps(wanted, [SWAP], 2_000).items] == [600, 7]


def test_the_room_of_rows_is_that_of_the_pool_and_of_what_is_left_in_its_parent() -> None:
    rows = {
        FEED: [Headroom(CPU, EU, 100, serving_units=0, parent=ORG, in_parent_units=120)],
        ADS: [Headroom(CPU, EU, 100, 80, lending_limit_units=20, parent=ORG, in_parent_units=120)],
    }
    made = room_of(rows)
    assert (made.available(FEED, HERE), made.available(ADS, HERE)) == (120, 120)
    made.use(FEED, HERE, 110)
    assert (made.available(FEED, HERE), made.available(ADS, HERE)) == (10, 10)
    assert made.available(FEED, THERE) == 0


Claims: TypeAlias = list[tuple[int, int, Tier | None, str]]
Releases: TypeAlias = list[tuple[int, int, str, str]]
POOLS, PLACES = (FEED, ADS, ORG), (HERE, THERE)
LIMITS = st.none() | st.integers(0, 15)


@st.composite
def rooms(draw: st.DrawFn) -> Room:
    """An organisation with two teams: what they use is within what there is, or was before a cut."""
    seats: dict[tuple[str, Place], Seat] = {}
    for place in PLACES:
        children = [
            Share(draw(st.integers(0, 30)), draw(st.integers(0, 30)), draw(LIMITS), draw(LIMITS)) for _ in range(2)
        ]
        own = Share(
            draw(st.integers(0, 30)) + sum(child.stored_in_parent for child in children),
            draw(st.integers(0, 20)) + sum(child.used_in_parent for child in children),
        )
        seats |= {(pool, place): Seat(child, ORG, MUCH) for pool, child in zip((FEED, ADS), children, strict=True)}
        seats[ORG, place] = Seat(own, None, MUCH)
    return Room(seats)


UNITS = st.integers(0, 25)
TIERS = st.sampled_from([None, Tier.TIER0, Tier.TIER1])
CLAIMS = st.lists(
    st.tuples(UNITS, UNITS, TIERS, st.sampled_from(POOLS)).filter(lambda drawn: drawn[0] or drawn[1]), max_size=7
)
RELEASES = st.lists(
    st.tuples(st.integers(1, 25), st.integers(-2, 5), st.sampled_from(POOLS), st.sampled_from((EU, US))), max_size=6
)


def claims_of(drawn: Claims) -> list[Claim]:
    return [
        claim(number, here, there=there, tier=tier, pool=pool) for number, (here, there, tier, pool) in enumerate(drawn)
    ]


def releases_of(drawn: Releases, of: Room) -> list[Release]:
    """Releases of no more than the pools use."""
    left: dict[tuple[str, Place], int] = {}
    made = []
    for number, (units, hours, pool, region) in enumerate(drawn):
        key = (pool, Place(CPU, region))
        used = left.setdefault(key, of._seats[key].share.usage if pool != ORG else 0)
        if freed := min(units, used):
            left[key] -= freed
            made.append(release(f"h{number}", freed, hours, pool=pool, region=region))
    return made


def take(of: Room, prospect: Prospect) -> None:
    for place, units, end_units in prospect.admission.growth:
        of.use(prospect.claim.asked.pool, place, units, end_units)


def lacks(prospect: Prospect) -> Counter[Place]:
    return Counter({fit.item.place: fit.missing_units for fit in prospect.admission.fits if fit.missing_units})


@settings(max_examples=60)
@given(rooms(), CLAIMS, RELEASES)
def test_a_promise_is_of_what_is_held_never_of_more_than_it_frees_and_is_what_is_lacking(
    of: Room, drawn: Claims, freed: Releases
) -> None:
    releases = releases_of(freed, of)
    prospects = Line(of, claims_of(drawn), releases).prospects()
    given_away: Counter[tuple[str, Place]] = Counter()
    for prospect in prospects:
        by_place: Counter[Place] = Counter()
        for promise in prospect.promises:
            given_away[promise.reservation, promise.place] += promise.units
            by_place[promise.place] += promise.units
        assert by_place == (lacks(prospect) if prospect.can_wait else Counter())
    there_is: Counter[tuple[str, Place]] = Counter()
    for one in releases:
        there_is[one.reservation, one.place] += one.units
    # Only what is held is waited for, so nobody waits for one who waits.
    assert given_away <= there_is


@settings(max_examples=60)
@given(rooms(), CLAIMS, RELEASES)
def test_when_all_promises_are_kept_everybody_who_got_one_is_held_and_nothing_is_oversold(
    of: Room, drawn: Claims, freed: Releases
) -> None:
    releases = releases_of(freed, of)
    line = Line(of.copy(), claims_of(drawn), releases)
    hopeful = [prospect for prospect in line.prospects() if prospect.fits or prospect.can_wait]
    for one in releases:
        of.use(one.pool, one.place, -one.units)
    for prospect in hopeful:
        pool = prospect.claim.asked.pool
        for place, units, _ in prospect.admission.growth:
            assert units == 0 or units <= of.available(pool, place)
        take(of, prospect)


@settings(max_examples=60)
@given(rooms(), CLAIMS, RELEASES, st.data())
def test_who_comes_later_and_is_no_more_important_takes_nothing_from_those_who_wait(
    of: Room,
    drawn: Claims,
    freed: Releases,
    data: st.DataObject,
) -> None:
    releases, claims = releases_of(freed, of), claims_of(drawn)
    line = Line(of.copy(), claims, releases)
    before = {prospect.claim.sequence: prospect for prospect in line.prospects()}
    here, there = data.draw(st.integers(1, 25)), data.draw(UNITS)
    new = claim(100, here, there=there, tier=data.draw(TIERS), pool=data.draw(st.sampled_from(POOLS)))
    arrival = line.prospect_of(new)
    if arrival.fits:
        line.hold(arrival)
    elif arrival.can_wait:
        line.wait(arrival)
    for prospect in line.prospects():
        known = before.get(prospect.claim.sequence)
        if known is not None and known.claim.rank <= new.rank:
            assert (prospect.fits, prospect.promises) == (known.fits, known.promises)
        if known is None:
            assert prospect.promises == arrival.promises


@settings(max_examples=40)
@given(rooms(), CLAIMS, CLAIMS, RELEASES)
def test_several_that_come_together_are_decided_as_if_each_had_come_alone(
    of: Room,
    waiting: Claims,
    coming: Claims,
    freed: Releases,
) -> None:
    """What a line remembers from one decision to the next changes nothing."""
    releases, queue = releases_of(freed, of), claims_of(waiting)
    together = Line(of.copy(), queue, releases)
    for number, one in enumerate(claims_of(coming), start=100):
        new = replace(one, reservation=f"reservations/w{number}", sequence=number)
        alone = Line(of.copy(), queue, releases).prospect_of(new)
        made = together.prospect_of(new)
        assert made == alone
        if made.fits:
            together.hold(made)
            take(of, made)
        elif made.can_wait:
            together.wait(made)
            queue.append(new)
