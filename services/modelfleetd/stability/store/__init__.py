"""Every SQL statement of stability."""

from modelfleetd.stability.store.store import Store, Write

__all__ = ["Store", "Write"]
