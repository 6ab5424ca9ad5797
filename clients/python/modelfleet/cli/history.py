"""`modelfleet registry diff|watch|verify|checkpoint|compact`: what changed, and that it is what was written."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from google.protobuf.json_format import MessageToJson, ParseDict, ParseError

from modelfleet import errors
from modelfleet.cli import render
from modelfleet.cli.parameters import POINT, Point
from modelfleet.cli.session import Session, with_session
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.history_pb2 import Checkpoint
from modelfleet.wording import count

if TYPE_CHECKING:
    from modelfleet import ledger

Describe = Callable[[pb.ResourceChange], str]
# Between attempts while the registry is away.
_WAIT_SECONDS: Final = 2.0
_DONE: Final = {
    pb.ResourceChange.CREATED: "created",
    pb.ResourceChange.UPDATED: "changed",
    pb.ResourceChange.DELETED: "deleted",
}


def add_commands(group: click.Group, describe: Describe) -> None:
    """Adds the commands to `modelfleet registry`. `describe` says a change in a line."""
    for command in (diff, verify, checkpoint, compact):
        group.add_command(command)

    @group.command()
    @click.option("--type", "model_types", multiple=True, help="Only this model type and its models; may be repeated.")
    @click.option("--surface", default="", help="Only model types of this surface, and their models.")
    @click.option("--team", default="", help="Only this team and what belongs to it.")
    @click.option("--from", "start", type=POINT, metavar="POINT", help="Also what came after this revision or time.")
    @with_session
    def watch(session: Session, model_types: tuple[str, ...], surface: str, team: str, start: Point | None) -> None:
        """Print every change as it comes, until Ctrl-C. Goes on by itself when the registry was away."""
        position = _revision_of(session, start or Point())
        asked = pb.WatchRevisionsRequest(
            model_types=[_full("modelTypes", each) for each in model_types],
            surface=surface,
            team=_full("teams", team) if team else "",
        )
        if session.is_table:
            click.echo(f"Watching from revision {position} on; Ctrl-C ends it.", err=True)
        for revision in _following(session, asked, position):
            if session.is_table:
                for line in _told(revision, describe):
                    click.echo(line)
            else:
                render.emit(session, render.as_data(revision))


def _full(collection: str, value: str) -> str:
    return value if value.startswith(f"{collection}/") else f"{collection}/{value}"


def _following(session: Session, asked: pb.WatchRevisionsRequest, position: int) -> Iterator[pb.Revision]:
    """Yields revisions after a position, for ever; where the registry goes away, it waits for it."""
    is_away = False
    while True:
        asked.after_revision = position
        try:
            for message in session.client.registry.watch_revisions(asked):
                if is_away:
                    click.echo(f"The registry is there again; going on after revision {position}.", err=True)
                    is_away = False
                if message.HasField("revision"):
                    yield message.revision
                position = message.position
        except (errors.Unavailable, errors.DeadlineExceeded) as error:
            if not is_away and not isinstance(error, errors.DeadlineExceeded):
                click.echo("The registry is away; waiting for it.", err=True)
                is_away = True
            time.sleep(_WAIT_SECONDS)


def _told(revision: pb.Revision, describe: Describe) -> Iterator[str]:
    who = f"{revision.actor} for {revision.on_behalf_of}" if revision.on_behalf_of else revision.actor
    why = f": {revision.reason}" if revision.reason else ""
    launch = f" ({render.short(revision.launch)})" if revision.launch else ""
    yield f"revision {revision.number} at {render.clock(revision.time)} by {who}{launch}{why}"
    for change in revision.changes:
        yield f"  {describe(change)}"


@click.command()
@click.argument("start", metavar="FROM", type=POINT)
@click.argument("end", metavar="[TO]", type=POINT, default=Point())
@click.argument("resource", required=False, default="")
@with_session
def diff(session: Session, start: Point, end: Point, resource: str) -> None:
    """Show what differs between two points, field by field: what was before, what is after.

    FROM and TO are revisions (41), times (2026-11-24T15:00Z, yesterday, tuesday), how long ago (2h), or now.
    RESOURCE, a full name such as modelTypes/feed_ctr, shows that and what is below it only.

    Read it as: from FROM to TO this was done, however often it changed in between.
    """
    request = pb.DiffRevisionsRequest(page_size=1000, resource=resource, **start.fields("from"), **end.fields("to"))
    changes: list[pb.ResourceChange] = []
    with render.busy("Comparing"):
        answer = session.client.registry.diff_revisions(request)
        changes += answer.changes
        while answer.next_page_token:
            request.page_token = answer.next_page_token
            answer = session.client.registry.diff_revisions(request)
            changes += answer.changes
    if not session.is_table:
        found = pb.DiffRevisionsResponse(
            changes=changes, from_revision=answer.from_revision, to_revision=answer.to_revision
        )
        render.dump(session, render.as_data(found))
        return
    span = f"from revision {answer.from_revision} to revision {answer.to_revision}"
    if not changes:
        click.echo(f"Nothing differs {span}.")
        return
    for line in diff_lines(changes):
        click.echo(line)
    actions = [change.action for change in changes]
    summary = ", ".join(f"{actions.count(action)} {done}" for action, done in _DONE.items() if action in actions)
    click.echo(f"{summary}, {span}")


def diff_lines(changes: Iterable[pb.ResourceChange]) -> list[str]:
    """Changes as a diff that a person reads: a heading a resource, a line before and after a field."""
    lines = []
    for change in changes:
        lines.append(f"{render.enum(change, 'action').lower()} {change.resource}")
        for field in change.fields:
            data = render.as_data(field)
            if data.get("before") is not None:
                lines.append(f"  - {field.path}: {data['before']}")
            if data.get("after") is not None:
                lines.append(f"  + {field.path}: {data['after']}")
    return lines


@click.command()
@click.option(
    "--checkpoint",
    "known",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File that an earlier --save wrote.",
)
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write what was verified up to here, for later."
)
@with_session
def verify(session: Session, known: Path | None, save: Path | None) -> int:
    """Compute every hash of the history anew, and compare the state with it. The exit status is 1 where either differs.

    Without a checkpoint this finds whatever does not fit together. A checkpoint from before, kept where nobody can
    change it, also finds a history that was written anew so that it fits, or cut off at its end.
    """
    # Brings numpy, which no other command of the noun needs.
    from modelfleet import ledger

    must_contain = None if known is None else read_checkpoint(known)
    with render.progress("verifying revisions", None) as advance:
        messages = _counted(session.client.registry.read_history(with_state=True), advance)
        try:
            verified = ledger.verify(messages, must_contain)
        except ledger.Damage as damage:
            found = damage
        else:
            return _say_verified(session, verified, must_contain, save)
    if session.is_table:
        click.echo(f"DAMAGED. {found}", err=True)
    else:
        fields = {"revision": found.revision, "what": found.what, "expected": found.expected, "found": found.found}
        render.dump(session, {"damage": fields})
    return 1


def _counted(messages: Iterable[Any], advance: Callable[[int], None]) -> Iterator[Any]:
    for message in messages:
        yield message
        advance(len(message.revisions.numbers) // 8)


def _say_verified(
    session: Session, verified: ledger.Verified, must_contain: Checkpoint | None, save: Path | None
) -> int:
    if save is not None:
        _write_checkpoint(verified.head, save)
    if not session.is_table:
        fields = {"revisions": verified.revisions, "entries": verified.entries}
        render.dump(session, fields | {"base": render.as_data(verified.base), "head": render.as_data(verified.head)})
        return 0
    click.echo(f"Verified {count(verified.revisions, 'revision')} and the state of {_entries(verified.entries)}.")
    if verified.base.revision:
        click.echo(f"What came up to revision {verified.base.revision} was forgotten by compaction.")
    if must_contain is not None:
        click.echo(f"Revision {must_contain.revision} is the one of the checkpoint, with all that came before it.")
    if save is not None:
        click.echo(
            f"Wrote {save}, for revision {verified.head.revision}. Keep it where the registry's database is not."
        )
    elif must_contain is None:
        click.echo("Keep a checkpoint elsewhere, to find a history that was written anew: --save FILE.")
    return 0


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@with_session
def checkpoint(session: Session, file: Path | None) -> None:
    """Print number and hash of the newest revision, or write them to FILE, for `verify --checkpoint FILE`.

    Nothing is verified: `verify --save FILE` writes the same once everything before it was.
    """
    stream = session.client.registry.read_history()
    head = next(iter(stream)).head
    stream.close()
    if file is not None:
        _write_checkpoint(head, file)
        if session.is_table:
            click.echo(f"Wrote {file}, for revision {head.revision}. Keep it where the registry's database is not.")
            return
    render.show(session, head)


@click.command()
@click.option(
    "--before", "first", required=True, type=POINT, metavar="POINT", help="Oldest revision to keep, or a time."
)
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the checkpoint that history begins after."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be forgotten.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_session
def compact(session: Session, first: Point, save: Path | None, dry_run: bool, yes: bool) -> None:
    """Forget old revisions, for good. What they left is kept: states as of the revisions that stay, and the chain.

    Verify first, and keep the checkpoint that history then begins after: it takes the place of what is forgotten.
    """
    oldest = first.revision or _revision_of(session, first) + 1
    call = session.client.registry.compact_history
    with render.busy("Reading what has to be kept"):
        planned = call(oldest_kept=oldest, validate_only=True, timeout=600)
    revisions = count(planned.forgotten, "revision")
    if planned.forgotten and not dry_run:
        if not yes:
            click.confirm(
                f"Forget {revisions}, up to revision {planned.base.revision}, for good?", abort=True, err=True
            )
        with render.busy("Forgetting"):
            planned = call(oldest_kept=oldest, timeout=600)
        if save is not None:
            _write_checkpoint(planned.base, save)
    if not session.is_table:
        render.dump(session, render.as_data(planned))
    elif not planned.forgotten:
        click.echo(f"Nothing to forget: history begins after revision {planned.base.revision}.")
    else:
        done = "Would forget" if dry_run else "Forgot"
        click.echo(f"{done} {revisions}. History begins with revision {planned.base.revision + 1}.")
        if save is not None and not dry_run:
            click.echo(f"Wrote {save}. Keep it where the registry's database is not: `verify --checkpoint {save}`.")


def _revision_of(session: Session, point: Point) -> int:
    """The number of the revision at a point."""
    if point.revision:
        return point.revision
    # Any list says which revision it is of.
    return int(session.client.registry.list_teams(page_size=1, **point.fields("as_of")).revision)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file."""
    try:
        found = ParseDict(json.loads(path.read_text(encoding="utf-8")), Checkpoint())
        if not found.revision or not re.fullmatch("[0-9a-f]{64}", found.hash):
            raise ValueError("it names no revision with its hash")
    except (ValueError, ParseError):
        raise click.UsageError(
            f"{path} holds no checkpoint; write one: modelfleet registry verify --save FILE"
        ) from None
    return found


def _write_checkpoint(point: Checkpoint, path: Path) -> None:
    path.write_text(MessageToJson(point, preserving_proto_field_name=True, indent=2) + "\n", encoding="utf-8")
