"""The judge of a fleet, in memory and in stability: what memory counts is written there before it is asked.

Both count by the minute. What a model predicted is written when somebody asks, its labels when they have come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from modelfleet.stability.v1 import stability_pb2, statistics_pb2
from modelfleetd.errors import PartUnavailable
from modelfleetd.launcher.clients import stability_judgement
from modelfleetd.launcher.domain.policy import Criterion, StabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.ports import Judgement
from modelfleetd.rehearsal.stability import Counted, MemoryStability, Predicted, requests_at, sums_of
from modelfleetd.stability.domain.judge import judge
from modelfleetd.stability.domain.maturity import minute_of, moment_of
from modelfleetd.stability.domain.points import Evidence
from modelfleetd.stability.domain.sums import Exposure, Positives
from modelfleetd.stability.wire.judge import judgement
from tests.support.stored.parts import PATIENCE, StoredParts

_MINUTE = timedelta(minutes=1)
# Of the sums in memory, the columns that they are written in; the count is apart.
_EXPOSURE = {
    "w": "weight", "w2": "weight_squares", "wp": "expected", "w2pq": "expected_variance",
    "wl": "loss", "w2l": "loss_by_squares", "w2l2": "loss_squares",
}  # fmt: skip
_POSITIVES = {
    "w": "weight", "w2": "weight_squares", "w2l1": "positive_loss",
    "wl": "loss_change", "w2l": "loss_by_squares_change", "w2l2": "loss_squares_change",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is new of one prediction of a model: examples by minute, and positives, all predicted alike."""

    model: str
    prediction: Predicted
    predicted: float
    examples: dict[int, int]
    positives: dict[int, int]


class StoredStability(MemoryStability):
    """Judges in memory and at the service.

    Attributes:
        verdicts: what the service has said so far, and how often.
    """

    def __init__(
        self, parts: StoredParts, seed: int | str, now: Callable[[], datetime], requests: Callable[[str], int]
    ) -> None:
        super().__init__(seed, now, requests)
        self.verdicts: dict[Verdict, int] = {}
        self._parts = parts
        # Until when examples have been written, by model and prediction.
        self._written: dict[tuple[str, str], datetime] = {}
        self._new: list[_Rows] = []
        self._sequence = itertools.count(1)

    def judge(self, name: str, since: datetime, baseline: str = "", criteria: Sequence[Criterion] = ()) -> Judgement:
        span, cases = self._cases(name, since, baseline, criteria, whole=True)
        ours = stability_judgement(judgement(judge(cases, span)))
        fast = super().judge(name, since, baseline, criteria)
        assert (fast.verdict, fast.explanation) == (ours.verdict, ours.explanation)
        request, gate = self._request(name.rsplit("/", 2)[0]), StabilityGate(criteria=tuple(criteria))

        async def theirs(_: object) -> Judgement:
            if request is not None:
                written = await self._parts.client.stability.write_statistics(request, timeout=PATIENCE)
                assert not written.rejected, written
            found = await self._parts.stability.judge(name, baseline, since, gate)
            if "could not be asked" in found.explanation:
                # A busy machine takes too long: memory never does.
                raise PartUnavailable(found.explanation)
            self.verdicts[found.verdict] = self.verdicts.get(found.verdict, 0) + 1
            return found

        return self._parts.both(f"judge {name}", lambda: ours, theirs)

    def _evidence(self, name: str, prediction: Predicted, since: datetime, now: datetime) -> Evidence:
        before = self._counted(name, prediction, since)
        found = super()._evidence(name, prediction, since, now)
        known = self._models[name]
        after = known.counted[prediction.id]
        key = (name, prediction.id)
        begin = max(since, self._written.get(key, since))
        self._written[key] = now
        examples = {
            minute: requests_at(known, min(now, moment_of(minute + 1)))
            - requests_at(known, max(begin, moment_of(minute)))
            for minute in range(minute_of(begin), minute_of(now) + 1)
        }
        labelled = range(known.before + before.labelled, known.before + after.labelled)
        come = after.positives - before.positives
        positives = dict(_spread(come, labelled, self._by_minute(name, since, now))) if come else {}
        predicted = min(0.999, prediction.rate * known.calibration)
        self._new.append(_Rows(name, prediction, predicted, examples, positives))
        return found

    def _counted(self, name: str, prediction: Predicted, since: datetime) -> Counted:
        """What has been counted of the span so far."""
        known = self._known(name)
        found = known.counted.get(prediction.id) if known.since == since else None
        return Counted() if found is None else Counted(found.matured, found.labelled, found.positives)

    def _by_minute(self, name: str, since: datetime, now: datetime) -> Iterator[tuple[int, range]]:
        """The numbers of the requests of each minute."""
        known = self._models[name]
        for minute in range(minute_of(since), minute_of(now)):
            yield minute, range(requests_at(known, moment_of(minute)), requests_at(known, moment_of(minute + 1)))

    def _request(self, model_type: str) -> stability_pb2.WriteStatisticsRequest | None:
        """A batch of what is new; None where nothing is."""
        rows, self._new = self._new, []
        models = list(dict.fromkeys(each.model for each in rows))
        predictions = list(dict.fromkeys(each.prediction.id for each in rows))
        batch = stability_pb2.Batch(
            model_type=model_type,
            producer="rehearsal",
            sequence=next(self._sequence),
            models=models,
            predictions=predictions,
        )
        exposure, positives = statistics_pb2.ExposureRows(), statistics_pb2.PositiveRows()
        for each in rows:
            at = bytes((models.index(each.model),)), bytes((predictions.index(each.prediction.id),))
            for minute, count in each.examples.items():
                if count:
                    _add(exposure, at, minute, _EXPOSURE, sums_of(count, 0, each.predicted).exposure)
                    exposure.examples += _packed(count, 8)
            for minute, count in each.positives.items():
                if count:
                    _add(positives, at, minute, _POSITIVES, sums_of(count, count, each.predicted).positives)
                    positives.positives += _packed(count, 8)
                    positives.age_minutes += _packed(each.prediction.window // _MINUTE, 4)
        if not exposure.model_index and not positives.model_index:
            return None
        request = stability_pb2.WriteStatisticsRequest(batch=batch)
        if exposure.model_index:
            request.exposure.CopyFrom(exposure)
        if positives.model_index:
            request.positives.CopyFrom(positives)
        return request


def _spread(count: int, labelled: range, by_minute: Iterable[tuple[int, range]]) -> Iterator[tuple[int, int]]:
    """Spreads positives evenly over the requests whose labels have come."""
    passed = given = 0
    for minute, requests in by_minute:
        passed += len(range(max(requests.start, labelled.start), min(requests.stop, labelled.stop)))
        so_far = count * passed // len(labelled)
        if so_far > given:
            yield minute, so_far - given
        given = so_far


def _add(
    rows: statistics_pb2.ExposureRows | statistics_pb2.PositiveRows,
    at: tuple[bytes, bytes],
    minute: int,
    columns: dict[str, str],
    sums: Exposure | Positives,
) -> None:
    rows.model_index += at[0]
    rows.prediction_index += at[1]
    rows.minute += _packed(minute, 4)
    # Their labels come until the attribution window ends.
    rows.known += b"\0"
    for field in fields(sums):
        if field.name in columns:
            column = columns[field.name]
            setattr(rows, column, getattr(rows, column) + _packed(getattr(sums, field.name), 16))


def _packed(value: int, width: int) -> bytes:
    return value.to_bytes(width, "little", signed=True)
