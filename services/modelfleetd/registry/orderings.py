"""Rows of an index in the order of a key."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np

from modelfleetd.registry.row_masks import Rows

_AFTER_ALL = "\U0010ffff"


class Ordering:
    """Rows in the order of a key."""

    def __init__(self, key: Callable[[int], Any]) -> None:
        self._key = key
        self._room: Rows = np.empty(16, np.int32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Rows:
        """All rows in their order."""
        return self._room[: self._count]

    def load(self, rows: Rows) -> None:
        self._room, self._count = rows, len(rows)

    def add(self, row: int) -> None:
        """Puts a row in its place. Its key must be known."""
        if self._count == len(self._room):
            self._room = np.concatenate((self._room, np.empty(max(16, self._count // 4), np.int32)))
        at = self.before(self._key(row))
        self._room[at + 1 : self._count + 1] = self._room[at : self._count]
        self._room[at] = row
        self._count += 1

    def remove(self, row: int) -> None:
        """Takes a row out. Its key must still be the same."""
        at = self.before(self._key(row))
        self._room[at : self._count - 1] = self._room[at + 1 : self._count]
        self._count -= 1

    def before(self, key: Any) -> int:
        """Returns how many rows come before a key."""
        return bisect_left(self.rows, key, key=self._key)

    def behind(self, key: Any) -> int:
        """Returns how many rows come before a key or have it."""
        return bisect_right(self.rows, key, key=self._key)

    def between(self, prefix: str) -> tuple[int, int]:
        """Returns where the rows whose key begins so begin and end. Keys must be texts."""
        return self.before(prefix), self.before(prefix + _AFTER_ALL)
