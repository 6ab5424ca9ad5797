"""Finds the entries of one kind that fit a filter, in an order, page by page; the cost hardly grows with the fleet.

Every entry has a row, a small number. For each field the index knows which rows have which value, as a mask: an integer
with a bit for each row, or the rows themselves where they are few. AND, OR and NOT are single operations on masks, some
microseconds for 100,000 rows. Beside them the rows lie in each order that lists can have; a page is cut from there,
beginning behind the page before, until it is full.

Searches in texts look at each different text, or at the entries that the rest of the filter leaves, whichever are
fewer.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelfleetd.kit.fields import Reading, Values
from modelfleetd.kit.filter import And, Field, Kind, Node, Not, Operator, Or, Restriction, Scalar
from modelfleetd.kit.ordering import BY_NAME, Order
from modelfleetd.kit.paging import Position

# A bit for each row.
Mask: TypeAlias = int
Rows: TypeAlias = NDArray[np.int32]

# Up to so many rows of a value are kept as they are: as a mask they would take 12.5 KB in a fleet of 100,000.
_MOST_SPARSE = 256
_FIRST_CHUNK = 1024
_AFTER_ALL = "\U0010ffff"
# Where an entry without a value stands in an order by it: last.
_LAST = 2**62


class Index:
    """The entries of one kind."""

    def __init__(
        self, fields: Mapping[str, Reading], ordered: Sequence[str] = (), parents: tuple[str, Index] | None = None
    ) -> None:
        """Makes an empty index.

        Args:
            fields: to filter by, `name` among them, by path.
            ordered: the fields to order by, beside `name`: times and enums.
            parents: the field that holds the name of another entry, and the index of these: their fields can then be
                filtered by as well.
        """
        self._entries: list[Any] = []
        self._names: list[str] = []
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._all: Mask = 0
        self._keys = {path: _Numbers(fields[path]) for path in ordered}
        self._orders = {BY_NAME: _Ordering(self._names.__getitem__)} | {
            path: _Ordering(self._ordered_by(numbers)) for path, numbers in self._keys.items()
        }
        self._columns: dict[str, _Column] = {}
        self._attributes: Sequence[str] = ()
        self._parents = parents
        self._references = None if parents is None else _References(fields[parents[0]].read, parents[1])
        self._children: list[Index] = []
        self.fields: dict[str, Field] = {}
        for path, reading in fields.items():
            self._add(path, reading)
        if parents is not None:
            parents[1]._children.append(self)
            self._join()

    @property
    def orders(self) -> Sequence[str]:
        """The fields that lists can be ordered by."""
        return tuple(self._orders)

    # Changes.

    def load(self, messages: Sequence[Any]) -> None:
        """Takes in all entries at once, in the order of their names. The index must be empty."""
        self._entries.extend(messages)
        self._names.extend(message.name for message in messages)
        self._row_of = {name: row for row, name in enumerate(self._names)}
        count = len(messages)
        self._all = (1 << count) - 1
        for column in self._all_columns():
            column.load(messages)
        rows = np.arange(count, dtype=np.int32)
        for path, ordering in self._orders.items():
            # Unset values come last; rows are in the order of names, and stay so where values are equal.
            keyed = rows if path == BY_NAME else np.argsort(self._keys[path].values(count), kind="stable")
            ordering.load(keyed.astype(np.int32))

    def put(self, before: Any, after: Any) -> None:
        """Takes in an entry, in place of what it was before; None where it is new."""
        row = self._new_row(after) if before is None else self._row_of[after.name]
        moved = [path for path, key in self._keys.items() if before is None or key.read(before) != key.read(after)]
        if before is not None:
            for path in moved:
                self._orders[path].remove(row)
        self._entries[row] = after
        self._change(row, before, after)
        for path in moved:
            self._orders[path].add(row)
        if before is None:
            self._orders[BY_NAME].add(row)

    def remove(self, before: Any) -> None:
        """Forgets an entry."""
        row = self._row_of.pop(before.name)
        for ordering in self._orders.values():
            ordering.remove(row)
        self._change(row, before, None)
        self._entries[row] = None
        self._names[row] = ""
        self._free.append(row)
        self._all &= ~(1 << row)

    def set_attributes(self, attributes: Mapping[str, Reading]) -> None:
        """Changes which attributes can be filtered by. New ones are read from all entries."""
        for path in self._attributes:
            if path not in attributes or attributes[path].field != self.fields[path]:
                del self.fields[path], self._columns[path]
        for path in attributes.keys() - self.fields.keys():
            self._add(path, attributes[path])
            self._columns[path].load(self._entries)
        self._attributes = tuple(attributes)
        for child in self._children:
            child._join()

    def _join(self) -> None:
        """Makes the parents' fields fields of these entries too."""
        if self._parents is None:
            return
        by, other = self._parents
        own = {path: each for path, each in self.fields.items() if not each.of}
        theirs = (replace(each, path=f"{by}.{path}", of=by) for path, each in other.fields.items())
        self.fields = own | {each.path: each for each in theirs}

    def _add(self, path: str, reading: Reading) -> None:
        self.fields[path] = reading.field
        self._columns[path] = self._column(path, reading)

    def _column(self, path: str, reading: Reading) -> _Column:
        if path == BY_NAME:
            return _Names(self._names, self._row_of_name, self._orders[BY_NAME])
        if reading.field.keyed:
            return _Keys(reading, self._entries)
        if reading.field.prose:
            return _Prose(reading.read, self._entries)
        if reading.field.kind in (Kind.NUMBER, Kind.TIME) and not reading.field.many:
            return self._keys.get(path) or _Numbers(reading)
        return _Postings(reading.read, self._entries)

    def _row_of_name(self, name: str) -> int | None:
        return self._row_of.get(name)

    def _new_row(self, message: Any) -> int:
        row = self._free.pop() if self._free else len(self._entries)
        if row == len(self._entries):
            self._entries.append(message)
            self._names.append(message.name)
        self._names[row] = message.name
        self._row_of[message.name] = row
        self._all |= 1 << row
        return row

    def _change(self, row: int, before: Any, after: Any) -> None:
        for column in self._all_columns():
            column.change(row, before, after)

    def _all_columns(self) -> Iterator[_Kept]:
        yield from self._columns.values()
        # What is ordered by need not be what is filtered by: of enums there is a number and a set of rows.
        yield from (key for path, key in self._keys.items() if self._columns[path] is not key)
        if self._references is not None:
            yield self._references

    def _ordered_by(self, numbers: _Numbers) -> Callable[[int], tuple[int, str]]:
        return lambda row: (numbers.key(row), self._names[row])

    # Pages.

    def page(self, prefix: str, where: Node | None, order: Order, after: Position | None, limit: int) -> Sequence[str]:
        """Returns up to `limit` names in an order.

        Args:
            prefix: only names that begin with it.
            where: only entries that fit; bound to this index's fields.
            order: of the names.
            after: position of the last one of the page before, as `position` gives it.
            limit: how many at most.
        """
        ordering, by_name = self._orders[order.field], self._orders[BY_NAME]
        begin, end = by_name.between(prefix) if prefix and ordering is by_name else (0, len(ordering))
        if after is not None:
            key = after[0] if ordering is by_name else tuple(after)
            if order.descending:
                end = min(end, ordering.before(key))
            else:
                begin = max(begin, ordering.behind(key))
        rows = ordering.rows[begin : max(begin, end)]
        rows = rows[::-1] if order.descending else rows
        if where is None and (not prefix or ordering is by_name):
            found = rows[:limit].tolist()
        else:
            within = _mask(by_name.rows[slice(*by_name.between(prefix))], len(self._entries)) if prefix else self._all
            found = _first(rows, within if where is None else self._fitting(where, within), len(self._entries), limit)
        return [self._names[row] for row in found]

    def position(self, name: str, order: Order) -> Position:
        """Returns the position of an entry in an order, for `page` to go on behind it."""
        return (name,) if order.field == BY_NAME else (self._keys[order.field].key(self._row_of[name]), name)

    def _fitting(self, node: Node, within: Mask) -> Mask:
        """Returns the rows of `within` that fit an expression."""
        match node:
            case And(parts):
                # What searches texts comes last, when there is least to search.
                for part in sorted(parts, key=_searches):
                    if not within:
                        break
                    within = self._fitting(part, within)
                return within
            case Or(parts):
                found = 0
                for part in sorted(parts, key=_searches):
                    found |= self._fitting(part, within & ~found)
                return found
            case Not(part):
                return within & ~self._fitting(part, within)
            case Restriction():
                return within & self._having(node, within)
            case _:
                raise TypeError("the filter is not bound to fields")

    def _having(self, asked: Restriction, within: Mask) -> Mask:
        column = self._columns.get(asked.field.path)
        if column is not None:
            return column.having(asked, within)
        if self._parents is None or self._references is None:
            raise LookupError(f"{asked.field.path} is no field of this index")
        # Of another entry that these refer to: those that refer to one of the entries that fit there.
        by, other = self._parents
        theirs = replace(asked, field=other.fields[asked.field.path.removeprefix(f"{by}.")])
        # Who refers to nothing stands at -1: behind all of theirs.
        fit = np.append(_bits(other._fitting(theirs, other._all), len(other._entries)), np.False_)
        return _mask_of_bits(fit[self._references.rows(len(self._entries))])


def _searches(node: Node) -> int:
    match node:
        case And(parts) | Or(parts):
            return max(map(_searches, parts))
        case Not(part):
            return _searches(part)
        case Restriction():
            return int(node.searches)
        case _:
            return 0


# --- masks ------------------------------------------------------------------------------------------------------------


def _mask(rows: Sequence[int] | Rows, size: int) -> Mask:
    """Returns the mask of some of `size` rows."""
    bits = np.zeros(size, np.bool_)
    bits[np.asarray(rows, np.int32)] = True
    return _mask_of_bits(bits)


def _mask_of_bits(bits: NDArray[np.bool_]) -> Mask:
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


def _bits(mask: Mask, size: int) -> NDArray[np.bool_]:
    if not mask:
        return np.zeros(size, np.bool_)
    packed = np.frombuffer(mask.to_bytes(-(-size // 8), "little"), np.uint8)
    return np.unpackbits(packed, count=size, bitorder="little").view(np.bool_)


def _first(rows: Rows, mask: Mask, size: int, limit: int) -> list[int]:
    """Returns the first rows that are in a mask. Looks at no more of them than that takes."""
    found: list[int] = []
    if not mask:
        return found
    bits = _bits(mask, size)
    begin, chunk = 0, _FIRST_CHUNK
    while begin < len(rows) and len(found) < limit:
        looked_at = rows[begin : begin + chunk]
        found.extend(looked_at[bits[looked_at]].tolist())
        begin, chunk = begin + chunk, 2 * chunk
    return found[:limit]


def _rows(mask: Mask, size: int) -> list[int]:
    found: list[int] = np.flatnonzero(_bits(mask, size)).tolist()
    return found


# --- orders -----------------------------------------------------------------------------------------------------------


class _Ordering:
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


# --- columns ----------------------------------------------------------------------------------------------------------


class _Kept(Protocol):
    """What is known of the entry of each row."""

    def load(self, entries: Sequence[Any]) -> None:
        """Takes in the entries of all rows, None where there is none. The column must be empty."""

    def change(self, row: int, before: Any, after: Any) -> None:
        """Takes over that a row's entry is another one; None for no entry."""


class _Column(_Kept, Protocol):
    """Which rows have which values in one field."""

    def having(self, asked: Restriction, within: Mask) -> Mask:
        """Returns the rows that pass a restriction; only those of `within` need to be right."""


class _Postings:
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
            self._rows[value] = tuple(rows) if len(rows) <= _MOST_SPARSE else _mask(rows, rows[-1] + 1)
        self._any = _mask(present, present[-1] + 1) if present else 0

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
            self._rows[value] = _mask((*rows, row), max(*rows, row) + 1)

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
        return found | _mask(together, max(together) + 1) if together else found


class _Keys:
    """The rows of each value, key by key."""

    def __init__(self, reading: Reading, entries: Sequence[Any]) -> None:
        if reading.read_keys is None:
            raise ValueError(f"{reading.field.path} has no keys")
        self._read = reading.read_keys
        self._entries = entries
        self._by_key: dict[str, _Postings] = {}
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
        self._any = _mask(present, present[-1] + 1) if present else 0

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

    def _of(self, key: str) -> _Postings:
        found = self._by_key.get(key)
        if found is None:

            def read(entry: Any) -> Values:
                values = self._read(entry)
                return (values[key],) if key in values else ()

            found = self._by_key[key] = _Postings(read, self._entries)
        return found


class _Prose:
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
    found = [row for row in _rows(within, len(entries)) if any(map(test, read(entries[row])))]
    return _mask(found, len(entries))


class _Numbers:
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
            return _mask_of_bits(~np.isnan(self._room))
        return _mask_of_bits(self._COMPARE[asked.operator](self._room, asked.value))

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


class _References:
    """The row of the entry that each row's entry refers to, which must be there already; -1 where there is none."""

    def __init__(self, read: Callable[[Any], Values], other: Index) -> None:
        self._read = read
        self._other = other
        self._room: Rows = np.full(16, -1, np.int32)

    def load(self, entries: Sequence[Any]) -> None:
        self._room = np.array([self._row(entry) for entry in entries], np.int32)

    def change(self, row: int, before: Any, after: Any) -> None:
        if row >= len(self._room):
            self._room = np.concatenate((self._room, np.full(max(16, row // 4), -1, np.int32)))
        self._room[row] = self._row(after)

    def rows(self, count: int) -> Rows:
        """Returns the others' rows, of the first rows."""
        return self._room[:count]

    def _row(self, entry: Any) -> int:
        found = None if entry is None else self._other._row_of_name(str(self._read(entry)[0]))
        return -1 if found is None else found


class _Names:
    """The names themselves: each has one row, and those that begin alike lie together."""

    def __init__(self, names: Sequence[str], row_of: Callable[[str], int | None], ordering: _Ordering) -> None:
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
            rows = _rows(within, len(self._names))
        else:
            rows = self._ordering.rows[begin:end].tolist()
        found = asked.passing([self._names[row] for row in rows])
        return _mask([row for name in found if (row := self._row_of(name)) is not None], len(self._names))
