"""The pool in memory answers as capacity does."""

from __future__ import annotations

from datetime import timedelta

from modelfleetd.capacity.domain.pool import Place
from modelfleetd.clock import ManualClock
from modelfleetd.launcher.domain.hold import HoldState
from modelfleetd.launcher.ports import HeldUnits, HoldRequest
from modelfleetd.rehearsal.capacity import MemoryCapacity
from modelfleetd.rehearsal.routes import FLAVOR, REGION
from modelfleetd.rehearsal.team import POOL


def pool_of(units: int) -> tuple[MemoryCapacity, ManualClock]:
    clock = ManualClock()
    return MemoryCapacity(POOL, {Place(FLAVOR, REGION): units}, clock), clock


def wants(launch: str, units: int, clock: ManualClock) -> HoldRequest:
    """All of them are free again in an hour."""
    release = clock.now() + timedelta(hours=1)
    return HoldRequest(POOL, f"launches/{launch}", [HeldUnits(FLAVOR, REGION, units, end=0)], [], release=release)


def test_who_repeats_a_reservation_is_answered_as_at_first() -> None:
    pool, clock = pool_of(10)
    first = pool.reserve(wants("l1", 10, clock), "l1")
    waits = pool.reserve(wants("l2", 5, clock), "l2")
    pool.release(first.reservation)
    assert waits.state is HoldState.PENDING
    assert pool.reserve(wants("l2", 5, clock), "l2") == waits
    assert pool.hold(waits.reservation).state is HoldState.HELD


def test_a_forecast_says_what_is_missing_and_what_frees_it() -> None:
    pool, clock = pool_of(10)
    pool.reserve(wants("l1", 10, clock), "l1")
    foreseen = pool.foresee(wants("l2", 5, clock))
    assert foreseen is not None
    assert foreseen.message == (
        "Does not fit now: pools/rehearsal has 0 free units of flavors/cpu in regions/local, 5 were requested. "
        "Waits for 5 units of flavors/cpu in regions/local that launches/l1 frees at about 2025-01-01 01:00 UTC; "
        "first in line."
    )


def test_what_is_in_use_does_not_run_out_however_often_it_is_renewed() -> None:
    pool, clock = pool_of(10)
    name = pool.reserve(wants("l1", 10, clock), "l1").reservation
    pool.activate(name)
    made = pool.found("launches/l1")
    clock.set(600.0)
    pool.renew(name, None)
    renewed = pool.found("launches/l1")
    assert made is not None and renewed is not None
    assert renewed.expire_time == made.expire_time and renewed.renew_time == clock.now()
    clock.set(10 * 3_600.0)
    assert pool.hold(name).state is HoldState.HELD


def test_what_ran_out_says_what_it_gave_back() -> None:
    pool, clock = pool_of(10)
    name = pool.reserve(wants("l1", 10, clock), "l1").reservation
    clock.set(2 * 3_600.0)
    found = pool.hold(name)
    assert found.state is HoldState.EXPIRED
    assert found.message == "Expired without being activated; 10 units are free again."
