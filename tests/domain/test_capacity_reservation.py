"""The arithmetic of holds and settlements, with the numbers of the launcher's examples."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.capacity.domain.admission import Admission, admit, book
from modelfleetd.capacity.domain.ledger import Account, Entry, ModelUnits
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.quota import Share
from modelfleetd.capacity.domain.reservation import (
    TRANSITIONS,
    Asked,
    HoldItem,
    Outcome,
    Reservation,
    State,
    entries_of_hold,
    entries_of_release,
    entries_of_return,
    time_to_live,
)
from modelfleetd.capacity.domain.room import Room, Seat
from modelfleetd.capacity.domain.settlement import Settlement, settle
from modelfleetd.errors import InvalidFields, LaunchEnded, SettlementExceedsHold, WrongState

CPU, EU, US = "flavors/cpu", "regions/eu", "regions/us"
HERE = Place(CPU, EU)
OLD, NEW = "modelTypes/ctr/models/old", "modelTypes/ctr/models/new"
NOW = datetime(2025, 6, 1, tzinfo=UTC)


def asked(*items: HoldItem, replaced: tuple[str, ...] = (OLD,)) -> Asked:
    return Asked("pools/feed", "launches/l1", items, replaced)


def free(units: dict[Place, int]) -> Room:
    """A pool alone with so many free units, whose quota is no matter."""
    return Room({("pools/feed", place): Seat(Share(count), None, 10**6) for place, count in units.items()})


def units(model: str, count: int, region: str = EU) -> ModelUnits:
    return ModelUnits(model, CPU, region, count)


def held(admission: Admission) -> Reservation:
    return Reservation(
        name="reservations/r1",
        uid="",
        pool="pools/feed",
        launch="launches/l1",
        state=State.HELD,
        items=admission.items,
        replaced_models=(OLD,),
        moved=admission.moved,
        settled=(),
        retained=(),
        create_time=NOW,
        update_time=NOW,
    )


def swap() -> Reservation:
    """The swap of 500 replicas for 420, in steps of 20 %, with 100 spare ones."""
    return held(admit(asked(HoldItem(CPU, EU, 584)), [units(OLD, 500)], free({HERE: 100})))


def total(entries: tuple[Entry, ...], account: Account) -> int:
    return sum(entry.delta_units for entry in entries if entry.account is account)


def test_the_hold_of_a_swap_is_what_is_moved_plus_what_is_new() -> None:
    admission = admit(asked(HoldItem(CPU, EU, 584)), [units(OLD, 500)], free({HERE: 84}))
    assert admission.admitted
    (item,) = admission.items
    assert (item.hold_units, item.moved_units, item.extra_units) == (584, 500, 84)
    entries = entries_of_hold(admission.items, admission.moved)
    assert (total(entries, Account.SERVING), total(entries, Account.HELD)) == (-500, 584)


def test_one_unit_less_does_not_fit_and_the_answer_says_what_is_missing() -> None:
    admission = admit(asked(HoldItem(CPU, EU, 584)), [units(OLD, 500)], free({HERE: 83}))
    assert not admission.admitted
    assert [fit.missing_units for fit in admission.fits] == [1]
    (shortage,) = admission.shortages()
    assert (shortage.requested, shortage.available) == (84, 83)
    assert admission.explain() == (
        "Does not fit now: pools/feed has 83 free units of flavors/cpu in regions/eu, 84 were requested."
    )


def test_on_success_420_are_used_and_164_released() -> None:
    settled = settle(swap(), Settlement(Outcome.SUCCEEDED, (units(NEW, 420),)))
    assert settled is not None
    assert total(settled.entries, Account.SERVING) == 420
    assert total(settled.entries, Account.HELD) == -584
    assert -sum(entry.delta_units for entry in settled.entries) == 164


def test_on_rollback_the_old_model_has_its_500_again_and_84_are_released() -> None:
    settled = settle(swap(), Settlement(Outcome.ROLLED_BACK))
    assert settled is not None
    assert settled.booked == (units(OLD, 500),)
    assert -sum(entry.delta_units for entry in settled.entries) == 84


def test_within_the_rollback_window_the_rest_of_the_hold_is_kept_and_released_after_it() -> None:
    settlement = Settlement(Outcome.SUCCEEDED, (units(NEW, 420),), timedelta(hours=24))
    settled = settle(swap(), settlement)
    assert settled is not None
    assert total(settled.entries, Account.RETAINED) == 164
    assert sum(entry.delta_units for entry in settled.entries) == 0
    after = replace(swap(), state=State.SETTLED, retained=settled.retained)
    assert sum(entry.delta_units for entry in entries_of_release(after)) == -164


def test_a_hold_that_is_given_back_leaves_everything_as_it_was() -> None:
    reservation = swap()
    undone = entries_of_return(reservation)
    taken = entries_of_hold(reservation.items, reservation.moved)
    for account in Account:
        assert total(taken, account) + total(undone, account) == 0


def test_where_less_is_asked_for_than_is_moved_the_hold_is_what_is_moved() -> None:
    admission = admit(asked(HoldItem(CPU, EU, 420)), [units(OLD, 500)], free({HERE: -10}))
    (item,) = admission.items
    assert (admission.admitted, item.hold_units, item.extra_units) == (True, 500, 0)


def test_bookings_in_places_that_are_not_asked_for_stay_where_they_are() -> None:
    admission = admit(asked(HoldItem(CPU, EU, 10)), [units(OLD, 5, US)], free({HERE: 10}))
    assert admission.moved == ()
    assert admission.admitted


def test_after_a_cut_of_the_quota_nothing_new_is_admitted_and_what_is_missing_includes_the_overdraft() -> None:
    admission = admit(asked(HoldItem(CPU, EU, 5)), [], free({HERE: -10}))
    assert [fit.missing_units for fit in admission.fits] == [15]


def test_one_item_that_does_not_fit_refuses_them_all() -> None:
    available = {HERE: 100, Place(CPU, US): 1}
    admission = admit(asked(HoldItem(CPU, EU, 10), HoldItem(CPU, US, 2)), [], free(available))
    assert not admission.admitted
    assert [shortage.region for shortage in admission.shortages()] == [US]


def test_a_settlement_beyond_the_hold_is_refused_place_by_place() -> None:
    for usages in ((units(NEW, 585),), (units(NEW, 300), units(OLD, 285)), (units(NEW, 1, US),)):
        with pytest.raises(SettlementExceedsHold):
            settle(swap(), Settlement(Outcome.SUCCEEDED, usages))


def test_settling_again_answers_the_same_for_the_same_content_and_is_refused_for_other() -> None:
    usages = (units(NEW, 420), units(OLD, 5))
    done = replace(swap(), state=State.SETTLED, outcome=Outcome.SUCCEEDED, settled=usages)
    assert settle(done, Settlement(Outcome.SUCCEEDED, usages)) is None
    assert settle(done, Settlement(Outcome.SUCCEEDED, usages[::-1])) is None
    with pytest.raises(LaunchEnded):
        settle(done, Settlement(Outcome.SUCCEEDED, (units(NEW, 421),)))
    with pytest.raises(LaunchEnded):
        settle(done, Settlement(Outcome.ROLLED_BACK))


@pytest.mark.parametrize("state", [State.PENDING, State.EXPIRED, State.CANCELLED])
def test_what_is_no_hold_cannot_be_settled(state: State) -> None:
    with pytest.raises(WrongState):
        settle(replace(swap(), state=state), Settlement(Outcome.ROLLED_BACK))


def test_an_activated_hold_cannot_be_cancelled_and_the_refusal_says_what_can_be_done() -> None:
    with pytest.raises(WrongState) as refused:
        replace(swap(), activate_time=NOW).require_not_activated()
    assert "SettleReservation" in refused.value.message
    assert "CancelReservation" not in refused.value.message


def test_every_state_has_its_transitions_and_ends_are_ends() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state in State if not TRANSITIONS[state]} == {State.SETTLED, State.EXPIRED, State.CANCELLED}


@pytest.mark.parametrize(
    ("items", "path"),
    [
        ((), "reservation.items"),
        ((HoldItem(CPU, EU, -1),), "reservation.items[0].hold_units"),
        ((HoldItem(CPU, EU, 1), HoldItem(CPU, EU, 2)), "reservation.items[1]"),
        ((HoldItem(CPU, EU, 10**13),), "reservation.items[0].hold_units"),
    ],
)
def test_what_cannot_be_reserved_is_refused_with_its_path(items: tuple[HoldItem, ...], path: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        asked(*items)
    assert refused.value.violations[0].path == path


@pytest.mark.parametrize(
    ("settlement", "path"),
    [
        ({"outcome": Outcome.ROLLED_BACK, "usages": (units(NEW, 1),)}, "usages"),
        ({"outcome": Outcome.ROLLED_BACK, "retain_duration": timedelta(hours=1)}, "retain_duration"),
        ({"outcome": Outcome.SUCCEEDED, "retain_duration": timedelta(days=8)}, "retain_duration"),
        ({"outcome": Outcome.SUCCEEDED, "usages": (units(NEW, -1),)}, "usages[0].units"),
        ({"outcome": Outcome.SUCCEEDED, "usages": (units(NEW, 1), units(NEW, 2))}, "usages[1]"),
    ],
)
def test_what_cannot_be_settled_is_refused_with_its_path(settlement: dict[str, object], path: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        Settlement(**settlement)  # type: ignore[arg-type]
    assert refused.value.violations[0].path == path


def test_a_time_to_live_has_a_default_and_a_limit() -> None:
    assert time_to_live(None) == timedelta(hours=1)
    for wrong in (timedelta(), timedelta(seconds=-1), timedelta(days=7, seconds=1)):
        with pytest.raises(InvalidFields):
            time_to_live(wrong)


def test_bookings_are_set_to_what_is_wanted_and_only_growth_has_to_fit() -> None:
    before = [units(OLD, 10), units(NEW, 3)]
    booked = book([units(OLD, 4), units(NEW, 8)], before, {HERE: -1})
    assert booked.missing == {}
    assert [(entry.model, entry.delta_units) for entry in booked.entries] == [(OLD, -6), (NEW, 5)]
    assert book([units(NEW, 5)], before, {HERE: 1}).missing == {HERE: 1}
    assert book([units(OLD, 10)], before, {}).entries == ()


@given(
    booked=st.integers(0, 50),
    wanted=st.integers(0, 80),
    available=st.integers(-20, 80),
    used=st.integers(0, 80),
    keeps=st.booleans(),
    succeeds=st.booleans(),
)
def test_capacity_is_conserved_through_every_life_of_a_hold(
    booked: int, wanted: int, available: int, used: int, keeps: bool, succeeds: bool
) -> None:
    admission = admit(asked(HoldItem(CPU, EU, wanted)), [units(OLD, booked)], free({HERE: available}))
    extra = sum(item.extra_units for item in admission.items)
    assert admission.admitted == (extra == 0 or extra <= available)
    reservation = held(admission)
    taken = entries_of_hold(admission.items, admission.moved)
    assert sum(entry.delta_units for entry in taken) == extra
    hold = reservation.items[0].hold_units
    if succeeds:
        used = min(used, hold)
        settlement = Settlement(Outcome.SUCCEEDED, (units(NEW, used),), timedelta(hours=1) if keeps else timedelta())
    else:
        settlement = Settlement(Outcome.ROLLED_BACK)
    settled = settle(reservation, settlement)
    assert settled is not None
    every = taken + settled.entries
    assert total(every, Account.HELD) == 0
    assert total(every, Account.SERVING) == (used - booked if succeeds else 0)
    assert total(every, Account.RETAINED) == (hold - used if succeeds and keeps else 0)
