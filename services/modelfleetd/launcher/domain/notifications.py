"""What people are told of launches: what becomes true of one and concerns them, once each time that it does. Pure.

What is true of a launch and concerns people are its topics; a change that brings a topic is told, and one that takes a
topic away ends what goes on being said of it (an alert).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from modelfleetd.launcher.domain import preemption, summary
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import ENDED, State

# The receiver that `--alertmanager-url` configures.
ALERTMANAGER: Final = "alertmanager"
# An alarm that comes and goes is told once in so long.
ALARM_AGAIN: Final = timedelta(hours=1)
# Tried so long before it is given up; and the pauses between attempts, doubled each time.
TRIED: Final = timedelta(days=7)
_PAUSES: Final = (1.0, 3600.0)
# How long an alert lasts of what simply has happened. After a failure people put right what the launcher cannot, and
# nothing tells it that they have.
LASTS: Final = timedelta(minutes=15)
_FAILURE_LASTS: Final = timedelta(days=1)


class Kind(enum.Enum):
    """What a notification tells of. The numbers are those of the protos."""

    SUCCEEDED = 1
    ROLLED_BACK = 2
    CANCELLED = 3
    FAILED = 4
    ROLLING_BACK = 5
    PAUSED = 6
    AWAITING_APPROVAL = 7
    NEEDS_ATTENTION = 8


# Whom the launcher tells, by name, and of what.
Audience: TypeAlias = Mapping[str, frozenset[Kind]]

_OF_STATE: Final[Mapping[State, Kind]] = {
    State.SUCCEEDED: Kind.SUCCEEDED,
    State.ROLLED_BACK: Kind.ROLLED_BACK,
    State.CANCELLED: Kind.CANCELLED,
    State.FAILED: Kind.FAILED,
    State.ROLLING_BACK: Kind.ROLLING_BACK,
}
_ALERTS: Final[Mapping[Kind, str]] = {
    Kind.SUCCEEDED: "LaunchSucceeded",
    Kind.ROLLED_BACK: "LaunchRolledBack",
    Kind.CANCELLED: "LaunchCancelled",
    Kind.FAILED: "LaunchFailed",
    Kind.ROLLING_BACK: "LaunchRollingBack",
    Kind.PAUSED: "LaunchPaused",
    Kind.AWAITING_APPROVAL: "LaunchAwaitingApproval",
    Kind.NEEDS_ATTENTION: "LaunchNeedsAttention",
}
# Kinds of which one is the last that a launch tells.
ENDINGS: Final = frozenset(_OF_STATE[state] for state in ENDED)


@dataclass(frozen=True, slots=True)
class Topic:
    """Something that is true of a launch and concerns people.

    Attributes:
        about: whose pause, which alarm, or which of the people's gates; empty for the others.
        page: whether somebody has to get up for it: what serves is in danger, and the launcher cannot help itself.
    """

    kind: Kind
    about: str = ""
    page: bool = False


@dataclass(frozen=True, slots=True)
class Notification:
    """One message, whoever is told it.

    Attributes:
        key: the same for every receiver and attempt.
        body: what webhooks are sent, as JSON; documented in the README.
        labels: by which Alertmanager knows it.
        end_time: until when an alert of it lasts; None: until the topic ends.
    """

    kind: Kind
    about: str
    page: bool
    key: str
    message: str
    body: Mapping[str, Any]
    labels: Mapping[str, str]
    create_time: datetime
    end_time: datetime | None = None


class DeliveryState(enum.Enum):
    """Where a notification stands."""

    PENDING = 1
    DELIVERED = 2
    ABANDONED = 3


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A notification to one receiver, as it is shown."""

    number: int
    launch: str
    kind: Kind
    receiver: str
    key: str
    message: str
    state: DeliveryState
    attempts: int
    last_error: str
    create_time: datetime
    deliver_time: datetime | None


def topics(launch: Launch) -> tuple[Topic, ...]:
    """Everything that is true of a launch now and concerns people."""
    found = []
    if launch.state in _OF_STATE:
        found.append(Topic(_OF_STATE[launch.state], page=launch.state is State.FAILED))
    found += [Topic(Kind.PAUSED, author) for author in sorted({pause.author for pause in launch.pause_reasons})]
    if launch.state is State.AWAITING_APPROVAL and not (launch.envelope and launch.envelope.approved_by):
        found.append(Topic(Kind.AWAITING_APPROVAL))
    if launch.people_wait is not None:
        found.append(Topic(Kind.AWAITING_APPROVAL, f"people/{launch.people_wait.gate + 1}"))
    alarm = launch.condition("NeedsAttention")
    if alarm is not None:
        found.append(Topic(Kind.NEEDS_ATTENTION, alarm.reason, _wakes(launch, alarm.reason)))
    return tuple(found)


def _wakes(launch: Launch, alarm: str) -> bool:
    """Whether an alarm wakes people: a gate cannot be asked and holds, a side of what serves is short, no way back."""
    side_short = alarm.endswith("Short") and alarm != "HoldShort"
    return launch.state is State.ROLLING_BACK or side_short or alarm == "GateErrored"


def notifications(before: Launch, after: Launch, now: datetime) -> list[Notification]:
    """What is to be told of a change: each topic that it has brought, once.

    Args:
        before: the launch as it was written last.
        after: the launch as it is written now; its version may still be the one before.
        now: the time.
    """
    known = topics(before) if before.attempt == after.attempt else ()
    begun = [topic for topic in topics(after) if topic not in known]
    return [_made(after, topic, f"{after.name}/{before.version + 1}/{at}", now) for at, topic in enumerate(begun)]


def over(before: Launch, after: Launch) -> list[Topic]:
    """The topics that a change has ended."""
    stands = topics(after)
    return [topic for topic in topics(before) if topic not in stands]


def pause(attempts: int) -> float:
    """Seconds from a failed attempt to the next one."""
    least, most = _PAUSES
    return min(most, least * 2.0 ** min(max(0, attempts - 1), 20))


def _made(launch: Launch, topic: Topic, key: str, now: datetime) -> Notification:
    message = _message(launch, topic, now)
    severity = "page" if topic.page else "notification"
    launch_id = launch.name.rpartition("/")[2]
    tier = "" if launch.tier == "TIER_UNSPECIFIED" else launch.tier
    body = {
        "type": "launch",
        "kind": topic.kind.name,
        "about": topic.about,
        "severity": severity,
        "time": now.isoformat(),
        "message": message,
        "launch": launch.name,
        "attempt": launch.attempt,
        "state": launch.state.name,
        "strategy": launch.strategy.name,
        "model_type": launch.model_type,
        "candidate": launch.candidate,
        "baseline": launch.baseline,
        "team": launch.team,
        "tier": tier,
        "actor": launch.actor,
        "reason": launch.reason,
        "describe": f"modelfleet launch describe {launch_id}",
        "trace_id": launch.trace_id,
    }
    labels = {
        "alertname": _ALERTS[topic.kind],
        "launch": launch_id,
        "model_type": launch.model_type.rpartition("/")[2],
        "team": launch.team.rpartition("/")[2],
        "tier": tier,
        "severity": severity,
        # Two people's pauses are two alerts.
        "about": topic.about,
    }
    labels = {name: value for name, value in labels.items() if value}
    end = _end_of(topic, now)
    return Notification(topic.kind, topic.about, topic.page, key, message, body, labels, now, end)


def _end_of(topic: Topic, now: datetime) -> datetime | None:
    if topic.kind not in ENDINGS:
        return None
    return now + (_FAILURE_LASTS if topic.kind is Kind.FAILED else LASTS)


def _message(launch: Launch, topic: Topic, now: datetime) -> str:
    """One sentence or two: which launch, what it is about, and what people may do."""
    model, route = launch.candidate.rpartition("/")[2], launch.model_type.rpartition("/")[2]
    about = f"{launch.name.rpartition('/')[2]} ({model} on {route})"
    launch_id = launch.name.rpartition("/")[2]
    if topic.kind is Kind.AWAITING_APPROVAL and topic.about:
        assert launch.people_wait is not None
        gate = launch.policy.people_gates[launch.people_wait.gate]
        return (
            f"{about}: somebody other than {launch.actor} is to look, until {launch.people_wait.deadline:%F %R}: "
            f"{gate.reason.rstrip('.')}. They let it on with: modelfleet launch approve {launch_id}"
        )
    if topic.kind is Kind.AWAITING_APPROVAL:
        asked = launch.decision if launch.decision is not None and launch.decision.needs_approval else None
        by = f"{asked.who}, other than {launch.actor}," if asked else f"somebody other than {launch.actor}"
        return f"{about}: {by} is asked to approve its plan: modelfleet launch describe {launch_id}"
    if topic.kind is Kind.PAUSED:
        said = next(pause for pause in launch.pause_reasons if pause.author == topic.about)
        everybody = " --any-author" if "/" in said.author else ""
        ends = f"after: modelfleet launch resume {launch_id}{everybody}"
        if preemption.is_author(said.author):
            ends = "by itself once that has ended"
        return f"{about}: paused by {said.author}: {said.reason.rstrip('.')}. It goes on {ends}"
    if topic.kind is Kind.NEEDS_ATTENTION:
        alarm = launch.condition("NeedsAttention")
        assert alarm is not None
        return f"{about}: needs attention ({alarm.reason}): {alarm.message}"
    if topic.kind is Kind.ROLLING_BACK and launch.abort is not None:
        return f"{about}: rolls back, by {launch.abort.author}: {launch.abort.reason}"
    return f"{about}: {summary.sentence(launch, now)}"
