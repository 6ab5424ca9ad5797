"""The newest minutes of all watched series, in memory: as far back as verdicts look, refreshed by what has changed.

A block is a matrix of series × minutes before now. Series whose labels come within hours are in one block, up to now.
Where labels take longer, NE looks so far back that a series is in two: its newest minutes, and those that mature now.

The newest minutes are read by the minute; all before them from the rows by 5 minutes, which are a thirtieth as many,
each spread evenly over its minutes. What has matured hardly ever changes, so it is looked through for changes now and
then only, while what matures is read at once. All costs 18 numbers a series and minute of memory, and each round what
has changed, whatever was ever written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from modelfleetd.kit.db import Connection, Database
from modelfleetd.stability.domain.exact import SCALE, Floats
from modelfleetd.stability.domain.looks import WIDE, Pair, Reach
from modelfleetd.stability.domain.minute_series import MinuteSeries
from modelfleetd.stability.domain.points import Span
from modelfleetd.stability.store import minutes
from modelfleetd.stability.store.minutes import SUMS, Rows, Seen

# Rounds from one look through what has matured to the next.
MATURED_ROUNDS: Final = 10
# Of which everything is read by one statement.
_MOST_SERIES: Final = 500
_NO_MINUTES: Final = Span(0, 0)
_PLACES: Final = {name: place for place, name in enumerate(SUMS)}
_COUNTS: Final = frozenset({"seen", "n", "waiting", "p_n"})  # all others are in units of 2^-40


@dataclass(slots=True, eq=False)
class Block:
    """Series of one reach."""

    reach: Reach
    pairs: tuple[Pair, ...]
    span: Span = _NO_MINUTES
    # SUMS × series × minutes, in natural units.
    sums: Floats = field(init=False)
    # Which rows hold all that there is within the span.
    is_read: npt.NDArray[np.bool_] = field(init=False)
    seen: Seen | None = None
    rounds: int = 0

    def __post_init__(self) -> None:
        width = self.reach.oldest - self.reach.newest
        self.sums = np.zeros((len(SUMS), len(self.pairs), width))
        self.is_read = np.zeros(len(self.pairs), dtype=bool)

    def with_pairs(self, pairs: tuple[Pair, ...]) -> Block:
        """Returns a block of other series; what is known of those that stay is kept."""
        if pairs == self.pairs:
            return self
        made = Block(self.reach, pairs, self.span, self.seen, self.rounds)
        places = {pair: row for row, pair in enumerate(self.pairs)}
        kept = [(row, places[pair]) for row, pair in enumerate(pairs) if pair in places]
        if kept:
            new, old = (list(rows) for rows in zip(*kept, strict=True))
            made.sums[:, new], made.is_read[new] = self.sums[:, old], self.is_read[old]
        return made

    @property
    def coarse(self) -> Span:
        """What is read by 5 minutes: all but the newest minutes; of what has matured, all."""
        start, end = (minute // WIDE * WIDE for minute in (self.span.start, self.span.end))
        return Span(start, end if self.reach.is_matured else end - WIDE)

    def move(self, now: int) -> None:
        """Moves on to another minute."""
        span, before = self.reach.at(now), self.span
        passed = span.start - before.start
        if not 0 <= passed < span.end - span.start:
            self.forget()
        elif passed:
            self.sums[..., :-passed] = self.sums[..., passed:]
            self.sums[..., -passed:] = 0.0
        self.span = span

    def forget(self) -> None:
        """Forgets all that was read."""
        self.sums[:], self.is_read[:] = 0.0, False
        self.seen = None

    def put(self, row_of: Mapping[int, int], rows: Rows, width: int) -> None:
        """Puts rows into their places, each spread over as many minutes as it is of."""
        if not len(rows):
            return
        numbers = np.array(sorted(row_of))
        places = np.array([row_of[number] for number in numbers.tolist()])
        series, first = places[np.searchsorted(numbers, rows["series"])], rows["minute"] - self.span.start
        for name in rows.dtype.names or ():
            if name not in _PLACES:
                continue
            value = rows[name] * ((1.0 if name in _COUNTS else 1.0 / SCALE) / width)
            for offset in range(width):
                minute = first + offset
                inside = (minute >= 0) & (minute < self.sums.shape[2])
                if inside.all():
                    self.sums[_PLACES[name], series, minute] = value
                else:
                    self.sums[_PLACES[name], series[inside], minute[inside]] = value[inside]

    def series(self) -> MinuteSeries:
        """Returns all that is known, as verdicts look at it."""
        of = dict(zip(SUMS, self.sums, strict=True))
        return MinuteSeries(
            start=self.span.start,
            examples=of["n"],
            weight=of["w"],
            weight_squares=of["w2"],
            expected=of["wp"],
            expected_variance=of["w2pq"],
            loss=of["wl"] + of["p_wl"],
            loss_by_squares=of["w2l"] + of["p_w2l"],
            loss_squares=of["w2l2"] + of["p_w2l2"],
            positives=of["p_n"],
            observed=of["p_w"],
            observed_squares=of["p_w2"],
            positive_loss=of["p_w2l1"],
            waiting=of["waiting"],
            waiting_expected=of["waiting_wp"],
            seen=of["seen"],
        )


class Recent:
    """All blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.blocks: dict[Reach, Block] = {}
        # Numbers of series never change.
        self._numbers: dict[Pair, int] = {}

    async def read(self, wanted: Mapping[Reach, Sequence[Pair]], now: int) -> Mapping[Reach, Block]:
        """Returns what is known now of series, by how far back they are looked at.

        Args:
            wanted: series by their reach.
            now: the minute.
        """
        blocks = {
            reach: self.blocks[reach].with_pairs(tuple(pairs)) if reach in self.blocks else Block(reach, tuple(pairs))
            for reach, pairs in wanted.items()
        }
        # Whatever fails on the way leaves blocks that have lost minutes.
        self.blocks = {}
        async with self._database.transaction(readonly=True) as conn:
            seen = await minutes.seen_now(conn)
            unknown = {pair for pairs in wanted.values() for pair in pairs} - self._numbers.keys()
            if unknown:
                self._numbers |= await minutes.find_series(conn, sorted(unknown))
            for block in blocks.values():
                await self._refresh(conn, block, now, seen)
        self.blocks = blocks
        return blocks

    def forget(self) -> None:
        """Forgets all that was read."""
        self.blocks, self._numbers = {}, {}

    async def _refresh(self, conn: Connection, block: Block, now: int, seen: Seen) -> None:
        if block.seen is not None and not block.seen.is_followed_by(seen):
            block.forget()
        coarse_before = block.coarse.end
        block.move(now)
        row_of = {self._numbers[pair]: row for row, pair in enumerate(block.pairs) if pair in self._numbers}
        read = {number: row for number, row in row_of.items() if block.is_read[row]}
        unread = {number: row for number, row in row_of.items() if not block.is_read[row]}
        looks_through = not block.reach.is_matured or block.rounds % MATURED_ROUNDS == 0
        coarse = block.coarse
        if read:
            since = block.seen.transaction if looks_through and block.seen is not None else None
            rows = await minutes.read_changed(conn, list(read), coarse, coarse_before, since)
            await asyncio.to_thread(block.put, read, rows, WIDE)
        # All that there is of some may be much: never more than fits into a statement's time.
        for numbers in _in_parts(list(unread)):
            rows = await minutes.read_changed(conn, numbers, coarse, coarse.start, None)
            await asyncio.to_thread(block.put, unread, rows, WIDE)
        if row_of and coarse.end < block.span.end:
            for rows in await minutes.read_minutes(conn, list(row_of), Span(coarse.end, block.span.end)):
                await asyncio.to_thread(block.put, row_of, rows, 1)
        block.is_read[list(unread.values())] = True
        block.rounds += 1
        if looks_through or block.seen is None:
            block.seen = seen


def _in_parts(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for begin in range(0, len(numbers), _MOST_SERIES):
        yield numbers[begin : begin + _MOST_SERIES]
