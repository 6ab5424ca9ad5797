"""Whether models are stable: read, listed, counted and watched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Final

from google.protobuf.message import Message

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.kit import filter as filters
from modelfleetd.kit import paging
from modelfleetd.kit.fields import readings
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.stability.api.base import Base, Context
from modelfleetd.stability.domain.maturity import moment_of
from modelfleetd.stability.domain.rollup import Grouping, Row, roll_up
from modelfleetd.stability.wire import standings as wire

HEARTBEAT_SECONDS: Final = 10.0
# In one message of a watch.
_MOST_MODELS: Final = 200
_READINGS: Final = readings(
    pb.ModelStability,
    (
        "state", "role", "tier", "team", "surface", "funnel_stage", "product", "model_type", "availability.state",
        "culprit_metric",
    ),
)  # fmt: skip
_FIELDS: Final = {path: reading.field for path, reading in _READINGS.items()}


class Standings(Base):
    """Answers from what the newest evaluation said."""

    async def GetModelStability(self, request: pb.GetModelStabilityRequest, context: Context) -> pb.ModelStability:
        model_type, _ = MODEL.parse(request.model, "model")
        row = next((row for row in self._board.rows() if row.model.name == request.model), None)
        if row is not None:
            return wire.model_stability(row, self._evaluate_time, show_metrics=True)
        await self._registry.expect_model(request.model)
        return pb.ModelStability(
            model=request.model,
            model_type=MODEL_TYPE.format(model_type),
            state=pb.ModelStability.UNKNOWN,
            explanation="It does not serve, so it is not watched: only baselines, holdouts and experiments are.",
        )

    async def ListModelStabilities(
        self, request: pb.ListModelStabilitiesRequest, context: Context
    ) -> pb.ListModelStabilitiesResponse:
        page = paging.read(request, int, int, int, str)
        rows = self._fitting(request.filter)
        if page.position is not None:
            rows = [row for row in rows if row.rank > page.position]
        shown, token = page.answer(
            rows[: page.size + 1],
            lambda row: row.rank,
            lambda row: wire.model_stability(row, self._evaluate_time, show_metrics=request.show_metrics),
        )
        return pb.ListModelStabilitiesResponse(
            models=shown, next_page_token=token, evaluate_time=wire.evaluated(self._evaluate_time)
        )

    async def RollUpStability(self, request: pb.RollUpStabilityRequest, context: Context) -> pb.RollUpStabilityResponse:
        by = Grouping(request.group_by or Grouping.TEAM.value)
        total, groups = roll_up(self._fitting(request.filter), by)
        return pb.RollUpStabilityResponse(
            total=wire.group(total), groups=map(wire.group, groups), evaluate_time=wire.evaluated(self._evaluate_time)
        )

    async def WatchStability(
        self, request: pb.WatchStabilityRequest, context: Context
    ) -> AsyncIterator[pb.WatchStabilityResponse]:
        # What the caller knows. Whoever is slow is told the newest state then, and not what was in between.
        told: dict[str, object] = {}
        is_first = True
        while True:
            moved = self._board.moved
            rows = {row.model.name: row for row in self._fitting(request.filter)}
            changed = [row for name, row in rows.items() if told.get(name) != _what_counts(row)]
            removed = told.keys() - rows.keys()
            for message in self._told(changed, sorted(removed)):
                yield message
            told = {name: _what_counts(row) for name, row in rows.items()}
            if not (changed or removed) or is_first:
                yield pb.WatchStabilityResponse(evaluate_time=wire.evaluated(self._evaluate_time))
            is_first = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await moved.wait()

    @property
    def _evaluate_time(self) -> datetime | None:
        minute = self._board.minute
        return None if minute is None else moment_of(minute)

    def _fitting(self, text: str) -> Sequence[Row]:
        """Returns the models that fit a filter, the worst first."""
        where = filters.read(text, _FIELDS)
        rows = self._board.rows()
        if where is None:
            return rows
        fits = _test(where)
        return [row for row in rows if fits(wire.summary(row))]

    def _told(self, changed: Sequence[Row], removed: Sequence[str]) -> list[pb.WatchStabilityResponse]:
        models = [wire.model_stability(row, self._evaluate_time) for row in changed]
        return [
            pb.WatchStabilityResponse(
                models=models[begin : begin + _MOST_MODELS],
                removed=removed if begin == 0 else (),
                evaluate_time=wire.evaluated(self._evaluate_time),
            )
            for begin in range(0, max(len(models), min(1, len(removed))), _MOST_MODELS)
        ]


def _test(where: filters.Node) -> Callable[[Message], bool]:
    return lambda message: filters.matches(where, lambda asked: _READINGS[asked.field.path].of(message, asked.key))


def _what_counts(row: Row) -> object:
    """Returns what a watcher is told of when it changes; of what is wrong, its figures too."""
    standing = row.standing
    figures = standing if row.is_bad else None
    culprit = None if standing is None else standing.culprit
    return row.model, row.state, culprit, row.availability, standing is None, figures
