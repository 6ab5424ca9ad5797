"""Budgets and burn rates of a whole fleet, from memory: the newest minutes one by one, older ones counted by hours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain.fleet import WatchedFleet, WatchedModel
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.slices import MINUTES_OF_HOUR, Objective, Slice, Slices
from modelfleetd.stability.domain.slo import (
    LONGEST_WINDOW,
    PERIOD,
    Burning,
    BurnRate,
    ObjectiveState,
    Tally,
    burning,
    target_of,
)

# The period is counted in whole hours: the newest one, as far as it has come, and those before it.
HOURS: Final = PERIOD // timedelta(hours=1)
_COUNTED: Final = (Slice.GOOD, Slice.BAD, Slice.UNKNOWN)

HourCounts: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """The slices of one objective of many SLOs, as of a minute. About 6.5 kB for each."""

    minute: int  # the newest
    rows: Mapping[str, int]  # by the name of the SLO
    recent: Slices  # rows × LONGEST_WINDOW, the newest minute last
    hours: HourCounts  # rows × HOURS × (good, bad, unknown), the newest minute's hour last

    def totals(self) -> npt.NDArray[np.int64]:
        """Returns the minutes of the period that count as good, bad and unknown: rows × 3."""
        found: npt.NDArray[np.int64] = self.hours.sum(axis=1, dtype=np.int64)
        return found

    def tail_start(self, minute: int) -> int | None:
        """Returns the first minute that has to be read to bring this up to a newer one; None where all has to be."""
        return self.minute // MINUTES_OF_HOUR * MINUTES_OF_HOUR if 0 <= minute - self.minute < LONGEST_WINDOW else None


def blank(slos: Sequence[str], minute: int = -1) -> History:
    """Returns the history of SLOs of which no minute was evaluated."""
    rows = {slo: row for row, slo in enumerate(slos)}
    recent = np.zeros((len(slos), LONGEST_WINDOW), dtype=np.uint8)
    return History(minute, rows, recent, np.zeros((len(slos), HOURS, len(_COUNTED)), dtype=np.uint8))


def whole_span(minute: int) -> tuple[int, int]:
    """Returns the minutes, from and to, that are read of an SLO of which nothing is known yet: whole hours."""
    end_hour = minute // MINUTES_OF_HOUR + 1
    return (end_hour - HOURS) * MINUTES_OF_HOUR, end_hour * MINUTES_OF_HOUR


def begun(slos: Sequence[str], slices: Mapping[str, Slices], minute: int) -> History:
    """Returns the history of SLOs from all slices of `whole_span`."""
    if not slos:
        return blank((), minute)
    _, end = whole_span(minute)
    matrix = np.stack([slices[slo] for slo in slos])
    newest = matrix.shape[1] - (end - 1 - minute)
    rows = {slo: row for row, slo in enumerate(slos)}
    return History(minute, rows, matrix[:, newest - LONGEST_WINDOW : newest].copy(), _counted(matrix))


def continued(before: History, slos: Sequence[str], tail: Mapping[str, Slices], minute: int) -> History:
    """Returns the history of SLOs that had one, at a newer minute.

    Args:
        before: as it was; `tail_start` of the minute is not None.
        slos: those of it that are kept.
        tail: their slices from `tail_start` to the end of the minute's hour.
        minute: the newest.
    """
    if not slos:
        return blank((), minute)
    kept = np.array([before.rows[slo] for slo in slos])
    matrix = np.stack([tail[slo] for slo in slos])
    counts = _counted(matrix)
    start = before.minute // MINUTES_OF_HOUR * MINUTES_OF_HOUR
    newer, newer_hours = minute - before.minute, minute // MINUTES_OF_HOUR - before.minute // MINUTES_OF_HOUR
    known = before.minute + 1 - start
    recent = np.concatenate([before.recent[kept, newer:], matrix[:, known : known + newer]], axis=1)
    # The hour that was the newest is counted again: it may have gone on.
    hours = np.concatenate([before.hours[kept, newer_hours:-1], counts], axis=1)
    return History(minute, {slo: row for row, slo in enumerate(slos)}, recent, hours)


def joined(one: History, other: History) -> History:
    """Returns the histories of the SLOs of both, which are as of the same minute and have no SLO in common."""
    return History(
        one.minute,
        dict(one.rows) | {slo: len(one.rows) + row for slo, row in other.rows.items()},
        np.concatenate([one.recent, other.recent]),
        np.concatenate([one.hours, other.hours]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Budgets:
    """Budgets and burn rates of all models that serve, as of one minute and one revision of the registry."""

    fleet: WatchedFleet
    histories: Mapping[Objective, History]  # of STABILITY, which says COVERAGE too, and of AVAILABILITY
    totals: Mapping[Objective, npt.NDArray[np.int64]]
    burning: Mapping[Objective, Burning]

    @property
    def minute(self) -> int:
        """The minute that was counted last; -1: none yet."""
        return self.histories[Objective.STABILITY].minute

    @property
    def evaluate_time(self) -> datetime | None:
        """That minute; None: none yet."""
        return None if self.minute < 0 else moment_of(self.minute)

    def objectives(self, model: WatchedModel) -> list[ObjectiveState]:
        """Returns the objectives of a model with what is left of them."""
        return [self.objective(model, kind) for kind in objectives_of(model)]

    def objective(self, model: WatchedModel, kind: Objective) -> ObjectiveState:
        """Returns one objective of a model."""
        target, counted = target_of(model.service_level, kind), self.tally(model, kind)
        left = counted.budget_left(target)
        return ObjectiveState(
            kind, target, counted.good, counted.bad, counted.unknown, left, self.burn_rates(model, kind)
        )

    def tally(self, model: WatchedModel, kind: Objective) -> Tally:
        """Returns the minutes of the period of an objective."""
        if kind is Objective.COVERAGE:
            return self.tally(model, Objective.STABILITY).coverage
        good, bad, unknown = self.totals[kind][self.histories[kind].rows[model.slo]].tolist()
        return Tally(good, bad, unknown)

    def newest_slice(self, model: WatchedModel, kind: Objective) -> Slice:
        """Returns what the newest minute counts as; for COVERAGE that of STABILITY, from which it follows."""
        history = self.histories[Objective.STABILITY if kind is Objective.COVERAGE else kind]
        return Slice(int(history.recent[history.rows[model.slo], -1]))

    def burn_rates(self, model: WatchedModel, kind: Objective) -> tuple[BurnRate, ...]:
        """Returns what the pairs of windows say of an objective; of COVERAGE nothing, since nobody is paged for it."""
        if kind is Objective.COVERAGE:
            return ()
        return self.burning[kind].of(self.histories[kind].rows[model.slo])

    def left(self) -> dict[str, float]:
        """Returns by model the smallest budget left of what is alerted for; infinite where nothing was counted."""
        found = dict.fromkeys(self.fleet.models, math.inf)
        for kind, history in self.histories.items():
            good, bad, _ = self.totals[kind].T
            spare = (good + bad) * (1.0 - self.burning[kind].targets)
            left = np.where(good + bad > 0, 1.0 - bad / np.where(spare > 0, spare, 1.0), math.inf).tolist()
            for model in self.fleet.models.values():
                if kind in objectives_of(model):
                    found[model.name] = min(found[model.name], left[history.rows[model.slo]])
        return found


def objectives_of(model: WatchedModel) -> tuple[Objective, ...]:
    """Returns the objectives of a model: where it predicts nothing that can be checked, its availability alone."""
    return tuple(Objective) if model.predictions else (Objective.AVAILABILITY,)


def budgets(fleet: WatchedFleet, histories: Mapping[Objective, History]) -> Budgets:
    """Returns the budgets and burn rates of a fleet; each history has all of its SLOs."""
    found = {}
    for kind, history in histories.items():
        targets = np.empty(len(history.rows))
        for model in fleet.models.values():
            targets[history.rows[model.slo]] = target_of(model.service_level, kind)
        found[kind] = burning(history.recent, targets)
    totals = {kind: history.totals() for kind, history in histories.items()}
    return Budgets(fleet, histories, totals, found)


def _counted(matrix: Slices) -> HourCounts:
    """Counts slices of whole hours by hour: rows × hours × what they count as."""
    by_hour = matrix.reshape(len(matrix), -1, MINUTES_OF_HOUR)
    return np.stack([(by_hour == value).sum(axis=2, dtype=np.uint8) for value in _COUNTED], axis=2)
