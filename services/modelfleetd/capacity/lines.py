"""What a decision on a reservation looks at: the line of those who wait, and what there is for them now and later."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.capacity.domain.ledger import ModelUnits
from modelfleetd.capacity.domain.pool import Place
from modelfleetd.capacity.domain.quota import Headroom
from modelfleetd.capacity.domain.reservation import Asked, Reservation
from modelfleetd.capacity.domain.room import room_of
from modelfleetd.capacity.domain.waiting import Claim, Line, Prospect
from modelfleetd.capacity.store import balances, flavors, pools, reservations
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import ReferenceNotFound


@dataclass(frozen=True, slots=True)
class View:
    """The line of an organisation, seen from one of its pools.

    Attributes:
        waiting: who waits, in the order of age.
        missing_flavors: of those that are asked for, the ones that do not exist.
    """

    line: Line
    waiting: Sequence[Reservation]
    pool_exists: bool
    missing_flavors: frozenset[str]
    bookings: dict[tuple[str, str], tuple[ModelUnits, ...]]

    def claim(self, name: str, sequence: int, asked: Asked) -> Claim:
        """Returns the claim of one that is asked for. Raises ReferenceNotFound for an unknown pool or flavor."""
        if not self.pool_exists:
            raise ReferenceNotFound("reservation.pool", asked.pool)
        for index, item in enumerate(asked.items):
            if item.flavor in self.missing_flavors:
                raise ReferenceNotFound(f"reservation.items[{index}].flavor", item.flavor)
        return _claim(name, sequence, asked, self.bookings)

    def hold(self, prospect: Prospect) -> None:
        """Takes note that one is held: what it takes and what it moves is not there for the next one."""
        self.line.hold(prospect)
        gone = frozenset(prospect.admission.moved)
        for model in {units.model for units in gone}:
            key = (prospect.claim.asked.pool, model)
            self.bookings[key] = tuple(units for units in self.bookings[key] if units not in gone)


async def view(reads: Reads, pool: str, asked: Sequence[Asked], *, lock: bool, wait: bool) -> View:
    """Returns what the decisions on some reservations in a pool look at.

    Args:
        reads: with `lock` an open transaction.
        pool: the pool of all of them.
        asked: what they ask for.
        lock: whether what is decided on stays as it is until the end of the transaction.
        wait: whether what does not fit may wait: what will be free later counts then.
    """
    places = sorted({item.place for one in asked for item in one.items})
    own = await balances.headroom(reads, pool, places, lock=lock)
    pool_exists, missing = True, frozenset[str]()
    if len(own) < len(places):
        # A place without a balance has no quota; that is told from a name that does not exist.
        pool_exists = await pools.exists(reads, pool)
        missing = frozenset(await flavors.missing(reads, {place.flavor for place in places}, lock=lock))
    waiting = await reservations.waiting(reads, pool)
    later = bool(waiting) or (wait and not _surely_fit(asked, own))
    all_places = sorted({*places, *(item.place for one in waiting for item in one.items)})
    releases = await reservations.releases(reads, pool, all_places) if later else []
    headrooms: dict[str, Iterable[Headroom]] = {pool: list(own.values())}
    if others := {one.pool for one in waiting} | {one.pool for one in releases}:
        found = await balances.headrooms(reads, others | {pool}, all_places)
        # Its own rows as they are locked, and in other places as they are seen.
        headrooms[pool] = ({Place(one.flavor, one.region): one for one in found.pop(pool, ())} | own).values()
        headrooms |= found
    bookings = await _bookings(reads, [*asked, *(one.asked for one in waiting)])
    claims = [_claim(one.name, one.sequence, one.asked, bookings) for one in waiting]
    return View(Line(room_of(headrooms), claims, releases), waiting, pool_exists, missing, bookings)


def _surely_fit(asked: Iterable[Asked], own: dict[Place, Headroom]) -> bool:
    """Whether all fit even if nothing is moved: then nobody needs to know what will be free later."""
    wanted: defaultdict[Place, int] = defaultdict(int)
    for one in asked:
        for item in one.items:
            wanted[item.place] += item.hold_units
    return all(place in own and own[place].available_units >= units for place, units in wanted.items())


async def _bookings(reads: Reads, asked: Iterable[Asked]) -> dict[tuple[str, str], tuple[ModelUnits, ...]]:
    """Returns what the replaced models have booked, by pool and model; of each pool in one statement."""
    models: defaultdict[str, set[str]] = defaultdict(set)
    for one in asked:
        models[one.pool].update(one.replaced_models)
    found: dict[tuple[str, str], tuple[ModelUnits, ...]] = {}
    for of_pool, replaced in models.items():
        for units in await balances.bookings_of(reads, of_pool, replaced):
            key = (of_pool, units.model)
            found[key] = (*found.get(key, ()), units)
    return found


def _claim(name: str, sequence: int, asked: Asked, bookings: dict[tuple[str, str], tuple[ModelUnits, ...]]) -> Claim:
    replaced = dict.fromkeys(asked.replaced_models)
    return Claim(
        name, sequence, asked, tuple(units for model in replaced for units in bookings.get((asked.pool, model), ()))
    )


async def now(reads: Reads) -> datetime:
    """Returns the time of the database's clock."""
    found: datetime = await reads.fetchval("SELECT now()")
    return found
