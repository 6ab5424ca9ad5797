"""How a launch looks: its plan, its explanation, and the live view."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modelfleet.cli import render
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
    """From creation to the end, or until now."""
    if launch.HasField("end_time"):
        return render.seconds((launch.end_time.ToDatetime() - launch.create_time.ToDatetime()).total_seconds())
    return render.age(launch.create_time)


def headline(launch: pb.Launch) -> str:
    """What a launch is to bring about, in a line."""
    candidate, kind = render.short(launch.candidate), render.short(launch.model_type)
    baseline = render.short(launch.baseline) if launch.baseline else "nothing"
    target = render.percent(launch.target_share_basis_points)
    match launch.strategy:
        case pb.Launch.START_EXPERIMENT:
            return f"{candidate} of {kind} starts as an experiment with {target}, which {baseline} gives"
        case pb.Launch.RAMP:
            return f"{candidate} of {kind} goes to {target}; {baseline} has the rest of what both have"
        case pb.Launch.END_EXPERIMENT:
            return f"{candidate} of {kind} ends; its traffic returns to {baseline}"
        case pb.Launch.RESIZE:
            return f"{candidate} of {kind} keeps its share and gets the replicas that it needs now"
        case pb.Launch.ROLL_BACK:
            return f"{candidate} is the baseline of {kind} again, in the place of {baseline}"
        case _:
            keeps = render.percent(launch.holdout_share_basis_points) if launch.holdout_share_basis_points else ""
            holdout = f", which keeps {keeps} as a holdout" if keeps else ""
            return f"{candidate} replaces {baseline} of {kind}{holdout}"


def models(launch: pb.Launch) -> tuple[str, str]:
    """What candidate and baseline are called."""
    called = {pb.Launch.RAMP: "experiment", pb.Launch.END_EXPERIMENT: "experiment", pb.Launch.RESIZE: "model"}
    return called.get(launch.strategy, "candidate"), "baseline"


def sides(launch: pb.Launch) -> tuple[str, str]:
    """What the side that grows and the one that gives are called."""
    candidate, baseline = models(launch)
    grows = launch.plan.regions[0].new_model if launch.plan.regions else launch.candidate
    return (candidate, baseline) if grows == launch.candidate else (baseline, candidate)


def plan_parts(launch: pb.Launch) -> Iterator[RenderableType]:
    """The plan: what each region needs, then its steps as a table."""
    yield Text(headline(launch), style="bold")
    new, old = sides(launch)
    for region in launch.plan.regions:
        inferred = " (inferred from what serves)" if region.old_inferred else ""
        instead = f" for {region.old_replicas_full} of the {old}{inferred}" if region.old_model else ""
        yield Text(
            f"{render.short(region.region)}: {region.new_replicas_full} replicas of the {new}{instead}; "
            f"holds {region.hold_units} units = {region.moved_units} moved + {region.extra_units} extra of "
            f"{region.free_units} free"
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
        if not region.old_model:
            # Nobody gives anything: no column is about it.
            headers, *rows = ([*row[:2], row[3], *row[5:]] for row in (headers, *rows))
        yield Padding(render.table(headers, rows), (0, 0, 0, 2))
    plan = launch.plan
    if plan.wait:
        yield Text(f"does not fit what is free now, so it {plan.wait}")
    yield Text(
        f"each step bakes for {render.duration(launch.policy.bake_duration) or 'no time'}; {_gates(launch.policy)}"
    )
    yield Text(
        f"cost per hour {plan.cost_before:.2f} → {plan.cost_after:.2f}, at the peak {plan.cost_peak:.2f}; "
        f"expected to take {render.duration(plan.expected_duration) or 'no time'}"
    )


def _gates(policy: pb.LaunchPolicy) -> str:
    """What has to hold before a launch goes on, and what happens while the evidence does not suffice."""
    gate = policy.stability_gate
    if gate.disabled:
        return "no gate judges its predictions"
    if not gate.criteria:
        return "the model type declares no prediction to be judged"
    demanded = "; ".join(
        f"{wanted.prediction}: calibration within {wanted.calibration_low:g} to {wanted.calibration_high:g} by "
        f"at least {wanted.min_positives} positives"
        for wanted in gate.criteria
    )
    enforced = (
        "recorded, not enforced" if gate.dry_run else f"else it waits {gate.max_extensions} bakes more, then pauses"
    )
    return f"gate: stability of {demanded}, {enforced}"


def envelope_parts(launch: pb.Launch) -> Iterator[str]:
    """What an approval is bound to, in lines."""
    envelope = launch.envelope
    yield f"candidate   {envelope.candidate}"
    yield f"            {envelope.serving_spec_digest}"
    yield f"strategy    {render.enum(envelope, 'strategy')}, to {render.percent(envelope.target_share_basis_points)}"
    yield f"baseline    {envelope.baseline or 'nothing'}"
    if envelope.holdout_share_basis_points:
        yield f"keeps       {render.percent(envelope.holdout_share_basis_points)} as a holdout"
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
    yield Text(f"trace {launch.trace_id}")
    yield Text("")
    yield from _progress_parts(launch)
    yield from plan_parts(launch)
    if launch.gate_verdicts:
        yield Text("")
        yield render.table(
            ["GATE", "STEP", "VERDICT", "WHY"],
            [[v.gate, str(v.step), render.enum(v, "verdict"), v.explanation] for v in _latest(launch)[-10:]],
        )
    if launch.phase_times:
        yield Text("")
        yield render.table(["PHASE", "TOOK"], [[render.enum(p, "state"), _phase_took(p)] for p in launch.phase_times])
    if events:
        yield Text("")
        yield render.table(
            [name for name, _ in EVENT_COLUMNS], [[c(e) for _, c in EVENT_COLUMNS] for e in events[-30:]]
        )


def _latest(launch: pb.Launch) -> list[pb.GateVerdict]:
    """The last verdict of each run of equal ones: a gate is asked many times, and mostly says the same."""
    runs = groupby(launch.gate_verdicts, key=lambda v: (v.gate, v.region, v.step, v.verdict))
    return [list(run)[-1] for _, run in runs]


def _phase_took(phase: pb.PhaseTime) -> str:
    end = phase.end_time.ToDatetime(tzinfo=UTC) if phase.HasField("end_time") else datetime.now(UTC)
    return render.seconds((end - phase.start_time.ToDatetime(tzinfo=UTC)).total_seconds())


def _progress_parts(launch: pb.Launch) -> Iterator[RenderableType]:
    for region in launch.progress:
        both = list(zip(models(launch), (region.candidate, region.baseline), strict=True))
        if launch.strategy == pb.Launch.RESIZE:
            both = both[:1]
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
    for verdict in _latest(launch)[-3:]:
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
