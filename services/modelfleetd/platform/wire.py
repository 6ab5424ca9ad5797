"""The messages of `modelfleet.platform.v1` ↔ `platform/model.py`, for clients of agents and for agents alike."""

from __future__ import annotations

from modelfleet.platform.v1 import platform_pb2 as pb
from modelfleetd.kit.codec import from_proto, to_proto
from modelfleetd.platform.model import (
    Agent,
    Applied,
    DesiredServing,
    Effect,
    EffectPage,
    Fence,
    RecordingPlan,
    RecordingStatus,
    ServingObservation,
    TargetKind,
)


def kind_to_proto(kind: TargetKind) -> pb.TargetKind.ValueType:
    """The proto's value of a kind."""
    return pb.TargetKind.Value(kind.name)


def kind_from_proto(kind: pb.TargetKind.ValueType) -> TargetKind | None:
    """The kind; None where it is not stated or not known."""
    return next((known for known in TargetKind if known.value == kind), None)


def fence_to_proto(fence: Fence) -> pb.Fence:
    """Who acts, as a message."""
    return pb.Fence(epoch=fence.epoch, key=fence.key)


def fence_from_proto(message: pb.Fence) -> Fence:
    """Who acts."""
    return Fence(message.epoch, message.key)


def desired_to_proto(desired: DesiredServing) -> pb.DesiredServing:
    """A desired state as a message."""
    return to_proto(desired, pb.DesiredServing)


def desired_from_proto(message: pb.DesiredServing) -> DesiredServing:
    """A desired state."""
    return from_proto(message, DesiredServing)


def applied_to_proto(applied: Applied) -> pb.ApplyServingResponse:
    """The answer to an act as a message."""
    return pb.ApplyServingResponse(effect=applied.effect, generation=applied.generation)


def applied_from_proto(message: pb.ApplyServingResponse) -> Applied:
    """The answer to an act."""
    return Applied(message.effect, message.generation)


def observation_to_proto(observation: ServingObservation) -> pb.ServingObservation:
    """An observation as a message."""
    return to_proto(observation, pb.ServingObservation)


def observation_from_proto(message: pb.ServingObservation) -> ServingObservation:
    """An observation."""
    return from_proto(message, ServingObservation)


def effect_to_proto(effect: Effect) -> pb.Effect:
    """An entry of the ledger as a message."""
    return to_proto(effect, pb.Effect)


def effects_from_proto(message: pb.ListEffectsResponse) -> EffectPage:
    """A run of the ledger."""
    return EffectPage(tuple(from_proto(effect, Effect) for effect in message.effects), message.more)


def plan_to_proto(plan: RecordingPlan) -> pb.StartRecordingRequest:
    """What is to be recorded, as a request."""
    return to_proto(plan, pb.StartRecordingRequest)


def plan_from_proto(message: pb.StartRecordingRequest) -> RecordingPlan:
    """What is to be recorded."""
    return from_proto(message, RecordingPlan)


def recording_to_proto(status: RecordingStatus) -> pb.RecordingStatus:
    """How far a recording is, as a message."""
    return to_proto(status, pb.RecordingStatus)


def recording_from_proto(message: pb.RecordingStatus) -> RecordingStatus:
    """How far a recording is."""
    return from_proto(message, RecordingStatus)


def agent_to_proto(agent: Agent) -> pb.Agent:
    """An agent's description as a message."""
    return to_proto(agent, pb.Agent)


def agent_from_proto(message: pb.Agent) -> Agent:
    """An agent's description."""
    return from_proto(message, Agent)
