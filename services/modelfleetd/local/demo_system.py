"""The demo's own `up`: a process beside it, on a folder and ports of its own, which ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfleetd.kit.ports import free_port
from modelfleetd.local import leftovers
from modelfleetd.local.data_directory import DataDirectory
from modelfleetd.local.refusals import CannotRun
from modelfleetd.local.supervisor import die_with

_STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class System:
    """Everything, up and running."""

    address: str
    """Of the front door."""
    directory: DataDirectory
    ready_seconds: float

    def process(self, part: str) -> int | None:
        """Returns the id of a part's present process; None while it has none."""
        processes: dict[str, int] = self._status().get("processes", {})
        return processes.get(part)

    def process_of_up(self) -> int:
        """Returns the id of the process that supervises all others."""
        return int(self._status()["pid"])

    @property
    def ports(self) -> dict[str, int]:
        """Returns where each part listens, on this machine."""
        ports: dict[str, int] = self._status()["ports"]
        return ports

    def _status(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            status: dict[str, Any] = json.loads(self.directory.status.read_text())
            return status
        return {}


@contextlib.asynccontextmanager
async def running_system(data_dir: Path | None) -> AsyncIterator[System]:
    """Gives a running system and takes it down at the end, whatever happened.

    Args:
        data_dir: where it keeps its data; None: in a folder that goes with it.

    Raises:
        CannotRun: it could not be brought up.
    """
    if data_dir is not None and data_dir.exists() and any(data_dir.iterdir()):
        raise CannotRun(f"{data_dir} is not empty: the demo begins from nothing, so give it a new folder.")
    path = data_dir or Path(tempfile.mkdtemp(prefix="modelfleet-demo-"))
    try:
        async with _up(path) as ready:
            yield System(ready["address"], DataDirectory(path), ready["ready_seconds"])
    finally:
        if data_dir is None:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.asynccontextmanager
async def _up(path: Path) -> AsyncIterator[dict[str, Any]]:
    command = (sys.executable, "-m", "modelfleetd", "up", "--json", "--data-dir", str(path), "--port", str(free_port()))
    # A database of one's own is not the demo's.
    environment = {name: value for name, value in os.environ.items() if name != "MODELFLEET_DATABASE_URL"}
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        preexec_fn=die_with(os.getpid(), signal.SIGTERM),
    )
    assert process.stdout is not None and process.stderr is not None
    said: list[str] = []
    listening = asyncio.create_task(_listen(process.stderr, said))
    try:
        line = await process.stdout.readline()
        if not line:
            await process.wait()
            await listening
            raise CannotRun(said[-1] if said else "modelfleetd up ended without a word")
        yield json.loads(line)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
        listening.cancel()
        await asyncio.to_thread(leftovers.end, DataDirectory(path).path)


async def _listen(stream: asyncio.StreamReader, said: list[str]) -> None:
    while line := await stream.readline():
        said.append(line.decode(errors="replace").strip())
