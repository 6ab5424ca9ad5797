"""The folder that `modelfleetd up` lives in, and who may live in it.

- postgres/: the embedded database
- node/: what the node agent keeps: its ledger, desired states, replicas' logs
- recordings/: recorded traffic, of the node agent and of clients
- logs/: what every process says, bounded
- run/: of the present run: lock, status.json (address, ports, process ids), Envoy's configuration
- ports.json: the ports of the last run, taken again so that addresses in the registry stay true

Other users see none of it: they may only pass through the folder, as PostgreSQL must where it runs as another user.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modelfleetd.kit.ports import SERVERS, mark_port, reserve_port
from modelfleetd.local.refusals import CannotRun

# Every process that `up` starts, and every process that these start, carries it with the folder's path.
# (Not MODELFLEET_…: the node agent keeps those, which configure services, from its replicas.)
MARKER = "MODELFLEETD_UP"
_PASSABLE, _PRIVATE = 0o711, 0o700
# Root's own home is closed, and PostgreSQL, which does not run as root, must get through.
_OF_ROOT = Path("/var/lib/modelfleet")


class DataDirectory:
    """The folder and the places in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.postgres = self.path / "postgres"
        self.node = self.path / "node"
        self.recordings = self.path / "recordings"
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self.status = self.run / "status.json"
        self._ports = self.path / "ports.json"

    @classmethod
    def default(cls) -> Path:
        """Returns $MODELFLEET_DATA_DIR, else the usual place for a user's data, or for the system's as root."""
        if given := os.environ.get("MODELFLEET_DATA_DIR"):
            return Path(given)
        if given := os.environ.get("XDG_DATA_HOME"):
            return Path(given) / "modelfleet"
        return _OF_ROOT if os.geteuid() == 0 else Path("~/.local/share/modelfleet")

    def create(self) -> None:
        """Makes the folders that are missing, and closes them to other users.

        Raises:
            CannotRun: this user may not write there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (self.node, self.recordings, self.logs, self.run):
                folder.mkdir(exist_ok=True)
                folder.chmod(_PRIVATE)
            if self.path.stat().st_uid == os.geteuid():
                self.path.chmod(_PASSABLE)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise CannotRun(
                f"Cannot write to {self.path} ({error.strerror}): name another folder with --data-dir."
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other `up` out of the folder for as long as this process lives.

        Raises:
            CannotRun: another one lives in it.
        """
        lock = os.open(self.run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                raise CannotRun(
                    f"modelfleetd up is running on {self.path} already (process {owner}): "
                    "stop it there, or name another folder with --data-dir."
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def ports(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        """Gives a free port for each name, the one of the last run where it is still free, and keeps them from others
        who choose in this way.
        """
        last = _read_json(self._ports)
        with contextlib.ExitStack() as marks:
            ports = {name: _take(last.get(name), marks) for name in names}
            write_json(self._ports, ports)
            yield ports


def _take(wanted: object, marks: contextlib.ExitStack) -> int:
    if isinstance(wanted, int) and wanted > 0 and (mark := mark_port(wanted)):
        marks.enter_context(mark)
        return wanted
    try:
        port, mark = reserve_port(SERVERS)
    except OSError as problem:
        raise CannotRun(f"No port is free on this machine ({problem}).") from problem
    marks.enter_context(mark)
    return port


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: object) -> None:
    """Writes a file as a whole or not at all."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)
