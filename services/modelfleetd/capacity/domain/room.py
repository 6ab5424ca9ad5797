"""How much room there is in the pools of an organisation, and how it changes as units are taken and freed.

The rule is that of quota.py, kept in a form in which taking and freeing cost the same whatever the number of pools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from modelfleetd.capacity.domain.pool import MAX_UNITS, Place
from modelfleetd.capacity.domain.quota import Headroom, Share


@dataclass(frozen=True, slots=True)
class Seat:
    """One pool in one place.

    Attributes:
        share: what the pool owns and uses. Of a pool without a parent, with all that its children store in it and use
            of it.
        parent: the pool that it borrows from; None where it has none.
        end_room: units by which what serves at the end of all launches may still grow: within what the pool owns and
            the loans to it, less what serves and what the holds will end with.
    """

    share: Share
    parent: str | None = None
    end_room: int = 0


class Room:
    """What the pools of an organisation may still use, place by place.

    Args:
        seats: by pool and place; with each pool its parent's, where it has one in that place.
    """

    def __init__(self, seats: Mapping[tuple[str, Place], Seat]) -> None:
        self._seats = dict(seats)

    def copy(self) -> Room:
        """Returns a room that changes apart from this one."""
        return Room(self._seats)

    def available(self, pool: str, place: Place) -> int:
        """Returns what a pool may still use, borrowing included; 0 where it has nothing there."""
        seat = self._seats.get((pool, place))
        if seat is None:
            return 0
        if seat.parent is None:
            return seat.share.nominal - seat.share.usage
        in_parent = self.available(seat.parent, place)
        share = seat.share
        if share.borrowing_limit is not None:
            in_parent = min(in_parent, share.stored_in_parent - share.used_in_parent + share.borrowing_limit)
        return max(0, share.local_quota - share.usage) + in_parent

    def end_room(self, pool: str, place: Place) -> int:
        """Returns by how much the pool's end state may still grow; 0 where it has nothing there."""
        seat = self._seats.get((pool, place))
        return 0 if seat is None else seat.end_room

    def use(self, pool: str, place: Place, units: int, end_units: int = 0) -> None:
        """Takes units of a pool in a place; frees them where they are negative.

        Args:
            pool: the pool.
            place: where it has something.
            units: by which its usage grows.
            end_units: by which its end state grows.
        """
        seat = self._seats.get((pool, place))
        if seat is None:
            # Nothing is there, so nothing of it can be used: only 0 gets here.
            return
        share = replace(seat.share, usage=seat.share.usage + units)
        self._seats[pool, place] = replace(seat, share=share, end_room=seat.end_room - end_units)
        if seat.parent is not None:
            self.use(seat.parent, place, share.used_in_parent - seat.share.used_in_parent)


def room_of(headrooms: Mapping[str, Iterable[Headroom]]) -> Room:
    """Returns the room of some pools of an organisation, by pool.

    Those that come first count where they disagree about what their parent has left.
    """
    seats: dict[tuple[str, Place], Seat] = {}
    for pool, places in headrooms.items():
        for one in places:
            place = Place(one.flavor, one.region)
            if one.parent is None:
                # Its own units, and what its children store in it and use of it.
                nominal, used = one.nominal_units + one.children_stored_units, one.used_units + one.children_used_units
                # What stands alone cannot borrow: what it may not end with, it cannot reserve either.
                end_room = one.end_room if one.children_stored_units else MAX_UNITS
                seats[pool, place] = Seat(Share(nominal, used), None, end_room)
                continue
            share = Share(one.nominal_units, one.used_units, one.lending_limit_units, one.borrowing_limit_units)
            seats[pool, place] = Seat(share, one.parent, one.end_room)
            seats.setdefault((one.parent, place), Seat(Share(one.in_parent_units)))
    return Room(seats)
