"""`modelfleet mitigate`: end an experiment or take a launch back in one action; for all else, whom to page."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

import click
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.investigate import refuse_ambiguous
from modelfleet.cli.launch import view
from modelfleet.cli.session import Session, with_session
from modelfleet.investigate import plain
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.lookup import Ambiguous, NothingFound
from modelfleet.mitigate import Action, Case, Response, carry_out, find_case, respond
from modelfleet.wording import short_model

_QUESTIONS = {
    Action.END_EXPERIMENT: "End it now?",
    Action.ABORT_LAUNCH: "Abort that launch now?",
}


@dataclass(frozen=True, slots=True)
class _Wishes:
    """The options."""

    reason: str
    pool: str
    yes: bool
    dry_run: bool


@click.command("mitigate")
@click.argument("query", metavar="MODEL")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--reason", default="", help="Why; kept in the history. Default: that it is a mitigation.")
@click.option("--pool", default="", help="Pool whose capacity an experiment takes, where that cannot be told.")
@click.option("--dry-run", is_flag=True, help="Only show what may be done, and its plan; change nothing.")
@with_session
def group(session: Session, query: str, yes: bool, reason: str, pool: str, dry_run: bool) -> None:
    """Show what may be done about a model, by its role and tier, and do it.

    An experiment is ended: its traffic goes back to the baseline, which grows first. What a launch is bringing in is
    taken back. A baseline or a holdout is refused, with whom to page. Exit status 1 unless it is done, or nothing needs
    to be done.
    """
    wishes = _Wishes(reason, f"pools/{render.short(pool)}" if pool else "", yes, dry_run)
    asyncio.run(_mitigate(session, query, wishes))


async def _mitigate(session: Session, query: str, wishes: _Wishes) -> None:
    async with session.client.for_asyncio() as client:
        try:
            case = await find_case(client, query, session.client.timeout)
            response = respond(case)
            if session.is_table:
                _show(case, response)
            launch = None
            if response.action in _QUESTIONS:
                if wishes.dry_run or not wishes.yes:
                    launch = await carry_out(client, case, response, reason="", pool=wishes.pool, dry_run=True)
                    _plan(session, response, launch)
                if not wishes.dry_run:
                    _confirm(session, response, wishes)
                    why = wishes.reason or "mitigation from the command line"
                    launch = await carry_out(client, case, response, reason=why, pool=wishes.pool)
        except NothingFound as nothing:
            raise click.ClickException(str(nothing)) from None
        except Ambiguous as several:
            refuse_ambiguous(session, several, "mitigate")
    _after(session, case, response, launch, wishes)


def _show(case: Case, response: Response) -> None:
    name = short_model(case.model.name if case.model is not None else case.model_type.name)
    stated = case.criticality.own or case.criticality.required
    tier = case.criticality.counted if stated else "no tier"
    console = render.console()
    console.print(Text.assemble((f"{name}  {case.role or 'no baseline'}  {tier}", "bold")))
    for step in response.steps:
        console.print(Text(step))
    if response.action not in _QUESTIONS:
        for command in response.commands:
            console.print(Text(f"  {command}", style="cyan"))


def _plan(session: Session, response: Response, launch: launcher_pb2.Launch) -> None:
    if not session.is_table:
        return
    if response.action is Action.ABORT_LAUNCH:
        click.echo(f"{launch.name}: {launch.summary}")
        return
    for part in view.plan_parts(launch):
        render.console().print(part)


def _confirm(session: Session, response: Response, wishes: _Wishes) -> None:
    if wishes.yes:
        return
    if not session.is_table or not sys.stdin.isatty():
        raise click.UsageError("nobody is there to confirm it; give --yes, or --dry-run to change nothing")
    click.confirm(_QUESTIONS[response.action], abort=True)


def _after(
    session: Session, case: Case, response: Response, launch: launcher_pb2.Launch | None, wishes: _Wishes
) -> None:
    done = launch is not None and not wishes.dry_run
    if not session.is_table:
        data = {
            "model_type": case.model_type.name,
            "model": case.model.name if case.model is not None else "",
            "role": case.role,
            "tier": case.criticality.counted,
            "response": plain(response),
            "done": done,
            "launch": None if launch is None else plain(launch),
        }
        render.dump(session, data)
    elif done and launch is not None:
        what = "is aborted; everything goes back" if response.action is Action.ABORT_LAUNCH else "ends the experiment"
        click.echo(f"{launch.name} {what}\nfollow it: modelfleet launch watch {render.short(launch.name)}")
    elif launch is not None:
        click.echo("nothing was changed; to do it: leave --dry-run out")
    if response.action is Action.PAGE_OWNER:
        raise click.exceptions.Exit(1)
