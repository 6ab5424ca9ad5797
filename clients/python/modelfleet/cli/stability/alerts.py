"""`modelfleet stability alert|silence`: what is wrong, who must act, and what is kept quiet meanwhile."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.padding import Padding
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.parameters import END, ENTRY, SPAN, UNTIL
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.errors import ModelfleetError
from modelfleet.stability.v1 import alerts_pb2 as pb
from modelfleet.wording import short, short_model

_FIRING = "state = FIRING"
_STYLES = {"PAGE": "bold red", "TICKET": "yellow"}
_INDENT = (0, 0, 0, 2)
# Without an answer for as long a watch gives up.
_PATIENCE_SECONDS = 120.0
_TOLD_NOBODY = "nobody: no Alertmanager has taken it over; one is named by `modelfleetd --alertmanager-url`"


@click.group(cls=FleetGroup)
def alert() -> None:
    """What is wrong with models, and who must act.

    Alerts follow from the registry and from what is measured; nobody writes them. They reach people through
    Alertmanager.
    """


@click.group(cls=FleetGroup)
def silence() -> None:
    """Maintenance, during which alerts notify nobody.

    Declared for a model type or for one model, with a reason and an end.
    """


# --- alerts -----------------------------------------------------------------------------------------------------------


def state(found: pb.Alert) -> str:
    """Where an alert stands, in a word: FIRING, SILENCED, RECOVERED or HANDED_OVER."""
    if found.state == pb.Alert.FIRING:
        return "SILENCED" if found.silence else "FIRING"
    return render.enum(found, "resolution")


def since(found: pb.Alert) -> str:
    """How long it has been going on, or how long it went on."""
    if not found.HasField("end_time"):
        return render.age(found.start_time)
    return render.seconds((found.end_time.ToDatetime() - found.start_time.ToDatetime()).total_seconds())


def culprit(found: pb.Alert) -> str:
    """The metric that is outside of its range, and of which prediction; empty where it is not about one."""
    metric = render.enum(found, "metric")
    said = metric if metric == "NE" else metric.lower()
    return f"{said} of {found.prediction}" if found.prediction else ""


COLUMNS: list[render.Column] = [
    ("SEVERITY", lambda m: render.enum(m, "severity")),
    ("MODEL", lambda m: short_model(m.model)),
    ("WHAT", lambda m: render.enum(m, "kind")),
    ("CULPRIT", culprit),
    ("FOR", since),
    ("ON CALL", lambda m: m.on_call or f"nobody (team {short(m.team)})"),
    ("STATE", state),
    ("ALERT", lambda m: short(m.name)),
]


@alert.command("list")
@click.option("--all", "ended", is_flag=True, help="Also those that are over, as far back as 90 days.")
@click.option(
    "--filter",
    "where",
    default="",
    metavar="EXPRESSION",
    help="Only those that fit, such as 'severity = PAGE AND team = feed'; over state, kind, severity, model_type, "
    "model, team, tier and role.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@with_session
def list_alerts(session: Session, ended: bool, where: str, limit: int) -> None:
    """List alerts: those that fire, pages first.

    With --all, those that are over come after them, the newest first.
    """
    fits = where if ended else f"{_FIRING} AND ({where})" if where else _FIRING
    listed = session.client.stability.list_alerts_all(filter=fits, page_size=1000 if limit > 50 else 0)
    # Those that fire come first, the newest first. All of them are read, so that no page is cut off by tickets.
    enough = itertools.takewhile(lambda one: one[1].state == pb.Alert.FIRING or one[0] < limit, enumerate(listed))
    found = sorted((m for _, m in enough), key=lambda m: (m.state, m.state == pb.Alert.FIRING and m.severity))
    left_out, found = max(len(found) - limit, 0), found[:limit]
    nothing = "There was no such alert." if ended else "Nothing fires that fits." if where else "Nothing fires."
    render.listing(session, found, COLUMNS, nothing)
    if session.is_table and left_out:
        click.echo(f"and {left_out} more that fire: --limit {len(found) + left_out}")
    if session.is_table and found and render.console().is_terminal:
        click.echo(f"What to do: modelfleet stability alert get {short(found[0].name)}")


@alert.command("get")
@click.argument("name", metavar="ALERT")
@with_session
def get_alert(session: Session, name: str) -> None:
    """Show an alert: what happened, and what to do.

    And whom it reached, and by which silence it is kept quiet.
    """
    found = session.client.stability.get_alert(name=f"alerts/{short(name)}")
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    kept_quiet = session.client.stability.get_silence(name=found.silence) if found.silence else None
    screen = render.console()
    severity = render.enum(found, "severity")
    how = (
        f"{state(found)} for {since(found)}"
        if found.state == pb.Alert.FIRING
        else f"{state(found)} after {since(found)}"
    )
    head = (
        (severity, _STYLES[severity]),
        "  ",
        (short_model(found.model), "bold"),
        f"  {render.enum(found, 'kind')}  {how}",
    )
    screen.print(Text.assemble(*head), soft_wrap=True)
    screen.print(Text(found.summary))
    if found.state == pb.Alert.FIRING:
        screen.print(Text("\nDO", style="bold"))
        for line in found.response.splitlines():
            # What is to be typed stays in one line, to be copied.
            if line.startswith(" "):
                screen.print(Text(f"  {line}", style="cyan"), soft_wrap=True)
            else:
                screen.print(Padding(Text(line), _INDENT, expand=False))
    screen.print()
    screen.print(render.facts(_facts(found, kept_quiet)))
    if found.state == pb.Alert.FIRING and kept_quiet is None:
        quiet = f'modelfleet stability silence create {short_model(found.model)} --for 2h --reason "…"'
        screen.print(Text(f"\nKeep it quiet while you work on it: {quiet}"), soft_wrap=True)


def _facts(found: pb.Alert, kept_quiet: pb.Silence | None) -> Iterator[tuple[str, str]]:
    yield "ON CALL", f"{found.on_call or 'nobody'} (team {short(found.team)})"
    yield "ROLE", f"{render.enum(found, 'role')}, {render.enum(found, 'tier') or 'no tier stated'}"
    yield "CULPRIT", culprit(found)
    yield "BEGAN", f"{render.clock(found.start_time)} UTC"
    yield "ENDED", f"{render.clock(found.end_time)} UTC" if found.HasField("end_time") else ""
    if kept_quiet is not None:
        until = f"until {render.clock(kept_quiet.end_time)} UTC by {kept_quiet.creator}"
        yield "SILENCED", f"{until}: {kept_quiet.reason} ({short(kept_quiet.name)})"
    told = f"Alertmanager took it over, last at {render.clock(found.deliver_time)} UTC"
    yield "TOLD", told if found.HasField("deliver_time") else _TOLD_NOBODY
    yield "LEDGER", f"revision {found.revision}"


@alert.command("watch")
@click.option("--filter", "where", default="", metavar="EXPRESSION", help="Only those that fit, as with `alert list`.")
@click.option("--every", type=SPAN, default="5s", show_default=True, help="How often to look.")
@click.option("--for", "span", type=SPAN, default=None, help="How long to watch. Default: until Ctrl-C.")
@with_session
def watch_alerts(session: Session, where: str, every: Duration, span: Duration | None) -> None:
    """Show what fires, then each change of it.

    A line for each alert that begins, rises, falls, is silenced or ends.
    """
    end = None if span is None else time.monotonic() + span.ToTimedelta().total_seconds()
    pause = max(every.ToTimedelta().total_seconds(), 0.1)
    known: dict[str, pb.Alert] = {}
    heard = time.monotonic()
    while True:
        try:
            fits = f"{_FIRING} AND ({where})" if where else _FIRING
            listed = session.client.stability.list_alerts_all(filter=fits, page_size=1000)
            firing = {found.name: found for found in listed}
            gone = [session.client.stability.get_alert(name=name) for name in known.keys() - firing.keys()]
            heard = time.monotonic()
        except ModelfleetError:
            # Whoever watches does so since things go wrong: a service that restarts ends no watch.
            if time.monotonic() - heard > _PATIENCE_SECONDS or not known:
                raise
        else:
            for found in changes(known, firing, gone):
                _tell(session, found)
            known = firing
        if end is not None and time.monotonic() >= end:
            return
        time.sleep(pause if end is None else max(min(pause, end - time.monotonic()), 0.0))


def changes(known: Mapping[str, pb.Alert], firing: Mapping[str, pb.Alert], gone: list[pb.Alert]) -> Iterator[pb.Alert]:
    """The alerts whose state or severity is another one than before, those that are over first."""
    yield from gone
    for name, found in firing.items():
        before = known.get(name)
        if before is None or (before.severity, state(before)) != (found.severity, state(found)):
            yield found


def _tell(session: Session, found: pb.Alert) -> None:
    if not session.is_table:
        render.emit(session, render.as_data(found))
        return
    severity, over = render.enum(found, "severity"), found.state != pb.Alert.FIRING
    when = found.end_time if over else found.start_time
    line = Text.assemble(
        f"{render.clock(when)}  ",
        (f"{state(found):<11}", "green" if over else "dim" if found.silence else ""),
        " ",
        (f"{severity:<6}", "" if over else _STYLES[severity]),
        f" {short_model(found.model)} {' by '.join(filter(None, (render.enum(found, 'kind'), culprit(found))))}, "
        f"{found.on_call or 'nobody'} on call ({short(found.name)})",
    )
    render.console().print(line, soft_wrap=True)


# --- silences ---------------------------------------------------------------------------------------------------------

_SILENCES: list[render.Column] = [
    ("SILENCE", lambda m: short(m.name)),
    ("OF", lambda m: short_model(m.resource)),
    ("FROM", lambda m: render.clock(m.start_time)),
    ("UNTIL", lambda m: render.clock(m.end_time)),
    ("BY", lambda m: m.creator),
    ("ENDED BY", lambda m: m.ended_by),
    ("REASON", lambda m: m.reason),
]


_SILENCE_FLAGS = {
    "silence.resource": "TYPE[/MODEL]",
    "silence.start_time": "--from",
    "silence.end_time": "--for",
    "silence.reason": "--reason",
}


@silence.command("create")
@click.argument("resource", metavar="TYPE[/MODEL]", type=ENTRY)
@click.option(
    "--for",
    "end",
    type=END,
    required=True,
    metavar="TIME",
    help="How long, counted from --from, or until when: 2h, 2026-12-24T18:00Z.",
)
@click.option("--from", "start", type=UNTIL, default=None, metavar="TIME", help="From when on. Default: now.")
@click.option("--reason", required=True, help="Why; whoever is on call reads it.")
@click.option("--dry-run", is_flag=True, help="Only check; change nothing.")
@with_session
def create_silence(
    session: Session, resource: str, end: datetime | timedelta, start: datetime | None, reason: str, dry_run: bool
) -> None:
    """Keep alerts quiet for a while.

    Those of a model type, or of one model. They go on being derived, and budgets being spent: what still fires at the
    end is told then.
    """
    fields: dict[str, Any] = {} if start is None else {"start_time": _stamp(start)}
    until = end if isinstance(end, datetime) else (start or datetime.now(UTC)) + end
    wanted = pb.Silence(resource=resource, reason=reason, end_time=_stamp(until), **fields)
    with told_in_flags(_SILENCE_FLAGS):
        made = session.client.stability.create_silence(silence=wanted, validate_only=dry_run)
    if not session.is_table:
        render.dump(session, render.as_data(made))
        return
    begins = "" if start is None else f"from {render.clock(made.start_time)} UTC "
    would = "would keep" if dry_run else "keeps"
    click.echo(
        f"{short(made.name) + ' ' if not dry_run else ''}{would} {short_model(made.resource)} quiet {begins}until "
        f"{render.clock(made.end_time)} UTC"
    )
    if not dry_run:
        click.echo(f"end it: modelfleet stability silence end {short(made.name)}")


@silence.command("list")
@click.argument("resource", metavar="[TYPE[/MODEL]]", type=ENTRY, required=False, default="")
@click.option("--active", is_flag=True, help="Only those in force now.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_silences(session: Session, resource: str, active: bool, limit: int) -> None:
    """List silences, newest first."""
    answer = session.client.stability.list_silences(resource=resource, active=active, page_size=limit)
    nothing = "Nothing is silenced now." if active else "No silences."
    if resource and not answer.silences:
        # A name that was mistyped is refused rather than answered with "none".
        registry = session.client.registry
        (registry.get_model if "/models/" in resource else registry.get_model_type)(name=resource)
    render.listing(session, answer.silences, _SILENCES, nothing)


@silence.command("get")
@click.argument("name", metavar="SILENCE")
@with_session
def get_silence(session: Session, name: str) -> None:
    """Show a silence."""
    render.show(session, session.client.stability.get_silence(name=f"silences/{short(name)}"))


@silence.command("end")
@click.argument("name", metavar="SILENCE")
@with_session
def end_silence(session: Session, name: str) -> None:
    """End a silence now; what still fires is told at once."""
    before = session.client.stability.get_silence(name=f"silences/{short(name)}")
    ended = session.client.stability.end_silence(name=before.name)
    if not session.is_table:
        render.dump(session, render.as_data(ended))
        return
    what = f"{short(ended.name)} of {short_model(ended.resource)}"
    when = f"at {render.clock(ended.end_time)} UTC"
    # One that was over stays as it was.
    if ended.end_time == before.end_time:
        how = f", by {ended.ended_by}" if ended.ended_by else ": its time was up"
        click.echo(f"{what} had ended already {when}{how}")
    else:
        click.echo(f"{what} ended {when}")


def _stamp(moment: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(moment)
    return made
