"""An agent over gRPC, as a `Platform`. Reconnects by itself; every call has a deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from modelfleet.errors import DeadlineExceeded, ModelfleetError, Unimplemented
from modelfleet.platform.v1 import platform_pb2 as pb
from modelfleet.services import AsyncPlatform
from modelfleetd.errors import (
    DeadlinePassed,
    FieldImmutable,
    FieldViolation,
    FleetError,
    InvalidFields,
    MethodUnknown,
    NoAvailableReplica,
    NotConfigured,
    PartUnavailable,
    ReplicaCannotStart,
    RequestIdReused,
    ResourceNotFound,
    StaleEpoch,
)
from modelfleetd.platform import wire
from modelfleetd.platform.model import (
    Agent,
    Applied,
    DesiredServing,
    EffectPage,
    Fence,
    RecordingPlan,
    RecordingStatus,
    ServingObservation,
    TargetKind,
)

_PAGE = 1000
_Answer = TypeVar("_Answer")
_Refusal = Callable[[ModelfleetError, Mapping[str, str]], FleetError]

# How each refusal of an agent is made again, from what its ErrorInfo carries.
_REFUSALS: Mapping[str, _Refusal] = {
    StaleEpoch.reason: lambda _, m: StaleEpoch(m["target"], int(m["epoch"]), int(m["floor"])),
    NoAvailableReplica.reason: lambda _, m: NoAvailableReplica(m["target"], m["model"]),
    ReplicaCannotStart.reason: lambda _, m: ReplicaCannotStart(m["target"], m["model"], m["why"]),
    RequestIdReused.reason: lambda _, m: RequestIdReused(m["request_id"]),
    ResourceNotFound.reason: lambda _, m: ResourceNotFound(m["resource"]),
    NotConfigured.reason: lambda _, m: NotConfigured(m["resource"], m["field"]),
    FieldImmutable.reason: lambda _, m: FieldImmutable(m["field"], "use another target"),
    InvalidFields.reason: lambda e, _: InvalidFields([FieldViolation(v.field, v.description) for v in e.violations]),
}


class PlatformClient:
    """Implements `Platform`.

    Args:
        agent: the stub with its connection, such as `service.outbound.platform(address)`.
        name: what errors call the agent.
        timeout: seconds that a call may take; a function is asked for every call.
    """

    def __init__(
        self, agent: AsyncPlatform, *, name: str = "the platform agent", timeout: float | Callable[[], float] = 5.0
    ) -> None:
        self._agent = agent
        self._name = name
        self._timeout: Callable[[], float] = timeout if callable(timeout) else lambda: timeout

    async def agent(self) -> Agent:
        return wire.agent_from_proto(await self._call(self._agent.get_agent(timeout=self._timeout())))

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        request = pb.ApplyServingRequest(
            target=target,
            kind=wire.kind_to_proto(kind),
            fence=wire.fence_to_proto(fence),
            desired=wire.desired_to_proto(desired),
        )
        answer = await self._call(self._agent.apply_serving(request, timeout=self._timeout()))
        return wire.applied_from_proto(answer)

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        request = pb.ObserveServingRequest(target=target, epoch=epoch)
        answer = await self._call(self._agent.observe_serving(request, timeout=self._timeout()))
        return wire.observation_from_proto(answer)

    async def list(self) -> tuple[ServingObservation, ...]:
        found: list[ServingObservation] = []
        token = ""
        while True:
            request = pb.ListServingRequest(page_size=_PAGE, page_token=token)
            page = await self._call(self._agent.list_serving(request, timeout=self._timeout()))
            found += map(wire.observation_from_proto, page.targets)
            token = page.next_page_token
            if not token:
                return tuple(found)

    async def effects(self, after: int = 0, target: str = "", limit: int = 1000) -> EffectPage:
        request = pb.ListEffectsRequest(after_sequence=after, target=target, page_size=limit)
        answer = await self._call(self._agent.list_effects(request, timeout=self._timeout()))
        return wire.effects_from_proto(answer)

    async def start_recording(self, plan: RecordingPlan) -> RecordingStatus:
        request = wire.plan_to_proto(plan)
        return await self._recording(self._agent.start_recording(request, timeout=self._timeout()))

    async def observe_recording(self, recording: str) -> RecordingStatus:
        request = pb.ObserveRecordingRequest(recording=recording)
        return await self._recording(self._agent.observe_recording(request, timeout=self._timeout()))

    async def stop_recording(self, recording: str) -> RecordingStatus:
        request = pb.StopRecordingRequest(recording=recording)
        return await self._recording(self._agent.stop_recording(request, timeout=self._timeout()))

    async def _recording(self, call: Awaitable[pb.RecordingStatus]) -> RecordingStatus:
        return wire.recording_from_proto(await self._call(call))

    async def _call(self, call: Awaitable[_Answer]) -> _Answer:
        try:
            return await call
        except ModelfleetError as error:
            raise self._as_fleet_error(error) from error

    def _as_fleet_error(self, error: ModelfleetError) -> FleetError:
        """The agent's refusal as it was raised there; whatever else went wrong, the agent is not to be had."""
        if made := _REFUSALS.get(error.reason):
            return made(error, error.metadata)
        if isinstance(error, Unimplemented):
            return MethodUnknown(self._name)
        if isinstance(error, DeadlineExceeded):
            return DeadlinePassed()
        return PartUnavailable(self._name, error.retry_after)
