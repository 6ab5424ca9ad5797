"""Finds the entries of one kind that fit a filter, in an order, page by page; the cost hardly grows with the fleet.

Every entry has a row, a small number. For each field the index knows which rows have which value, as a mask: an integer
with a bit for each row, or the rows themselves where they are few. AND, OR and NOT are single operations on masks, some
microseconds for 100,000 rows. Beside them the rows lie in each order that lists can have; a page is cut from there,
beginning behind the page before, until it is full.

Searches in texts look at each different text, or at the entries that the rest of the filter leaves, whichever are
fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modelfleetd.kit.fields import Reading, Values
from modelfleetd.kit.filter import And, Field, Kind, Node, Not, Or, Restriction
from modelfleetd.kit.ordering import BY_NAME, Order
from modelfleetd.kit.paging import Position
from modelfleetd.registry.columns import Column, Kept, Keys, Names, Numbers, Postings, Prose
from modelfleetd.registry.orderings import Ordering
from modelfleetd.registry.row_masks import Mask, Rows, bits_of, first_of, mask_of, mask_of_bits


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
        self._keys = {path: Numbers(fields[path]) for path in ordered}
        self._orders = {BY_NAME: Ordering(self._names.__getitem__)} | {
            path: Ordering(self._ordered_by(numbers)) for path, numbers in self._keys.items()
        }
        self._columns: dict[str, Column] = {}
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

    def _column(self, path: str, reading: Reading) -> Column:
        if path == BY_NAME:
            return Names(self._names, self._row_of_name, self._orders[BY_NAME])
        if reading.field.keyed:
            return Keys(reading, self._entries)
        if reading.field.prose:
            return Prose(reading.read, self._entries)
        if reading.field.kind in (Kind.NUMBER, Kind.TIME) and not reading.field.many:
            return self._keys.get(path) or Numbers(reading)
        return Postings(reading.read, self._entries)

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

    def _all_columns(self) -> Iterator[Kept]:
        yield from self._columns.values()
        # What is ordered by need not be what is filtered by: of enums there is a number and a set of rows.
        yield from (key for path, key in self._keys.items() if self._columns[path] is not key)
        if self._references is not None:
            yield self._references

    def _ordered_by(self, numbers: Numbers) -> Callable[[int], tuple[int, str]]:
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
            within = mask_of(by_name.rows[slice(*by_name.between(prefix))], len(self._entries)) if prefix else self._all
            found = first_of(rows, within if where is None else self._fitting(where, within), len(self._entries), limit)
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
        fit = np.append(bits_of(other._fitting(theirs, other._all), len(other._entries)), np.False_)
        return mask_of_bits(fit[self._references.rows(len(self._entries))])


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
