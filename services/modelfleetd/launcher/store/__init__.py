"""Every SQL statement of the launcher. A launch is a row; what changes it names the row's version and epoch.

A claim is a lease by the database's clock, with an epoch from the sequence `fence`. What a holder records counts only
while version and epoch are the ones that it claimed: one statement, no transaction is open while anybody is called.
"""

from __future__ import annotations

from modelfleetd.kit.db import Database
from modelfleetd.launcher.domain.notifications import Audience
from modelfleetd.launcher.store.attempts import Attempts
from modelfleetd.launcher.store.figures import FiguresStore
from modelfleetd.launcher.store.freezing import Freezing
from modelfleetd.launcher.store.holds import HoldsOnModels
from modelfleetd.launcher.store.outbox import Outbox
from modelfleetd.launcher.store.rounds import Rounds
from modelfleetd.launcher.store.rows import Change, Claim, Settled


class Store(Rounds, Attempts, HoldsOnModels, Freezing, FiguresStore, Outbox):
    """The schema `launcher`."""

    def __init__(self, database: Database, audience: Audience | None = None) -> None:
        """Makes the store.

        Args:
            database: of the launcher.
            audience: whom changes are told to, and of what.
        """
        self._database = database
        self._audience = audience or {}


__all__ = ["Change", "Claim", "Settled", "Store"]
