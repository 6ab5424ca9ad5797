"""Every SQL statement of the registry."""

from __future__ import annotations

from modelfleetd.registry.store.history import Base, HistoryReading, HistoryStore
from modelfleetd.registry.store.ledger import Head, LaunchOutcome, Store, Written

__all__ = ["Base", "Head", "HistoryReading", "HistoryStore", "LaunchOutcome", "Store", "Written"]
