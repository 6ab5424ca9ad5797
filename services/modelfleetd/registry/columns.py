"""What an index knows of one field of all entries: which rows have which value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modelfleetd.kit.fields import Reading, Values
from modelfleetd.kit.filter import Operator, Restriction, Scalar
from modelfleetd.registry.orderings import Ordering
from modelfleetd.registry.row_masks import Mask, mask_of, mask_of_bits, rows_of

# Up to so many rows of a value are kept as they are: as a mask they would take 12.5 KB in a fleet of 100,000.
_MOST_SPARSE = 256
# Where an entry without a value stands in an order by it: last.
_LAST = 2**62


class Kept(Protocol):
    """What is known of the entry of each row."""

    def load(self, entries: Sequence[Any]) -> None:
        """Takes in the entries of all rows, None where there is none. The column must be empty."""

    def change(self, row: int, before: Any, after: Any) -> None:
        """Takes over that a row's entry is another one; None for no entry."""


class Column(Kept, Protocol):
    """Which rows have which values in one field."""

    def having(self, asked: Restriction, within: Mask) -> Mask:
        """Returns the rows that pass a restriction; only those of `within` need to be right."""


class Postings:
    """The rows of each value: a mask, or a tuple where they are few."""

    def __init__(self, read: Callable[[Any], Values], entries: Sequence[Any]) -> None:
        self._read = read
        self._entries = entries
        self._rows: dict[Scalar, tuple[int, ...] | Mask] = {}
        self._any: Mask = 0

    def load(self, entries: Sequence[Any]) -> None:
        self.load_values((row, self._read(entry)) for row, entry in enumerate(entries) if entry is not None)

    def load_values(self, values: Iterable[tuple[int, Values]]) -> None:
        gathered: dict[Scalar, list[int]] = {}
        present: list[int] = []
        for row, found in values:
            if found:
                present.append(row)
            for value in found:
                gathered.setdefault(value, []).append(row)
        for value, rows in gathered.items():
            self._rows[value] = tuple(rows) if len(rows) <= _MOST_SPARSE else mask_of(rows, rows[-1] + 1)
        self._any = mask_of(present, present[-1] + 1) if present else 0

    def change(self, row: int, before: Any, after: Any) -> None:
        old = () if before is None else self._read(before)
        new = () if after is None else self._read(after)
        if old != new:
            self.change_values(row, old, new)

    def change_values(self, row: int, old: Values, new: Values) -> None:
        for value in old:
            if value not in new:
                self._drop(row, value)
        for value in new:
            if value not in old:
                self._put(row, value)
        self._any = self._any | 1 << row if new else self._any & ~(1 << row)

    def _put(self, row: int, value: Scalar) -> None:
        rows = self._rows.get(value, ())
        if isinstance(rows, int):
            self._rows[value] = rows | 1 << row
        elif len(rows) < _MOST_SPARSE:
            self._rows[value] = (*rows, row)
        else:
            self._rows[value] = mask_of((*rows, row), max(*rows, row) + 1)

    def _drop(self, row: int, value: Scalar) -> None:
        rows = self._rows[value]
        if isinstance(rows, int):
            left: tuple[int, ...] | Mask = rows & ~(1 << row)
        else:
            left = tuple(each for each in rows if each != row)
        if left:
            self._rows[value] = left
        else:
            del self._rows[value]

    @property
    def is_empty(self) -> bool:
        return not self._any

    def having(self, asked: Restriction, within: Mask) -> Mask:
        if asked.operator is Operator.PRESENT:
            return self._any
        if asked.operator is Operator.EQUAL:
            return self._union([asked.value])
        if asked.searches and within.bit_count() < len(self._rows):
            return _searched(asked, within, self._read, self._entries)
        return self._union(asked.passing(self._rows))

    def _union(self, values: Iterable[Scalar]) -> Mask:
        few: list[tuple[int, ...]] = []
        found: Mask = 0
        for value in values:
            rows = self._rows.get(value, ())
            if isinstance(rows, int):
                found |= rows
            else:
                few.append(rows)
        together = list(chain.from_iterable(few))
        return found | mask_of(together, max(together) + 1) if together else found


class Keys:
    """The rows of each value, key by key."""

    def __init__(self, reading: Reading, entries: Sequence[Any]) -> None:
        if reading.read_keys is None:
            raise ValueError(f"{reading.field.path} has no keys")
        self._read = reading.read_keys
        self._entries = entries
        self._by_key: dict[str, Postings] = {}
        self._any: Mask = 0

    def load(self, entries: Sequence[Any]) -> None:
        gathered: dict[str, list[tuple[int, Values]]] = {}
        present: list[int] = []
        for row, entry in enumerate(entries):
            found = {} if entry is None else self._read(entry)
            if found:
                present.append(row)
            for key, value in found.items():
                gathered.setdefault(key, []).append((row, (value,)))
        for key, values in gathered.items():
            self._of(key).load_values(values)
        self._any = mask_of(present, present[-1] + 1) if present else 0

    def change(self, row: int, before: Any, after: Any) -> None:
        old = {} if before is None else self._read(before)
        new = {} if after is None else self._read(after)
        if old == new:
            return
        for key in old.keys() | new.keys():
            if old.get(key) != new.get(key):
                postings = self._of(key)
                postings.change_values(row, (old[key],) if key in old else (), (new[key],) if key in new else ())
                if postings.is_empty:
                    del self._by_key[key]
        self._any = self._any | 1 << row if new else self._any & ~(1 << row)

    def having(self, asked: Restriction, within: Mask) -> Mask:
        if not asked.key:
            return self._any
        postings = self._by_key.get(asked.key)
        return 0 if postings is None else postings.having(asked, within)

    def _of(self, key: str) -> Postings:
        found = self._by_key.get(key)
        if found is None:

            def read(entry: Any) -> Values:
                values = self._read(entry)
                return (values[key],) if key in values else ()

            found = self._by_key[key] = Postings(read, self._entries)
        return found


class Prose:
    """Texts that are all different: what is asked of them is answered by looking."""

    def __init__(self, read: Callable[[Any], Values], entries: Sequence[Any]) -> None:
        self._read = read
        self._entries = entries

    def load(self, entries: Sequence[Any]) -> None:
        """The entries keep them."""

    def change(self, row: int, before: Any, after: Any) -> None:
        """The entries keep them."""

    def having(self, asked: Restriction, within: Mask) -> Mask:
        return _searched(asked, within, self._read, self._entries)


def _searched(asked: Restriction, within: Mask, read: Callable[[Any], Values], entries: Sequence[Any]) -> Mask:
    """Returns the rows of `within` whose entry passes, by looking at each."""
    test = asked.test()
    found = [row for row in rows_of(within, len(entries)) if any(map(test, read(entries[row])))]
    return mask_of(found, len(entries))


class Numbers:
    """A number for each row; NaN where it has none."""

    _COMPARE: Mapping[Operator, Any] = {
        Operator.EQUAL: np.equal,
        Operator.LESS: np.less,
        Operator.LESS_OR_EQUAL: np.less_equal,
        Operator.GREATER: np.greater,
        Operator.GREATER_OR_EQUAL: np.greater_equal,
    }

    def __init__(self, reading: Reading) -> None:
        self.read = reading.read
        self._room: NDArray[np.float64] = np.full(16, np.nan)

    def load(self, entries: Sequence[Any]) -> None:
        self._room = np.array([self._number(entry) for entry in entries], np.float64)

    def change(self, row: int, before: Any, after: Any) -> None:
        if row >= len(self._room):
            self._room = np.concatenate((self._room, np.full(max(16, row // 4), np.nan)))
        self._room[row] = self._number(after)

    def having(self, asked: Restriction, within: Mask) -> Mask:
        if asked.operator is Operator.PRESENT:
            return mask_of_bits(~np.isnan(self._room))
        return mask_of_bits(self._COMPARE[asked.operator](self._room, asked.value))

    def values(self, count: int) -> NDArray[np.float64]:
        """Returns the numbers of the first rows."""
        return self._room[:count]

    def key(self, row: int) -> int:
        """Returns where a row stands in the order of the numbers, which must be whole."""
        number = self._room.item(row)
        return _LAST if math.isnan(number) else int(number)

    def _number(self, entry: Any) -> float:
        found = () if entry is None else self.read(entry)
        return float(found[0]) if found else np.nan


class Names:
    """The names themselves: each has one row, and those that begin alike lie together."""

    def __init__(self, names: Sequence[str], row_of: Callable[[str], int | None], ordering: Ordering) -> None:
        self._names = names
        self._row_of = row_of
        self._ordering = ordering

    def load(self, entries: Sequence[Any]) -> None:
        """The index keeps them."""

    def change(self, row: int, before: Any, after: Any) -> None:
        """The index keeps them."""

    def having(self, asked: Restriction, within: Mask) -> Mask:
        if asked.operator is Operator.PRESENT:
            return within
        if asked.operator is Operator.EQUAL:
            row = self._row_of(str(asked.value))
            return 0 if row is None else 1 << row
        prefix = str(asked.value).partition("*")[0] if asked.operator is Operator.LIKE else ""
        begin, end = self._ordering.between(prefix)
        if within.bit_count() < end - begin:
            rows = rows_of(within, len(self._names))
        else:
            rows = self._ordering.rows[begin:end].tolist()
        found = asked.passing([self._names[row] for row in rows])
        return mask_of([row for name in found if (row := self._row_of(name)) is not None], len(self._names))
