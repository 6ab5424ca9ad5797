"""`Platform`: what the launcher and capacity know of an agent. The gRPC client and the simulator implement it."""

from __future__ import annotations

from typing import Protocol

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


class Platform(Protocol):
    """One agent, in the words of `platform/model.py`. Every method may raise PartUnavailable and DeadlinePassed."""

    async def agent(self) -> Agent:
        """Describes the agent."""
        ...

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        """Makes a whole state of a target the desired one; answers when that is durable, not when it is reached.

        Raises:
            StaleEpoch: somebody with a newer epoch was here.
            NoAvailableReplica: a share would rise for a model without an available replica.
            RequestIdReused: the key was used with other content.
            FieldImmutable: the target has another kind.
            ReplicaCannotStart: the machine cannot run a replica of a model, and that can be known at once.
            InvalidFields: the desired state makes no sense.
        """
        ...

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        """Says what a target really looks like. With an epoch, durably raises the target's floor to it first.

        Raises:
            StaleEpoch: the floor is higher already.
        """
        ...

    async def list(self) -> tuple[ServingObservation, ...]:
        """Every target, in the order of their names. Touches no floor."""
        ...

    async def effects(self, after: int = 0, target: str = "", limit: int = 1000) -> EffectPage:
        """The ledger of effects after a sequence number, of one target or of all."""
        ...

    async def start_recording(self, plan: RecordingPlan) -> RecordingStatus:
        """Starts to record a sample of a route's live requests. The same plan again answers how far it is.

        Raises:
            ResourceNotFound: there is no such route.
            RequestIdReused: a recording of that name has another plan.
            NotConfigured: the agent may not write there.
            InvalidFields: the plan makes no sense.
            MethodUnknown: agents of this kind cannot record.
        """
        ...

    async def observe_recording(self, recording: str) -> RecordingStatus:
        """Says how far a recording is.

        Raises:
            ResourceNotFound: the agent does not know it.
        """
        ...

    async def stop_recording(self, recording: str) -> RecordingStatus:
        """Ends a recording; answers once its last file is written.

        Raises:
            ResourceNotFound: the agent does not know it.
        """
        ...
