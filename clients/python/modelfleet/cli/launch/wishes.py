"""The options with which a launch is planned and created."""

from __future__ import annotations

from typing import Any

import click

from modelfleet.cli import completion, render
from modelfleet.cli.capacity.nouns import POOL
from modelfleet.cli.launch.freeze_view import FREEZE_WINDOW
from modelfleet.cli.launch.gates import PeopleParameter, WebhookParameter
from modelfleet.cli.parameters import DURATION, RATIO, SHARE
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
_ORDERS = {
    "one-by-one": pb.LaunchPolicy.ONE_BY_ONE,
    "together": pb.LaunchPolicy.TOGETHER,
    "canary-region": pb.LaunchPolicy.CANARY_REGION,
}
_AVAILABILITY = ("max_error_rate_increase", "max_error_rate", "max_latency_increase", "max_latency")
_WISHES = (
    click.argument("candidate", metavar="TYPE/MODEL", shell_complete=completion.models),
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
    click.option(
        "--region-order",
        type=click.Choice(list(_ORDERS)),
        help="One after another, the one with the least traffic first; all together, step by step; or that one first "
        "and then the others together. Default one-by-one; a mitigation goes everywhere together.",
    ),
    click.option("--max-step", type=SHARE, help="Largest growth of the share in one step. Default 20%."),
    click.option("--max-steps", type=click.IntRange(1, 100), help="Most steps. Default 20."),
    click.option("--bake", type=DURATION, help="Time at each step while its gates watch. Default 5m."),
    click.option("--step-deadline", type=DURATION, help="How long a step may take beyond its bake. Default 10m."),
    click.option("--deadline", type=DURATION, help="How long the launch may take. Default 7d."),
    click.option("--rollback-window", type=DURATION, help="How long capacity for a rollback is kept after success."),
    click.option("--approval", is_flag=True, help="Somebody else must approve it, even within quota."),
    click.option("--no-stability-gate", is_flag=True, help="Do not judge the candidate's predictions."),
    click.option("--no-evidence-gate", is_flag=True, help="Do not ask for the candidate's evidence."),
    click.option("--no-availability-gate", is_flag=True, help="Do not compare the candidate's errors and latency."),
    click.option(
        "--max-error-rate-increase",
        type=SHARE,
        help="Most by which its error rate may exceed the baseline's. Default 0.5%.",
    ),
    click.option("--max-error-rate", type=SHARE, help="Highest error rate, whatever the baseline's. Default 5%."),
    click.option(
        "--max-latency-increase",
        type=RATIO,
        help="Most by which its 99th percentile of latency may exceed the baseline's. Default 50%.",
    ),
    click.option("--max-latency", type=DURATION, help="Highest 99th percentile of its latency. Default: no limit."),
    click.option(
        "--webhook",
        "webhooks",
        type=WebhookParameter(),
        multiple=True,
        help="Ask this webhook of the launcher's before anything is started; NAME@every-step at the end of every bake, "
        "NAME@before-finalize before the registry is told. May be repeated.",
    ),
    click.option(
        "--ask-people",
        "people",
        type=PeopleParameter(),
        multiple=True,
        help="Wait for somebody else before this share is exceeded; 0%:REASON before anything is started. "
        "May be repeated, in rising order.",
    ),
    click.option(
        "--dry-run-gate",
        "dry_runs",
        type=click.Choice(["stability", "availability", "evidence", "webhooks"]),
        multiple=True,
        help="Record what this gate says, and do not enforce it. May be repeated.",
    ),
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


def _demand(policy: pb.LaunchPolicy, wishes: dict[str, Any]) -> None:
    """What the gates demand; what is not wished for keeps its default."""
    for gate in ("stability", "evidence", "availability"):
        if wishes[f"no_{gate}_gate"]:
            getattr(policy, f"{gate}_gate").disabled = True
    availability = policy.availability_gate if any(wishes[name] is not None for name in _AVAILABILITY) else None
    if availability is not None:
        if wishes["max_error_rate_increase"] is not None:
            availability.max_error_rate_increase_basis_points = wishes["max_error_rate_increase"]
        if wishes["max_error_rate"] is not None:
            availability.max_error_rate_basis_points = wishes["max_error_rate"]
        if wishes["max_latency_increase"] is not None:
            availability.max_latency_p99_increase = wishes["max_latency_increase"]
        if wishes["max_latency"] is not None:
            availability.max_latency_p99_ms = wishes["max_latency"].ToNanoseconds() / 1e6
    policy.webhook_gates.extend(wishes["webhooks"])
    policy.people_gates.extend(wishes["people"])
    for name in wishes["dry_runs"]:
        for made in policy.webhook_gates if name == "webhooks" else [getattr(policy, f"{name}_gate")]:
            made.dry_run = True


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
    if wishes["region_order"]:
        policy.region_order = _ORDERS[wishes["region_order"]]
    _demand(policy, wishes)
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
