"""Writes batches: decodes them, joins predictions and labels, adds what they say: one transaction a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from modelfleetd.clock import Clock
from modelfleetd.stability.domain.batch import BatchId, Outcome
from modelfleetd.stability.domain.columns import (
    Keys,
    Labels,
    Predictions,
    RawBatch,
    Reason,
    Refusals,
    Rows,
    decode_examples,
    decode_labels,
    decode_predictions,
    refuse,
    take,
)
from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.domain.duplicates import repeated
from modelfleetd.stability.domain.exact import Integers
from modelfleetd.stability.domain.given_statistics import RawStatistics, decode_statistics
from modelfleetd.stability.domain.maturity import MINUTE_MICROS, Shelving, age_buckets, live_shelves
from modelfleetd.stability.domain.summary import (
    Scored,
    count_positives,
    count_refusals,
    expose,
    pick,
    scored,
    summarise_examples,
)
from modelfleetd.stability.store import Store, Write, statistics, waiting

K = TypeVar("K", bound=Keys)
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sender:
    """A batch and what its indexes point into."""

    batch: BatchId
    models: Sequence[str]
    predictions: Sequence[DeclaredPrediction]

    @property
    def windows(self) -> list[timedelta]:
        return [prediction.attribution_window for prediction in self.predictions]

    @cached_property
    def shelving(self) -> Shelving:
        return Shelving(self.windows)

    @cached_property
    def ignoring(self) -> Mask:
        """By prediction, whether an example without a label does not count."""
        return np.array([prediction.ignores_missing for prediction in self.predictions])

    def live_shelves(self, now: datetime) -> list[int]:
        """Returns the shelves on which predictions wait that this batch may repeat."""
        return sorted({number for window in self.windows for number in live_shelves(window, now)})


class Writer:
    """Writes the four kinds of batches."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def examples(self, sender: Sender, raw: RawBatch) -> Outcome:
        """Writes examples whose labels are known."""
        rows, refusals = await asyncio.to_thread(decode_examples, raw, self._clock.now())
        exposures, positives = await asyncio.to_thread(summarise_examples, rows)
        series = await self._series(sender, rows.model, rows.prediction, refusals)
        async with self._store.write(sender.batch) as write:
            if write.written is not None:
                return write.written
            await statistics.add_exposure(write.conn, series, exposures, known=True)
            await statistics.add_positives(write.conn, series, positives, known=True)
            return await self._conclude(write, series, len(rows), refusals)

    async def predictions(self, sender: Sender, raw: RawBatch) -> Outcome:
        """Writes predictions, joined with labels that came before them."""
        now = self._clock.now()
        rows, refusals = await asyncio.to_thread(decode_predictions, raw, now)
        series = await self._series(sender, rows.model, rows.prediction, refusals)
        rows, refusals = _without_repeated(rows, refusals, series, np.zeros(len(rows), np.int64), rows.event)
        shelves = sender.shelving.shelves(rows.event, rows.prediction)
        await self._store.shelves.make(np.unique(shelves).tolist())
        async with self._store.write(sender.batch) as write:
            if write.written is not None:
                return write.written
            await waiting.take_turn(write.conn, sender.batch.model_type)
            keys = _of(series, rows)
            known = await waiting.known_predictions(write.conn, keys, rows, sender.live_shelves(now))
            refusals += refuse(rows, rows.event // MINUTE_MICROS, known, Reason.DUPLICATE)
            rows = take(rows, _all_but(known, len(rows)))
            late = await self._join_predictions(write, sender, series, rows)
            return await self._conclude(write, series, len(rows), refusals, late)

    async def labels(self, sender: Sender, raw: RawBatch) -> Outcome:
        """Writes labels, joined with the predictions that came before them."""
        rows, refusals = await asyncio.to_thread(decode_labels, raw, self._clock.now())
        series = await self._series(sender, rows.model, rows.prediction, refusals)
        taken = len(rows)
        # A negative says nothing where a missing label means one.
        rows = take(rows, (rows.label == 1) | sender.ignoring[rows.prediction])
        taken -= len(rows)
        rows, refusals = _without_repeated(rows, refusals, series, rows.label.astype(np.int64), rows.time)
        shelves = sender.shelving.shelves(rows.time, rows.prediction)
        await self._store.shelves.make(np.unique(shelves).tolist())
        async with self._store.write(sender.batch) as write:
            if write.written is not None:
                return write.written
            await waiting.take_turn(write.conn, sender.batch.model_type)
            joined, refused = await self._join_labels(write, sender, series, rows)
            return await self._conclude(write, series, taken + joined, refusals + refused)

    async def statistics(self, sender: Sender, raw: RawStatistics) -> Outcome:
        """Adds sums that the producer has made."""
        given, refusals = await asyncio.to_thread(decode_statistics, raw, self._clock.now())
        series = await self._series(sender, given.model, given.prediction, refusals)
        async with self._store.write(sender.batch) as write:
            if write.written is not None:
                return write.written
            for known, exposures in given.exposures.items():
                await statistics.add_exposure(write.conn, series, exposures, known=known)
            for known, positives in given.positives.items():
                await statistics.add_positives(write.conn, series, positives, known=known)
            return await self._conclude(write, series, given.rows, refusals)

    async def _join_predictions(
        self, write: Write, sender: Sender, series: Integers, rows: Predictions
    ) -> Refusals | None:
        """Counts new predictions; returns labels that had come for them, but too late."""
        keys = _of(series, rows)
        early = await waiting.find_labels(write.conn, keys, rows)
        in_time = early.time <= rows.event[early.place] + sender.shelving.windows[rows.prediction[early.place]]
        label = np.full(len(rows), -1, dtype=np.int64)
        label[early.place[in_time]] = early.label[in_time]
        shelves = sender.shelving.shelves(rows.event, rows.prediction)
        await waiting.keep_predictions(write.conn, keys, shelves, rows, label)
        counted = ~sender.ignoring[rows.prediction] | (label >= 0)
        await statistics.add_exposure(write.conn, series, expose(pick(scored(rows), counted)), known=False)
        time = np.zeros(len(rows), dtype=np.int64)
        time[early.place] = early.time
        positive = label == 1
        ages = age_buckets(rows.event[positive], time[positive])
        counts = count_positives(pick(scored(rows), positive), ages)
        await statistics.add_positives(write.conn, series, counts, known=False)
        return refuse(rows, rows.event // MINUTE_MICROS, early.place[~in_time], Reason.TOO_LATE)

    async def _join_labels(self, write: Write, sender: Sender, series: Integers, rows: Labels) -> tuple[int, Refusals]:
        """Gives predictions their labels, keeps labels without one; returns how many, and those refused."""
        keys = _of(series, rows)
        found = await waiting.find_predictions(write.conn, keys, rows)
        given = take(rows, found.place)
        minute = found.event // MINUTE_MICROS
        too_late = given.time > found.event + sender.shelving.windows[given.prediction]
        # A positive outranks a negative, so that the order in which both come does not matter.
        settled = ~too_late & (given.label <= found.label)
        new = ~too_late & ~settled
        refusals = refuse(given, minute, too_late, Reason.TOO_LATE) + refuse(given, minute, settled, Reason.DUPLICATE)
        given, first = take(given, new), found.label[new] < 0
        await waiting.mark_predictions(write.conn, _of(series, given), found.shelf[new], given)

        for is_logit in (False, True):
            of_kind = found.is_logit[new] == is_logit
            columns = (found.event[new], found.value[new])
            examples = Scored(given.model, given.prediction, *columns, is_logit, found.weight[new])
            # Without labels these do not count, so their exposure comes with the first label.
            exposed = of_kind & first & sender.ignoring[given.prediction]
            await statistics.add_exposure(write.conn, series, expose(pick(examples, exposed)), known=False)
            positive = of_kind & (given.label == 1)
            ages = age_buckets(examples.event[positive], given.time[positive])
            counts = count_positives(pick(examples, positive), ages)
            await statistics.add_positives(write.conn, series, counts, known=False)

        early = take(rows, _all_but(found.place, len(rows)))
        kept, refused = await self._keep_labels(write, sender, series, early)
        return len(given) + kept, refusals + refused

    async def _keep_labels(self, write: Write, sender: Sender, series: Integers, rows: Labels) -> tuple[int, Refusals]:
        """Has labels wait for their predictions; returns how many, and those that wait already."""
        keys = _of(series, rows)
        found = await waiting.find_labels(write.conn, keys, rows)
        again = take(rows, found.place)
        better = again.label > found.label
        replaced = take(again, better)
        await waiting.mark_labels(write.conn, _of(series, replaced), found.shelf[better], replaced)
        fresh = take(rows, _all_but(found.place, len(rows)))
        shelves = sender.shelving.shelves(fresh.time, fresh.prediction)
        await waiting.keep_labels(write.conn, _of(series, fresh), shelves, fresh)
        refusals = refuse(again, again.time // MINUTE_MICROS, ~better, Reason.DUPLICATE)
        return len(replaced) + len(fresh), refusals

    async def _series(
        self, sender: Sender, model: npt.NDArray[Any], prediction: npt.NDArray[Any], refusals: Refusals
    ) -> Integers:
        """Returns the numbers of the series that the rows, taken or not, belong to."""
        model = np.concatenate((model, refusals.model)).astype(np.int64)
        prediction = np.concatenate((prediction, refusals.prediction)).astype(np.int64)
        inside = (model < len(sender.models)) & (prediction < len(sender.predictions))
        used = np.flatnonzero(np.bincount(model[inside] << 8 | prediction[inside]))
        pairs = list(zip((used >> 8).tolist(), (used & 0xFF).tolist(), strict=True))
        predictions = [prediction.id for prediction in sender.predictions]
        return await self._store.series_of(sender.models, predictions, pairs)

    async def _conclude(
        self, write: Write, series: Integers, accepted: int, refusals: Refusals, late: Refusals | None = None
    ) -> Outcome:
        """Counts what was refused, in this batch and of labels that it made find their prediction; ends the batch."""
        everything = refusals if late is None else refusals + late
        placed = everything.within(*series.shape)
        await statistics.add_rejections(write.conn, series, *count_refusals(placed))
        return await write.conclude(Outcome(accepted, refusals.summary()))


def _without_repeated(
    rows: K, refusals: Refusals, series: Integers, preference: Integers, time: Integers
) -> tuple[K, Refusals]:
    again = repeated(_of(series, rows), rows, preference)
    if not again.any():
        return rows, refusals
    return take(rows, ~again), refusals + refuse(rows, time // MINUTE_MICROS, again, Reason.DUPLICATE)


def _of(series: Integers, rows: Rows) -> Integers:
    numbers: Integers = series[rows.model, rows.prediction]
    return numbers


def _all_but(positions: Integers, rows: int) -> Mask:
    mask = np.ones(rows, dtype=np.bool_)
    mask[positions] = False
    return mask
