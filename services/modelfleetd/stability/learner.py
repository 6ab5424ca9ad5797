"""Learns hour by hour how labels are delayed, from events whose labels are complete."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from modelfleetd.clock import Clock
from modelfleetd.errors import NotConfigured, ReferenceNotFound
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.domain.delays import LEARNED_HOURS, NO_AGES, AgeHistogram, pooled
from modelfleetd.stability.domain.maturity import mature_before
from modelfleetd.stability.registry import Registry
from modelfleetd.stability.store import Store, delays
from modelfleetd.stability.store.delays import Learned, Subject

# An hour is learned soon after it has matured.
LEARN_SECONDS: Final = 600.0
_HOUR: Final = 60


class DelayLearner:
    """Adds to each histogram of ages the hours that have matured since; what was seen long ago fades."""

    def __init__(self, store: Store, registry: Registry, clock: Clock) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock

    async def learn(self) -> bool:
        """Learns the hours that have matured; returns False where it has not, since another replica does just now.

        Raises:
            PartUnavailable: the database or the registry does not answer.
        """
        now = self._clock.now()
        by_type: dict[str, dict[int, Subject]] = defaultdict(dict)
        for number, subject in (await self._store.all_series()).items():
            by_type[MODEL_TYPE.format(MODEL.parse(subject[0])[0])][number] = subject
        declared = {model_type: await self._declared(model_type) for model_type in by_type}
        async with self._store.learning() as conn:
            if conn is None:
                return False
            known = await delays.read(conn, [subject for series in by_type.values() for subject in series.values()])
            spans: dict[int, tuple[int, int]] = {}
            for model_type, predictions in declared.items():
                spans |= _to_learn(by_type[model_type], predictions, known, now)
            ages = await delays.read_ages(conn, spans)
            found: dict[Subject, Learned] = {}
            for model_type, series in by_type.items():
                found |= _learned(model_type, series, known, spans, ages)
            await delays.write(conn, found)
        return True

    async def _declared(self, model_type: str) -> Mapping[str, DeclaredPrediction]:
        """Returns the predictions of a type; none where it is gone, or declares none any more."""
        try:
            return (await self._registry.declared(model_type, "model_type")).predictions
        except (ReferenceNotFound, NotConfigured):
            return {}


def _to_learn(
    series: Mapping[int, Subject],
    declared: Mapping[str, DeclaredPrediction],
    known: Mapping[Subject, Learned],
    now: datetime,
) -> dict[int, tuple[int, int]]:
    """Returns for each series the hours that have matured since it was last learned."""
    found = {}
    for number, subject in series.items():
        if subject[1] in declared:
            stop = mature_before(now, declared[subject[1]].attribution_window) // _HOUR * _HOUR
            first = stop - LEARNED_HOURS * _HOUR
            found[number] = (max(first, known[subject].until) if subject in known else first, stop)
    return found


def _learned(
    model_type: str,
    series: Mapping[int, Subject],
    known: Mapping[Subject, Learned],
    spans: Mapping[int, tuple[int, int]],
    ages: Mapping[int, AgeHistogram],
) -> dict[Subject, Learned]:
    """Returns the histograms of a type's series, and of each prediction whatever the model."""
    found: dict[Subject, Learned] = {}
    of_prediction: dict[str, list[Learned]] = defaultdict(list)
    for number, (_, stop) in spans.items():
        if number not in series:
            continue
        subject = series[number]
        before = known.get(subject, Learned(stop, NO_AGES))
        # A window that was made longer has its mature hours end earlier for a while.
        until = max(stop, before.until)
        ages_now = before.ages.after((until - before.until) / _HOUR) + ages.get(number, NO_AGES)
        found[subject] = Learned(until, ages_now)
        of_prediction[subject[1]].append(found[subject])
    for prediction, parts in of_prediction.items():
        until = max(part.until for part in parts)
        found[model_type, prediction] = Learned(until, pooled(part.ages for part in parts))
    return found
