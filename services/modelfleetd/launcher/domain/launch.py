"""A launch: the whole job of taking a candidate to its share, and how it passes from state to state. It is a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from modelfleetd.launcher.domain.beside import Beside
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.decision import Decision
from modelfleetd.launcher.domain.envelope import Envelope
from modelfleetd.launcher.domain.hold import Hold
from modelfleetd.launcher.domain.plan import Plan, RegionPlan, Step
from modelfleetd.launcher.domain.policy import Policy
from modelfleetd.launcher.domain.record import (
    Abort,
    Asked,
    Condition,
    FreezeOverride,
    Frozen,
    Intent,
    ModelFacts,
    PauseReason,
    PeopleApproval,
    PeopleWait,
    PhaseTime,
    Promotion,
    RegionProgress,
    Share,
    StepState,
)
from modelfleetd.launcher.domain.states import ENDED, TRANSITIONS, State
from modelfleetd.launcher.domain.strategies import Goal, Rule
from modelfleetd.launcher.domain.strategies import Strategy as Strategy  # noqa: PLC0414 - importable from here
from modelfleetd.launcher.domain.waits import Waits


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
    # Which one that is, as far as it has looked.
    behind: str = ""
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
    step: StepState = field(default_factory=StepState)
    # Region that is being undone, by its position in the plan.
    undoing: int = 0
    # When the candidate was first given weight: gates judge from here.
    weight_time: datetime | None = None
    deadline: datetime | None = None
    # Until when somebody may approve it.
    approval_deadline: datetime | None = None
    # When the launch policy is asked again whether the evidence that it lacked has come; None: at once.
    evidence_time: datetime | None = None
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
    asked: Asked = field(default_factory=Asked)
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
    def can_be_taken_back(self) -> bool:
        """Whether RollBack has something to go back to, once it has succeeded."""
        return self.strategy is Strategy.REPLACE_BASELINE and bool(self.baseline)

    @property
    def keeps_for_rollback(self) -> timedelta:
        """How long after a success it keeps what a rollback needs: not at all where there can be none."""
        return self.policy.rollback_window if self.can_be_taken_back else timedelta(0)

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


def going_back(launch: Launch, author: str, reason: str, now: datetime) -> Launch:
    """Turns a launch round. An abort that is there already stays: the first reason is the reason."""
    abort = launch.abort or Abort(author, reason, now)
    return replace(launch, abort=abort, people_wait=None)
