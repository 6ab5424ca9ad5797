"""A launch: its states, what it remembers, and how it passes from one state to the next. A launch is a row."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from modelfleetd.launcher.domain.beside import Beside
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.decision import Decision
from modelfleetd.launcher.domain.envelope import Envelope
from modelfleetd.launcher.domain.hold import Hold
from modelfleetd.launcher.domain.plan import Plan, RegionPlan, Step
from modelfleetd.launcher.domain.policy import Policy
from modelfleetd.launcher.domain.strategies import Goal, Rule
from modelfleetd.launcher.domain.strategies import Strategy as Strategy  # noqa: PLC0414 - importable from here
from modelfleetd.launcher.domain.waits import Waits

NO_TIME: Final = timedelta(0)
STABILITY: Final = "stability"


class State(enum.Enum):
    """Where a launch is in its life. The launcher moves it on; people end it, or let it wait."""

    PENDING = 1
    ESTIMATING = 2
    AWAITING_APPROVAL = 3
    PREPARING = 4
    SHIFTING = 5
    FINALIZING = 6
    SUCCEEDED = 7
    ROLLING_BACK = 8
    ROLLED_BACK = 9
    CANCELLED = 10
    FAILED = 11


ENDED: Final = frozenset({State.SUCCEEDED, State.ROLLED_BACK, State.CANCELLED, State.FAILED})
# Nothing was given to a platform yet: an abort ends them as CANCELLED.
UNCHANGED: Final = frozenset({State.PENDING, State.ESTIMATING, State.AWAITING_APPROVAL, State.PREPARING})

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.PENDING: frozenset({State.ESTIMATING, State.CANCELLED}),
    State.ESTIMATING: frozenset({State.AWAITING_APPROVAL, State.PREPARING, State.CANCELLED}),
    State.AWAITING_APPROVAL: frozenset({State.ESTIMATING, State.PREPARING, State.CANCELLED}),
    State.PREPARING: frozenset({State.AWAITING_APPROVAL, State.SHIFTING, State.ROLLING_BACK, State.CANCELLED}),
    State.SHIFTING: frozenset({State.FINALIZING, State.ROLLING_BACK}),
    State.FINALIZING: frozenset({State.SUCCEEDED, State.ROLLING_BACK}),
    State.SUCCEEDED: frozenset(),
    State.ROLLING_BACK: frozenset({State.ROLLED_BACK, State.FAILED}),
    State.ROLLED_BACK: frozenset(),
    State.CANCELLED: frozenset(),
    State.FAILED: frozenset(),
}


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


@dataclass(frozen=True, slots=True)
class Launch:
    """The whole job of taking a candidate to its share, and its record."""

    name: str
    uid: str
    model_type: str
    candidate: str
    strategy: Strategy
    pool: str
    regions: tuple[str, ...]
    policy: Policy
    actor: str
    trace_id: str
    create_time: datetime
    update_time: datetime
    reason: str = ""
    # In basis points, where the strategy wants to know: the candidate's final share, and what the old baseline keeps.
    target_share: int = 0
    holdout_share: int = 0
    attempt: int = 1
    # Who asked for this attempt, where it is not the first.
    retried_by: str = ""
    # The launch that this one takes back.
    rolls_back: str = ""
    # The reservation that keeps what a rollback needs: of the launch that put the present baseline in place.
    takes_over: str = ""
    state: State = State.PENDING
    # Waits for another launch on the route to end.
    queued: bool = False
    version: int = 1
    epoch: int = 0

    # Pinned facts.
    baseline: str = ""
    expected_revision: int = 0
    candidate_facts: ModelFacts | None = None
    baseline_facts: ModelFacts | None = None
    # Whether a RAMP makes the candidate's share smaller, so that the baseline is the side that grows.
    lowers: bool = False
    # N of a ROLL_BACK's candidate by region, as the launch knew it that replaced it: for where nobody certified it.
    known_full: Mapping[str, int] = field(default_factory=dict)
    # Whether the stability gate has anything to judge.
    gated: bool = False
    plan: Plan | None = None
    envelope: Envelope | None = None

    # Where it is.
    step: StepState = StepState()
    # Region that is being undone, by its position in the plan.
    undoing: int = 0
    # When the candidate was first given weight: gates judge from here.
    weight_time: datetime | None = None
    deadline: datetime | None = None
    # Until when somebody may approve it.
    approval_deadline: datetime | None = None
    # When the plan was made; None where it is to be made again, since what was free is not any more.
    plan_time: datetime | None = None
    # When it means to look next; a look that comes later than that pushes the deadlines on.
    watched_until: datetime | None = None
    # How important the route is, as the plan was made: who waits for capacity waits in this order.
    tier: str = ""
    # What the team's launch policy says of its capacity; None where it was not asked.
    decision: Decision | None = None
    # Whether the launch names its rollback window itself; else that of the launch policy counts.
    names_rollback_window: bool = True
    # Whose route it is, and which surface it serves: what freeze windows and figures are scoped by.
    team: str = ""
    surface: str = ""
    reservation: str = ""
    # What capacity said of it last; None where it has to be asked.
    hold: Hold | None = None
    # When it was made, and the end of the launch that it was made with.
    reserve_time: datetime | None = None
    told_release: datetime | None = None
    activated: bool = False
    # Something was given to a platform.
    touched: bool = False
    # The split that was last asked for, by region; and the agents' addresses when the plan was made.
    splits: Mapping[str, tuple[Share, ...]] = field(default_factory=dict)
    agents: Mapping[str, str] = field(default_factory=dict)
    # The registry has recorded that it went back, and capacity that the hold is over.
    forgone: bool = False
    settled: bool = False
    revision: int = 0
    retries: int = 0

    conditions: tuple[Condition, ...] = ()
    pause_reasons: tuple[PauseReason, ...] = ()
    # Since when at least one of them is there.
    paused_since: datetime | None = None
    freeze_overrides: tuple[FreezeOverride, ...] = ()
    # Neither starts nor raises weight, and its deadlines stand still; None while no window holds it back.
    frozen: Frozen | None = None
    abort: Abort | None = None
    promoted: Promotion | None = None
    phase_times: tuple[PhaseTime, ...] = ()
    progress: tuple[RegionProgress, ...] = ()
    intent: Intent | None = None
    intents: int = 0
    end_time: datetime | None = None
    # What it has waited for so far, for the figures of many launches.
    waits: Waits = field(default_factory=Waits)

    # Gates: how many evidence rules the model type has, where it stands with gates beside the bakes, and with people.
    evidence_rules: int = 0
    asked: Asked = Asked()
    people_approvals: tuple[PeopleApproval, ...] = ()
    people_wait: PeopleWait | None = None

    # The mitigation that has precedence now, for which it holds; and of a mitigation, the launch that holds for it.
    preempted_by: str = ""
    beside: Beside | None = None
    # The last region that was begun, where an earlier one was begun anew since.
    furthest: int = 0

    @property
    def mitigates(self) -> bool:
        """Whether it has precedence over a launch that is active on the route."""
        return self.rule.mitigation

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def begin_time(self) -> datetime:
        """When the present attempt began: for the first one, when the launch was created."""
        return self.phase_times[0].start_time if self.phase_times else self.create_time

    @property
    def rule(self) -> Rule:
        """What its strategy means."""
        return self.strategy.rule

    @property
    def raises_candidate(self) -> bool:
        """Whether the candidate is the side that grows; else it gives its share to the baseline."""
        return not (self.lowers or self.rule.goal is Goal.NOTHING)

    @property
    def is_judged(self) -> bool:
        """Whether gates have to let it on: that a candidate gets less must not be taken back for its own faults."""
        return self.rule.gated and self.raises_candidate

    @property
    def rising(self) -> str:
        """The model whose share grows: `candidate` of plans and observations. With RESIZE the only one."""
        return self.candidate if self.raises_candidate else self.baseline

    @property
    def falling(self) -> str:
        """The model that gives its share: `baseline` of plans and observations. Empty where there is none."""
        if not self.rule.swaps:
            return ""
        return self.baseline if self.raises_candidate else self.candidate

    @property
    def final_roles(self) -> Mapping[str, str]:
        """What models become for their type once it has succeeded; those that are not named stay what they are."""
        kept = "HOLDOUT" if self.holdout_share else self.rule.baseline_becomes
        roles = {self.candidate: self.rule.becomes, self.baseline: kept}
        return {model: role for model, role in roles.items() if model and role}

    @property
    def paused(self) -> bool:
        return bool(self.pause_reasons)

    @property
    def region_plan(self) -> RegionPlan:
        """The plan of the region that is being shifted."""
        assert self.plan is not None
        return self.plan.regions[self.step.region]

    @property
    def step_plan(self) -> Step:
        """The step that the launch is at."""
        return self.region_plan.steps[self.step.number - 1]

    @property
    def bake_end(self) -> datetime | None:
        """When the step's bake ends; None while it does not bake."""
        if self.step.bake_start is None:
            return None
        return self.step.bake_start + self.policy.bake_duration * (1 + self.step.extensions)

    def condition(self, type: str) -> Condition | None:  # noqa: A002 - the field's name
        return next((condition for condition in self.conditions if condition.type == type), None)


def enter(launch: Launch, state: State, now: datetime) -> Launch:
    """Passes into another state, and keeps the time that was spent in the one before.

    Raises:
        ValueError: the table has no such transition; a defect.
    """
    if state not in TRANSITIONS[launch.state]:
        raise ValueError(f"{launch.name} cannot go from {launch.state.name} to {state.name}")
    times = (*(replace(t, end_time=t.end_time or now) for t in launch.phase_times), PhaseTime(state, now))
    ended = state in ENDED
    if ended:
        times = (*times[:-1], replace(times[-1], end_time=now))
    return replace(
        launch,
        state=state,
        phase_times=times,
        end_time=now if ended else None,
        conditions=() if ended else launch.conditions,
        pause_reasons=() if ended else launch.pause_reasons,
        retries=0,
    )


def postponed(launch: Launch, by: timedelta) -> Launch:
    """Pushes every deadline on: time does not count while it is paused, or while nobody could look."""
    step, people = launch.step, launch.people_wait
    return replace(
        launch,
        people_wait=people and replace(people, deadline=people.deadline + by),
        deadline=None if launch.deadline is None else launch.deadline + by,
        approval_deadline=None if launch.approval_deadline is None else launch.approval_deadline + by,
        step=replace(step, deadline=None if step.deadline is None else step.deadline + by),
    )


def accounted(launch: Launch, now: datetime) -> Launch:
    """Accounts for time in which its deadlines stood still although nobody had paused it.

    Time in which a gate could not judge is no bake, and counts against no deadline unless the policy says so. Time in
    which a freeze window or people hold it back counts against no deadline either, but that of the people; what bakes
    goes on baking.
    """
    since, frozen, people, asked = launch.step.held_since, launch.frozen, launch.people_wait, launch.asked
    if since is None and frozen is None and people is None and asked.held_since is None:
        return launch
    still = [] if since is None or errors_count(launch) else [since]
    still += [] if asked.held_since is None else [asked.held_since]
    still += [] if frozen is None else [frozen.counted]
    still += [] if people is None else [people.accounted]
    # While it is paused its deadlines stand still anyway.
    if still and not launch.paused:
        launch = postponed(launch, now - min(still))
    launch = replace(
        launch,
        asked=asked if asked.held_since is None else replace(asked, held_since=now),
        frozen=frozen and replace(frozen, counted=now),
        people_wait=people and replace(people, accounted=now),
    )
    if since is None:
        return launch
    step, start = launch.step, launch.step.bake_start
    return replace(launch, step=replace(step, held_since=now, bake_start=start and start + (now - since)))


def errors_count(launch: Launch) -> bool:
    """Whether time in which a gate cannot be asked counts against deadlines: the policy may say so of the judge."""
    return launch.policy.stability_gate.roll_back_on_error and STABILITY in launch.step.erring


def begin_step(launch: Launch, number: int, now: datetime, region: int | None = None) -> Launch:
    """Goes on to a step, with fresh gates and a fresh deadline."""
    at = launch.step.region if region is None else region
    launch = accounted(launch, now)
    deadline = now + launch.policy.step_deadline + launch.policy.bake_duration
    return replace(launch, step=StepState(region=at, number=number, start_time=now, deadline=deadline))


def ask_again(launch: Launch, now: datetime) -> Launch:
    """Says when the gate is asked next: a part of the bake later, within reason, and always at the bake's end."""
    bake = launch.policy.bake_duration.total_seconds()
    seconds = max(2.0, min(60.0, bake / 4), min(300.0, bake / 20))
    again, end = now + timedelta(seconds=seconds), launch.bake_end
    if end is not None and now < end:
        again = min(again, end)
    return replace(launch, step=replace(launch.step, next_judge=again))


def alarm_after(launch: Launch, now: datetime) -> Launch:
    """On the way back something got on: people are called where nothing does from now on, for as long as a step may."""
    return replace(launch, step=replace(launch.step, deadline=now + launch.policy.step_deadline))


def going_back(launch: Launch, author: str, reason: str, now: datetime) -> Launch:
    """Turns a launch round. An abort that is there already stays: the first reason is the reason."""
    abort = launch.abort or Abort(author, reason, now)
    return replace(launch, abort=abort, people_wait=None)
