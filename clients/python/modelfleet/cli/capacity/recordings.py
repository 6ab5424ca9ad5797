"""`modelfleet capacity recording`: record live traffic, and look at what was recorded."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import click
from google.protobuf.duration_pb2 import Duration

from modelfleet.capacity.v1 import recordings_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.capacity import recording_view as view
from modelfleet.cli.parameters import DURATION, SIZE
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.errors import DeadlineExceeded, FailedPrecondition, Unavailable

_POLL_SECONDS = 1.0
_ENDED = frozenset({pb.Recording.READY, pb.Recording.FAILED})


@click.group(cls=FleetGroup)
def recording() -> None:
    """Recordings: live requests of a route, for load tests."""


def _name(text: str) -> str:
    return f"recordings/{render.short(text)}"


def _type_name(text: str) -> str:
    return f"modelTypes/{render.short(text)}"


@recording.command("create")
@click.argument("model_type", metavar="TYPE")
@click.option("--region", metavar="REGION", help="Where it is recorded, by the region's agent.")
@click.option(
    "--client", "path", metavar="PATH",
    help="Instead: a dataset that a client has recorded (modelfleet.TrafficRecorder), beneath the root of recordings.",
)  # fmt: skip
@click.option(
    "--permille", type=click.IntRange(1, 1000), default=10, show_default=True,
    help="How many of 1,000 requests are recorded, at random.",
)  # fmt: skip
@click.option("--for", "duration", type=DURATION, help="Ends after so long. Default 1h.")
@click.option(
    "--max-bytes", type=SIZE, default=0, help="Ends with so many bytes of requests, such as 64MiB. Default 1GiB."
)
@click.option("--max-requests", type=click.IntRange(min=0), default=0, help="Ends with so many requests.")
@click.option("--keep", type=DURATION, help="Deleted, with its dataset, so long after its end. Default 30d.")
@click.option("--watch", is_flag=True, help="Follow it until it can be replayed.")
@with_session
def create_recording(
    session: Session,
    model_type: str,
    region: str | None,
    path: str | None,
    permille: int,
    duration: Duration | None,
    max_bytes: int,
    max_requests: int,
    keep: Duration | None,
    watch: bool,
) -> None:
    """Record a sample of a route's live requests.

    Callers notice nothing of it.
    """
    if bool(region) == bool(path):
        raise click.UsageError("say who records: --region REGION (its agent), or --client PATH (a client has)")
    wanted = pb.Recording(
        model_type=_type_name(model_type),
        region=f"regions/{render.short(region)}" if region else "",
        source=pb.Recording.CLIENT if path else pb.Recording.TAP,
        path=path or "",
        sample_permille=permille,
        max_bytes=max_bytes,
        max_requests=max_requests,
        max_duration=duration,
        retention_duration=keep,
    )
    made = session.client.capacity.create_recording(recording=wanted)
    if watch:
        _follow(session, made)
    elif session.is_table:
        what = f"of {render.short(made.region)}" if region else f"from {made.uri}"
        click.echo(
            f"created {made.name} {what}\nfollow it: modelfleet capacity recording show {render.short(made.name)}"
        )
    else:
        render.dump(session, render.as_data(made))


@recording.command("list")
@click.argument("model_type", metavar="[TYPE]", required=False, default="")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_recordings(session: Session, model_type: str, limit: int) -> None:
    """List recordings, newest first, of one model type or of all."""
    route = model_type.removeprefix("modelTypes/").partition("/")[0]
    if model_type not in {route, f"modelTypes/{route}"}:
        raise click.UsageError(
            f"recordings are of a model type, and '{model_type}' is none; "
            f"list them: modelfleet capacity recording list {route}"
        )
    asked = _type_name(model_type) if model_type else ""
    answer = session.client.capacity.list_recordings(model_type=asked, page_size=limit)
    nothing = "No recordings. Make one: modelfleet capacity recording create TYPE --region REGION"
    render.listing(session, answer.recordings, view.COLUMNS, nothing)


@recording.command("show")
@click.argument("name", metavar="RECORDING")
@with_session
def show_recording(session: Session, name: str) -> None:
    """Show a recording: how far it is, and what to do next."""
    found = session.client.capacity.get_recording(name=_name(name))
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    for line in view.facts(found):
        click.echo(line)


@recording.command("stop")
@click.argument("name", metavar="RECORDING")
@with_session
def stop_recording(session: Session, name: str) -> None:
    """End a recording now; what was recorded can be replayed."""
    found = session.client.capacity.stop_recording(name=_name(name))
    if not session.is_table:
        render.dump(session, render.as_data(found))
    elif found.state in _ENDED:
        click.echo(f"{found.name} is {render.enum(found, 'state')}: {found.message}")
    else:
        click.echo(f"{found.name} ends; see: modelfleet capacity recording show {render.short(found.name)}")


@recording.command("delete")
@click.argument("name", metavar="RECORDING")
@with_session
def delete_recording(session: Session, name: str) -> None:
    """Delete a recording and its dataset."""
    try:
        session.client.capacity.delete_recording(name=_name(name))
    except FailedPrecondition as error:
        if error.reason != "WRONG_STATE":
            raise
        raise click.ClickException(
            f"{_name(name)} is {error.metadata['state']}; end it first: "
            f"modelfleet capacity recording stop {render.short(name)}"
        ) from None
    if session.is_table:
        click.echo(f"deleted {_name(name)}; its dataset goes within seconds")
    else:
        render.dump(session, {"name": _name(name), "deleted": True})


@recording.command("head")
@click.argument("name", metavar="RECORDING|DATASET")
@click.option("-n", "--requests", "count", type=click.IntRange(0, 1000), default=10, show_default=True, help="To show.")
@click.option(
    "--over", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True,
    help="Requests that sizes and distances are told of.",
)  # fmt: skip
@with_session
def head(session: Session, name: str, count: int, over: int) -> None:
    """Show the first requests of a recording.

    With their sizes, and how they came.
    Reads the dataset itself, so this machine must reach it. A folder or URI (with a slash) may be named instead.
    """
    is_dataset = ("/" in name or name.startswith(".")) and not name.startswith("recordings/")
    uri, going_on = name, ""
    if not is_dataset:
        found = session.client.capacity.get_recording(name=_name(name))
        uri, going_on = found.uri, "" if found.state in _ENDED else render.enum(found, "state")
    looked = view.look(uri, count, max(count, over), going_on)
    if not session.is_table:
        render.dump(session, looked.as_data())
        return
    render.console().print(render.table(view.REQUEST_HEADERS, [view.request_row(row) for row in looked.shown]))
    for line in looked.lines():
        click.echo(line)


def _follow(session: Session, made: pb.Recording) -> None:
    """Shows how far it is until it has ended. Interrupted, it goes on: the agent records, not this command."""
    state, last = None, made
    try:
        with _screen(session) as screen:
            for last in _looks(session, made):
                screen.update(view.progress(last, datetime.now(UTC)))
                if session.is_table and last.state not in {state, *_ENDED}:
                    state = last.state
                    name = render.enum(last, "state")
                    screen.say(f"{name}: {last.message}" if last.message else name)
    except KeyboardInterrupt:
        click.echo(
            f"\n{made.name} goes on; end it: modelfleet capacity recording stop {render.short(made.name)}", err=True
        )
        raise click.exceptions.Exit(130) from None
    if not session.is_table:
        render.dump(session, render.as_data(last))
    if last.state == pb.Recording.FAILED:
        raise click.ClickException(f"{last.name} failed: {last.message}")
    if session.is_table:
        for line in view.facts(last):
            click.echo(line)


def _looks(session: Session, made: pb.Recording) -> Iterator[pb.Recording]:
    """The recording once a second until it has ended, also while the service is away."""
    yield made
    while made.state not in _ENDED:
        time.sleep(_POLL_SECONDS)
        try:
            made = session.client.capacity.get_recording(name=made.name)
        except (Unavailable, DeadlineExceeded):
            continue
        yield made


@dataclass(frozen=True, slots=True)
class _Screen:
    """Where one follows a recording. Both go through one console: it keeps them off each other's lines.

    Attributes:
        say: prints a line that stays.
        update: says how far it is, on a line that is overwritten.
    """

    say: Callable[[str], None]
    update: Callable[[str], None]


@contextmanager
def _screen(session: Session) -> Iterator[_Screen]:
    """On a terminal there is a line that says how far it is; elsewhere there is none."""
    console = render.console()
    if not (session.is_table and console.is_terminal):
        yield _Screen(click.echo, lambda _: None)
        return
    with console.status("PENDING") as line:
        yield _Screen(functools.partial(console.print, markup=False), line.update)
