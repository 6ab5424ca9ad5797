"""Every SQL statement of the registry."""

from __future__ import annotations

from modelfleetd.registry.store.history import Base, HistoryStore
from modelfleetd.registry.store.ledger import Head, LaunchOutcome, Store, Written

__all__ = ["Base", "Head", "HistoryStore", "LaunchOutcome", "Store", "Written"]
