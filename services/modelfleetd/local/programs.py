"""What `up` runs: one program for each part, and in which order they stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

from modelfleetd.kit.ports import HOST
from modelfleetd.local import front_door
from modelfleetd.local.data_directory import MARKER, DataDirectory, write_json
from modelfleetd.local.postgres import EmbeddedPostgres
from modelfleetd.local.supervisor import Program

REGION = "local"
# Between `up` and prepare.py: what it is told, and what it says when services may start.
MAINTENANCE_URL = "MODELFLEET_MAINTENANCE_DATABASE_URL"
MIGRATED = "migrated"
SERVICES = ("registry", "capacity", "launcher", "stability")
# Everything that listens besides the front door itself.
PORTS = (*SERVICES, "node", "traffic", "front_door_admin")
# Who drives others stops before them; the database is the last.
STOP_ORDER = (("front-door",), ("launcher", "capacity", "stability"), ("node",), ("registry",), ("postgres",))
_DRAIN_SECONDS = 3.0


def service_environment(directory: DataDirectory, database_url: str, ports: Mapping[str, int]) -> dict[str, str]:
    """Returns what every service is configured with. Not flags, which everybody sees: the URL may hold a password."""
    return {
        MARKER: str(directory.path),
        "MODELFLEET_DATABASE_URL": database_url,
        **{f"MODELFLEET_{name.upper()}_ADDRESS": f"{HOST}:{ports[name]}" for name in SERVICES},
        "MODELFLEET_RECORDINGS_URI": str(directory.recordings),
        "MODELFLEET_LOG_FORMAT": os.environ.get("MODELFLEET_LOG_FORMAT", "console"),
        "MODELFLEET_DRAIN_SECONDS": str(_DRAIN_SECONDS),
        # Five Python processes on a small machine: no thread pools for linear algebra, few arenas for malloc.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def service(name: str, environment: Mapping[str, str], ports: Mapping[str, int]) -> Program:
    """Returns one of the four services."""
    command = (sys.executable, "-m", "modelfleetd", name, "--listen", f"{HOST}:{ports[name]}")
    return Program(name, command, environment)


def node(directory: DataDirectory, environment: Mapping[str, str], ports: Mapping[str, int]) -> Program:
    """Returns the platform agent of this machine.

    Its replicas outlive it when it dies, and the next one finds them; when it is told to stop they stop with it.
    """
    command = (
        sys.executable, "-m", "modelfleetd", "node",
        "--listen", f"{HOST}:{ports['node']}",
        "--region", REGION,
        "--data-dir", str(directory.node),
        "--traffic-listen", f"{HOST}:{ports['traffic']}",
        "--on-stop", "terminate",
    )  # fmt: skip
    return Program("node", command, environment)


def postgres(server: EmbeddedPostgres, directory: DataDirectory) -> Program:
    """Returns the embedded database. SIGINT is its fast and clean end."""
    return Program(
        "postgres",
        server.command,
        {MARKER: str(directory.path)},
        user=server.user,
        stop_signal=signal.SIGINT,
        stop_seconds=30.0,
    )


def proxy(directory: DataDirectory, port: int, ports: Mapping[str, int]) -> Program:
    """Returns the front door, its configuration written."""
    path = directory.run / "front_door.json"
    write_json(path, front_door.configuration(port, ports["front_door_admin"], ports))
    command = (
        str(front_door.envoy_program()), "--config-path", str(path), "--concurrency", "1",
        "--disable-hot-restart", "--log-level", "warning", "--drain-time-s", "1",
    )  # fmt: skip
    return Program("front-door", command, {MARKER: str(directory.path)}, stop_seconds=5.0)


def prepare_command(node_port: int) -> tuple[str, ...]:
    """Returns what runs once at each start."""
    return (sys.executable, "-m", "modelfleetd.local.prepare", "--region", REGION, "--agent", f"{HOST}:{node_port}")


def prepare_environment(environment: Mapping[str, str], server: EmbeddedPostgres | None) -> dict[str, str]:
    """Returns what it is configured with."""
    maintenance = {MAINTENANCE_URL: server.maintenance_url} if server is not None else {}
    return {**os.environ, **environment, **maintenance}
