"""The ledger: every change of a pool's usage is a list of lines, and usage is their sum.

Usage of a pool in a place is split over three accounts: SERVING (booked for a model), HELD (in the hold of a launch),
RETAINED (kept after a launch for a rollback).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.capacity.domain.pool import Place


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


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger: a change of one account of one place. SERVING lines name the model."""

    place: Place
    account: Account
    delta_units: int
    model: str = ""


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
