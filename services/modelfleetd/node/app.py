"""Serves the platform agent of one machine: replicas as processes behind Envoy."""

from __future__ import annotations

import argparse
import fcntl
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from modelfleet.platform.v1 import platform_pb2_grpc
from modelfleetd import names
from modelfleetd.kit.app import Service, run_service
from modelfleetd.kit.config import is_loopback
from modelfleetd.node.api import PlatformServicer
from modelfleetd.node.processes import find_command
from modelfleetd.node.proxy import Proxy
from modelfleetd.node.reconciler import Reconciler
from modelfleetd.node.state import State
from modelfleetd.node.store import Store
from modelfleetd.node.tap import Tap
from modelfleetd.platform.model import Agent, FlavorUnits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the agent's own flags."""
    parser.add_argument("--region", default="local", metavar="REGION", help="id or name of its region (default local)")
    parser.add_argument(
        "--traffic-listen",
        default="127.0.0.1:0",
        metavar="ADDRESS",
        help="where callers of models send requests, host:port; port 0 takes a free one, once and for all",
    )
    parser.add_argument(
        "--data-dir", type=Path, required=True, metavar="FOLDER", help="what it must not forget, and logs"
    )
    parser.add_argument(
        "--flavor",
        action="append",
        type=_flavor,
        default=[],
        metavar="NAME=UNITS",
        help="units that it has of a flavor; repeat it; none at all: no limit",
    )
    parser.add_argument(
        "--on-stop",
        choices=("keep", "terminate"),
        default="keep",
        help="what becomes of replicas and Envoy when the agent stops (default keep: the next agent finds them)",
    )


async def build(service: Service) -> None:
    """Composes the agent."""
    options = service.options
    folder: Path = options.data_dir.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = await service.enter(_store_of(folder))
    region = _region(options.region)
    capacity = dict(options.flavor)
    state = State(store, service.clock, region=region, capacity=capacity, find_command=find_command)
    host, port = _traffic_address(options.traffic_listen, store, exposed=service.config.has_identity)
    agent = Agent(
        region=region,
        version=f"node {version('modelfleet')}",
        traffic_address=f"{host}:{port}",
        capacity=tuple(FlavorUnits(flavor, units) for flavor, units in sorted(capacity.items())),
        start_time=service.clock.now(),
        records=True,
    )
    envoy = Proxy(folder / "envoy", host, port, f"{state.agent_id}/envoy")
    tap = Tap(state, store, envoy, service.config.recordings_uri or str(folder / "recordings"), service.clock)
    reconciler = Reconciler(
        state,
        store,
        envoy,
        folder / "replicas",
        service.clock,
        taps=tap.percents,
        terminate=options.on_stop == "terminate",
    )
    service.work(reconciler, tap)
    # Only callers whom the configuration knows may act here: the agent goes on while the registry is dead.
    server = service.server()
    servicer = PlatformServicer(agent, state, store, reconciler.meter, tap)
    server.add(servicer, platform_pb2_grpc.add_PlatformServiceServicer_to_server)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the agent until it is told to stop; returns the exit status."""
    return run_service("node", build, argv, arguments=add_arguments)


@asynccontextmanager
async def _store_of(folder: Path) -> AsyncIterator[Store]:
    """The store of a folder, for one agent at a time.

    Raises:
        ValueError: another agent has the folder.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another agent runs in {folder}; stop it, or give another --data-dir") from None
        store = Store(folder / "agent.db")
        try:
            yield store
        finally:
            store.close()


def _region(text: str) -> str:
    return text if names.REGION.match(text) else names.REGION.format(names.check_id(text, "--region"))


def _flavor(text: str) -> tuple[str, int]:
    name, _, units = text.partition("=")
    flavor = name if names.FLAVOR.match(name) else f"flavors/{name}"
    if names.FLAVOR.match(flavor) is None or not units.isdigit():
        raise argparse.ArgumentTypeError("must be like cpu=16")
    return flavor, int(units)


def _traffic_address(text: str, store: Store, *, exposed: bool) -> tuple[str, int]:
    """Where Envoy listens. A port that was chosen freely stays the same for ever: callers know it.

    Raises:
        ValueError: it is no address, or one that everybody can reach while nobody is told apart.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("--traffic-listen must be host:port")
    if not exposed and not is_loopback(text):
        raise ValueError(f"refusing to take traffic on {text} without identity; listen on 127.0.0.1")
    if int(port):
        return host, int(port)
    known = store.fact("traffic_port")
    if known is None:
        with socket.create_server((host, 0)) as free:
            known = str(free.getsockname()[1])
        with store.transaction("traffic_port"):
            store.remember("traffic_port", known)
    return host, int(known)
