"""What people are told: every end, every pause and every wait for people, exactly once; and what is over ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.actions import Wait
from modelfleetd.launcher.domain.decision import Approver, Decision, Outcome
from modelfleetd.launcher.domain.launch import Launch, Strategy, enter
from modelfleetd.launcher.domain.notifications import ALARM_AGAIN, Kind, Notification, Topic, notifications, over, pause
from modelfleetd.launcher.domain.outcomes import conditions
from modelfleetd.launcher.domain.policy import PeopleGate, Policy, StabilityGate
from modelfleetd.launcher.domain.record import Abort, Condition, PauseReason, PeopleWait, PhaseTime, Status, Verdict
from modelfleetd.launcher.domain.states import ENDED, TRANSITIONS, State
from modelfleetd.rehearsal.chance import Trouble
from tests.support.rehearsal import LAUNCH as REHEARSED
from tests.support.rehearsal import rehearse

NOW = datetime(2025, 1, 1, tzinfo=UTC)
CTR = "modelTypes/ctr"
LAUNCH = Launch(
    name="launches/l1",
    uid="6c1f6a3e-6a63-4a44-9f5e-7a1c2b7d9e10",
    model_type=CTR,
    candidate=f"{CTR}/models/v7",
    strategy=Strategy.REPLACE_BASELINE,
    pool="pools/p",
    regions=("regions/eu",),
    policy=Policy(),
    actor="alice",
    trace_id="0" * 32,
    create_time=NOW,
    update_time=NOW,
    tier="TIER0",
    team="teams/feed",
    abort=Abort("bob", "wrong checkpoint.", NOW),
    phase_times=(PhaseTime(State.PENDING, NOW),),
)
AUTHORS = ("bob", "carol", "gate/stability", "mitigation/launches/x")
ALARMS = ("GateErrored", "HoldShort", "PartUnavailable")


def alarmed(launch: Launch, reason: str) -> Launch:
    """The launch with that alarm, or with none."""
    kept = tuple(known for known in launch.conditions if known.type != "NeedsAttention")
    alarm = Condition("NeedsAttention", Status.TRUE, reason, f"holds, because of {reason}", NOW)
    return replace(launch, conditions=(*kept, alarm) if reason else kept)


def paused(launch: Launch, *authors: str) -> Launch:
    return replace(launch, pause_reasons=tuple(PauseReason(author, "a look", NOW) for author in authors))


def told(before: Launch, after: Launch) -> list[Notification]:
    return notifications(before, after, NOW)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_each_end_each_pause_and_each_wait_for_people_is_told_exactly_once(data: st.DataObject) -> None:
    launch, sent, expected = LAUNCH, list[Notification](), list[tuple[Kind, str]]()
    for _ in range(data.draw(st.integers(1, 25))):
        if launch.ended:
            break
        before = launch
        match data.draw(st.sampled_from(["enter", "pause", "resume", "alarm", "look"])):
            case "enter" if launch.state in verbs.ALLOWED["AbortLaunch"]:
                state = data.draw(st.sampled_from(sorted(TRANSITIONS[launch.state], key=lambda s: s.value)))
                launch = enter(launch, state, NOW)
                if state in ENDED or state in (State.ROLLING_BACK, State.AWAITING_APPROVAL):
                    expected.append((Kind[state.name], ""))
            case "pause" if launch.state in verbs.ALLOWED["PauseLaunch"]:
                author = data.draw(st.sampled_from(AUTHORS))
                if author not in {reason.author for reason in launch.pause_reasons}:
                    expected.append((Kind.PAUSED, author))
                launch = verbs.pause(launch, author, "a look", NOW)
            case "resume" if launch.state in verbs.ALLOWED["ResumeLaunch"]:
                author = data.draw(st.sampled_from(AUTHORS))
                launch = verbs.resume(launch, author, NOW, any_author=data.draw(st.booleans()))
            case "alarm":
                reason = data.draw(st.sampled_from(("", *ALARMS)))
                launch = alarmed(launch, reason)
        made = told(before, launch)
        sent += [one for one in made if one.kind is not Kind.NEEDS_ATTENTION]
        launch = replace(launch, version=launch.version + 1)
        # Looking at it again says nothing more.
        assert told(launch, replace(launch)) == []
    assert [(one.kind, one.about) for one in sent] == expected
    assert len({one.key for one in sent}) == len(sent)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(list(State)), st.sets(st.sampled_from(AUTHORS)), st.sets(st.sampled_from(AUTHORS)), st.data())
def test_what_begins_and_what_is_over_make_up_the_difference(
    state: State, paused_before: set[str], paused_after: set[str], data: st.DataObject
) -> None:
    alarm = st.sampled_from(("", *ALARMS))
    before = alarmed(paused(replace(LAUNCH, state=State.SHIFTING), *paused_before), data.draw(alarm))
    after = alarmed(paused(replace(LAUNCH, state=state, end_time=NOW), *paused_after), data.draw(alarm))
    if state is State.SHIFTING:
        after = replace(after, end_time=None)
    begun = {Topic(one.kind, one.about, one.page) for one in told(before, after)}
    ended = set(over(before, after))
    assert begun.isdisjoint(ended)
    assert {topic.about for topic in begun if topic.kind is Kind.PAUSED} == paused_after - paused_before
    assert {topic.about for topic in ended if topic.kind is Kind.PAUSED} == paused_before - paused_after


@pytest.mark.parametrize(
    ("state", "alarm", "pages"),
    [
        (State.FAILED, "", True),
        (State.ROLLED_BACK, "", False),
        (State.SHIFTING, "GateErrored", True),
        (State.SHIFTING, "CandidateShort", True),
        (State.SHIFTING, "GateInconclusive", False),
        (State.PREPARING, "Refused", False),
        (State.ROLLING_BACK, "PartUnavailable", True),
    ],
)
def test_people_are_woken_where_what_serves_is_in_danger(state: State, alarm: str, pages: bool) -> None:
    launch = alarmed(replace(LAUNCH, state=state, end_time=NOW), alarm)
    severities = {one.labels["severity"] for one in told(LAUNCH, launch)}
    assert ("page" in severities) == pages


def test_an_alarm_that_becomes_a_page_is_told_again_as_one() -> None:
    before = alarmed(replace(LAUNCH, state=State.SHIFTING), "PartUnavailable")
    after = replace(before, state=State.ROLLING_BACK)
    kinds = [(one.kind, one.page) for one in told(before, after)]
    assert kinds == [(Kind.ROLLING_BACK, False), (Kind.NEEDS_ATTENTION, True)]
    assert over(before, after) == [Topic(Kind.NEEDS_ATTENTION, "PartUnavailable", page=False)]


def test_a_new_attempt_tells_what_is_true_of_it_whatever_was_true_of_the_one_before() -> None:
    before = replace(LAUNCH, state=State.AWAITING_APPROVAL)
    assert told(before, before) == []
    assert [one.kind for one in told(before, replace(before, attempt=2))] == [Kind.AWAITING_APPROVAL]


def test_a_message_says_which_launch_what_it_is_about_and_what_to_type() -> None:
    awaits, holds = replace(LAUNCH, state=State.AWAITING_APPROVAL), paused(LAUNCH, "gate/stability")
    said = [one.message for launch in (awaits, holds) for one in told(LAUNCH, launch)]
    assert said == [
        "l1 (v7 on ctr): somebody other than alice is asked to approve its plan: modelfleet launch describe l1",
        "l1 (v7 on ctr): paused by gate/stability: a look. It goes on after: modelfleet launch resume l1 --any-author",
    ]
    owner = Approver("CAPACITY_OWNER", "teams/infra")
    costs = replace(awaits, decision=Decision("", Outcome.NEEDS_APPROVAL, "It costs more.", (owner,)))
    said = [one.message for launch in (costs, paused(LAUNCH, "mitigation/m1")) for one in told(LAUNCH, launch)]
    assert said == [
        "l1 (v7 on ctr): CAPACITY_OWNER of teams/infra, other than alice, is asked to approve its plan: "
        "modelfleet launch describe l1",
        "l1 (v7 on ctr): paused by mitigation/m1: a look. It goes on by itself once that has ended",
    ]
    back = told(LAUNCH, enter(replace(LAUNCH, state=State.SHIFTING), State.ROLLING_BACK, NOW))
    assert [one.message for one in back] == ["l1 (v7 on ctr): rolls back, by bob: wrong checkpoint."]
    gone = told(LAUNCH, enter(LAUNCH, State.CANCELLED, NOW + timedelta(seconds=90)))
    assert [one.message for one in gone] == ["l1 (v7 on ctr): Cancelled after 90 s, by bob: wrong checkpoint."]


def test_the_labels_of_an_alert_are_those_that_routes_go_by() -> None:
    (one,) = told(LAUNCH, paused(LAUNCH, "bob"))
    assert one.labels == {
        "alertname": "LaunchPaused",
        "launch": "l1",
        "model_type": "ctr",
        "team": "feed",
        "tier": "TIER0",
        "severity": "notification",
        "about": "bob",
    }


def test_attempts_are_made_with_growing_pauses_of_an_hour_at_most() -> None:
    pauses = [pause(attempts) for attempts in range(1, 200)]
    assert pauses[:4] == [1, 2, 4, 8] and pauses == sorted(pauses) and pauses[-1] == ALARM_AGAIN.total_seconds()


@pytest.mark.parametrize(
    ("verdict", "crash_rate", "expected"),
    [
        (Verdict.PASS, 0.0, [Kind.SUCCEEDED]),
        (Verdict.PASS, 0.05, [Kind.SUCCEEDED]),
        (Verdict.FAIL, 0.0, [Kind.ROLLING_BACK, Kind.ROLLED_BACK]),
        (Verdict.FAIL, 0.05, [Kind.ROLLING_BACK, Kind.ROLLED_BACK]),
        (Verdict.INCONCLUSIVE, 0.0, [Kind.PAUSED]),
    ],
)
async def test_a_whole_launch_tells_how_it_goes_once_though_its_launcher_dies_again_and_again(
    verdict: Verdict, crash_rate: float, expected: list[Kind]
) -> None:
    policy = Policy(bake_duration=timedelta(seconds=8), stability_gate=StabilityGate())
    fleet = await rehearse(old=20, new=16, free=6, policy=policy, seed=7, trouble=Trouble(crash_rate=crash_rate))
    fleet.judge.verdict = verdict
    await fleet.pass_by(200)
    told = fleet.launches.rows[REHEARSED].told
    alarms = [one for one in told if one.kind is Kind.NEEDS_ATTENTION]
    assert [one.kind for one in told if one not in alarms] == expected
    # Where nobody knows what was done, or a gate is undecided at the end of its bake, people may be needed soon.
    assert not alarms or crash_rate or verdict is Verdict.INCONCLUSIVE
    assert len({one.key for one in told}) == len(told)


def test_who_is_to_pass_a_peoples_gate_is_told() -> None:
    gates = Policy(people_gates=(PeopleGate("look at the graphs.", 2_000),))
    before = replace(LAUNCH, state=State.SHIFTING, policy=gates)
    after = replace(before, people_wait=PeopleWait(0, NOW, NOW + timedelta(days=7), NOW))
    (one,) = told(before, after)
    assert (one.kind, one.message) == (
        Kind.AWAITING_APPROVAL,
        "l1 (v7 on ctr): somebody other than alice is to look, until 2025-01-08 00:00: look at the graphs. "
        "They let it on with: modelfleet launch approve l1",
    )
    assert over(after, before) == [Topic(Kind.AWAITING_APPROVAL, "people/1")]


def test_what_is_short_for_a_moment_calls_nobody() -> None:
    wait = Wait("HoldShort", "waits for room in its hold", 0.2, alarming=True)
    launch, called = LAUNCH, []
    for seconds in (0, 10, 29, 30, 40):
        now = NOW + timedelta(seconds=seconds)
        after = replace(launch, conditions=conditions(launch, wait, (), now))
        called += [(seconds, one.kind) for one in notifications(launch, after, now)]
        launch = after
    assert called == [(30, Kind.NEEDS_ATTENTION)]
