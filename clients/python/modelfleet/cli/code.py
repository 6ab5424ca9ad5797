"""`modelfleet registry validate|plan|apply|drift|export`: the fleet as files."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from google.protobuf.json_format import ParseDict, ParseError

from modelfleet import errors
from modelfleet.cli import render
from modelfleet.cli.session import Session, with_session
from modelfleet.code.documents import join
from modelfleet.code.fileset import FileSet, read_files, unknown_references
from modelfleet.code.kinds import KINDS
from modelfleet.code.ledger import Ledger
from modelfleet.code.plan import Plan, make_plan, name_of
from modelfleet.code.reading import Problem, read_text
from modelfleet.code.tree import replace_text, text_of
from modelfleet.code.writing import with_revision
from modelfleet.registry.v1 import registry_pb2 as pb

_F = TypeVar("_F", bound=Callable[..., Any])
# A set of many entries takes a registry a while.
_TIMEOUT: Final = 120.0
_NOTHING, _CHANGES, _WRONG = 0, 2, 1

_paths = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
_prune = click.option(
    "--prune",
    is_flag=True,
    help="Delete what the files lack: models of their types; model types and assets of their teams.",
)
_adopt = click.option(
    "--adopt", is_flag=True, help="State roles and splits of types without a baseline: what serves already."
)


def add_commands(group: click.Group) -> None:
    """Adds the commands to `modelfleet registry`."""
    for command in (validate, plan, apply, drift):
        group.add_command(command)


# Reading.


def _read(paths: Sequence[Path]) -> FileSet:
    with render.busy("reading the files"):
        files = read_files(paths)
    if not files.entries and not files.problems:
        shown = ", ".join(map(str, paths))
        raise click.UsageError(f"no files in {shown}; write some with: modelfleet registry export DIR")
    return files


def _problems(session: Session, problems: Sequence[Problem]) -> None:
    if session.is_table:
        for problem in problems:
            click.echo(str(problem))
        click.echo(f"{render.count(len(problems), 'problem')}.")
    else:
        render.dump(session, [{"file": each.file, "line": each.line, "text": each.text} for each in problems])


def refused(error: errors.ModelfleetError, changes: Sequence[pb.EntryChange], files: FileSet) -> list[Problem]:
    """What the registry finds wrong, at the lines of the files that it is about."""
    found = []
    for violation in error.violations:
        place = re.match(r"changes\[(\d+)\]\.?(\w*)\.?(\w*)", violation.field)
        if place is None or int(place[1]) >= len(changes):
            found.append(Problem(violation.field, 0, violation.description))
            continue
        entry = files.entries.get(name_of(changes[int(place[1])]))
        inner = violation.field[place.end(1) + 1 :].lstrip(".")
        text = f"{inner.partition('.')[2] or inner}: {violation.description}".removeprefix(": ")
        if entry is None:
            found.append(Problem(name_of(changes[int(place[1])]), 0, text))
        else:
            found.append(Problem(entry.file, entry.line((place[3],) if place[3] else ()), text))
    return found


def _ask(session: Session, request: pb.ApplyEntriesRequest) -> pb.ApplyEntriesResponse:
    return session.client.registry.apply_entries(request, timeout=_TIMEOUT)


@click.command()
@_paths
@click.option("--offline", is_flag=True, help="Look at the files alone.")
@with_session
def validate(session: Session, paths: tuple[Path, ...], offline: bool) -> int:
    """Check files and folders of entries; without --offline also whether the registry would take them."""
    files = _read(paths)
    problems = list(files.problems)
    asked = ""
    if not problems and not offline:
        try:
            problems = _asked(session, files)
            asked = ", and the registry would take them"
        except (errors.Unavailable, errors.DeadlineExceeded):
            click.echo("The registry does not answer: only the files themselves are checked.", err=True)
    if not asked and not problems:
        problems += unknown_references(files)
    if problems or not session.is_table:
        _problems(session, problems)
    else:
        click.echo(f"Valid: {_counted(files)}{asked}.")
    return _WRONG if problems else _NOTHING


def _asked(session: Session, files: FileSet) -> list[Problem]:
    made = _plan(session, files, prune=False, adopt=False)
    if not made.changes:
        return []
    try:
        _ask(session, pb.ApplyEntriesRequest(changes=made.changes, validate_only=True))
    except errors.ModelfleetError as error:
        if not error.violations:
            raise
        return refused(error, made.changes, files)
    return []


def _counted(files: FileSet) -> str:
    counts = []
    for kind in KINDS:
        count = sum(entry.kind is kind for entry in files.entries.values())
        if count:
            counts.append(render.count(count, kind.words))
    return ", ".join(counts)


# Planning.


def _plan(session: Session, files: FileSet, *, prune: bool, adopt: bool) -> Plan:
    with render.busy("comparing with the registry"):
        ledger = Ledger(session.client.registry)
        return make_plan(files, ledger.current(files, prune=prune), ledger.as_of, prune=prune, adopt=adopt)


@dataclass(frozen=True, slots=True)
class Thought:
    """A plan, and what the registry says that it would do."""

    plan: Plan
    effects: Sequence[pb.ResourceChange]
    problems: Sequence[Problem]


def _think(session: Session, files: FileSet, *, prune: bool, adopt: bool) -> Thought:
    if files.problems:
        return Thought(Plan(), (), files.problems)
    made = _plan(session, files, prune=prune, adopt=adopt)
    if not made.changes:
        return Thought(made, (), ())
    request = pb.ApplyEntriesRequest(changes=made.changes, validate_only=True, adopt_serving=adopt)
    try:
        return Thought(made, _ask(session, request).changes, ())
    except errors.ModelfleetError as error:
        if not error.violations:
            raise
        return Thought(made, (), refused(error, made.changes, files))


@click.command()
@_paths
@_prune
@_adopt
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Keep the plan for `apply --plan`.")
@with_session
def plan(session: Session, paths: tuple[Path, ...], prune: bool, adopt: bool, out: Path | None) -> int:
    """Show what `apply` would change, entry by entry and field by field.

    Exit status: 0 nothing to change, 2 changes, 1 mistakes or conflicts.
    """
    files = _read(paths)
    thought = _think(session, files, prune=prune, adopt=adopt)
    if thought.problems:
        _problems(session, thought.problems)
        return _WRONG
    _show(session, thought, files)
    if thought.plan.conflicts:
        return _WRONG
    if out is not None:
        _save(out, thought.plan, files, adopt=adopt)
        if session.is_table:
            click.echo(f"Kept in {out}. Apply it: modelfleet registry apply --plan {out}")
    elif thought.plan.changes and session.is_table:
        flags = f"{' --prune' if prune else ''}{' --adopt' if adopt else ''}"
        click.echo(f"Apply it: modelfleet registry apply {' '.join(map(str, paths))}{flags}")
    return _CHANGES if thought.plan.changes else _NOTHING


def _show(session: Session, thought: Thought, files: FileSet) -> None:
    if not session.is_table:
        render.dump(session, _as_data(thought))
        return
    for line in _lines(thought, files):
        sign = line.lstrip()[:2]
        click.secho(line, fg={"+ ": "green", "- ": "red"}.get(sign))


def _as_data(thought: Thought) -> Any:
    made = thought.plan
    created, changed, deleted = made.counts
    return {
        "summary": {"created": created, "changed": changed, "deleted": deleted},
        "changes": [render.as_data(change) for change in thought.effects],
        "conflicts": [
            {"resource": each.entry.name, "in_step_at": each.revision, "file": each.entry.file}
            | ({} if each.difference is None else _values(each.difference))
            for each in made.conflicts
        ],
        "drift": [
            {"resource": each.entry.name, "file": each.entry.file, "command": each.command} | _values(each.difference)
            for each in made.drifts
        ],
        "behind": [
            {"resource": each.entry.name, "file": each.entry.file} | _values(each.difference) for each in made.behind
        ],
        "unlisted": made.unlisted,
    }


def _values(difference: Any) -> dict[str, Any]:
    values = {"base": difference.base, "ledger": difference.ledger, "in_file": difference.file}
    return {"field": join(difference.path)} | {key: value for key, value in values.items() if value is not None}


def _lines(thought: Thought, files: FileSet) -> Iterator[str]:
    """A plan as a diff that a person reviews."""
    made = thought.plan
    asked = {name_of(change) for change in made.changes}
    for change in thought.effects:
        entry = files.entries.get(change.resource)
        where = f"  ({entry.file}:{entry.line()})" if entry is not None else ""
        follows = "" if change.resource in asked else "  (follows from the changes above)"
        yield f"{render.enum(change, 'action').lower()} {change.resource}{where}{follows}"
        yield from field_lines(change)
    if made.conflicts:
        yield "Conflicts: changed in the file and in the ledger since they were in step. Settle them in the file."
    for conflict in made.conflicts:
        yield from _conflict_lines(conflict)
    if made.behind:
        yield "Newer in the ledger, and left as it is there. Bring the files up to date: modelfleet registry export"
    for behind in made.behind:
        yield from _difference_lines(behind.entry, behind.difference, old="file", new="ledger")
    if made.drifts:
        yield "Drift: fields that launches own differ, and are not applied."
    for each in made.drifts:
        yield from _difference_lines(each.entry, each.difference, old="ledger", new="file")
        yield (
            f"    to have it so: {each.command}" if each.command else "    a launch has moved on: export the file again"
        )
    gone = {name_of(change) for change in made.changes if change.WhichOneof("entry") == "delete"}
    kept = [name for name in made.unlisted if name not in gone]
    if kept:
        yield f"In the ledger and not in the files, kept without --prune: {_some(kept)}"
    created, changed, deleted = made.counts
    if made.changes:
        more = "".join(
            f", {count} {word}"
            for count, word in ((len(made.conflicts), "in conflict"), (len(made.drifts), "drifted"))
            if count
        )
        yield f"{created} to create, {changed} to change, {deleted} to delete{more}."
    elif not made.conflicts:
        yield "No changes: the ledger says what the files say."


def field_lines(change: pb.ResourceChange) -> Iterator[str]:
    """The fields of a change, before and after."""
    for field in change.fields:
        data = render.as_data(field)
        if data.get("before") is not None:
            yield f"  - {field.path}: {shown(data['before'])}"
        if data.get("after") is not None:
            yield f"  + {field.path}: {shown(data['after'])}"


def shown(value: Any) -> str:
    """A value on one line: texts as they are, the rest as JSON."""
    if value is None:
        return "(unset)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _conflict_lines(conflict: Any) -> Iterator[str]:
    entry, difference = conflict.entry, conflict.difference
    if difference is None:
        where = f"{entry.file}:{entry.line()}"
        yield f"  {entry.name} was deleted in the ledger after revision {conflict.revision}  ({where})"
        yield "    delete it from the file, or delete its `revision:` to create it again"
        return
    yield f"  {entry.name} {join(difference.path)}  ({entry.file}:{entry.line(difference.path)})"
    yield f"    in step at {conflict.revision}: {shown(difference.base)}"
    yield f"    ledger now: {shown(difference.ledger)}"
    yield f"    file: {shown(difference.file)}"


def _difference_lines(entry: Any, difference: Any, *, old: str, new: str) -> Iterator[str]:
    yield f"  {entry.name} {join(difference.path)}  ({entry.file}:{entry.line(difference.path)})"
    for sign, word in (("-", old), ("+", new)):
        yield f"    {sign} {word}: {shown(getattr(difference, word))}"


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# A plan in a file.


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _save(out: Path, made: Plan, files: FileSet, *, adopt: bool) -> None:
    request = pb.ApplyEntriesRequest(changes=made.changes, request_id=str(uuid.uuid4()), adopt_serving=adopt)
    in_step = {name: files.blocks[name].file for name in made.in_step}
    data = {
        "request": render.as_data(request),
        "files": {str(path): _digest(path) for path in files.paths.values()},
        "in_step": in_step,
    }
    out.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _load(path: Path) -> tuple[pb.ApplyEntriesRequest, dict[str, str]]:
    """Reads a kept plan; refuses one whose files have changed since."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        request = ParseDict(data["request"], pb.ApplyEntriesRequest())
        files, in_step = dict(data["files"]), dict(data["in_step"])
    except (ValueError, KeyError, TypeError, ParseError):
        raise click.UsageError(f"{path} is no plan; make one with: modelfleet registry plan PATHS --out FILE") from None
    for name, digest in files.items():
        if not Path(name).is_file() or _digest(Path(name)) != digest:
            raise click.ClickException(f"{name} has changed since {path} was made; plan again")
    return request, in_step


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--plan", "kept", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Made by `plan --out`."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--reason", default="", help="Why; kept in the history.")
@_prune
@_adopt
@with_session
def apply(
    session: Session, paths: tuple[Path, ...], kept: Path | None, yes: bool, reason: str, prune: bool, adopt: bool
) -> int:
    """Make the ledger say what files say: all of it in one revision, or nothing.

    What was changed in the ledger and in the file is refused; what launches own is never applied. Of the files only the
    lines `revision:` are written.
    """
    if kept is not None:
        if paths:
            raise click.UsageError("give PATHS or --plan, not both: the plan names its files")
        request, in_step = _load(kept)
        request.reason = reason
        return _apply(session, request, in_step, None, yes=yes)
    if not paths:
        raise click.UsageError("give files or folders, or --plan FILE")
    files = _read(paths)
    thought = _think(session, files, prune=prune, adopt=adopt)
    if thought.problems:
        _problems(session, thought.problems)
        return _WRONG
    made = thought.plan
    if session.is_table or made.conflicts:
        _show(session, thought, files)
    if made.conflicts:
        click.echo("Nothing was applied.", err=True)
        return _WRONG
    in_step = {name: files.blocks[name].file for name in made.in_step}
    request = pb.ApplyEntriesRequest(
        changes=made.changes, request_id=str(uuid.uuid4()), reason=reason, adopt_serving=adopt
    )
    return _apply(session, request, in_step, files, yes=yes)


def _apply(
    session: Session, request: pb.ApplyEntriesRequest, in_step: dict[str, str], files: FileSet | None, *, yes: bool
) -> int:
    if request.changes and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to ask; give --yes")
        click.confirm(f"Apply {render.count(len(request.changes), 'change')}?", abort=True, err=True)
    if not request.changes:
        answer = pb.ApplyEntriesResponse()
    else:
        try:
            with render.busy("applying"):
                answer = _ask(session, request)
        except errors.Aborted as error:
            name = error.metadata.get("resource", "an entry")
            raise click.ClickException(f"{name} has changed since the plan; nothing was applied. Plan again.") from None
        except errors.ModelfleetError as error:
            if not error.violations or files is None:
                raise
            _problems(session, refused(error, request.changes, files))
            return _WRONG
    if answer.revision:
        _mark(in_step, answer.revision)
    if not session.is_table:
        render.dump(session, render.as_data(answer))
    elif answer.revision:
        click.echo(f"Applied as revision {answer.revision}: modelfleet registry revision get {answer.revision}")
    elif request.changes:
        click.echo("Everything was so already.")
    return _NOTHING


def _mark(in_step: dict[str, str], revision: int) -> None:
    """Writes the revision at which files and ledger are in step, and touches nothing beside it."""
    by_file: dict[str, set[str]] = {}
    for name, file in in_step.items():
        by_file.setdefault(file, set()).add(name)
    for file, names in by_file.items():
        path = Path(file)
        text = text_of(path)
        blocks, _ = read_text(text, file)
        # From the end, so that lines above stay where they are.
        for block in reversed(blocks):
            if block.entry.name in names and block.revision != revision:
                text = with_revision(text, block, revision)
        replace_text(path, text)


# What differs.


@click.command()
@_paths
@with_session
def drift(session: Session, paths: tuple[Path, ...]) -> int:
    """Show in what files and ledger differ, whoever changed it. Exit status: 0 nothing, 2 differences, 1 mistakes."""
    files = _read(paths)
    if files.problems:
        _problems(session, files.problems)
        return _WRONG
    made = _plan(session, files, prune=False, adopt=False)
    rows = _differing(made, files)
    columns = ["ENTRY", "FIELD", "LEDGER", "FILE", "WHAT"]
    if not session.is_table:
        render.dump(session, [dict(zip(map(str.lower, columns), row, strict=True)) for row in rows])
    elif rows:
        render.console().print(render.table(columns, rows))
    else:
        click.echo("Nothing: the ledger says what the files say.")
    return _CHANGES if rows else _NOTHING


def _differing(made: Plan, files: FileSet) -> list[list[str]]:
    rows = []

    def add(name: str, difference: Any, what: str) -> None:
        rows.append([name, join(difference.path), shown(difference.ledger), shown(difference.file), what])

    for change in made.changes:
        name = name_of(change)
        if name not in made.edits:
            rows.append([name, "", "(none)", files.entries[name].file, "only in the file"])
    for name, edits in made.edits.items():
        for difference in edits:
            add(name, difference, "newer in the file")
    for behind in made.behind:
        add(behind.entry.name, behind.difference, "newer in the ledger")
    for conflict in made.conflicts:
        if conflict.difference is None:
            rows.append([conflict.entry.name, "", "(deleted)", conflict.entry.file, "only in the file"])
        else:
            add(conflict.entry.name, conflict.difference, "changed in both")
    for each in made.drifts:
        add(each.entry.name, each.difference, each.command or "a launch moved on")
    rows += [[name, "", "there", "(none)", "only in the ledger"] for name in made.unlisted]
    return rows
