"""Writes batches: decodes them, joins predictions and labels, adds what they say: one transaction a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
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
    Statistics,
    count_positives,
    count_refusals,
    count_seen,
    expose,
    pick,
    scored,
    summarise_examples,
    unseen,
)
from modelfleetd.stability.store import Store, Write, waiting

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
        now = self._clock.now()
        rows, refusals = await asyncio.to_thread(decode_examples, raw, now)
        counted = await asyncio.to_thread(summarise_examples, rows)
        series = await self._series(sender, rows.model, rows.prediction, refusals)
        async with self._store.write(sender.batch, now, _oldest(rows.event, refusals)) as write:
            if write.written is not None:
                return write.written
            return await self._conclude(write, series, len(rows), refusals, {True: counted}, rows.event)

    async def predictions(self, sender: Sender, raw: RawBatch) -> Outcome:
        """Writes predictions, joined with labels that came before them."""
        now = self._clock.now()
        rows, refusals = await asyncio.to_thread(decode_predictions, raw, now)
        series = await self._series(sender, rows.model, rows.prediction, refusals)
        rows, refusals = _without_repeated(rows, refusals, series, np.zeros(len(rows), np.int64), rows.event)
        shelves = sender.shelving.shelves(rows.event, rows.prediction)
        await self._store.shelves.make(np.unique(shelves).tolist())
        async with self._store.write(sender.batch, now, _oldest(rows.event, refusals)) as write:
            if write.written is not None:
                return write.written
            await waiting.take_turn(write.conn, sender.batch.model_type)
            keys = _of(series, rows)
            known = await waiting.known_predictions(write.conn, keys, rows, sender.live_shelves(now))
            refusals += refuse(rows, rows.event // MINUTE_MICROS, known, Reason.DUPLICATE)
            rows = take(rows, _all_but(known, len(rows)))
            counted, late = await self._join_predictions(write, sender, series, rows)
            return await self._conclude(write, series, len(rows), refusals, {False: counted}, rows.event, late)

    async def labels(self, sender: Sender, raw: RawBatch) -> Outcome:
        """Writes labels, joined with the predictions that came before them."""
        now = self._clock.now()
        rows, refusals = await asyncio.to_thread(decode_labels, raw, now)
        series = await self._series(sender, rows.model, rows.prediction, refusals)
        taken = len(rows)
        # A negative says nothing where a missing label means one.
        rows = take(rows, (rows.label == 1) | sender.ignoring[rows.prediction])
        taken -= len(rows)
        rows, refusals = _without_repeated(rows, refusals, series, rows.label.astype(np.int64), rows.time)
        shelves = sender.shelving.shelves(rows.time, rows.prediction)
        await self._store.shelves.make(np.unique(shelves).tolist())
        async with self._store.write(sender.batch, now, _oldest(rows.time, refusals)) as write:
            if write.written is not None:
                return write.written
            await waiting.take_turn(write.conn, sender.batch.model_type)
            joined, refused, counted = await self._join_labels(write, sender, series, rows)
            return await self._conclude(write, series, taken + joined, refusals + refused, {False: counted}, rows.time)

    async def statistics(self, sender: Sender, raw: RawStatistics) -> Outcome:
        """Adds sums that the producer has made."""
        now = self._clock.now()
        given, refusals = await asyncio.to_thread(decode_statistics, raw, now)
        series = await self._series(sender, given.model, given.prediction, refusals)
        async with self._store.write(sender.batch, now, _oldest(given.minute * MINUTE_MICROS, refusals)) as write:
            if write.written is not None:
                return write.written
            newest = given.minute * MINUTE_MICROS
            return await self._conclude(write, series, len(given.minute), refusals, given.counted, newest)

    async def _join_predictions(
        self, write: Write, sender: Sender, series: Integers, rows: Predictions
    ) -> tuple[Statistics, Refusals]:
        """Has new predictions wait; returns what they count, and labels that had come for them, but too late."""
        keys = _of(series, rows)
        early = await waiting.find_labels(write.conn, keys, rows)
        in_time = early.time <= rows.event[early.place] + sender.shelving.windows[rows.prediction[early.place]]
        label = np.full(len(rows), -1, dtype=np.int64)
        label[early.place[in_time]] = early.label[in_time]
        shelves = sender.shelving.shelves(rows.event, rows.prediction)
        await waiting.keep_predictions(write.conn, keys, shelves, rows, label)
        ignored = sender.ignoring[rows.prediction]
        counted = expose(pick(scored(rows), ~ignored))
        if ignored.any():
            # Seen is every one of them, and counted is what has a label.
            seen = count_seen(take(rows, ignored), rows.event[ignored])
            counted += seen + unseen(expose(pick(scored(rows), ignored & (label >= 0))))
        time = np.zeros(len(rows), dtype=np.int64)
        time[early.place] = early.time
        positive = label == 1
        ages = age_buckets(rows.event[positive], time[positive])
        counted += count_positives(pick(scored(rows), positive), ages)
        return counted, refuse(rows, rows.event // MINUTE_MICROS, early.place[~in_time], Reason.TOO_LATE)

    async def _join_labels(
        self, write: Write, sender: Sender, series: Integers, rows: Labels
    ) -> tuple[int, Refusals, Statistics]:
        """Gives predictions their labels, keeps the other ones; returns how many, those refused, what they count."""
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
        await waiting.mark_predictions(write.conn, found.at.pick(new), given.label)

        counted = Statistics.none()
        for is_logit in (False, True):
            of_kind = found.is_logit[new] == is_logit
            columns = (found.event[new], found.value[new])
            examples = Scored(given.model, given.prediction, *columns, is_logit, found.weight[new])
            # Without labels these do not count, so their exposure comes with the first label.
            exposed = of_kind & first & sender.ignoring[given.prediction]
            counted += unseen(expose(pick(examples, exposed)))
            positive = of_kind & (given.label == 1)
            ages = age_buckets(examples.event[positive], given.time[positive])
            counted += count_positives(pick(examples, positive), ages)

        early = take(rows, _all_but(found.place, len(rows)))
        kept, refused = await self._keep_labels(write, sender, series, early)
        return len(given) + kept, refusals + refused, counted

    async def _keep_labels(self, write: Write, sender: Sender, series: Integers, rows: Labels) -> tuple[int, Refusals]:
        """Has labels wait for their predictions; returns how many, and those that wait already."""
        keys = _of(series, rows)
        found = await waiting.find_labels(write.conn, keys, rows)
        again = take(rows, found.place)
        better = again.label > found.label
        replaced = take(again, better)
        await waiting.mark_labels(write.conn, found.at.pick(better), replaced.label)
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
        self,
        write: Write,
        series: Integers,
        accepted: int,
        refusals: Refusals,
        counted: Mapping[bool, Statistics],
        time: Integers,
        late: Refusals | None = None,
    ) -> Outcome:
        """Adds what counts, by whether the labels are known; ends the batch.

        Counts what was refused, too, in this batch and of labels that it made find their prediction.
        """
        everything = refusals if late is None else refusals + late
        await write.add(series, counted, count_refusals(everything.within(*series.shape)))
        newest = int(time.max()) if len(time) else None
        return await write.conclude(Outcome(accepted, refusals.summary(), newest_event=newest))


def _without_repeated(
    rows: K, refusals: Refusals, series: Integers, preference: Integers, time: Integers
) -> tuple[K, Refusals]:
    again = repeated(_of(series, rows), rows, preference)
    if not again.any():
        return rows, refusals
    return take(rows, ~again), refusals + refuse(rows, time // MINUTE_MICROS, again, Reason.DUPLICATE)


def _oldest(time: Integers, refusals: Refusals) -> int | None:
    """Returns the minute of the oldest event that is counted, be it as refused."""
    minutes = np.concatenate((time // MINUTE_MICROS, refusals.minute))
    return int(minutes.min()) if len(minutes) else None


def _of(series: Integers, rows: Rows) -> Integers:
    numbers: Integers = series[rows.model, rows.prediction]
    return numbers


def _all_but(positions: Integers, rows: int) -> Mask:
    mask = np.ones(rows, dtype=np.bool_)
    mask[positions] = False
    return mask
