"""How much of a flavor in a region is available to a pool: the rule of Kueue for two levels, organisation and teams.

A pool keeps `nominal − lending limit` to itself; the rest it stores in its parent, from where every sibling may borrow.
A pool without a parent has what it owns and what its children store in it. Nothing here knows where the numbers come
from: decide on locked rows.

`Share` and the functions beside it are the rule, written over all pools of an organisation. `Headroom` is the same rule
over what two rows say, the pool's and its parent's, whose two sums stand for all siblings: an admission costs as much
with one sibling as with a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """What one pool owns and uses of one flavor in one region, in units.

    Attributes:
        nominal: owned.
        usage: used, in whatever account.
        lending_limit: the most that others may borrow; None: all of it.
        borrowing_limit: the most that it may borrow; None: whatever there is.
    """

    nominal: int
    usage: int = 0
    lending_limit: int | None = None
    borrowing_limit: int | None = None

    @property
    def local_quota(self) -> int:
        """What never leaves its owner."""
        return 0 if self.lending_limit is None else max(0, self.nominal - self.lending_limit)

    @property
    def stored_in_parent(self) -> int:
        """What the others may use while it does not."""
        return self.nominal - self.local_quota

    @property
    def used_in_parent(self) -> int:
        """What it uses beyond its local quota."""
        return max(0, self.usage - self.local_quota)


def available_alone(pool: Share) -> int:
    """Returns what a pool without a parent may still use; negative after a cut of its quota."""
    return pool.nominal - pool.usage


def available_in_parent(parent: Share, children: Iterable[Share]) -> int:
    """Returns what is left of the parent's own quota and of all that its children store in it."""
    stored, used = parent.nominal, parent.usage
    for child in children:
        stored += child.stored_in_parent
        used += child.used_in_parent
    return stored - used


def available_to_child(pool: Share, parent: Share, children: Iterable[Share]) -> int:
    """Returns what a pool may still use, borrowing included.

    Args:
        pool: the pool, one of `children`.
        parent: of all children.
        children: all pools below the parent.
    """
    return _within(pool, available_in_parent(parent, children))


def _within(pool: Share, in_parent: int) -> int:
    if pool.borrowing_limit is not None:
        own = pool.stored_in_parent - pool.used_in_parent
        in_parent = min(in_parent, own + pool.borrowing_limit)
    return max(0, pool.local_quota - pool.usage) + in_parent


@dataclass(frozen=True, slots=True)
class Headroom:
    """What a pool owns and uses of one flavor in one region, and what it may still do, in units.

    Attributes:
        nominal_units: owned.
        serving_units: booked for models that serve.
        held_units: in the holds of launches.
        retained_units: kept after launches for a rollback.
        borrowing_limit_units: the most that it may borrow; None: whatever there is.
        lending_limit_units: the most that others may borrow; None: all of it.
        is_stated: whether the pool has a quota here; without one it may not borrow either.
        ending_units: of `held_units`, what will go on serving once the launches have succeeded.
        loaned_units: of loans to it that are in force.
        lent_units: of loans that it gave and that are in force.
        parent: the organisation's pool; None for a pool that stands alone, or is one.
        children_stored_units: what its children store in it.
        children_used_units: what its children use of that, and of its own.
        in_parent_units: what is left in the parent; 0 where there is none.
    """

    flavor: str
    region: str
    nominal_units: int
    serving_units: int = 0
    held_units: int = 0
    retained_units: int = 0
    borrowing_limit_units: int | None = None
    lending_limit_units: int | None = None
    is_stated: bool = True
    ending_units: int = 0
    loaned_units: int = 0
    lent_units: int = 0
    parent: str | None = None
    children_stored_units: int = 0
    children_used_units: int = 0
    in_parent_units: int = 0

    @property
    def used_units(self) -> int:
        """What it uses, in whatever account."""
        return self.serving_units + self.held_units + self.retained_units

    @property
    def available_units(self) -> int:
        """What may still be reserved, borrowing included; negative after a cut of a quota."""
        if self.parent is None:
            return self.nominal_units + self.children_stored_units - self.used_units - self.children_used_units
        share = Share(self.nominal_units, self.used_units, self.lending_limit_units, self.borrowing_limit_units)
        return _within(share, self.in_parent_units)

    @property
    def end_units(self) -> int:
        """What the pool may serve with in the end: what it owns and was lent, less what it lent to others."""
        return self.nominal_units + self.loaned_units - self.lent_units

    @property
    def end_room(self) -> int:
        """By how much what serves in the end may still grow, when everything that is held has succeeded.

        Borrowed capacity may cover the peak of a swap; its end state must fit what is owned and lent by a loan. What
        `serving_units` counts and a launch moves is its own again at its end, so a launch fits when
        `end_units − moved_units ≤ end_room`; one that ends with no more than it moves is never refused for it, also
        where this is negative after a cut of the quota or the end of a loan.
        """
        return self.end_units - self.serving_units - self.ending_units

    @property
    def borrowed_units(self) -> int:
        """What it uses beyond what it owns, of its organisation's."""
        in_organisation = self.parent is not None or self.children_stored_units > 0
        return max(0, self.used_units - self.nominal_units) if in_organisation else 0

    @property
    def overdue_units(self) -> int:
        """What serves beyond what is owned and what loans in force cover."""
        return max(0, self.serving_units - self.nominal_units - self.loaned_units)


@dataclass(frozen=True, slots=True)
class Usage(Headroom):
    """Headroom as it is shown.

    Attributes:
        subtree_nominal_units: what a pool and its children own; 0 where it has none.
        subtree_used_units: what they use.
        message: what would free it, where `available_units` is negative.
    """

    subtree_nominal_units: int = 0
    subtree_used_units: int = 0
    message: str = ""
