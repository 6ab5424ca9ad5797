"""The ledger: every change of a pool's usage is a list of lines, and usage is their sum.

Usage of a pool in a place is split over three accounts: SERVING (booked for a model), HELD (in the hold of a launch),
RETAINED (kept after a launch for a rollback).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.capacity.domain.pool import MAX_UNITS, Place
from modelfleetd.errors import FieldViolation


class Account(enum.Enum):
    """What kind of usage it is."""

    SERVING = "SERVING"
    HELD = "HELD"
    RETAINED = "RETAINED"


@dataclass(frozen=True, slots=True)
class ModelUnits:
    """What one model uses of one flavor in one region."""

    model: str
    flavor: str
    region: str
    units: int

    @property
    def place(self) -> Place:
        return Place(self.flavor, self.region)


def check_units(units: Sequence[ModelUnits], field: str) -> list[FieldViolation]:
    """Returns what is wrong with a list of units: out of range, or a model twice in a place."""
    wrong = []
    seen: set[tuple[str, Place]] = set()
    for index, one in enumerate(units):
        if not 0 <= one.units <= MAX_UNITS:
            wrong.append(FieldViolation(f"{field}[{index}].units", f"must be 0 to {MAX_UNITS:,}"))
        if (one.model, one.place) in seen:
            wrong.append(FieldViolation(f"{field}[{index}]", "names a model a second time in its flavor and region"))
        seen.add((one.model, one.place))
    return wrong


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger: a change of one account of one place. SERVING lines name the model.

    Attributes:
        end_delta_units: of a HELD line, the change of what will go on serving when the launch has succeeded; None: the
            whole of it.
    """

    place: Place
    account: Account
    delta_units: int
    model: str = ""
    end_delta_units: int | None = None

    @property
    def ending_units(self) -> int:
        """The change of what will go on serving of what is held; 0 for the other accounts."""
        if self.account is not Account.HELD:
            return 0
        return self.delta_units if self.end_delta_units is None else self.end_delta_units


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One stored line of the ledger."""

    sequence: int
    time: datetime
    pool: str
    flavor: str
    region: str
    account: Account
    delta_units: int
    model: str
    launch: str
    reservation: str
    actor: str
    reason: str
