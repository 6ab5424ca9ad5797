"""How much of a flavor in a region is available to a pool: the rule of Kueue for two levels, organisation and teams.

A pool keeps `nominal − lending limit` to itself; the rest it stores in its parent, from where every sibling may borrow.
A pool without a parent has what it owns. Nothing here knows where the numbers come from: decide on locked rows.
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
    in_parent = available_in_parent(parent, children)
    if pool.borrowing_limit is not None:
        own = pool.stored_in_parent - pool.used_in_parent
        in_parent = min(in_parent, own + pool.borrowing_limit)
    return max(0, pool.local_quota - pool.usage) + in_parent
