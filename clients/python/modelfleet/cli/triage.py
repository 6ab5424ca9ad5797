"""`modelfleet triage`: what is wrong in the fleet now, the most important first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import click
from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.investigate import problem_line, refuse_ambiguous
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.session import Session, with_session
from modelfleet.incidents import Incident
from modelfleet.lookup import Ambiguous, NothingFound
from modelfleet.triage import JUDGED, Triage, triage
from modelfleet.wording import count, short_model

# Of one incident; `modelfleet investigate` shows all of them.
_PROBLEMS = 2


@click.command("triage")
@click.argument("queries", metavar="[MODEL]...", nargs=-1)
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many to show.")
@click.option(
    "--judge",
    "judged",
    type=click.IntRange(0, 10_000),
    default=JUDGED,
    show_default=True,
    help="How many models that launches bring in to have judged, the most critical ones.",
)
@click.option("--within", type=DURATION, default="10s", show_default=True, help="How long to wait for the services.")
@with_session
def group(session: Session, queries: tuple[str, ...], limit: int, judged: int, within: Duration) -> None:
    """Rank everything that is wrong in the fleet now by importance, with the reason of each rank.

    By the worst that it can do: what the tier says (the route's own one, or what depends on it), less where it is not a
    full outage, or not the baseline. Then by what is wrong, by traffic, by the model types downstream, and by age.
    """
    with _progress() as tell:
        found = asyncio.run(_triage(session, queries, judged, within.ToTimedelta().total_seconds(), tell))
    if not found.routes and found.not_seen:
        raise click.ClickException("; ".join(found.not_seen))
    if not session.is_table:
        render.dump(session, found.as_data())
        return
    _show(found, limit)


async def _triage(
    session: Session, queries: tuple[str, ...], judged: int, within: float, tell: Callable[[str], None]
) -> Triage:
    async with session.client.for_asyncio(attempts=1) as client:
        try:
            return await triage(client, queries, judged=judged, within=within, progress=tell)
        except NothingFound as nothing:
            raise click.ClickException(str(nothing)) from None
        except Ambiguous as several:
            refuse_ambiguous(session, several, "triage")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Says what is being done, beside the answer and only on a terminal."""
    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        yield lambda _: None
        return
    with terminal.status("") as status:
        yield lambda what: status.update(f"{what} …")


def _show(found: Triage, limit: int) -> None:
    console = render.console()
    looked = (
        f"{count(found.routes, 'model type')} looked at, {count(found.judged, 'model')} judged, "
        f"in {render.seconds(found.elapsed)}"
    )
    if not found.incidents:
        console.print(Text(f"Nothing is known to be wrong: {looked}."))
    else:
        console.print(Text(f"{count(len(found.incidents), 'incident')}; {looked}.", style="bold"))
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for place, incident in enumerate(found.incidents[:limit], start=1):
            for label, line in _lines(place, incident, found):
                grid.add_row(label, line)
        console.print(grid)
    if len(found.incidents) > limit:
        more = len(found.incidents) - limit
        console.print(Text(f"and {more} less important ones: --limit {len(found.incidents)}", style="dim"))
    for what in found.not_seen:
        console.print(Text(f"not seen: {what}", style="yellow"))


def _lines(place: int, incident: Incident, found: Triage) -> Iterator[tuple[str, Text]]:
    name = short_model(incident.model or incident.model_type)
    team = found.teams.get(incident.team)
    page = f"page {team.on_call}" if team is not None and team.on_call else f"team {render.short(incident.team)}"
    yield f"{place}.", Text.assemble((name, "bold"), f"  {page}; modelfleet investigate {name}")
    yield "", Text(f"  {incident.reason}", style="dim")
    for problem in incident.problems[:_PROBLEMS]:
        yield "", Text.assemble("  ", problem_line(problem, incident.model))
    if len(incident.problems) > _PROBLEMS:
        yield "", Text(f"  and {len(incident.problems) - _PROBLEMS} more", style="dim")
