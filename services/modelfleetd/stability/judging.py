"""Judges models by what was written of them: now, and at moments of the past."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.clock import Clock
from modelfleetd.errors import FieldViolation, InvalidFields, invalid
from modelfleetd.stability.domain.criteria import Criterion
from modelfleetd.stability.domain.demands import Demanded
from modelfleetd.stability.domain.judge import Case, Judgement, compare, judge
from modelfleetd.stability.domain.maturity import mature_before, minute_of
from modelfleetd.stability.domain.points import NO_EVIDENCE, Evidence, Span, span_between
from modelfleetd.stability.domain.replay import Course, Past, Pasts, replay, timing
from modelfleetd.stability.domain.retention import EXPOSURE, TOTALS_5MIN, TOTALS_HOUR, Table
from modelfleetd.stability.registry import DeclaredType
from modelfleetd.stability.store import Store

MOST_MOMENTS: Final = 2_000
_STEP: Final = timedelta(minutes=5)
_LONGEST: Final = timedelta(days=92)
_MINUTE: Final = timedelta(minutes=1)
# The finest rows that there still are.
_TABLES: Final = (EXPOSURE, TOTALS_5MIN, TOTALS_HOUR)


class Judge:
    """Reads statistics and judges them."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def judge(
        self,
        declared: DeclaredType,
        model: str,
        baseline: str,
        demanded: Demanded,
        start: datetime,
        end: datetime | None,
    ) -> Judgement:
        """Judges a model, against its baseline where one is given, on the same span and maturity.

        Raises:
            InvalidFields: the span is none.
        """
        now = self._clock.now()
        span = span_between(start, end, now)
        criteria = demanded(span)
        windows = {each.prediction: declared.predictions[each.prediction].attribution_window for each in criteria}
        before = {key: mature_before(now, window) for key, window in windows.items()}
        models = [model, baseline] if baseline else [model]
        found = await self._evidence(models, before, span, now)
        for pair, rows in (await self._store.malformed([*found], span)).items():
            found[pair] = replace(found[pair], malformed=rows)
        waiting = [
            each.prediction
            for each in criteria
            if each.compares and any(found[name, each.prediction].first_waiting is not None for name in models)
        ]
        settled = await self._settled(models, {key: before[key] for key in waiting}, span, now)

        def case(criterion: Criterion) -> Case:
            key = criterion.prediction
            ours = found[model, key]
            if not baseline:
                return Case(criterion, windows[key], span, now, ours)
            theirs = found[baseline, key]
            of_both = (settled.get((model, key), NO_EVIDENCE), settled.get((baseline, key), NO_EVIDENCE))
            matured = (of_both[0].matured, of_both[1].matured)
            both = compare(criterion, span, before[key], ours, theirs, matured)
            return Case(criterion, windows[key], span, now, ours, theirs, both)

        return judge([case(criterion) for criterion in criteria], span)

    async def replay(
        self,
        declared: DeclaredType,
        model: str,
        baseline: str,
        demanded: Demanded,
        start: datetime,
        end: datetime | None,
        step: timedelta | None,
    ) -> Course:
        """Judges as `judge` would have judged at moments of the past, each of them from the same start on.

        Raises:
            InvalidFields: the moments are none, or too many; or a criterion cannot be replayed.
        """
        now = self._clock.now()
        moments = moments_between(start, end, _STEP if step is None else step, now)
        table = next((each for each in _TABLES if minute_of(start) >= each.read_from(now)), _TABLES[-1])
        # Of a row that began earlier nobody knows which events are of this bake.
        first = -(-minute_of(start) // table.width) * table.width
        criteria = demanded(Span(first, moments[-1]))
        _check_replayable(criteria, declared, table)
        windows = {each.prediction: declared.predictions[each.prediction].attribution_window for each in criteria}
        models = [model, baseline] if baseline else [model]
        timings = {(name, key): timing(window) for name in models for key, window in windows.items()}
        found = await self._store.pasts(timings, table, first, moments)
        nothing = Past.of_nothing(len(moments))

        def pasts(key: str, window: timedelta) -> Pasts:
            theirs = found.get((baseline, key), nothing) if baseline else None
            return Pasts(window, found.get((model, key), nothing), theirs)

        by_prediction = {key: pasts(key, window) for key, window in windows.items()}
        # Thousands of judgements take a second or two, in which the others go on.
        return await asyncio.to_thread(replay, by_prediction, demanded, first, moments)

    async def _settled(
        self, models: Sequence[str], before: dict[str, int], span: Span, now: datetime
    ) -> dict[tuple[str, str], Evidence]:
        """Returns the evidence of the minutes that are mature."""
        found: dict[tuple[str, str], Evidence] = {}
        for end in set(before.values()):
            if end > span.start:
                keys = {key: end for key, each in before.items() if each == end}
                found |= await self._evidence(models, keys, Span(span.start, min(end, span.end)), now)
        return found

    async def _evidence(
        self, models: Sequence[str], before: dict[str, int], span: Span, now: datetime
    ) -> dict[tuple[str, str], Evidence]:
        wanted = {(name, key): minute for name in models for key, minute in before.items()}
        found = await self._store.evidence(wanted, span, now)
        return {pair: sum(found.get(pair, {}).values(), NO_EVIDENCE) for pair in wanted}


def moments_between(start: datetime, end: datetime | None, step: timedelta, now: datetime) -> list[int]:
    """Returns the minutes at whose beginnings the judge is asked: a step after the start, and on until the end.

    Raises:
        InvalidFields: there are none, or too many.
    """
    first, last = minute_of(start), minute_of(min(end or now, now))
    violations = []
    if step < _MINUTE or step % _MINUTE:
        violations.append(FieldViolation("step", "must be whole minutes, at least 1 min"))
    if last <= first:
        violations.append(FieldViolation("start_time", "must be a minute or more before end_time, and before now"))
    elif (last - first) * _MINUTE > _LONGEST:
        violations.append(FieldViolation("start_time", f"must be at most {_LONGEST.days} d before end_time"))
    if violations:
        raise InvalidFields(violations)
    moments = [*range(first + step // _MINUTE, last, step // _MINUTE), last]
    if len(moments) > MOST_MOMENTS:
        raise invalid(
            "step", f"makes {len(moments):,} moments, of which {MOST_MOMENTS:,} are allowed; take a longer one"
        )
    return moments


def _check_replayable(criteria: Sequence[Criterion], declared: DeclaredType, table: Table) -> None:
    violations = []
    for index, criterion in enumerate(criteria):
        if criterion.include_immature and declared.predictions[criterion.prediction].ignores_missing:
            why = (
                f"an example of {criterion.prediction} counts from its label on, and when negative labels came is "
                "not kept"
            )
        elif criterion.include_immature and table is not EXPOSURE:
            why = f"ages of labels are kept for {EXPOSURE.kept.days} d only, and the start is longer ago"
        else:
            continue
        violations.append(FieldViolation(f"criteria[{index}].include_immature", f"cannot be replayed: {why}"))
    if violations:
        raise InvalidFields(violations)
