"""`modelfleet launch`: plan, start, watch and steer launches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from modelfleet.cli import launch_view, render, watching
from modelfleet.cli.capacity.nouns import POOL
from modelfleet.cli.parameters import DURATION, SHARE
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.launcher.v1 import launcher_pb2 as pb


@click.group(cls=FleetGroup)
def group() -> None:
    """Plan, start, watch and steer launches."""


_STRATEGIES = {
    "replace-baseline": pb.Launch.REPLACE_BASELINE,
    "end-experiment": pb.Launch.END_EXPERIMENT,
}
_WISHES = (
    click.argument("candidate", metavar="TYPE/MODEL"),
    click.option("--pool", required=True, help="Pool whose capacity it takes."),
    click.option(
        "--strategy",
        type=click.Choice(list(_STRATEGIES)),
        default="replace-baseline",
        show_default=True,
        help="What it is to bring about; end-experiment gives an experiment's share to the baseline, in one step.",
    ),
    click.option("--region", "regions", multiple=True, help="Region; may be repeated. Default: all of the model type."),
    click.option("--max-step", type=SHARE, help="Largest growth of the share in one step. Default 20%."),
    click.option("--max-steps", type=click.IntRange(1, 100), help="Most steps. Default 20."),
    click.option("--bake", type=DURATION, help="Time at each step while its gates watch. Default 5m."),
    click.option("--step-deadline", type=DURATION, help="How long a step may take beyond its bake. Default 10m."),
    click.option("--deadline", type=DURATION, help="How long the launch may take. Default 7d."),
    click.option("--rollback-window", type=DURATION, help="How long capacity for a rollback is kept after success."),
    click.option("--approval", is_flag=True, help="Somebody else must approve it, even within quota."),
    click.option("--no-stability-gate", is_flag=True, help="Do not judge the candidate's predictions."),
    click.option("--reason", default="", help="Why; kept in the history."),
)


def _with_wishes(command: Any) -> Any:
    for option in reversed(_WISHES):
        command = option(command)
    return command


def _wanted(candidate: str, pool: str, regions: tuple[str, ...], reason: str, **wishes: Any) -> pb.Launch:
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
        pool=POOL.name(pool),
        regions=[f"regions/{render.short(region)}" for region in regions],
        policy=policy,
        reason=reason,
    )


def _name(value: str) -> str:
    return f"launches/{render.short(value)}"


@group.command("plan")
@_with_wishes
@with_session
def plan(session: Session, **wishes: Any) -> None:
    """Show the whole plan of a launch without creating anything."""
    found = session.client.launcher.create_launch(launch=_wanted(**wishes), validate_only=True)
    if session.is_table:
        for line in launch_view.plan_parts(found):
            render.console().print(line)
    else:
        render.dump(session, render.as_data(found))


@group.command("create")
@_with_wishes
@click.option("--id", "launch_id", default="", help="Id of the launch. Default: the service makes one.")
@click.option("--queue", is_flag=True, help="Wait for the launch that is active on the route instead of being refused.")
@click.option("--watch", is_flag=True, help="Follow it until it ends.")
@with_session
def create(session: Session, launch_id: str, queue: bool, watch: bool, **wishes: Any) -> None:
    """Launch a model: it replaces the baseline of its type, step by step. Or end an experiment."""
    made = session.client.launcher.create_launch(launch=_wanted(**wishes), launch_id=launch_id, queue=queue)
    if watch:
        _watch(session, made.name)
    elif session.is_table:
        click.echo(f"created {made.name}\n{made.summary}\nfollow it: modelfleet launch watch {render.short(made.name)}")
    else:
        render.dump(session, render.as_data(made))


@group.command("list")
@click.argument("model_type", required=False, default="")
@click.option("--active", is_flag=True, help="Only those that have not ended.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_launches(session: Session, model_type: str, active: bool, limit: int) -> None:
    """List launches, newest first, of one model type or of all."""
    answer = session.client.launcher.list_launches(
        model_type=f"modelTypes/{render.short(model_type)}" if model_type else "", active_only=active, page_size=limit
    )
    columns: list[render.Column] = [
        ("LAUNCH", lambda m: render.short(m.name)),
        ("CANDIDATE", lambda m: m.candidate.removeprefix("modelTypes/").replace("/models/", "/")),
        ("STATE", lambda m: render.enum(m, "state") + (" (paused)" if m.pause_reasons else "")),
        ("STEP", launch_view.step_of),
        ("SHARE", launch_view.share_of),
        ("BY", lambda m: m.actor),
        ("CREATED", lambda m: render.clock(m.create_time)),
        ("TOOK", launch_view.took),
    ]
    render.listing(
        session, answer.launches, columns, "No launches. Start one: modelfleet launch create TYPE/MODEL --pool POOL"
    )


@group.command("describe")
@click.argument("launch")
@with_session
def describe(session: Session, launch: str) -> None:
    """Explain a launch: what it does or waits for, its plan, its gates, what happened."""
    found = session.client.launcher.get_launch(name=_name(launch))
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    events = list(session.client.launcher.list_launch_events_all(name=found.name, page_size=1000))
    for part in launch_view.describe_parts(found, events):
        render.console().print(part)


@group.command("watch")
@click.argument("launch")
@with_session
def watch(session: Session, launch: str) -> None:
    """Follow a launch live until it ends. Exit status 1 unless it succeeds. With -o json, a line for each change."""
    _watch(session, _name(launch))


def _updates(session: Session, name: str) -> Iterator[pb.Launch]:
    """Every change of a launch until it has ended."""
    return watching.updates(
        lambda: session.client.launcher.watch_launch(name=name), lambda launch: launch.state in launch_view.ENDED
    )


def _stream(session: Session, updates: Iterator[pb.Launch]) -> pb.Launch | None:
    """Prints every change as it comes: a line of JSON, or a document of YAML."""
    last = None
    for last in updates:
        render.emit(session, render.as_data(last))
    return last


def _watch(session: Session, name: str) -> None:
    updates = _updates(session, name)
    last = launch_view.follow(updates) if session.is_table else _stream(session, updates)
    if last is not None and last.state != pb.Launch.SUCCEEDED:
        raise click.ClickException(f"{name} ended as {render.enum(last, 'state')}. {last.summary}".strip())


@group.command("events")
@click.argument("launch")
@with_session
def events(session: Session, launch: str) -> None:
    """List what happened to a launch, oldest first."""
    found = session.client.launcher.list_launch_events_all(name=_name(launch), page_size=1000)
    render.listing(session, found, launch_view.EVENT_COLUMNS, "Nothing happened yet.")


def _after(session: Session, launch: pb.Launch, done: str) -> None:
    """Says that a verb was taken; the launcher acts on it next, so the state is still the one before."""
    if not session.is_table:
        render.dump(session, render.as_data(launch))
        return
    click.echo(f"{launch.name}: {done}")
    for why in launch.pause_reasons:
        click.echo(f"paused by {why.author}: {why.reason}")
    if launch.state not in launch_view.ENDED:
        click.echo(f"follow it: modelfleet launch watch {render.short(launch.name)}")


@group.command("pause")
@click.argument("launch")
@click.option("--reason", required=True, help="Why.")
@with_session
def pause(session: Session, launch: str, reason: str) -> None:
    """Hold a launch where it is: weights stay, gates go on being measured."""
    _after(session, session.client.launcher.pause_launch(name=_name(launch), reason=reason), "pause taken")


@group.command("resume")
@click.argument("launch")
@click.option("--any-author", is_flag=True, help="Remove also the reasons of others, the gates' included.")
@with_session
def resume(session: Session, launch: str, any_author: bool) -> None:
    """Remove your reason to pause; the launch goes on when none is left."""
    found = session.client.launcher.resume_launch(name=_name(launch), any_author=any_author)
    if found.pause_reasons and not any_author:
        others = ", ".join(why.author for why in found.pause_reasons)
        raise click.ClickException(
            f"{found.name} stays paused, by {others}; to remove their reasons too: "
            f"modelfleet launch resume {render.short(found.name)} --any-author"
        )
    _after(session, found, "resumed")


@group.command("skip")
@click.argument("launch")
@click.option("--step", "expected_step", type=click.IntRange(1), required=True, help="The step that you see baking.")
@click.option("--reason", required=True, help="Why.")
@with_session
def skip(session: Session, launch: str, expected_step: int, reason: str) -> None:
    """End the bake of a step; capacity and availability are never skipped."""
    found = session.client.launcher.skip_launch_step(name=_name(launch), expected_step=expected_step, reason=reason)
    _after(session, found, f"the bake of step {expected_step} is over")


@group.command("abort")
@click.argument("launch")
@click.option("--reason", required=True, help="Why.")
@click.option("--watch", is_flag=True, help="Follow it until everything is back.")
@with_session
def abort(session: Session, launch: str, reason: str, watch: bool) -> None:
    """Take everything back to the baseline. Works in every state, needs no gate, and always wins."""
    found = session.client.launcher.abort_launch(name=_name(launch), reason=reason)
    if watch and session.is_table:
        launch_view.follow(_updates(session, found.name))
    else:
        _after(session, found, "abort taken; everything goes back")


@group.command("approve")
@click.argument("launch")
@click.option(
    "--envelope", help="Digest of the envelope that you saw. Default: the one shown now, after you confirm it."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@with_session
def approve(session: Session, launch: str, envelope: str | None, yes: bool) -> None:
    """Approve what a launch waits with; never your own."""
    if envelope is None:
        found = session.client.launcher.get_launch(name=_name(launch))
        envelope = found.envelope.digest
        if found.state == pb.Launch.AWAITING_APPROVAL and not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("nobody is there to confirm it; give --yes, or the digest with --envelope")
            for part in launch_view.envelope_parts(found):
                click.echo(part)
            click.confirm("Approve this?", abort=True)
    answer = session.client.launcher.approve_launch(name=_name(launch), envelope_digest=envelope)
    _after(session, answer, "approved")


@group.command("reject")
@click.argument("launch")
@click.option("--reason", required=True, help="Why.")
@with_session
def reject(session: Session, launch: str, reason: str) -> None:
    """Reject what a launch waits with; it ends as CANCELLED."""
    _after(session, session.client.launcher.reject_launch(name=_name(launch), reason=reason), "rejected")
