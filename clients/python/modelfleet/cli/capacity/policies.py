"""`modelfleet capacity policy|decide|decision`: what launches may cost before somebody is asked."""

from __future__ import annotations

from collections.abc import Iterable

import click

from modelfleet.capacity.v1 import policies_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.capacity.nouns import POLICY, POOL
from modelfleet.cli.parameters import SHARE
from modelfleet.cli.registry import MODEL
from modelfleet.cli.resources import add_standard_verbs
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.wording import short_model


@click.group(cls=FleetGroup)
def policy() -> None:
    """Launch policies: what may be launched without asking.

    What a team's launches may cost before somebody is asked.
    """


add_standard_verbs(policy, POLICY)


@click.command("decide")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--pool", required=True, metavar="POOL", help="Whose capacity it would be.")
@click.option(
    "--policy", "by", default="", metavar="POLICY", help="Launch policy. Default: the model type's, else its team's."
)
@click.option("--launch", default="", metavar="LAUNCH", help="The launch that it is for, where there is one.")
@click.option("--share", type=SHARE, help="Share of the route that the model is to have: 5%. Default: all of it.")
@click.option("--report", default="", metavar="REPORT", help="Evaluation report with the gain. Default: the newest.")
@click.option("--dry-run", is_flag=True, help="Only answer; keep nothing.")
@with_session
def decide(
    session: Session, model: str, pool: str, by: str, launch: str, share: int | None, report: str, dry_run: bool
) -> None:
    """Ask a launch policy whether a launch may go on by itself.

    What it says is kept, with every value that it saw.
    """
    candidate = MODEL.name(model)
    wanted = pb.LaunchDecision(
        candidate=candidate,
        pool=POOL.name(pool),
        launch_policy=POLICY.name(by) if by else "",
        launch=f"launches/{render.short(launch)}" if launch else "",
        share_basis_points=share or 0,
        evaluation_report=f"{candidate}/evaluationReports/{render.short(report)}" if report else "",
    )
    with render.busy("Deciding"):
        made = session.client.capacity.create_launch_decision(launch_decision=wanted, validate_only=dry_run)
    _show(session, made)
    if session.is_table:
        click.echo("nothing was kept" if dry_run else f"kept as {made.name}")


@click.group(cls=FleetGroup)
def decision() -> None:
    """What launch policies said of launches; never changed."""


_COLUMNS: list[render.Column] = [
    ("DECISION", lambda m: render.short(m.name)),
    ("CANDIDATE", lambda m: short_model(m.candidate)),
    ("OUTCOME", lambda m: render.enum(m, "outcome")),
    ("POLICY", lambda m: render.short(m.launch_policy) or "built in"),
    ("LAUNCH", lambda m: render.short(m.launch) or "-"),
    ("BY", lambda m: m.actor),
    ("TIME", lambda m: render.clock(m.create_time)),
]


@decision.command("list")
@click.argument("model", metavar="[TYPE/MODEL]", required=False, default="")
@click.option("--launch", default="", metavar="LAUNCH", help="Only of this launch.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_decisions(session: Session, model: str, launch: str, limit: int) -> None:
    """List decisions of one model or of all, newest first."""
    answer = session.client.capacity.list_launch_decisions(
        candidate=MODEL.name(model) if model else "",
        launch=f"launches/{render.short(launch)}" if launch else "",
        page_size=limit,
    )
    nothing = "No decisions yet. Ask for one: modelfleet capacity decide TYPE/MODEL --pool POOL"
    render.listing(session, answer.launch_decisions, _COLUMNS, nothing)


@decision.command("show")
@click.argument("name", metavar="DECISION")
@with_session
def show_decision(session: Session, name: str) -> None:
    """Show a decision with every value that it saw.

    And the policy as it was when it decided.
    """
    _show(session, session.client.capacity.get_launch_decision(name=f"launchDecisions/{render.short(name)}"))


def _show(session: Session, made: pb.LaunchDecision) -> None:
    if not session.is_table:
        render.dump(session, render.as_data(made))
        return
    by = made.launch_policy or "the built-in policy (free within quota)"
    click.echo(f"{render.enum(made, 'outcome')} by {by}: {made.explanation}")
    if made.approvers:
        click.echo(f"may approve: {_approvers(made.approvers)}")
    rows = [[v.id, f"{v.value:.6g}", v.unit, _shown(v.source), render.clock(v.time)[:16]] for v in made.values]
    render.console().print(render.table(["VALUE", "IS", "UNIT", "SOURCE", "AS OF"], rows))
    kept = render.duration(made.policy.rollback_window) or "no time"
    click.echo(f"after the launch, what a rollback needs is kept for: {kept}")
    for warning in made.warnings:
        click.echo(f"note: {warning}", err=True)


def _approvers(approvers: Iterable[pb.PolicyApprover]) -> str:
    roles = pb.PolicyApprover.DESCRIPTOR.fields_by_name["role"].enum_type
    assert roles is not None
    return ", ".join(f"{roles.values_by_number[each.role].name} of {each.team}" for each in approvers)


def _shown(source: str) -> str:
    """The source of a value: a report by its id, since its name is long."""
    return source.rpartition("/evaluationReports/")[2]
