"""`launch describe`: everything about a launch; first the sentence that says what it waits for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.launch import live, view
from modelfleet.cli.launch.advice import commands, ends_by
from modelfleet.cli.launch.freeze_view import override_parts
from modelfleet.cli.launch.gates import latest
from modelfleet.cli.launch.notifications import COLUMNS as NOTIFICATION_COLUMNS
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.launcher.v1 import notifications_pb2

_VERDICTS, _EVENTS = 10, 30
_STILL = "stands still while it is paused, and so does the expected end"
ATTEMPT_COLUMNS: list[render.Column] = [
    ("ATTEMPT", lambda m: str(m.launch.attempt)),
    ("STATE", lambda m: render.enum(m.launch, "state")),
    ("STEP", lambda m: view.step_of(m.launch)),
    ("BEGAN", lambda m: render.clock(m.launch.phase_times[0].start_time) if m.launch.phase_times else ""),
    ("TOOK", lambda m: view.took(m.launch)),
    ("WHAT", lambda m: m.launch.summary),
]


def describe_parts(
    launch: pb.Launch,
    events: Sequence[pb.LaunchEvent],
    *,
    attempts: Sequence[pb.Attempt] = (),
    told: Sequence[notifications_pb2.Notification] = (),
) -> Iterator[RenderableType]:
    """A launch in sections, each with its title; those that have nothing to say are left out."""
    yield Text(launch.summary, style="bold")
    yield from _ends(launch)
    yield Text("")
    yield render.facts(_facts(launch))
    yield from override_parts(launch)
    yield from _section("What people may do", _verbs(launch))
    yield from _section("What serves", _serving(launch))
    yield from _section("Plan", view.plan_parts(launch) if launch.plan.regions else ())
    yield from _section("Gates", _gates(launch))
    yield from _section("Approval", _approval(launch))
    yield from _section("Attempts", _table(ATTEMPT_COLUMNS, attempts))
    yield from _section("Time", _phases(launch))
    yield from _section("Notifications", _table(NOTIFICATION_COLUMNS, told))
    yield from _section("What happened", _events(launch, events))


def _ends(launch: pb.Launch) -> Iterator[RenderableType]:
    """What people can type to end the wait; of a pause, and of some waits, the summary says it."""
    for condition in launch.conditions:
        ends = ends_by(launch, condition.reason) if condition.type == "Waiting" and not launch.pause_reasons else ""
        if ends and ends not in launch.summary:
            yield Text(f"The wait ends by {ends}.")


def _section(title: str, parts: Iterable[RenderableType]) -> Iterator[RenderableType]:
    found = list(parts)
    if not found:
        return
    yield Text("")
    yield Text(title, style="bold underline")
    for part in found:
        yield Padding(part, (0, 0, 0, 2))


def _facts(launch: pb.Launch) -> list[tuple[str, str]]:
    return [
        ("launch", f"{launch.name}, attempt {launch.attempt}"),
        ("brings", view.headline(launch)),
        ("by", f"{launch.actor} at {render.clock(launch.create_time)}"),
        ("reason", launch.reason),
        ("team", render.short(launch.team)),
        ("surface", launch.surface),
        ("pool", render.short(launch.pool)),
        ("reservation", launch.reservation),
        ("policy", launch.launch_decision),
        ("takes back", launch.rolls_back),
        ("gives way to", launch.preempted_by),
        ("revision", str(launch.revision or "")),
        ("expected end", render.clock(launch.expected_end_time)),
        ("deadline", _STILL if live.stands_still(launch) else render.clock(launch.deadline_time)),
        ("trace", launch.trace_id),
    ]


def _verbs(launch: pb.Launch) -> Iterator[RenderableType]:
    rows = [[command, who] for command, who in commands(launch)]
    if rows:
        yield render.table(["COMMAND", "BY"], rows)


def _serving(launch: pb.Launch) -> Iterator[RenderableType]:
    first, _ = view.models(launch)
    rows = [
        [
            render.short(region.region),
            label,
            render.percent(side.intended_basis_points),
            view.observed(region, side),
            f"{side.available_replicas}/{side.desired_replicas}",
            str(side.total_replicas),
            str(region.free_units),
            f"{side.requests:,}",
            f"{side.errors:,}",
        ]
        for region in launch.progress
        for label, side in ((first, region.candidate), ("baseline", region.baseline))
        if side is region.candidate or launch.baseline
    ]
    if rows:
        headers = ["REGION", "SIDE", "INTENDED", "OBSERVED", "AVAILABLE", "EXIST", "HOLD FREE", "REQUESTS", "FAILED"]
        yield render.table(headers, rows)


def _gates(launch: pb.Launch) -> Iterator[RenderableType]:
    verdicts = latest(launch)
    if not verdicts:
        return
    if len(verdicts) > _VERDICTS:
        yield Text(f"the last {_VERDICTS} of {len(verdicts)} changes of verdict")
    rows = [
        [
            render.clock(verdict.time),
            verdict.gate + (" (dry run)" if verdict.dry_run else ""),
            f"{render.short(verdict.region)} {verdict.step}".strip(),
            render.enum(verdict, "verdict"),
            "; ".join(filter(None, [verdict.explanation.rstrip("."), live.figures_of(verdict)])),
        ]
        for verdict in verdicts[-_VERDICTS:]
    ]
    yield render.table(["TIME", "GATE", "STEP", "VERDICT", "WHY, AND FIGURES"], rows)


def _approval(launch: pb.Launch) -> Iterator[RenderableType]:
    """What was or is to be approved; a launch that nobody has to be asked for says that alone."""
    envelope = launch.envelope
    if not envelope.digest:
        return
    if envelope.approved_by == "policy":
        yield Text("approved by policy: nobody had to be asked")
        return
    if envelope.approved_by:
        yield Text(f"approved by {envelope.approved_by} at {render.clock(envelope.approve_time)}")
    elif launch.state in view.ENDED:
        yield Text("nobody approved it")
    else:
        yield Text(f"nobody has approved it yet; {launch.actor}, who asked for it, may not")
    for line in view.envelope_parts(launch):
        yield Text(line)


def _phases(launch: pb.Launch) -> Iterator[RenderableType]:
    if launch.phase_times:
        rows = [[render.enum(p, "state"), render.clock(p.start_time), _took(p)] for p in launch.phase_times]
        yield render.table(["PHASE", "SINCE", "TOOK"], rows)


def _took(phase: pb.PhaseTime) -> str:
    end = phase.end_time.ToDatetime(tzinfo=UTC) if phase.HasField("end_time") else datetime.now(UTC)
    return render.seconds((end - phase.start_time.ToDatetime(tzinfo=UTC)).total_seconds())


def _events(launch: pb.Launch, events: Sequence[pb.LaunchEvent]) -> Iterator[RenderableType]:
    yield from _table(view.EVENT_COLUMNS, events[-_EVENTS:])
    if len(events) > _EVENTS:
        yield Text(f"{len(events) - _EVENTS} more before: modelfleet launch events {render.short(launch.name)}")


def _table(columns: Sequence[render.Column], messages: Sequence[object]) -> Iterator[RenderableType]:
    if messages:
        yield render.table([name for name, _ in columns], [[cell(m) for _, cell in columns] for m in messages])
