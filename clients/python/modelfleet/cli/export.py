"""`modelfleet registry export`: the ledger as files, once or for good, and as commits of a Git working tree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet import errors
from modelfleet.cli import render
from modelfleet.cli.session import Session, with_session
from modelfleet.code.git import GitError, WorkingTree, author_of, export_message, message_of
from modelfleet.code.ledger import Ledger
from modelfleet.code.tree import DamagedFile, State, Tree, edited, states_of
from modelfleet.registry.v1 import registry_pb2 as pb

Describe = Callable[[pb.ResourceChange], str]
# Between attempts while the registry is away.
_WAIT_SECONDS: Final = 2.0


def add_command(group: click.Group, describe: Describe) -> None:
    """Adds the command to `modelfleet registry`. `describe` says a change in a line."""

    @group.command()
    @click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
    @click.option("--as-of", type=click.IntRange(min=1), help="As of this revision.")
    @click.option("--team", help="Only what this team owns.")
    @click.option("--type", "model_type", help="Only this model type.")
    @click.option("--force", is_flag=True, help="Also write over changes that nobody has applied.")
    @click.option("--follow", is_flag=True, help="Stay, and write every revision as it comes.")
    @click.option("--commit", is_flag=True, help="Commit to the Git working tree: with --follow a commit a revision.")
    @with_session
    def export(
        session: Session,
        folder: Path,
        as_of: int | None,
        team: str | None,
        model_type: str | None,
        force: bool,
        follow: bool,
        commit: bool,
    ) -> int:
        """Write the ledger as files: teams/, regions/, types/ (with their models) and assets/.

        An entry that has a file in the folder stays in it, comments and all. Files with changes that nobody has applied
        are kept as they are.
        """
        if follow and (as_of or team or model_type or force):
            raise click.UsageError(
                "--follow keeps everything in step as it is: not with --as-of, --team, --type, --force"
            )
        try:
            exporter = _Exporter(session, folder, describe)
            if follow or commit:
                folder.mkdir(parents=True, exist_ok=True)
                exporter.open_git(commit=commit)
            if follow:
                exporter.follow()
            status = exporter.export(as_of or 0, team or "", model_type or "", force=force)
        except GitError as error:
            raise click.ClickException(str(error)) from None
        except DamagedFile as error:
            raise click.ClickException(f"{error}; mend the file first") from None
        return status


class _Exporter:
    def __init__(self, session: Session, folder: Path, describe: Describe) -> None:
        self._session = session
        self._folder = folder
        self._describe = describe
        self._ledger = Ledger(session.client.registry)
        self._git: WorkingTree | None = None
        self._tree: Tree | None = None
        self._head = ""

    def open_git(self, *, commit: bool) -> None:
        if commit:
            self._git = WorkingTree(self._folder)
            if self._git.recover():
                click.echo("An earlier run died while it wrote: what it had not committed is undone.", err=True)
            self._git.expect_clean()

    def export(self, as_of: int, team: str, model_type: str, *, force: bool) -> int:
        """Writes everything once; returns the exit status: 1 where files were kept that differ."""
        wanted_team = team if team.startswith("teams/") or not team else f"teams/{team}"
        wanted_type = (
            model_type if model_type.startswith("modelTypes/") or not model_type else f"modelTypes/{model_type}"
        )

        def keep(message: Any) -> bool:
            if wanted_type:
                return bool(message.name == wanted_type)
            return not wanted_team or wanted_team in (message.name, getattr(message, "team", ""))

        revision = as_of or self._ledger.newest()
        whole = not wanted_team and not wanted_type
        written, removed, kept = self._write(revision, keep, whole=whole, force=force)
        if self._git is not None:
            now = datetime.now().astimezone().isoformat()
            count = len(written) + len(removed)
            message = export_message(revision, count)
            self._git.commit([*written, *removed], message, author_of("modelfleet"), now)
        self._say(revision, written, removed, kept)
        return 1 if kept else 0

    def _write(
        self, revision: int, keep: Callable[[Any], bool], *, whole: bool, force: bool
    ) -> tuple[list[Path], list[Path], list[Path]]:
        """Returns the files that were written, removed, and kept because of changes that nobody has applied."""
        with render.busy(f"reading revision {revision}"):
            entries = list(self._ledger.at(revision)) if revision else []
            revisions = {entry.name: entry.revision for entry in map(_any, entries)}
            states = states_of(entries, keep)
        tree = Tree(self._folder)
        with render.busy("comparing with the files"):
            kept = [] if force else list(self._edited(tree, states, revisions, whole=whole))
            gone = [name for name in tree.names if whole and name not in states and name not in kept]
        if self._git is not None:
            self._git.begin()
        with render.busy("writing files"):
            written = [tree.write(name, state) for name, state in states.items() if name not in kept]
            removed = [tree.remove(name) for name in gone]
        self._tree = tree
        # A new entry that somebody has not applied yet is no difference.
        told = [name for name in kept if name in states or ((block := tree.block(name)) and block.revision)]
        return _paths(written), _paths(removed), [tree.path_of(name) for name in told]

    def _edited(
        self, tree: Tree, states: Mapping[str, State], revisions: Mapping[str, int], *, whole: bool
    ) -> Iterator[str]:
        """Yields the entries whose files have changes that nobody has applied."""
        for name in tree.names:
            state = states.get(name)
            if state is None and not whole:
                continue
            block = tree.block(name)
            differs = block is not None and (state is None or not tree.says(block, state))
            if block is not None and differs and edited(block, state, revisions, self._ledger.as_of):
                yield name

    def _say(self, revision: int, written: list[Path], removed: list[Path], kept: list[Path]) -> None:
        if not self._session.is_table:
            files = {"written": written, "removed": removed, "kept": kept}
            data = {key: [str(path) for path in paths] for key, paths in files.items()}
            render.dump(self._session, {"revision": revision, **data})
            return
        for path in kept:
            click.echo(f"kept {path}: it has changes that nobody has applied (--force writes over them)")
        told = f"{render.count(len(written), 'file')} written, {len(removed):,} removed, {len(kept):,} kept"
        click.echo(f"Revision {revision}: {told}.")

    # For good.

    def follow(self) -> None:
        """Writes each revision as it comes, until it is interrupted."""
        position = 0 if self._git is None else self._git.last_revision()
        while True:
            try:
                if not position:
                    position = self._ledger.newest()
                    self._resync(position)
                for answer in self._session.client.registry.watch_revisions(after_revision=position):
                    if answer.HasField("revision"):
                        self._take(answer.revision)
                        position = answer.revision.number
            except errors.OutOfRange:
                click.echo("The registry no longer has what came next: everything is written anew.", err=True)
                position = 0
            except (errors.Unavailable, errors.DeadlineExceeded, errors.Cancelled, errors.ResourceExhausted):
                time.sleep(_WAIT_SECONDS)

    def _resync(self, revision: int) -> None:
        written, removed, _ = self._write(revision, lambda _: True, whole=True, force=True)
        if self._git is not None:
            now = datetime.now().astimezone().isoformat()
            message = export_message(revision, len(written) + len(removed))
            self._git.commit([*written, *removed], message, author_of("modelfleet"), now)
        self._report(f"{render.count(len(written), 'file')} written, {len(removed):,} removed", revision)

    def _take(self, revision: pb.Revision) -> None:
        if self._git is not None:
            self._git.expect_clean()
            if self._head != self._git.head():
                self._tree = None  # Somebody else has committed: files may be elsewhere.
            self._git.begin()
        self._tree = self._tree or Tree(self._folder)
        paths = self._tree.take(revision)
        described = [self._describe(change) for change in revision.changes]
        if self._git is not None:
            message = message_of(revision, described)
            self._git.commit(paths, message, author_of(revision.actor), _iso(revision.time))
            self._head = self._git.head()
        if paths:
            self._report("; ".join(described[:3]) + (" …" if len(described) > 3 else ""), revision.number)

    def _report(self, text: str, revision: int) -> None:
        if self._session.is_table:
            click.echo(f"revision {revision}: {text}")
        else:
            render.emit(self._session, {"revision": revision, "text": text})


def _any(entry: Any) -> Any:
    return entry


def _paths(found: Iterable[Path | None]) -> list[Path]:
    return [path for path in found if path is not None]


def _iso(time: Timestamp) -> str:
    return time.ToDatetime().isoformat(timespec="seconds") + "+00:00"
