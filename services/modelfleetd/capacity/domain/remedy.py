"""What would free capacity, in a sentence: who uses most of a place, and until when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from modelfleetd.capacity.domain.ledger import Account


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who uses units of a place.

    Attributes:
        account: in what way.
        name: the launch, or the model for SERVING.
        pool: whose usage it is.
        until: when it is expected to be free; None where nobody says.
    """

    account: Account
    name: str
    pool: str
    units: int
    until: datetime | None = None

    def describe(self, pool: str) -> str:
        """Returns it in words, with its pool where that is another one."""
        of = "" if self.pool == pool else f" of {self.pool}"
        match self.account:
            case Account.SERVING:
                return f"{self.name}{of} serves with {self.units}"
            case Account.HELD:
                until = f"until about {_minute(self.until)}" if self.until else "and does not say until when"
                return f"{self.name}{of} holds {self.units} {until}"
            case Account.RETAINED:
                until = f" until {_minute(self.until)}" if self.until else ""
                return f"{self.name}{of} keeps {self.units} for a rollback{until}"


def remedy(pool: str, missing: int, users: Iterable[User]) -> str:
    """Returns what would free units for a pool.

    Args:
        pool: that lacks them.
        missing: how many.
        users: who uses most where it and its organisation have their units, in the order in which they are named.
    """
    named = ", ".join(user.describe(pool) for user in users)
    return f"free {missing} or raise the quota by as much" + (f": {named}" if named else "")


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
