"""How a launch looks: in a line, its plan, and what its approval is bound to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.launch.freeze_view import conflict_parts
from modelfleet.launcher.v1 import launcher_pb2 as pb

ENDED = {pb.Launch.SUCCEEDED, pb.Launch.ROLLED_BACK, pb.Launch.CANCELLED, pb.Launch.FAILED}
STATE_STYLE = {
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


def observed(region: pb.RegionProgress, side: pb.SideProgress) -> str:
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
    # Which one it is, if any, is known from the plan on: a launch before it may put another one in its place.
    baseline = render.short(launch.baseline) or ("nothing" if launch.plan.regions else "the baseline")
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
            instead = f", in the place of {baseline}" if launch.baseline else ""
            return f"{candidate} is the baseline of {kind} again{instead}"
        case _:
            keeps = render.percent(launch.holdout_share_basis_points) if launch.holdout_share_basis_points else ""
            holdout = f", which keeps {keeps} as a holdout" if keeps else ""
            return f"{candidate} replaces {baseline} of {kind}{holdout}"


def models(launch: pb.Launch) -> tuple[str, str]:
    """What candidate and baseline are called."""
    for region in launch.plan.regions:
        if region.new_called:
            both = region.new_called, region.old_called or "baseline"
            return both if region.new_model == launch.candidate else both[::-1]
    called = {pb.Launch.RAMP: "experiment", pb.Launch.END_EXPERIMENT: "experiment", pb.Launch.RESIZE: "model"}
    return called.get(launch.strategy, "candidate"), "baseline"


def sides(launch: pb.Launch) -> tuple[str, str]:
    """What the side that grows and the one that gives are called."""
    candidate, baseline = models(launch)
    grows = launch.plan.regions[0].new_model if launch.plan.regions else launch.candidate
    return (candidate, baseline) if grows == launch.candidate else (baseline, candidate)


def plan_parts(launch: pb.Launch) -> Iterator[RenderableType]:
    """The plan: wave by wave what each region needs, and its steps as a table; then what it costs, and who is asked."""
    yield Text(headline(launch), style="bold")
    plan = launch.plan
    waves = [list(regions) for _, regions in groupby(plan.regions, key=lambda region: region.wave or region.region)]
    for number, regions in enumerate(waves, start=1):
        if len(plan.regions) > 1:
            together = f": {len(regions)} regions together, step by step" if len(regions) > 1 else ""
            yield Text(f"wave {number} of {len(waves)}{together}", style="bold")
        for region in regions:
            yield from _region_parts(region, *sides(launch))
    yield from conflict_parts(launch)
    if plan.wait:
        yield Text(f"does not fit what is free now, so it {plan.wait}", style="yellow")
    if plan.policy_decision:
        yield Text(f"launch policy: {plan.policy_decision}")
    if plan.needs_approval:
        yield Text("somebody else has to approve it before anything is reserved", style="yellow")
    bake = render.duration(launch.policy.bake_duration)
    yield Text(f"each step bakes for {bake}" if bake else "no step bakes")
    yield from (Text(f"gate  {gate}") for gate in plan.gates)
    if not plan.gates:
        yield Text("no gate judges it")
    after = " once it need not wait any more" if plan.wait else ""
    yield Text(
        f"cost per hour {plan.cost_before:.2f} → {plan.cost_after:.2f}, at the peak {plan.cost_peak:.2f}; "
        f"expected to take {render.duration(plan.expected_duration) or 'no time'}{after}{_afterwards(launch)}"
    )


def _afterwards(launch: pb.Launch) -> str:
    """What is kept for a rollback; nothing where there can be none: of the first model of a route, of an experiment."""
    if launch.strategy != pb.Launch.REPLACE_BASELINE or not any(region.old_model for region in launch.plan.regions):
        return ""
    kept = render.duration(launch.policy.rollback_window)
    if not kept:
        return "; no capacity is kept for a rollback"
    return f", and capacity for a rollback is kept for {kept} after it"


def _region_parts(region: pb.RegionPlan, new: str, old: str) -> Iterator[RenderableType]:
    inferred = " (inferred from what serves)" if region.old_inferred else ""
    gives = f" for {region.old_replicas_full} of the {old}{inferred}" if region.old_model else ""
    yield Text(f"{render.short(region.region)}: {region.new_replicas_full} replicas of the {new}{gives}")
    if new == "baseline" and region.old_model:
        yield Text("  it grows, so the share of a step is the baseline's")
    several = len(region.holds) > 1
    for hold in region.holds:
        of = f" of {render.short(hold.flavor)}" if several else ""
        yield Text(
            f"  holds {hold.hold_units} units{of} = {hold.moved_units} moved + {hold.extra_units} extra "
            f"of {hold.free_units} free"
        )
    rows = [
        [
            str(step.number),
            render.percent(step.share_basis_points),
            f"{step.new_replicas_before} → {step.new_replicas}",
            f"{step.old_replicas_before} → {step.old_replicas_after}",
            str(step.peak_units),
            str(region.hold_units - step.peak_units + step.freed_units),
            f"{step.cost:.2f}",
            render.duration(step.expected_end),
            render.duration(step.worst_undo),
        ]
        for step in region.steps
    ]
    headers = ["STEP", "SHARE", new.upper(), old.upper(), "PEAK", "FREE", "COST/H", "DONE AFTER", "UNDO"]
    if not region.old_model:
        # Nobody gives anything: no column is about it.
        headers, *rows = ([*row[:3], *row[4:]] for row in (headers, *rows))
    elif several:
        # Units of two flavors have no sum: what each side takes of its own is the number of its replicas.
        headers, *rows = ([*row[:4], *row[6:]] for row in (headers, *rows))
    yield Padding(render.table(headers, rows), (0, 0, 0, 2))


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
