"""The judge at moments of the past: what it would have said by the events and labels that had come by then.

Rows say when their events were and how old their labels, so what was known at a moment can be told from what came
later. A label's age is known to half an octave: it counts from the end of its bucket on, never earlier than it came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfleetd.stability.domain import words as say
from modelfleetd.stability.domain.criteria import Criterion
from modelfleetd.stability.domain.exact import Integers
from modelfleetd.stability.domain.judge import Case, Verdict, compare, verdict_of
from modelfleetd.stability.domain.maturity import AGE_BOUNDS, MINUTE_MICROS, completion, mature_before, moment_of
from modelfleetd.stability.domain.points import Evidence, Span
from modelfleetd.stability.domain.sums import Exposure, Positives, Sums

# Sums are longer than 64 bits.
BigIntegers: TypeAlias = npt.NDArray[np.object_]
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Rows:
    """Sums of stored rows that came to count, and to count as matured, at the same moments; arrays of one length.

    Attributes:
        seen: index of the first moment at which they are known.
        matured: index of the first moment at which they count as matured: at once where labels came with the examples.
        settled: index of the first moment at which all labels of their minutes have had their time.
        first: their oldest minute.
        sums: their counts and sums, a row each.
    """

    seen: Integers
    matured: Integers
    settled: Integers
    first: Integers
    sums: BigIntegers


@dataclass(frozen=True, slots=True)
class Rejections:
    """Rows that were refused, by the first moment at which they are known."""

    seen: Integers
    rejected: Integers
    malformed: Integers


# By bucket of a label's age: how many minutes after its event it has come for certain. The last bucket has no end.
AGE_ENDS: Final = (*(AGE_BOUNDS // MINUTE_MICROS).tolist(), 1 << 30)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long labels of a prediction take at most, in whole minutes."""

    window: int  # later ones are not taken
    completion: int  # with what they may be late


def timing(window: timedelta) -> Timing:
    """Returns it for an attribution window."""
    return Timing(-(-window // _MINUTE), -(-completion(window) // _MINUTE))


class Past:
    """The evidence of one model's prediction as it was at each of the moments."""

    def __init__(self, moments: int, exposure: Rows, positives: Rows, rejections: Rejections) -> None:
        self._matured = _running(moments, exposure, positives, "matured")
        self._settled = _running(moments, exposure, positives, "settled")
        self._waiting = _running(moments, exposure, positives, "seen", until="matured")
        self._first = _first_waiting(moments, exposure)
        refused = np.zeros((moments + 1, 2), dtype=np.int64)
        np.add.at(refused, rejections.seen, np.stack((rejections.rejected, rejections.malformed), axis=1))
        self._refused: list[tuple[int, int]] = np.cumsum(refused, axis=0).tolist()

    @classmethod
    def of_nothing(cls, moments: int) -> Past:
        """Returns that of a model of which nothing was ever written."""
        none = np.zeros(0, dtype=np.int64)
        exposure, positives = (
            Rows(none, none, none, none, np.zeros((0, len(sums.names())), dtype=object))
            for sums in (Exposure, Positives)
        )
        return cls(moments, exposure, positives, Rejections(none, none, none))

    def evidence(self, moment: int) -> Evidence:
        """Returns what was known at a moment."""
        waits = self._first[moment]
        rejected, malformed = self._refused[moment]
        return Evidence(
            _sums(self._matured, moment),
            _sums(self._waiting, moment),
            None if waits == _NONE else int(waits),
            rejected,
            malformed,
        )

    def settled(self, moment: int) -> Sums:
        """Returns what had happened in minutes all of whose labels had had their time at a moment."""
        return _sums(self._settled, moment)


_NONE: Final = np.iinfo(np.int64).max
_Running: TypeAlias = tuple[list[Any], list[Any]]


def _running(moments: int, exposure: Rows, positives: Rows, since: str, until: str = "") -> _Running:
    """Returns the sums by moment of rows that count since one index and, where it is given, until another."""
    return _totals(moments, exposure, since, until), _totals(moments, positives, since, until)


def _totals(moments: int, rows: Rows, since: str, until: str) -> list[Any]:
    changes = np.zeros((moments + 1, rows.sums.shape[1]), dtype=object)
    np.add.at(changes, getattr(rows, since), rows.sums)
    if until:
        np.subtract.at(changes, getattr(rows, until), rows.sums)
    totals: list[Any] = np.add.accumulate(changes, axis=0).tolist()
    return totals


def _first_waiting(moments: int, exposure: Rows) -> Integers:
    found: Integers = np.full(moments + 1, _NONE, dtype=np.int64)
    # The oldest last, so that it stands where several wait.
    for row in np.argsort(-exposure.first).tolist():
        found[exposure.seen[row] : exposure.matured[row]] = exposure.first[row]
    return found


def _sums(running: _Running, moment: int) -> Sums:
    exposure, positives = running
    return Sums(Exposure(*exposure[moment]), Positives(*positives[moment]))


@dataclass(frozen=True, slots=True)
class Pasts:
    """One prediction of both models."""

    window: timedelta
    candidate: Past
    baseline: Past | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What would have been said at one moment."""

    time: datetime
    verdict: Verdict
    explanation: str


@dataclass(frozen=True, slots=True)
class Course:
    """What would have been said from moment to moment."""

    moments: tuple[Replayed, ...]
    first_fail_time: datetime | None
    first_pass_time: datetime | None
    explanation: str


def replay(
    pasts: dict[str, Pasts], demanded: Callable[[Span], Sequence[Criterion]], start: int, moments: Sequence[int]
) -> Course:
    """Returns the judge's course over moments of the past.

    Args:
        pasts: by prediction, what was known when.
        demanded: the criteria for a span.
        start: the minute from which events are judged.
        moments: the minutes at whose beginnings the judge is asked, oldest first; after `start`.
    """
    replayed = []
    for index, moment in enumerate(moments):
        span, now = Span(start, moment), moment_of(moment)
        cases = [_case(pasts[each.prediction], each, span, now, index) for each in demanded(span)]
        replayed.append(Replayed(now, *verdict_of(cases)))
    first = {verdict: next((each for each in replayed if each.verdict is verdict), None) for verdict in Verdict}
    failed, passed = first[Verdict.FAIL], first[Verdict.PASS]
    return Course(
        tuple(replayed),
        None if failed is None else failed.time,
        None if passed is None else passed.time,
        _explained(replayed, failed, passed, moment_of(start)),
    )


def _case(pasts: Pasts, criterion: Criterion, span: Span, now: datetime, index: int) -> Case:
    ours = pasts.candidate.evidence(index)
    if pasts.baseline is None:
        return Case(criterion, pasts.window, span, now, ours)
    theirs = pasts.baseline.evidence(index)
    settled = (pasts.candidate.settled(index), pasts.baseline.settled(index))
    both = compare(criterion, span, mature_before(now, pasts.window), ours, theirs, settled)
    return Case(criterion, pasts.window, span, now, ours, theirs, both)


def _explained(replayed: Sequence[Replayed], failed: Replayed | None, passed: Replayed | None, start: datetime) -> str:
    last = replayed[-1]
    if failed is not None:
        before = passed is not None and passed.time < failed.time
        earlier = f" It would have passed at {_when(passed, start)}." if before and passed else ""
        return f"Would have failed at {_when(failed, start)}: {failed.explanation}{earlier}"
    if passed is not None:
        if last.verdict is Verdict.PASS:
            return f"Would not have failed, and passed at {_when(passed, start)}: {passed.explanation}"
        # A gate that still bakes goes by the last word.
        ends = f"Would not have failed, and ends {last.verdict.name}: {last.explanation}"
        return f"{ends} It would have passed at {_when(passed, start)}: {passed.explanation}"
    return (
        f"Would neither have failed nor passed. At the end it would have been {last.verdict.name}: {last.explanation}"
    )


def _when(found: Replayed, start: datetime) -> str:
    return f"{say.moment(found.time)}, {say.span(found.time - start)} after the start"
