"""The store: transactions of writers, and what readers ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import asyncpg
import numpy as np

from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.db import Connection, Database
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.stability.domain.batch import BatchId, Outcome
from modelfleetd.stability.domain.delays import NO_AGES, Delays, learn
from modelfleetd.stability.domain.exact import Integers
from modelfleetd.stability.domain.points import Evidence, Span
from modelfleetd.stability.domain.replay import Past, Timing
from modelfleetd.stability.domain.retention import Table
from modelfleetd.stability.domain.series import NOTHING_STORED, Stored
from modelfleetd.stability.domain.summary import RejectionRows, Statistics
from modelfleetd.stability.store import batches, delays, past, rollups, statistics
from modelfleetd.stability.store.partitions import Partitions
from modelfleetd.stability.store.shelves import Shelves

# Producers repeat a batch within minutes; this is what they are promised.
_BATCHES_KEPT: Final = timedelta(days=7)
_MOST_SERIES_CACHED: Final = 100_000

_READ_SERIES = """
SELECT id, series.model, series.prediction FROM series
JOIN unnest($1::text[], $2::text[]) AS given (model, prediction) USING (model, prediction)
"""
_MAKE_SERIES = """
INSERT INTO series (model, prediction) SELECT * FROM unnest($1::text[], $2::text[]) ORDER BY 1, 2
ON CONFLICT DO NOTHING
"""


_NO_REJECTIONS: Final = RejectionRows.none()


class Write:
    """The transaction in which one batch is written."""

    def __init__(self, conn: Connection, batch: BatchId, now: datetime, written: Outcome | None) -> None:
        self.conn = conn
        self._batch = batch
        self._now = now
        self.written = written  # the outcome where the batch was written before: then there is nothing to do

    async def add(
        self, series: Integers, rows: Mapping[bool, Statistics], rejected: RejectionRows = _NO_REJECTIONS
    ) -> None:
        """Adds what the batch says; once. See `statistics.add`."""
        await statistics.add(self.conn, series, rows, rejected, self._now)

    async def conclude(self, outcome: Outcome) -> Outcome:
        """Keeps the outcome, to answer a repetition with."""
        await batches.conclude(self.conn, self._batch, outcome)
        return outcome


class Store:
    """Stability's schema."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Numbers of series never change, so they may be kept.
        self._series: dict[tuple[str, str], int] = {}
        self.shelves = Shelves(database)
        self.partitions = Partitions(database)

    @asynccontextmanager
    async def write(self, batch: BatchId, now: datetime, oldest: int | None = None) -> AsyncIterator[Write]:
        """Begins the transaction of a batch; waits for one that writes the same batch.

        Args:
            batch: what is written.
            now: the time.
            oldest: minute of its oldest event; None where all are of predictions that are there.

        Raises:
            SequenceReused: it was written before with other content.
            PartUnavailable: the database cannot be reached, or has lost what is remembered of it.
        """
        await self.partitions.make(now, oldest)
        try:
            async with self._database.transaction(what="batch") as conn:
                yield Write(conn, batch, now, await batches.claim(conn, batch))
        except (asyncpg.ForeignKeyViolationError, asyncpg.CheckViolationError) as error:
            # A series, a shelf or a partition that was there is gone: a standby took over without the last commits.
            self._series.clear()
            self.shelves.forget()
            self.partitions.forget()
            raise PartUnavailable("database") from error

    async def series_of(
        self, models: Sequence[str], predictions: Sequence[str], used: Sequence[tuple[int, int]]
    ) -> Integers:
        """Returns the numbers of series by model (first index) and prediction (second); 0 for those not used."""
        if len(self._series) > _MOST_SERIES_CACHED:
            self._series.clear()
        pairs = {(model, prediction): (models[model], predictions[prediction]) for model, prediction in used}
        missing = [pair for pair in pairs.values() if pair not in self._series]
        if missing:
            names = ([model for model, _ in missing], [prediction for _, prediction in missing])
            await self._database.execute(_MAKE_SERIES, *names)
            await self._remember_series(missing)
        numbers = np.zeros((len(models), len(predictions)), dtype=np.int64)
        for index, pair in pairs.items():
            numbers[index] = self._series[pair]
        return numbers

    async def evidence(
        self, mature_before: Mapping[tuple[str, str], int], span: Span, now: datetime, resolution: int = 0
    ) -> dict[tuple[str, str], dict[int, Evidence]]:
        """Returns the evidence of models' predictions by the first minute of each part of a span.

        Args:
            mature_before: for each (model, prediction) the first minute that is not mature.
            span: what to read.
            now: decides what is kept.
            resolution: minutes of a part; 0: the whole span is one.
        """
        await self._remember_series([pair for pair in mature_before if pair not in self._series])
        series = {self._series[pair]: pair for pair in mature_before if pair in self._series}
        if not series:
            return {}
        async with self._database.transaction(readonly=True) as conn:
            wanted = {number: mature_before[pair] for number, pair in series.items()}
            found = await rollups.read_evidence(conn, wanted, span, resolution, now)
        return {series[number]: parts for number, parts in found.items()}

    async def malformed(self, pairs: Sequence[tuple[str, str]], span: Span) -> dict[tuple[str, str], int]:
        """Returns how many rows of models' predictions were refused because they cannot be right; not where none was.

        Reasons are kept as long as statistics by the minute.
        """
        await self._remember_series([pair for pair in pairs if pair not in self._series])
        series = {self._series[pair]: pair for pair in pairs if pair in self._series}
        async with self._database.transaction(readonly=True) as conn:
            found = await past.read_malformed(conn, [*series], span)
        return {series[number]: rows for number, rows in found.items()}

    async def pasts(
        self, timings: Mapping[tuple[str, str], Timing], table: Table, start: int, moments: Sequence[int]
    ) -> dict[tuple[str, str], Past]:
        """Returns what was known of models' predictions at moments of the past; nothing of those without examples.

        Args:
            timings: for each (model, prediction) how long its labels take.
            table: whose rows are read: those by minute, or wider ones.
            start: the minute from which events count; the first of a row.
            moments: minutes, at whose beginnings is asked; ascending.
        """
        await self._remember_series([pair for pair in timings if pair not in self._series])
        series = {self._series[pair]: pair for pair in timings if pair in self._series}
        async with self._database.transaction(readonly=True) as conn:
            wanted = {number: timings[pair] for number, pair in series.items()}
            found = await past.read_pasts(conn, wanted, table, start, moments) if wanted else {}
        return {series[number]: each for number, each in found.items()}

    async def series(
        self, model: str, prediction: str, span: Span, resolution: int, mature_before: int, now: datetime
    ) -> Stored:
        """Returns what is stored of a model's prediction over a span, in points of so many minutes."""
        pair = (model, prediction)
        await self._remember_series([pair] if pair not in self._series else [])
        if pair not in self._series:
            return NOTHING_STORED
        async with self._database.transaction(readonly=True) as conn:
            return await rollups.read_series(conn, self._series[pair], span, resolution, mature_before, now)

    async def delays(self, wanted: Mapping[tuple[str, str], timedelta]) -> Mapping[tuple[str, str], Delays]:
        """Returns how the labels of models' predictions are delayed.

        Args:
            wanted: the attribution window of each (model, prediction).
        """
        others = {pair: (MODEL_TYPE.format(MODEL.parse(pair[0])[0]), pair[1]) for pair in wanted}
        async with self._database.connection() as conn:
            learned = await delays.read(conn, sorted({*wanted, *others.values()}))
        ages = {subject: each.ages for subject, each in learned.items()}
        return {
            pair: learn(window, ages.get(pair, NO_AGES), ages.get(others[pair], NO_AGES))
            for pair, window in wanted.items()
        }

    async def all_series(self) -> dict[int, tuple[str, str]]:
        """Returns the model and the prediction of every series."""
        async with self._database.connection() as conn:
            return await delays.all_series(conn)

    @asynccontextmanager
    async def learning(self) -> AsyncIterator[Connection | None]:
        """Begins the transaction of whoever learns how labels are delayed; None while another one does."""
        async with self._database.transaction() as conn:
            yield conn if await delays.learn_alone(conn) else None

    async def sweep(self, now: datetime) -> None:
        """Makes room for the days to come; drops what nothing waits for any more, and what is old."""
        await self.partitions.make(now)
        await self.shelves.drop_expired(now)
        await self.partitions.drop_old(now)
        await batches.forget(self._database, _BATCHES_KEPT)

    async def _remember_series(self, pairs: Sequence[tuple[str, str]]) -> None:
        if not pairs:
            return
        names = ([model for model, _ in pairs], [prediction for _, prediction in pairs])
        for record in await self._database.fetch(_READ_SERIES, *names):
            self._series[record["model"], record["prediction"]] = record["id"]
