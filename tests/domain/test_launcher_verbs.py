"""What people do to launches, verb by verb and state by state; and what a new attempt keeps of the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import EtagMismatch, StepMovedOn, WrongState
from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.actions import Advance, Apply, Judge
from modelfleetd.launcher.domain.attempts import COUNTED, KEPT, next_attempt
from modelfleetd.launcher.domain.decide import next_action
from modelfleetd.launcher.domain.decision import Approver, Decision, Outcome
from modelfleetd.launcher.domain.holds_on_models import ModelHold, forbids, lift, stopped
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.record import Abort, Act, PauseReason, Verdict
from modelfleetd.launcher.domain.states import UNCHANGED, State
from tests.domain.test_launcher_decisions import NEW, OLD, T0, at_step, awaiting, baking, says, shifting

MINUTE = timedelta(minutes=1)
ALICE, BOB = "alice", "bob"
_CALLS: dict[str, Callable[[Launch], Launch | None]] = {
    "PauseLaunch": lambda launch: verbs.pause(launch, BOB, "a look", T0),
    "ResumeLaunch": lambda launch: verbs.resume(launch, BOB, T0),
    "SkipLaunchStep": lambda launch: verbs.skip_step(launch, BOB, launch.step.number),
    "AbortLaunch": lambda launch: verbs.abort(launch, BOB, "it looks bad", T0),
    "ApproveLaunch": lambda launch: verbs.approve(launch, BOB, launch.envelope.digest if launch.envelope else "", T0),
    "RejectLaunch": lambda launch: verbs.reject(launch, BOB, "not now", T0),
    "PromoteLaunch": lambda launch: verbs.promote(launch, BOB, "it is fine", T0),
    "RetryLaunch": lambda launch: verbs.retry(launch, BOB, T0),
    "RollBackLaunch": lambda launch: verbs.check_taken_back(launch, launch.candidate, launch.name),
}
STATES = st.sampled_from(State)


def in_state(state: State, *, revision: int = 0) -> Launch:
    """A launch with a plan and an envelope that is in some state, however it got there."""
    launch = replace(awaiting(), step=shifting().step, state=state, revision=revision, actor=ALICE)
    return replace(launch, end_time=T0) if launch.ended else launch


@pytest.mark.parametrize(("verb", "state"), list(product(_CALLS, State)))
def test_a_verb_acts_in_its_states_and_says_in_all_others_what_is_allowed(verb: str, state: State) -> None:
    launch = in_state(state)
    named = [said.split(" (")[0] for said in verbs.allowed(launch)]
    if verb == "AbortLaunch" and state in (State.ROLLED_BACK, State.CANCELLED):
        assert _CALLS[verb](launch) == launch, "it is back already"
    elif state in verbs.ALLOWED[verb]:
        assert verb in named or verb == "ResumeLaunch", "nobody has paused it"
        _CALLS[verb](launch)
    else:
        assert verb not in named
        with pytest.raises(WrongState) as raised:
            _CALLS[verb](launch)
        assert raised.value.metadata["state"] == state.name
        for said in verbs.allowed(launch):
            assert said in raised.value.message, "each verb with who may call it"


@given(state=STATES, revision=st.sampled_from([0, 7]), strategy=st.sampled_from(Strategy), first=st.booleans())
def test_what_a_launch_says_is_allowed_is_what_acts(
    state: State, revision: int, strategy: Strategy, first: bool
) -> None:
    launch = replace(in_state(state, revision=revision), strategy=strategy, baseline="" if first else OLD)
    named = {said.split(" (")[0] for said in verbs.allowed(launch)}
    for verb, call in _CALLS.items():
        try:
            call(launch)
        except WrongState:
            assert verb not in named
        else:
            assert verb in named or launch.ended or verb == "ResumeLaunch", verb


def test_only_what_somebody_has_paused_is_offered_to_be_resumed_and_only_once_to_be_promoted() -> None:
    def offered(launch: Launch) -> set[str]:
        return {said.split(" (")[0] for said in verbs.allowed(launch)}

    launch = shifting()
    assert "ResumeLaunch" not in offered(launch) and "PromoteLaunch" in offered(launch)
    paused = verbs.pause(launch, BOB, "a look", T0)
    assert "ResumeLaunch" in offered(paused)
    assert "PromoteLaunch" not in offered(verbs.promote(launch, BOB, "it is fine", T0))
    assert "AbortLaunch" in offered(paused) and "AbortLaunch" not in offered(verbs.abort(launch, BOB, "bad", T0))


def test_whoever_has_paused_nothing_resumes_nothing() -> None:
    paused = verbs.pause(shifting(), BOB, "a look", T0)
    assert verbs.resume(paused, ALICE, T0 + MINUTE) == paused
    assert verbs.resume(shifting(), ALICE, T0 + MINUTE, any_author=True) == shifting()
    lacks = Decision("", Outcome.EVIDENCE_MISSING, "there is no result of time_spent")
    waits = replace(in_state(State.AWAITING_APPROVAL), decision=lacks, evidence_time=T0 + MINUTE)
    assert verbs.resume(waits, ALICE, T0).evidence_time is None, "what is missing is asked for at once"


def test_the_same_pause_once_more_changes_nothing_and_another_reason_replaces_the_first() -> None:
    paused = verbs.pause(shifting(), BOB, "a look", T0)
    assert verbs.pause(paused, BOB, "a look", T0 + MINUTE) == paused
    assert [pause.reason for pause in verbs.pause(paused, BOB, "lunch", T0 + MINUTE).pause_reasons] == ["lunch"]


@pytest.mark.parametrize(
    ("strategy", "why"),
    [(Strategy.REPLACE_BASELINE, "nothing to go back to"), (Strategy.RAMP, "an experiment is ended instead")],
)
def test_what_cannot_be_rolled_back_says_why(strategy: Strategy, why: str) -> None:
    first = replace(in_state(State.SUCCEEDED), strategy=strategy, baseline="")
    with pytest.raises(WrongState, match=why):
        verbs.check_taken_back(first, first.candidate, first.name)


def test_every_verb_says_who_may_call_it() -> None:
    for state in State:
        for said in verbs.allowed(in_state(state)):
            verb, _, who = said.partition(" (")
            assert verb in verbs.ALLOWED and who.rstrip(")")


def test_what_the_launch_policy_has_not_accepted_is_for_those_whom_it_names_to_approve() -> None:
    asked = (Approver("CAPACITY_OWNER", "teams/infra"), Approver("OWNER", "teams/feed"))
    costs = Decision("", Outcome.NEEDS_APPROVAL, "It costs more.", asked)
    waits = replace(in_state(State.AWAITING_APPROVAL), decision=costs)
    for verb in ("ApproveLaunch", "RejectLaunch"):
        assert f"{verb} (capacity_owner of teams/infra, owner of teams/feed)" in verbs.allowed(waits)
        accepted = replace(waits, decision=replace(costs, outcome=Outcome.ACCEPTED))
        assert f"{verb} (approver, owner)" in verbs.allowed(accepted), "only the launch itself asks"


def test_a_verb_that_names_something_else_is_refused_for_that() -> None:
    with pytest.raises(StepMovedOn):
        verbs.skip_step(in_state(State.SHIFTING), BOB, 4)
    waiting = in_state(State.AWAITING_APPROVAL)
    assert waiting.envelope is not None
    with pytest.raises(EtagMismatch) as raised:
        verbs.approve(waiting, BOB, "sha256:other", T0)
    for word in ("another one than sha256:other", "modelfleet launch describe l)", waiting.envelope.digest):
        assert word in raised.value.message


# Promotion


def test_a_promoted_launch_asks_its_gates_once_a_step_and_bakes_no_more() -> None:
    launch = verbs.promote(baking(), BOB, "the incident is worse", T0)
    assert launch.promoted is not None and (launch.promoted.author, launch.promoted.time) == (BOB, T0)
    assert next_action(launch, at_step(launch), T0) == Judge(final=False)
    for verdict in (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.ERROR):
        asked = says(launch, verdict, T0, final=False)
        assert asked.step.passed and asked.step.held_since is None
        action = next_action(asked, at_step(asked), T0)
        assert isinstance(action, Apply) and action.act is Act.REDUCE
    failed = says(launch, Verdict.FAIL, T0, final=False)
    action = next_action(failed, at_step(failed), T0)
    assert isinstance(action, Advance) and action.launch.state is State.ROLLING_BACK


def test_the_first_promotion_stays_and_what_a_gate_has_paused_goes_on_while_a_person_s_pause_holds() -> None:
    paused = verbs.pause(baking(), ALICE, "lunch", T0)
    gate = PauseReason("gate/stability", "too few positives", T0)
    paused = replace(paused, pause_reasons=(*paused.pause_reasons, gate))
    launch = verbs.promote(paused, BOB, "it is fine", T0 + MINUTE)
    assert [pause.author for pause in launch.pause_reasons] == [ALICE]
    assert verbs.promote(launch, ALICE, "me too", T0 + MINUTE) == launch


def test_a_promotion_skips_no_capacity_and_no_availability() -> None:
    waiting = verbs.promote(shifting(), BOB, "it is fine", T0)
    for available in (0, 3, 10):
        seen = at_step(waiting)
        less = replace(
            seen, candidate=replace(seen.candidate, share=0, observed=0, acknowledged=0, available=available)
        )
        assert next_action(waiting, less, T0) == next_action(shifting(), less, T0)


# Attempts


def test_everything_of_a_launch_is_either_kept_by_a_new_attempt_or_made_afresh() -> None:
    """A new field has to be put on one of the sides: what was asked for is kept, what was found or done is not."""
    known = {field.name for field in fields(Launch)}
    fresh = {
        "state", "queued", "behind", "baseline", "expected_revision", "candidate_facts", "baseline_facts", "lowers",
        "gated", "plan", "envelope", "step", "undoing", "weight_time", "deadline", "approval_deadline", "plan_time",
        "evidence_time",
        "watched_until", "reservation", "hold", "reserve_time", "told_release", "activated", "touched",
        "splits", "agents", "forgone", "settled", "revision", "retries", "conditions", "pause_reasons",
        "waits", "frozen",
        "decision", "evidence_rules", "asked", "people_approvals", "people_wait", "preempted_by", "beside",
        "furthest",
        "paused_since", "abort", "promoted", "phase_times", "progress", "intent", "end_time", "retried_by",
    }  # fmt: skip
    assert not KEPT & COUNTED and not (KEPT | COUNTED) & fresh
    assert known == KEPT | COUNTED | fresh


def test_a_new_attempt_begins_with_nothing_of_the_one_before_but_what_was_asked_for() -> None:
    over = replace(
        baking(),
        state=State.ROLLED_BACK,
        abort=Abort(ALICE, "it looks bad", T0),
        reservation="reservations/r1",
        intents=17,
        version=40,
        epoch=9,
        forgone=True,
        settled=True,
        touched=True,
        end_time=T0,
    )
    again = next_attempt(over, BOB, T0 + MINUTE)
    assert (again.attempt, again.state, again.retried_by) == (2, State.PENDING, BOB)
    assert again.begin_time == T0 + MINUTE and again.create_time == over.create_time
    assert again.abort is None and again.plan is None and again.envelope is None and not again.reservation
    assert not (again.forgone or again.settled or again.touched or again.ended)
    # The next intent has a number, and so a key, that the attempt before never had.
    assert (again.intents, again.version, again.epoch) == (17, 40, 9)


# Taking back


@pytest.mark.parametrize(("baseline", "followed_by"), [(OLD, "launches/b"), ("", "launches/l1")])
def test_a_launch_is_taken_back_only_while_what_it_launched_is_the_baseline(baseline: str, followed_by: str) -> None:
    finished = in_state(State.SUCCEEDED)
    verbs.check_taken_back(finished, NEW, finished.name)
    with pytest.raises(WrongState) as raised:
        verbs.check_taken_back(finished, baseline, followed_by)
    assert (baseline or "nothing") in raised.value.message


# Holds


def a_hold() -> ModelHold:
    return ModelHold("holds/h1", "u", NEW, "it crashes", ALICE, T0)


@given(state=STATES, strategy=st.sampled_from(Strategy))
def test_a_hold_stops_what_has_not_begun_unless_it_takes_traffic_from_the_model(
    state: State, strategy: Strategy
) -> None:
    launch = replace(in_state(state), strategy=strategy)
    after = stopped(launch, a_hold(), T0)
    if state in UNCHANGED and forbids(strategy):
        assert after.abort is not None and after.abort.author == "holds/h1" and "it crashes" in after.abort.reason
    else:
        assert after == launch


def test_a_model_on_hold_may_still_be_ended_and_resized() -> None:
    assert {strategy.name for strategy in Strategy if not forbids(strategy)} <= {"END_EXPERIMENT", "RESIZE"}


def test_a_hold_is_lifted_once() -> None:
    lifted = lift(a_hold(), BOB, "fixed", T0 + MINUTE)
    assert (lifted.lifted_by, lifted.lift_reason, lifted.lift_time) == (BOB, "fixed", T0 + MINUTE)
    assert lift(lifted, ALICE, "me too", T0 + 2 * MINUTE) == lifted
