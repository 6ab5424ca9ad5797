"""What people do to a launch."""

from __future__ import annotations

import sys

import click

from modelfleet.cli import completion, render
from modelfleet.cli.launch import view
from modelfleet.cli.launch.advice import is_mitigation
from modelfleet.cli.launch.follow import followed, launch_name, watch_to_end
from modelfleet.cli.launch.freeze_view import FREEZE_WINDOW
from modelfleet.cli.launch.told import with_session
from modelfleet.cli.session import Session
from modelfleet.launcher.v1 import launcher_pb2 as pb


def _after(session: Session, launch: pb.Launch, done: str) -> None:
    """Says that a verb was taken; the launcher acts on it next, so the state is still the one before."""
    if not session.is_table:
        render.dump(session, render.as_data(launch))
        return
    click.echo(f"{launch.name}: {done}")
    for why in launch.pause_reasons:
        click.echo(f"paused by {why.author} since {render.clock(why.time)}: {why.reason}")
    if launch.state not in view.ENDED:
        click.echo(f"follow it: modelfleet launch watch {render.short(launch.name)}")


@click.command("pause")
@click.argument("launch", shell_complete=completion.launches)
@click.option("--reason", required=True, help="Why.")
@with_session
def pause(session: Session, launch: str, reason: str) -> None:
    """Hold a launch where it is: weights stay, gates go on being measured."""
    _after(session, session.client.launcher.pause_launch(name=launch_name(launch), reason=reason), "is paused")


@click.command("resume")
@click.argument("launch", shell_complete=completion.launches)
@click.option("--any-author", is_flag=True, help="Remove also the reasons of others, the gates' included.")
@with_session
def resume(session: Session, launch: str, any_author: bool) -> None:
    """Remove your reason to pause; the launch goes on when none is left."""
    found = session.client.launcher.resume_launch(name=launch_name(launch), any_author=any_author)
    held = [why.author for why in found.pause_reasons if is_mitigation(why)]
    if held:
        raise click.ClickException(f"{found.name} stays paused, by {', '.join(held)}; that goes with its end only")
    if found.pause_reasons and not any_author:
        others = ", ".join(why.author for why in found.pause_reasons)
        raise click.ClickException(
            f"{found.name} stays paused, by {others}; to remove their reasons too: "
            f"modelfleet launch resume {render.short(found.name)} --any-author"
        )
    _after(session, found, "resumed")


@click.command("skip")
@click.argument("launch", shell_complete=completion.launches)
@click.option("--step", "expected_step", type=click.IntRange(1), required=True, help="The step that you see baking.")
@click.option("--reason", required=True, help="Why.")
@with_session
def skip(session: Session, launch: str, expected_step: int, reason: str) -> None:
    """End the bake of a step; capacity and availability are never skipped."""
    found = session.client.launcher.skip_launch_step(
        name=launch_name(launch), expected_step=expected_step, reason=reason
    )
    _after(session, found, f"the bake of step {expected_step} is over")


@click.command("promote")
@click.argument("launch", shell_complete=completion.launches)
@click.option("--reason", required=True, help="Why.")
@with_session
def promote(session: Session, launch: str, reason: str) -> None:
    """Skip the bakes that remain; never capacity or availability. A gate that fails still leads back."""
    found = session.client.launcher.promote_launch(name=launch_name(launch), reason=reason)
    _after(session, found, "promoted; it goes on without bakes")


@click.command("abort")
@click.argument("launch", shell_complete=completion.launches)
@click.option("--reason", required=True, help="Why.")
@click.option("--watch", is_flag=True, help="Follow it until everything is back.")
@with_session
def abort(session: Session, launch: str, reason: str, watch: bool) -> None:
    """Take everything back to the baseline. Works in every state, needs no gate, and always wins."""
    found = session.client.launcher.abort_launch(name=launch_name(launch), reason=reason)
    if watch and session.is_table:
        followed(session, found.name)
    else:
        _after(session, found, "abort taken; everything goes back")


@click.command("approve")
@click.argument("launch", shell_complete=completion.launches)
@click.option(
    "--envelope", help="Digest of the envelope that you saw. Default: the one shown now, after you confirm it."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@with_session
def approve(session: Session, launch: str, envelope: str | None, yes: bool) -> None:
    """Approve what a launch waits with; never your own."""
    if envelope is None:
        found = session.client.launcher.get_launch(name=launch_name(launch))
        envelope = found.envelope.digest
        awaited = any(verb.startswith("ApproveLaunch") for verb in found.allowed_verbs)
        if awaited and not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("nobody is there to confirm it; give --yes, or the digest with --envelope")
            for part in view.envelope_parts(found):
                click.echo(part)
            if found.state != pb.Launch.AWAITING_APPROVAL:
                # Approved long ago; what people are asked about now is the summary's.
                click.echo(found.summary)
            click.confirm("Approve this?", abort=True)
    answer = session.client.launcher.approve_launch(name=launch_name(launch), envelope_digest=envelope)
    _after(session, answer, "approved")


@click.command("reject")
@click.argument("launch", shell_complete=completion.launches)
@click.option("--reason", required=True, help="Why.")
@with_session
def reject(session: Session, launch: str, reason: str) -> None:
    """Reject what a launch waits with; it ends as CANCELLED, or goes back where it has begun."""
    _after(session, session.client.launcher.reject_launch(name=launch_name(launch), reason=reason), "rejected")


@click.command("retry")
@click.argument("launch", shell_complete=completion.launches)
@click.option("--reason", required=True, help="What is different now.")
@click.option("--queue", is_flag=True, help="Wait for the launch that is active on the route instead of being refused.")
@click.option("--watch", is_flag=True, help="Follow it until it ends.")
@with_session
def retry(session: Session, launch: str, reason: str, queue: bool, watch: bool) -> None:
    """Start a launch that was rolled back or cancelled once more: a fresh estimate, fresh gates, a fresh approval."""
    found = session.client.launcher.retry_launch(name=launch_name(launch), reason=reason, queue=queue)
    if watch:
        watch_to_end(session, found.name)
        return
    _after(session, found, f"attempt {found.attempt} begins")
    if session.is_table:
        click.echo(f"what was tried before: modelfleet launch attempts {render.short(found.name)}")


@click.command("rollback")
@click.argument("launch", shell_complete=completion.launches)
@click.option("--reason", required=True, help="Why; the hold on its model says it too.")
@click.option(
    "--id", "launch_id", default="", help="Id of the launch that takes it back. Default: the service makes one."
)
@click.option("--dry-run", is_flag=True, help="Only plan; create nothing.")
@click.option("--watch", is_flag=True, help="Follow it until it ends.")
@with_session
def rollback(session: Session, launch: str, reason: str, launch_id: str, dry_run: bool, watch: bool) -> None:
    """Take back a launch that has succeeded, to the baseline that it replaced; its model is on hold from then on."""
    made = session.client.launcher.roll_back_launch(
        name=launch_name(launch), reason=reason, launch_id=launch_id, validate_only=dry_run
    )
    if dry_run and session.is_table:
        for line in view.plan_parts(made):
            render.console().print(line)
        return
    if watch and not dry_run:
        watch_to_end(session, made.name)
        return
    if not session.is_table:
        render.dump(session, render.as_data(made))
        return
    held = made.baseline.removeprefix("modelTypes/").replace("/models/", "/")
    click.echo(f"created {made.name}, which takes {made.rolls_back} back\n{made.summary}")
    click.echo(f"{held} is on hold until somebody lifts it: modelfleet launch hold list {held}")
    click.echo(f"follow it: modelfleet launch watch {render.short(made.name)}")


@click.command("override")
@click.argument("launch", shell_complete=completion.launches)
@click.option("--window", required=True, metavar="WINDOW", help="The freeze window that is not to hold for it.")
@click.option("--reason", required=True, help="Why; kept in the history.")
@with_session
def override(session: Session, launch: str, window: str, reason: str) -> None:
    """Let a launch go on in spite of a freeze window. For owners and approvers."""
    name = FREEZE_WINDOW.name(window)
    found = session.client.launcher.override_launch_freeze(name=launch_name(launch), freeze_window=name, reason=reason)
    _after(session, found, f"{name} does not hold for it")
