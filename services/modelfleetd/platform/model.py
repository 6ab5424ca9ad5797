"""The words of `modelfleet.platform.v1` as frozen dataclasses: standard library only.

Field by field what the proto documents; `platform/wire.py` maps between the two. Shares are basis points, times are
aware datetimes in UTC, names are full resource names (`targets/ranker`, `modelTypes/ranker/models/v2`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

FULL_SHARE = 10_000
DEFAULT_STARTUP_TIMEOUT = timedelta(seconds=60)
DEFAULT_DRAIN_TIMEOUT = timedelta(seconds=10)


class TargetKind(enum.Enum):
    """What a target is for."""

    ROUTE = 1
    LOAD_TEST = 2


class Protocol(enum.Enum):
    """How replicas are spoken to."""

    OPEN_INFERENCE_V2_GRPC = 1


class EffectKind(enum.Enum):
    """What an entry of the ledger says.

    A replica's life is STARTED, (FAILED | AVAILABLE, (LOST, AVAILABLE)*), DRAINING?, TERMINATED: it takes capacity from
    the first to the last, and both are written exactly once.
    """

    ACCEPTED = 1
    REPLICA_STARTED = 2
    REPLICA_AVAILABLE = 3
    REPLICA_LOST = 4
    REPLICA_DRAINING = 5
    REPLICA_TERMINATED = 6
    SHARES_ACKNOWLEDGED = 7
    FLOOR_RAISED = 8
    REPLICA_FAILED = 9


@dataclass(frozen=True, slots=True)
class ServingSpec:
    """How to run one replica. Unset durations and units mean the documented defaults (see the properties)."""

    artifact: str = ""
    command: tuple[str, ...] = ()
    image: str = ""
    protocol: Protocol | None = None
    flavor: str = ""
    units_per_replica: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    startup_timeout: timedelta | None = None
    drain_timeout: timedelta | None = None
    digest: str = ""

    @property
    def units(self) -> int:
        """Units of the flavor that one replica takes."""
        return self.units_per_replica or 1

    @property
    def startup_limit(self) -> timedelta:
        """How long a replica may take until it is ready."""
        return self.startup_timeout or DEFAULT_STARTUP_TIMEOUT

    @property
    def drain_limit(self) -> timedelta:
        """How long a replica may take to finish its requests."""
        return self.drain_timeout if self.drain_timeout is not None else DEFAULT_DRAIN_TIMEOUT


@dataclass(frozen=True, slots=True)
class ModelShare:
    """One model's share of a route's traffic, in basis points."""

    model: str
    share_basis_points: int


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """What one model of a target shall look like."""

    model: str
    serving_spec: ServingSpec
    replicas: int


@dataclass(frozen=True, slots=True)
class DesiredServing:
    """What a whole target shall look like. The shares are ordered: a growing model stands before its source."""

    models: tuple[DesiredModel, ...] = ()
    shares: tuple[ModelShare, ...] = ()

    def share_of(self, model: str) -> int:
        """The share of a model in basis points; 0 where it has none."""
        return next(
            (share.share_basis_points for share in self.shares if share.model == model),
            0,
        )

    def starts(self, model: DesiredModel) -> bool:
        """Whether a model would have to start replicas to get from this state to what it shall be."""
        now = next((m for m in self.models if m.model == model.model), None)
        running = now.replicas if now is not None and now.serving_spec == model.serving_spec else 0
        return model.replicas > running

    def replicas_of(self, model: str) -> int:
        """The desired replicas of a model; 0 where it is not named."""
        return next((desired.replicas for desired in self.models if desired.model == model), 0)


@dataclass(frozen=True, slots=True)
class Fence:
    """Who acts (an epoch of one increasing sequence) and which act this is (`launch/attempt/step/action`)."""

    epoch: int
    key: str


@dataclass(frozen=True, slots=True)
class Applied:
    """Answer of an accepted act: its place in the ledger, and the generation of the desired state after it."""

    effect: int
    generation: int


@dataclass(frozen=True, slots=True)
class ObservedModel:
    """What one model of a target really looks like. Latencies are milliseconds over the proxy's last interval."""

    model: str
    desired_replicas: int = 0
    starting_replicas: int = 0
    available_replicas: int = 0
    unavailable_replicas: int = 0
    terminating_replicas: int = 0
    acknowledged_basis_points: int = 0
    observed_basis_points: int = 0
    requests_since_split: int = 0
    errors_since_split: int = 0
    requests: int = 0
    errors: int = 0
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    message: str = ""

    @property
    def existing_replicas(self) -> int:
        """Replicas that take capacity now. Unavailable ones count although some may only wait to be started again."""
        return self.starting_replicas + self.available_replicas + self.unavailable_replicas + self.terminating_replicas


@dataclass(frozen=True, slots=True)
class ServingObservation:
    """What a target really looks like at one moment. `kind` is None before its first desired state."""

    target: str
    kind: TargetKind | None = None
    region: str = ""
    models: tuple[ObservedModel, ...] = ()
    desired: DesiredServing | None = None
    generation: int = 0
    acknowledged_generation: int = 0
    split_time: datetime | None = None
    observe_time: datetime | None = None
    epoch_floor: int = 0
    unrouted_errors: int = 0
    statistics_age: timedelta | None = None

    def model(self, name: str) -> ObservedModel:
        """One model's observation; all zero where the target does not know it."""
        found = next((model for model in self.models if model.model == name), None)
        return ObservedModel(name) if found is None else found


@dataclass(frozen=True, slots=True)
class Effect:
    """One thing that the agent did, or that befell a replica. Sequences run from 1 without gaps."""

    sequence: int
    time: datetime
    target: str
    kind: EffectKind
    model: str = ""
    replica: str = ""
    epoch: int = 0
    key: str = ""
    desired: DesiredServing | None = None
    shares: tuple[ModelShare, ...] = ()
    generation: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class EffectPage:
    """A run of effects in order, and whether there are more after the last."""

    effects: tuple[Effect, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class FlavorUnits:
    """Units of one flavor."""

    flavor: str
    units: int


@dataclass(frozen=True, slots=True)
class Agent:
    """A platform agent: its region, where callers send requests, and how much it can run."""

    region: str
    version: str
    traffic_address: str
    capacity: tuple[FlavorUnits, ...] = ()
    start_time: datetime | None = None
    records: bool = False


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """What is to be recorded of a route's live requests, where to, and what ends it; `max_requests` 0: no limit."""

    recording: str
    target: str
    uri: str
    sample_permille: int
    max_bytes: int
    max_requests: int
    end_time: datetime


@dataclass(frozen=True, slots=True)
class RecordingStatus:
    """How far a recording is."""

    recording: str
    active: bool
    requests: int = 0
    bytes: int = 0
    dropped_requests: int = 0
    first_request_time: datetime | None = None
    last_request_time: datetime | None = None
    message: str = ""
    failed: bool = False
