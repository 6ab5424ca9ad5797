"""The simulator behind the agents' contract over gRPC: for launchers that are processes of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from modelfleet.platform.v1 import platform_pb2 as pb
from modelfleet.platform.v1 import platform_pb2_grpc
from modelfleetd.kit.app import Service
from modelfleetd.platform import wire
from modelfleetd.platform.simulator import Simulator
from tests.support.servers import running


class SimulatedAgent(platform_pb2_grpc.PlatformServiceServicer):
    """What of the contract a launcher uses."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def GetAgent(self, request: pb.GetAgentRequest, context: Any) -> pb.Agent:
        return wire.agent_to_proto(await self._simulator.agent())

    async def ApplyServing(self, request: pb.ApplyServingRequest, context: Any) -> pb.ApplyServingResponse:
        kind = wire.kind_from_proto(request.kind)
        assert kind is not None
        fence, desired = wire.fence_from_proto(request.fence), wire.desired_from_proto(request.desired)
        return wire.applied_to_proto(await self._simulator.apply(request.target, kind, fence, desired))

    async def ObserveServing(self, request: pb.ObserveServingRequest, context: Any) -> pb.ServingObservation:
        return wire.observation_to_proto(await self._simulator.observe(request.target, request.epoch))

    async def ListServing(self, request: pb.ListServingRequest, context: Any) -> pb.ListServingResponse:
        return pb.ListServingResponse(targets=map(wire.observation_to_proto, await self._simulator.list()))

    async def ListEffects(self, request: pb.ListEffectsRequest, context: Any) -> pb.ListEffectsResponse:
        page = await self._simulator.effects(request.after_sequence, request.target, request.page_size or 50)
        return pb.ListEffectsResponse(effects=map(wire.effect_to_proto, page.effects), more=page.more)

    async def StartRecording(self, request: pb.StartRecordingRequest, context: Any) -> pb.RecordingStatus:
        return wire.recording_to_proto(await self._simulator.start_recording(wire.plan_from_proto(request)))

    async def ObserveRecording(self, request: pb.ObserveRecordingRequest, context: Any) -> pb.RecordingStatus:
        return wire.recording_to_proto(await self._simulator.observe_recording(request.recording))

    async def StopRecording(self, request: pb.StopRecordingRequest, context: Any) -> pb.RecordingStatus:
        return wire.recording_to_proto(await self._simulator.stop_recording(request.recording))


@asynccontextmanager
async def simulated_agent(simulator: Simulator) -> AsyncIterator[str]:
    """Serves a simulator; gives its address."""

    async def build(service: Service) -> None:
        server = service.server()
        agent = SimulatedAgent(simulator)
        server.add(agent, platform_pb2_grpc.add_PlatformServiceServicer_to_server)

    async with running("node", build) as service:
        yield service.address
