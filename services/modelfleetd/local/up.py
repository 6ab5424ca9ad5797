"""Runs everything on this machine: PostgreSQL, Envoy, the four services and the node agent, until Ctrl-C.

One port is all that callers need. The data directory keeps everything: a second `up` on it continues where the first
one ended. Whatever ends by itself is started again; when `up` ends, nothing is left running.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelfleetd.kit.database_url import check_database_url
from modelfleetd.kit.ports import HOST, is_free
from modelfleetd.local import leftovers, orphans, programs
from modelfleetd.local.bounded_log import BoundedLog
from modelfleetd.local.data_directory import DataDirectory, write_json
from modelfleetd.local.front_door import SERVICES
from modelfleetd.local.postgres import EmbeddedPostgres
from modelfleetd.local.readiness import unready, wait_until_ready
from modelfleetd.local.refusals import CannotRun
from modelfleetd.local.screen import Screen
from modelfleetd.local.supervisor import Supervisor

DEFAULT_PORT = 8460
# Everything that the front door checks: all parts but the traffic, which is the node's.
_CHECKED = frozenset(SERVICES) - {"traffic"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asked for."""

    data_dir: Path
    port: int
    database_url: str
    ready_seconds: float


class Up:
    """One run of everything on one data directory."""

    def __init__(self, options: Options, screen: Screen) -> None:
        self._options = options
        self._screen = screen
        self._directory = DataDirectory(options.data_dir)
        self._ports: dict[str, int] = {}
        self._server: EmbeddedPostgres | None = None
        self._supervisor = Supervisor(self._directory.logs, screen.note, self._write_status)
        self._ready_seconds: float | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Brings everything up, stays until `stop`, and takes everything down.

        Raises:
            CannotRun: it could not be brought up.
        """
        self._directory.create()
        with self._directory.locked(), self._directory.ports(programs.PORTS) as self._ports:
            self._check_port()
            orphans.adopt()
            self._clean()
            stopped = asyncio.create_task(stop.wait())
            started = asyncio.create_task(self._start())
            try:
                await asyncio.wait({stopped, started}, return_when=asyncio.FIRST_COMPLETED)
                if started.done():
                    started.result()
                    await self._stay(stopped)
            finally:
                for task in (started, stopped):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, CannotRun):
                        await task
                await self._stop()

    def kill(self) -> None:
        """Ends everything at once."""
        self._supervisor.kill()

    async def _start(self) -> None:
        began = time.monotonic()
        self._supervisor.start(programs.proxy(self._directory, self._options.port, self._ports))
        url = self._options.database_url
        if not url:
            self._server = await asyncio.to_thread(EmbeddedPostgres.at, self._directory.postgres)
            url = self._server.url
        environment = programs.service_environment(self._directory, url, self._ports)
        try:
            async with asyncio.timeout(self._options.ready_seconds):
                prepared = await self._prepare(environment)
                for name in programs.SERVICES:
                    self._supervisor.start(programs.service(name, environment, self._ports))
                self._supervisor.start(programs.node(self._directory, environment, self._ports))
                await wait_until_ready(self._ports["front_door_admin"], _CHECKED)
                await self._finish(prepared)
        except TimeoutError:
            raise CannotRun(await self._why_not_ready()) from None
        self._ready_seconds = time.monotonic() - began
        self._write_status()
        self._screen.ready(self._status())

    async def _stay(self, stopped: asyncio.Task[bool]) -> None:
        reaping = asyncio.create_task(orphans.reap())
        await stopped
        reaping.cancel()

    async def _prepare(self, environment: dict[str, str]) -> asyncio.subprocess.Process:
        """Starts the database and what is done once; returns when services may start."""
        prepared = await asyncio.create_subprocess_exec(
            *programs.prepare_command(self._ports["node"]),
            env=programs.prepare_environment(environment, self._server),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            if self._server is not None:
                await asyncio.to_thread(self._server.initialize)
                self._supervisor.start(programs.postgres(self._server, self._directory))
            assert prepared.stdout is not None
            if (await prepared.stdout.readline()).decode().strip() != programs.MIGRATED:
                await self._finish(prepared)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                prepared.kill()
            raise
        return prepared

    async def _finish(self, prepared: asyncio.subprocess.Process) -> None:
        """Waits for the end of what is done once; its last line says why it failed."""
        _, said = await prepared.communicate()
        log = BoundedLog(self._directory.logs / "prepare.log")
        log.write(said)
        if prepared.returncode != 0:
            raise CannotRun(f"The database could not be prepared: {log.last_line()} (all of it: {log.path})")
        log.close()

    async def _why_not_ready(self) -> str:
        waiting = sorted(await unready(self._ports["front_door_admin"], _CHECKED))
        first = waiting[0] if waiting else "registry"
        said = self._supervisor.last_words(first)
        return (
            f"Not ready after {self._options.ready_seconds:.0f} s: {', '.join(waiting) or 'the region'} did not "
            f"answer. {first} said last: {said} (logs: {self._directory.logs})"
        )

    async def _stop(self) -> None:
        for names in programs.STOP_ORDER:
            await self._supervisor.stop(names)
        # Replicas and the proxy before them outlive the node agent; they do not outlive `up`.
        await asyncio.to_thread(leftovers.end, self._directory.path)
        orphans.reap_all()
        self._directory.status.unlink(missing_ok=True)

    def _check_port(self) -> None:
        if not is_free(self._options.port):
            raise CannotRun(f"Port {self._options.port} is in use: choose another one with --port.")

    def _clean(self) -> None:
        """Ends what an `up` that was killed has left, but for replicas: the node agent takes them over."""
        if ended := leftovers.end(self._directory.path, replicas=False):
            self._screen.note(f"ended {ended} processes that an earlier run left behind")

    def _status(self) -> dict[str, object]:
        return {
            "address": f"{HOST}:{self._options.port}",
            "data_dir": str(self._directory.path),
            "embedded_database": self._server is not None,
            "ready_seconds": None if self._ready_seconds is None else round(self._ready_seconds, 2),
            "pid": os.getpid(),
            "ports": {"front_door": self._options.port, **self._ports},
            "processes": self._supervisor.processes,
        }

    def _write_status(self) -> None:
        write_json(self._directory.status, self._status())


async def _main(options: Options, screen: Screen) -> None:
    stop = asyncio.Event()
    up = Up(options, screen)

    def asked() -> None:
        if stop.is_set():  # asked twice: no more patience
            up.kill()
        else:
            screen.stopping()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked)
    await up.run(stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until it is told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="modelfleetd up", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=DataDirectory.default(),
        help="keeps everything (default ~/.local/share/modelfleet, as root /var/lib/modelfleet; $MODELFLEET_DATA_DIR)",
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"of the front door (default {DEFAULT_PORT})")
    parser.add_argument(
        "--database-url",
        default=os.environ.get("MODELFLEET_DATABASE_URL", ""),
        help="PostgreSQL 15 or later to use instead of the embedded one; $MODELFLEET_DATABASE_URL, which no other "
        "user of this machine sees",
    )
    parser.add_argument("--ready-seconds", type=float, default=60.0, help="give up when not ready by then (default 60)")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument("--json", action="store_true", help="say `ready` as one line of JSON on standard output")
    given = parser.parse_args(argv)
    if not 0 < given.port < 65536:
        parser.error("--port must be between 1 and 65535")
    if given.database_url:
        try:
            check_database_url(given.database_url)
        except ValueError as error:
            print(f"modelfleetd up: {error}", file=sys.stderr)
            return 1
    options = Options(given.data_dir, given.port, given.database_url, given.ready_seconds)
    screen = Screen(quiet=given.quiet, as_json=given.json)
    try:
        asyncio.run(_main(options, screen))
    except CannotRun as error:
        print(f"modelfleetd up: {error}", file=sys.stderr)
        return 1
    screen.stopped()
    return 0


if __name__ == "__main__":
    sys.exit(main())
