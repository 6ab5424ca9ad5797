"""What a launch remembers: people's words, gates' verdicts, intents, and what was seen of each region."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from modelfleetd.launcher.domain.states import State

STABILITY: Final = "stability"


class Status(enum.Enum):
    """Whether a condition holds."""

    TRUE = 1
    FALSE = 2
    UNKNOWN = 3


class Verdict(enum.Enum):
    """What a gate found."""

    PASS = 1
    FAIL = 2
    INCONCLUSIVE = 3
    ERROR = 4


class Act(enum.Enum):
    """What the launcher does to the world. Each is recorded as an intent before it is done."""

    # Asks registry and capacity for what the plan is made of.
    ESTIMATE = "estimate"
    RESERVE = "reserve"
    ACTIVATE = "activate"
    CANCEL_RESERVATION = "cancel"
    # To the platform, going forward.
    START = "start"
    SHIFT = "shift"
    REDUCE = "reduce"
    # To the platform, going back.
    SHED = "shed"
    GROW = "grow"
    RETURN = "return"
    RESTORE = "restore"
    # To the registry, and to capacity's ledger.
    FINALIZE = "finalize"
    FORGO = "forgo"
    SETTLE = "settle"
    RELEASE = "release"


FORWARD: Final = frozenset({Act.START, Act.SHIFT, Act.REDUCE})
ON_PLATFORM: Final = FORWARD | frozenset({Act.SHED, Act.GROW, Act.RETURN, Act.RESTORE})


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is true of a launch, and since when."""

    type: str
    status: Status
    reason: str
    message: str
    since: datetime


@dataclass(frozen=True, slots=True)
class PauseReason:
    """A reason to pause, and whose."""

    author: str
    reason: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Abort:
    """Why a launch goes back, and by whom."""

    author: str
    reason: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Promotion:
    """Who had the remaining bakes skipped, and why."""

    author: str
    reason: str
    time: datetime


@dataclass(frozen=True, slots=True)
class FreezeOverride:
    """A freeze window that does not hold for a launch. One of the same name that is made later is another window."""

    freeze_window: str
    reason: str
    author: str
    time: datetime
    window_uid: str


@dataclass(frozen=True, slots=True)
class Frozen:
    """A freeze window holds the launch back."""

    freeze_window: str
    reason: str
    since: datetime
    end_time: datetime
    # Until when the deadlines have been pushed on for it.
    counted: datetime


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Time spent in one state; `end_time` is None for the present one."""

    state: State
    start_time: datetime
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What a gate said, once."""

    gate: str
    region: str
    step: int
    verdict: Verdict
    explanation: str
    time: datetime
    figures: Mapping[str, float] = field(default_factory=dict)
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class SideProgress:
    """What really serves of one model in one region."""

    intended_basis_points: int = 0
    observed_basis_points: int = 0
    desired_replicas: int = 0
    available_replicas: int = 0
    total_replicas: int = 0
    requests: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class RegionProgress:
    """What really serves in one region."""

    region: str
    step: int = 0
    candidate: SideProgress = SideProgress()
    baseline: SideProgress = SideProgress()
    free_units: int = 0
    bake_end_time: datetime | None = None
    observe_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the registry says of a model, pinned: a rollback must not need the registry. `spec` is the serving spec."""

    name: str
    digest: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Share:
    """One model's share of a region's traffic, in basis points. The order of a split matters."""

    model: str
    share: int


@dataclass(frozen=True, slots=True)
class Intent:
    """Something that is about to be done, or was done and not confirmed. Repeated, with its key, until it is settled.

    Attributes:
        key: `launch/attempt/step/action`; the action carries the intent's number, so that a step may act twice.
        raises: whether the candidate's weight would rise: void once the launch goes back.
        content: everything that is needed to do it again, exactly so.
    """

    number: int
    act: Act
    key: str
    step: int
    region: str
    raises: bool
    content: Mapping[str, Any]
    create_time: datetime


@dataclass(frozen=True, slots=True)
class StepState:
    """Where the launch is: region by its position in the plan, step by number (0: before the first)."""

    region: int = 0
    number: int = 0
    start_time: datetime | None = None
    # Past it the step rolls back; pauses and times when nobody could look push it on. On the way back people are
    # called once it is past: nothing has got on for so long.
    deadline: datetime | None = None
    bake_start: datetime | None = None
    extensions: int = 0
    # Its bake is over and its gates have let it pass.
    passed: bool = False
    skipped_by: str = ""
    gate_errors: int = 0
    # Since when its gate could not be asked, as far as that time is not accounted for yet.
    held_since: datetime | None = None
    next_judge: datetime | None = None
    # The gates that could not be asked the last time.
    erring: tuple[str, ...] = ()
    # How often in a row the candidate was found slow, by region: one interval's percentile alone says little.
    slow_looks: Mapping[str, int] = field(default_factory=dict)
    # The interval of the proxy that was counted last, by region.
    slow_moments: Mapping[str, datetime] = field(default_factory=dict)


class Point(enum.Enum):
    """Where gates are asked, all of one point together."""

    # Before anything is reserved or started.
    START = 1
    # During every bake and at its end.
    BAKE = 2
    # Before the registry is told.
    FINALIZE = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """How far the gates of a point have got at which nothing bakes."""

    point: Point = Point.START
    passed: bool = False
    # How often they were undecided.
    undecided: int = 0
    # How often in a row, and since when, at least one of them could not be asked; which.
    errors: int = 0
    held_since: datetime | None = None
    erring: tuple[str, ...] = ()
    next_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class PeopleApproval:
    """Who passed a people's gate, by its position in the policy."""

    gate: int
    approved_by: str
    approve_time: datetime


@dataclass(frozen=True, slots=True)
class PeopleWait:
    """A people's gate at which the launch stands."""

    gate: int
    since: datetime
    # Then it is rejected. Pauses push it on.
    deadline: datetime
    # Until when the wait has been taken out of the other deadlines.
    accounted: datetime
