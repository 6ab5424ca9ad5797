"""A Git working tree that is kept in step with the ledger: one commit a revision, by whoever made the revision."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from modelfleet.registry.v1 import registry_pb2 as pb

_REVISION: Final = "Modelfleet-Revision"
_LAUNCH: Final = "Modelfleet-Launch"
_ON_BEHALF_OF: Final = "Modelfleet-On-Behalf-Of"
_MOST_LINES: Final = 50
_SUBJECT: Final = 72


class GitError(Exception):
    """Git refused something, or the working tree is not as it has to be."""


class WorkingTree:
    """A folder inside a Git working tree. Commits touch nothing outside of it, and nothing is ever pushed."""

    def __init__(self, folder: Path) -> None:
        """Opens it.

        Raises:
            GitError: there is no working tree, or Git is not installed.
        """
        self.folder = folder
        self._environment: Mapping[str, str] = {**os.environ, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
        try:
            self._git("rev-parse", "--show-toplevel")
        except GitError as error:
            if "not a git repository" not in str(error):
                raise
            raise GitError(f"{folder} is not in a Git working tree; make one with: git init {folder}") from None
        if self._status("var", "GIT_COMMITTER_IDENT") != 0:
            # Nobody has said who commits here: whoever runs this does.
            own = {"GIT_COMMITTER_NAME": "modelfleet", "GIT_COMMITTER_EMAIL": "export@modelfleet"}
            self._environment = {**self._environment, **own}
        self._marker = folder / self._git("rev-parse", "--git-path", "modelfleet-export").strip()

    def recover(self) -> bool:
        """Undoes what was written but not committed when an earlier run died. Says whether there was something."""
        if not self._marker.exists():
            return False
        if self.head():
            self._git("reset", "--quiet", "--", ".")
            if self._git("ls-files", "--", "."):
                self._git("checkout", "--quiet", "HEAD", "--", ".")
        else:
            self._git("rm", "-r", "--quiet", "--cached", "--ignore-unmatch", "--", ".")
        self._git("clean", "--quiet", "-d", "--force", "--", ".")
        self._marker.unlink()
        return True

    def expect_clean(self) -> None:
        """Raises GitError where something in the folder is not committed."""
        changed = self._git("status", "--porcelain", "--untracked-files=all", "--", ".").splitlines()
        if changed:
            shown = ", ".join(line[3:] for line in changed[:3]) + (" …" if len(changed) > 3 else "")
            raise GitError(f"{self.folder} has changes that are not committed ({shown}); commit or undo them first")

    def begin(self) -> None:
        """Says that what is written from now on until the commit may be undone."""
        self._marker.write_text("Files are being written by `modelfleet registry export`.\n", encoding="utf-8")

    def commit(self, paths: Iterable[Path], message: str, author: str, date: str) -> bool:
        """Commits some files, and nothing else. Says whether there was anything to commit."""
        named = "\0".join(os.path.relpath(path, self.folder) for path in paths)
        made = False
        if named:
            listed = ("--pathspec-from-file=-", "--pathspec-file-nul")
            self._git("add", "--all", *listed, given=named)
            made = bool(self._git("diff", "--cached", "--name-only", "--", ".").strip())
            if made:
                options = ("--quiet", "--cleanup=verbatim", f"--author={author}", f"--date={date}")
                self._git("commit", *options, f"--message={message}", *listed, given=named)
        self._marker.unlink(missing_ok=True)
        return made

    def head(self) -> str:
        """Returns the commit that is checked out; empty before the first."""
        done = self._run(("rev-parse", "--verify", "--quiet", "HEAD"), None)
        return done.stdout.strip()

    def last_revision(self) -> int:
        """Returns the revision that the newest commit of this folder is of; 0 where there is none."""
        if not self.head():
            return 0
        trailer = f"%(trailers:key={_REVISION},valueonly)"
        found = self._git("log", "-1", f"--grep=^{_REVISION}: ", f"--format={trailer}", "--", ".")
        numbers = re.findall(r"^[0-9]+$", found, re.MULTILINE)
        return int(numbers[-1]) if numbers else 0

    def _git(self, *arguments: str, given: str | None = None) -> str:
        done = self._run(arguments, given)
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or " ".join(done.stdout.split())
            raise GitError(f"git {arguments[0]}: {said[:500]}")
        return done.stdout

    def _status(self, *arguments: str) -> int:
        return self._run(arguments, None).returncode

    def _run(self, arguments: Sequence[str], given: str | None) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["git", *arguments],
                cwd=self.folder,
                env=self._environment,
                input=given,
                stdin=subprocess.DEVNULL if given is None else None,
                capture_output=True,
                encoding="utf-8",
                check=False,
            )
        except FileNotFoundError:
            raise GitError("git is not installed") from None


def author_of(actor: str) -> str:
    """Returns an actor as Git names authors."""
    name = re.sub(r"[<>\x00-\x1f\x7f]+", " ", actor).strip() or "unknown"
    address = re.sub(r"[^A-Za-z0-9._+-]+", "-", actor).strip("-.") or "unknown"
    return f"{name} <{address}@modelfleet>"


def message_of(revision: pb.Revision, described: Sequence[str]) -> str:
    """Returns the message of a revision's commit: why, what, and trailers from which to go on.

    Args:
        revision: the revision.
        described: its changes, a line each.
    """
    reason = revision.reason.strip()
    first, _, rest = reason.partition("\n")
    shown = [line[:500] for line in described[:_MOST_LINES]]
    more = [f"and {len(described) - _MOST_LINES:,} more"] if len(described) > _MOST_LINES else []
    subject = first or (described[0] if len(described) == 1 else f"{len(described):,} entries changed")
    long = len(subject) > _SUBJECT
    parts = [f"{subject[: _SUBJECT - 1]}…" if long else subject, subject if long else "", rest.strip()]
    parts.append("\n".join([*shown, *more]))
    trailers = [f"{_REVISION}: {revision.number}"]
    trailers += [f"{_LAUNCH}: {revision.launch}"] if revision.launch else []
    trailers += [f"{_ON_BEHALF_OF}: {' '.join(revision.on_behalf_of.split())}"] if revision.on_behalf_of else []
    return "\n\n".join([*(part for part in parts if part), "\n".join(trailers)]) + "\n"


def export_message(revision: int, count: int) -> str:
    """Returns the message of a commit that brings everything to a revision at once."""
    return f"{count:,} {'file' if count == 1 else 'files'} as of revision {revision}\n\n{_REVISION}: {revision}\n"
