"""What people are told: every end, every pause and every wait for people, exactly once; and what is over ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.launch import (
    ENDED,
    TRANSITIONS,
    Abort,
    Condition,
    Launch,
    PauseReason,
    PhaseTime,
    State,
    Status,
    Strategy,
    enter,
)
from modelfleetd.launcher.domain.notifications import ALARM_AGAIN, Kind, Notification, Topic, notifications, over, pause
from modelfleetd.launcher.domain.policy import Policy

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
