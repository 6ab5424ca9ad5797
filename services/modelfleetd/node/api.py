"""The agent's servicer: what callers ask, answered from the state."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc.aio

from modelfleet.platform.v1 import platform_pb2 as pb
from modelfleet.platform.v1 import platform_pb2_grpc
from modelfleetd.kit import paging
from modelfleetd.node.meter import Meter
from modelfleetd.node.state import State
from modelfleetd.node.store import Store
from modelfleetd.node.tap import Tap
from modelfleetd.platform import wire
from modelfleetd.platform.model import Agent

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class PlatformServicer(platform_pb2_grpc.PlatformServiceServicer):
    """Implements `modelfleet.platform.v1.PlatformService` for one machine.

    Args:
        agent: its description.
        state: what shall be and what is.
        store: the ledger.
        meter: makes the numbers fresh before they are told.
        tap: records live requests.
    """

    def __init__(self, agent: Agent, state: State, store: Store, meter: Meter, tap: Tap) -> None:
        self._agent = agent
        self._state = state
        self._store = store
        self._meter = meter
        self._tap = tap

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.Agent:
        return wire.agent_to_proto(self._agent)

    async def ApplyServing(self, request: pb.ApplyServingRequest, context: Context) -> pb.ApplyServingResponse:
        kind = wire.kind_from_proto(request.kind)
        fence, desired = wire.fence_from_proto(request.fence), wire.desired_from_proto(request.desired)
        return wire.applied_to_proto(self._state.apply(request.target, kind, fence, desired))

    async def ObserveServing(self, request: pb.ObserveServingRequest, context: Context) -> pb.ServingObservation:
        self._state.observe(request.target, request.epoch)
        await self._meter.refresh()
        # The floor is up; what is told is what is seen after that.
        return wire.observation_to_proto(self._state.observe(request.target))

    async def ListServing(self, request: pb.ListServingRequest, context: Context) -> pb.ListServingResponse:
        page = paging.read(request)
        await self._meter.refresh()
        after = str(page.position[0]) if page.position else ""
        rows = [target for target in self._state.list() if target.target > after][: page.size + 1]
        targets, token = page.cut(rows, key=lambda row: (row.target,))
        return pb.ListServingResponse(
            targets=[wire.observation_to_proto(target) for target in targets], next_page_token=token
        )

    async def ListEffects(self, request: pb.ListEffectsRequest, context: Context) -> pb.ListEffectsResponse:
        size = paging.page_size(request.page_size)
        page = self._store.effects(request.after_sequence, request.target, size)
        return pb.ListEffectsResponse(effects=[wire.effect_to_proto(e) for e in page.effects], more=page.more)

    async def StartRecording(self, request: pb.StartRecordingRequest, context: Context) -> pb.RecordingStatus:
        return wire.recording_to_proto(self._tap.start(wire.plan_from_proto(request)))

    async def ObserveRecording(self, request: pb.ObserveRecordingRequest, context: Context) -> pb.RecordingStatus:
        return wire.recording_to_proto(self._tap.observe(request.recording))

    async def StopRecording(self, request: pb.StopRecordingRequest, context: Context) -> pb.RecordingStatus:
        return wire.recording_to_proto(await self._tap.stop(request.recording))
