"""How a launch looks: its plan, its explanation, and the live view."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.launch.freeze_view import conflict_parts, override_parts
from modelfleet.cli.launch.gates import latest
from modelfleet.launcher.v1 import launcher_pb2 as pb

ENDED = {pb.Launch.SUCCEEDED, pb.Launch.ROLLED_BACK, pb.Launch.CANCELLED, pb.Launch.FAILED}
_STATE_STYLE = {
    pb.Launch.SUCCEEDED: "bold green",
    pb.Launch.ROLLING_BACK: "bold yellow",
    pb.Launch.ROLLED_BACK: "bold yellow",
    pb.Launch.CANCELLED: "bold yellow",
    pb.Launch.FAILED: "bold red",
}

EVENT_COLUMNS: list[render.Column] = [
    ("TIME", lambda m: render.clock(m.time)),
    ("STEP", lambda m: str(m.step) if m.step else ""),
    ("EVENT", lambda m: m.type),
    ("WHAT", lambda m: m.message),
    ("BY", lambda m: m.actor),
]


def step_of(launch: pb.Launch) -> str:
    """`2 of 4`; empty before the plan."""
    steps = sum(len(region.steps) for region in launch.plan.regions)
    return f"{launch.current_step} of {steps}" if steps else ""


def share_of(launch: pb.Launch) -> str:
    """The candidate's share, region by region where they differ."""
    shares = [render.percent(region.candidate.intended_basis_points) for region in launch.progress]
    return shares[0] if len(set(shares)) == 1 else ", ".join(shares)


def _observed(region: pb.RegionProgress, side: pb.SideProgress) -> str:
    """The share by requests; a dash where there were none since the split, and so nothing to observe."""
    seen = region.candidate.observed_basis_points + region.baseline.observed_basis_points
    return render.percent(side.observed_basis_points) if seen else "-"


def took(launch: pb.Launch) -> str:
    """From the beginning of its attempt to the end, or until now."""
    begin = launch.phase_times[0].start_time if launch.phase_times else launch.create_time
    if launch.HasField("end_time"):
        return render.seconds((launch.end_time.ToDatetime() - begin.ToDatetime()).total_seconds())
    return render.age(begin)


def headline(launch: pb.Launch) -> str:
    """What a launch is to bring about, in a line."""
    candidate, kind = render.short(launch.candidate), render.short(launch.model_type)
    baseline = render.short(launch.baseline) if launch.baseline else "nothing"
    if launch.strategy == pb.Launch.END_EXPERIMENT:
        return f"{candidate} of {kind} ends; its traffic returns to {baseline}"
    return f"{candidate} replaces {baseline} of {kind}"


def sides(launch: pb.Launch) -> tuple[str, str]:
    """What the side that grows and the one that gives are called."""
    if launch.strategy == pb.Launch.END_EXPERIMENT:
        return "baseline", "experiment"
    return "candidate", "baseline"


def plan_parts(launch: pb.Launch) -> Iterator[RenderableType]:
    """The plan: what each region needs, then its steps as a table."""
    yield Text(headline(launch), style="bold")
    new, old = sides(launch)
    for region in launch.plan.regions:
        inferred = " (inferred from what serves)" if region.old_inferred else ""
        yield Text(
            f"{render.short(region.region)}: {region.new_replicas_full} replicas of the {new} for "
            f"{region.old_replicas_full} of the {old}{inferred}; holds {region.hold_units} units = "
            f"{region.moved_units} moved + {region.extra_units} extra of {region.free_units} free"
        )
        rows = [
            [
                str(step.number),
                render.percent(step.share_basis_points),
                render.percent(step.old_share_basis_points),
                str(step.new_replicas),
                f"{step.old_replicas_before} → {step.old_replicas_after}",
                str(step.peak_units),
                f"+{step.taken_units}",
                f"-{step.freed_units}",
                render.duration(step.expected_end),
                render.duration(step.worst_undo),
            ]
            for step in region.steps
        ]
        headers = [
            "STEP",
            "SHARE",
            old.upper(),
            "REPLICAS",
            f"{old.upper()}'S",
            "PEAK",
            "TAKEN",
            "FREED",
            "DONE AFTER",
            "UNDO",
        ]
        yield Padding(render.table(headers, rows), (0, 0, 0, 2))
    yield from conflict_parts(launch)
    plan = launch.plan
    if plan.wait:
        yield Text(f"does not fit what is free now, so it {plan.wait}")
    yield Text(f"each step bakes for {render.duration(launch.policy.bake_duration) or 'no time'}")
    yield from (Text(f"gate  {gate}") for gate in plan.gates)
    if not plan.gates:
        yield Text("no gate judges it")
    yield Text(
        f"cost per hour {plan.cost_before:.2f} → {plan.cost_after:.2f}, at the peak {plan.cost_peak:.2f}; "
        f"expected to take {render.duration(plan.expected_duration) or 'no time'}"
    )


def envelope_parts(launch: pb.Launch) -> Iterator[str]:
    """What an approval is bound to, in lines."""
    envelope = launch.envelope
    yield f"candidate   {envelope.candidate}"
    yield f"            {envelope.serving_spec_digest}"
    ends = envelope.strategy == pb.Launch.END_EXPERIMENT
    yield f"{'returns to' if ends else 'replaces'}{'  ' if ends else '    '}{envelope.baseline or 'nothing'}"
    yield f"regions     {', '.join(render.short(region) for region in envelope.regions)}"
    for units in envelope.max_units:
        yield f"at most     {units.units} units of {render.short(units.flavor)} in {render.short(units.region)}"
    yield f"at most     {envelope.max_cost:.2f} an hour, for {render.duration(envelope.max_duration)}"
    yield f"envelope    {envelope.digest}"


def describe_parts(launch: pb.Launch, events: Sequence[pb.LaunchEvent]) -> Iterator[RenderableType]:
    """Everything about a launch; first the sentence that says what it waits for."""
    yield Text(launch.summary, style="bold")
    yield Text(f"{launch.name}, attempt {launch.attempt}, by {launch.actor} at {render.clock(launch.create_time)}")
    if launch.reason:
        yield Text(f"reason: {launch.reason}")
    yield from override_parts(launch)
    yield Text(f"trace {launch.trace_id}")
    yield Text("")
    yield from _progress_parts(launch)
    yield from plan_parts(launch)
    if launch.gate_verdicts:
        yield Text("")
        yield render.table(
            ["GATE", "STEP", "VERDICT", "WHY"],
            [[v.gate, str(v.step or "-"), _verdict(v), v.explanation] for v in latest(launch)[-10:]],
        )
    if launch.phase_times:
        yield Text("")
        yield render.table(["PHASE", "TOOK"], [[render.enum(p, "state"), _phase_took(p)] for p in launch.phase_times])
    if events:
        yield Text("")
        yield render.table(
            [name for name, _ in EVENT_COLUMNS], [[c(e) for _, c in EVENT_COLUMNS] for e in events[-30:]]
        )


def _verdict(verdict: pb.GateVerdict) -> str:
    return render.enum(verdict, "verdict") + (" (dry run)" if verdict.dry_run else "")


def _phase_took(phase: pb.PhaseTime) -> str:
    end = phase.end_time.ToDatetime(tzinfo=UTC) if phase.HasField("end_time") else datetime.now(UTC)
    return render.seconds((end - phase.start_time.ToDatetime(tzinfo=UTC)).total_seconds())


def _progress_parts(launch: pb.Launch) -> Iterator[RenderableType]:
    for region in launch.progress:
        first = "experiment" if launch.strategy == pb.Launch.END_EXPERIMENT else "candidate"
        both = ((first, region.candidate), ("baseline", region.baseline))
        rows = [
            [
                label,
                render.percent(side.intended_basis_points),
                _observed(region, side),
                f"{side.available_replicas}/{side.desired_replicas}",
                str(side.total_replicas),
                str(side.requests),
                str(side.errors),
            ]
            for label, side in both
        ]
        headers = [
            render.short(region.region).upper(),
            "INTENDED",
            "OBSERVED",
            "AVAILABLE",
            "EXIST",
            "REQUESTS",
            "FAILED",
        ]
        yield render.table(headers, rows)
        yield Text(f"{region.free_units} units of the hold are free")
        yield Text("")


def _mark(step: pb.Step, current: int) -> str:
    share = render.percent(step.share_basis_points)
    return f"[{share}]" if step.number == current else share


def frame(launch: pb.Launch) -> RenderableType:
    """One picture of the live view."""
    state = render.enum(launch, "state")
    head = Text.assemble(
        (f"{render.short(launch.candidate)} → {render.short(launch.model_type)}  ", "bold"),
        (state, _STATE_STYLE.get(launch.state, "bold cyan")),
        f"  step {step_of(launch) or '-'}  {took(launch)}",
    )
    parts: list[RenderableType] = [head, Text(launch.summary), Text("")]
    for region in launch.progress:
        side = region.candidate
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"{render.short(region.region)} traffic"),
            ProgressBar(total=10_000, completed=side.intended_basis_points, width=40),
            Text(f"{render.percent(side.intended_basis_points)} intended, {_observed(region, side)} observed"),
        )
        parts.append(bar)
    parts.extend(_progress_parts(launch))
    for region_plan in launch.plan.regions:
        marks = " ".join(_mark(step, launch.current_step) for step in region_plan.steps)
        parts.append(Text(f"steps {marks}   hold {region_plan.hold_units} units"))
    parts.extend(Text(f"paused by {why.author}: {why.reason}", style="yellow") for why in launch.pause_reasons)
    if launch.HasField("abort"):
        parts.append(Text(f"going back because {launch.abort.author} says: {launch.abort.reason}", style="yellow"))
    for verdict in latest(launch)[-3:]:
        line = f"{verdict.gate} at step {verdict.step}: {render.enum(verdict, 'verdict')}: {verdict.explanation}"
        parts.append(Text(line))
    return Group(*parts)


def follow(updates: Iterable[pb.Launch]) -> pb.Launch | None:
    """Draws a launch live until it ends; without a terminal, a line for each new summary. Gives the last state."""
    last: pb.Launch | None = None
    if not sys.stdout.isatty():
        said = ""
        for last in updates:
            if last.summary != said:
                said = last.summary
                print(f"{datetime.now(UTC):%H:%M:%S} {render.enum(last, 'state')} {said}", flush=True)
        return last
    with Live(console=render.console(), auto_refresh=False, vertical_overflow="visible") as live:
        for last in updates:
            live.update(frame(last), refresh=True)
    return last
