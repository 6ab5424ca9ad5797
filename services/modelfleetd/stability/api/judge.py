"""Judging: now, and at moments of the past."""

from __future__ import annotations

from datetime import datetime
from typing import Final, TypeAlias

from modelfleet.stability.v1 import stability_pb2 as pb
from modelfleetd.errors import invalid
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.stability.api.base import Base, Context
from modelfleetd.stability.domain.demands import Demanded, Ranges, demanded
from modelfleetd.stability.registry import DeclaredType
from modelfleetd.stability.wire import judge as wire
from modelfleetd.stability.wire.series import times

_READY_SECONDS: Final = 2.0

JudgeRequest: TypeAlias = pb.JudgeModelRequest | pb.ReplayJudgementsRequest


class Judging(Base):
    """Hands questions about good enough to the judge."""

    async def JudgeModel(self, request: pb.JudgeModelRequest, context: Context) -> pb.Judgement:
        declared, wanted, start, end = await self._asked(request)
        found = await self._judge.judge(declared, request.model, request.baseline, wanted, start, end)
        return wire.judgement(found)

    async def ReplayJudgements(
        self, request: pb.ReplayJudgementsRequest, context: Context
    ) -> pb.ReplayJudgementsResponse:
        declared, wanted, start, end = await self._asked(request)
        step = wire.step(request)
        found = await self._judge.replay(declared, request.model, request.baseline, wanted, start, end, step)
        return wire.course(found)

    async def _asked(self, request: JudgeRequest) -> tuple[DeclaredType, Demanded, datetime, datetime | None]:
        """Checks what is asked about; returns its type, what is demanded, start and end.

        Raises:
            InvalidFields: names, criteria or times that cannot be.
            ResourceNotFound: there is no such model.
            ReferenceNotFound: there is no such baseline.
            NotConfigured: the model type declares no predictions: there is nothing to judge.
        """
        model_type, _ = MODEL.parse(request.model, "model")
        if request.baseline:
            baseline_type, _ = MODEL.parse(request.baseline, "baseline")
            if baseline_type != model_type or request.baseline == request.model:
                raise invalid("baseline", f"must be another model of {MODEL_TYPE.format(model_type)}")
        declared = await self._registry.declared_of_model(request.model)
        if request.baseline:
            await self._registry.check_models([("baseline", request.baseline)])
        ranges = {} if request.criteria else await self._healthy_ranges(request.model)
        wanted = demanded(wire.criteria(request), declared.predictions, ranges, has_baseline=bool(request.baseline))
        start, end = times(request)
        if start is None:
            raise invalid("start_time", "is required")
        return declared, wanted, start, end

    async def _healthy_ranges(self, model: str) -> Ranges:
        """Returns the healthy ranges in force; waits a moment where this replica has just started."""
        await self._fleet.wait_ready(_READY_SECONDS)
        return self._fleet.healthy_ranges(model)
