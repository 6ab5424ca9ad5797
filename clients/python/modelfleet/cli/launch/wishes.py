"""The options with which a launch is planned and created."""

from __future__ import annotations

from typing import Any

import click

from modelfleet.cli import render
from modelfleet.cli.capacity.nouns import POOL
from modelfleet.cli.launch.freeze_view import FREEZE_WINDOW
from modelfleet.cli.parameters import DURATION, SHARE
from modelfleet.cli.registry import MODEL
from modelfleet.launcher.v1 import gates_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb

_STRATEGIES = {
    "replace-baseline": pb.Launch.REPLACE_BASELINE,
    "start-experiment": pb.Launch.START_EXPERIMENT,
    "ramp": pb.Launch.RAMP,
    "end-experiment": pb.Launch.END_EXPERIMENT,
    "resize": pb.Launch.RESIZE,
    "roll-back": pb.Launch.ROLL_BACK,
}
_WISHES = (
    click.argument("candidate", metavar="TYPE/MODEL"),
    click.option("--pool", required=True, help="Pool whose capacity it takes."),
    click.option(
        "--strategy",
        type=click.Choice(list(_STRATEGIES)),
        default="replace-baseline",
        show_default=True,
        help="What it is to bring about. start-experiment and ramp take it to --share, ramp down too; end-experiment"
        " and roll-back mitigate: everywhere, without gates or bakes; resize only changes the replicas, to what is"
        " needed now.",
    ),
    click.option("--share", type=SHARE, help="With start-experiment and ramp: its share of the traffic in the end."),
    click.option(
        "--holdout", type=SHARE, help="With replace-baseline: the share that the old baseline keeps. At most 50%."
    ),
    click.option(
        "--region",
        "regions",
        multiple=True,
        help="Region; may be repeated. Default: all of the model type; with ramp and resize where it serves.",
    ),
    click.option("--max-step", type=SHARE, help="Largest growth of the share in one step. Default 20%."),
    click.option("--max-steps", type=click.IntRange(1, 100), help="Most steps. Default 20."),
    click.option("--bake", type=DURATION, help="Time at each step while its gates watch. Default 5m."),
    click.option("--step-deadline", type=DURATION, help="How long a step may take beyond its bake. Default 10m."),
    click.option("--deadline", type=DURATION, help="How long the launch may take. Default 7d."),
    click.option("--rollback-window", type=DURATION, help="How long capacity for a rollback is kept after success."),
    click.option("--approval", is_flag=True, help="Somebody else must approve it, even within quota."),
    click.option("--no-stability-gate", is_flag=True, help="Do not judge the candidate's predictions."),
    click.option(
        "--override", "overrides", multiple=True, metavar="WINDOW=REASON",
        help="A freeze window that is not to hold for it, and why; may be repeated.",
    ),
    click.option("--reason", default="", help="Why; kept in the history."),
)  # fmt: skip


def with_wishes(command: Any) -> Any:
    for option in reversed(_WISHES):
        command = option(command)
    return command


def wanted(candidate: str, pool: str, regions: tuple[str, ...], reason: str, **wishes: Any) -> pb.Launch:
    name = MODEL.name(candidate)
    policy = pb.LaunchPolicy(
        max_step_basis_points=wishes["max_step"] or 0,
        max_steps=wishes["max_steps"] or 0,
        bake_duration=wishes["bake"],
        step_deadline=wishes["step_deadline"],
        launch_deadline=wishes["deadline"],
        rollback_window=wishes["rollback_window"],
        approval=pb.LaunchPolicy.REQUIRED if wishes["approval"] else pb.LaunchPolicy.APPROVAL_UNSPECIFIED,
    )
    if wishes["no_stability_gate"]:
        policy.stability_gate.disabled = True
    return pb.Launch(
        model_type=name.rsplit("/models/", 1)[0],
        candidate=name,
        strategy=_STRATEGIES[wishes["strategy"]],
        target_share_basis_points=wishes["share"] or 0,
        holdout_share_basis_points=wishes["holdout"] or 0,
        pool=POOL.name(pool),
        regions=[f"regions/{render.short(region)}" for region in regions],
        policy=policy,
        reason=reason,
        freeze_overrides=[_override(each) for each in wishes["overrides"]],
    )


def _override(given: str) -> gates_pb2.FreezeOverride:
    window, _, reason = given.partition("=")
    if not window or not reason:
        raise click.UsageError(f"--override takes WINDOW=REASON, such as holidays='a fix for …', not '{given}'")
    return gates_pb2.FreezeOverride(freeze_window=FREEZE_WINDOW.name(window), reason=reason)
