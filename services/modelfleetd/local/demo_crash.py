"""The crash scenario: the launcher is killed with SIGKILL in the middle of each phase, and the launch must not care."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from modelfleet import AsyncClient
from modelfleet.errors import DeadlineExceeded, Unavailable
from modelfleet.launcher.v1 import launcher_pb2
from modelfleetd.local.demo_system import System
from modelfleetd.local.demo_watch import has_ended

_PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a launch at which the launcher is killed, and how to recognise it."""

    words: str
    comes: Callable[[launcher_pb2.Launch], bool]


def _in(state: launcher_pb2.Launch.State.ValueType) -> Callable[[launcher_pb2.Launch], bool]:
    return lambda launch: launch.state == state


def _at_step(step: int, look: Callable[[launcher_pb2.RegionProgress], bool]) -> Callable[[launcher_pb2.Launch], bool]:
    def comes(launch: launcher_pb2.Launch) -> bool:
        shifting = launch.state == launcher_pb2.Launch.SHIFTING
        return shifting and any(region.step == step and look(region) for region in launch.progress)

    return comes


MOMENTS = (
    Moment("ESTIMATING", _in(launcher_pb2.Launch.ESTIMATING)),
    Moment("PREPARING", _in(launcher_pb2.Launch.PREPARING)),
    Moment(
        "SHIFTING, while replicas of the candidate start",
        _at_step(1, lambda region: region.candidate.available_replicas < region.candidate.desired_replicas),
    ),
    Moment(
        "SHIFTING, while a step bakes",
        _at_step(1, lambda region: region.HasField("bake_end_time")),
    ),
    Moment(
        "SHIFTING, while weight moves",
        _at_step(2, lambda region: region.candidate.intended_basis_points != region.candidate.observed_basis_points),
    ),
    Moment(
        "SHIFTING, while old replicas stop",
        _at_step(2, lambda region: region.baseline.total_replicas > region.baseline.desired_replicas),
    ),
    Moment("FINALIZING", _in(launcher_pb2.Launch.FINALIZING)),
)


@dataclass(slots=True)
class Crashes:
    """What was hit, and what passed too fast to be seen."""

    hit: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Moments that were not seen."""
        return [moment.words for moment in MOMENTS if moment.words not in self.hit]


async def crash(client: AsyncClient, system: System, name: str, crashes: Crashes, tell: Callable[[str], None]) -> None:
    """Kills the launcher once in each moment that can be seen, until the launch has ended."""
    left = list(MOMENTS)
    while left:
        with contextlib.suppress(Unavailable, DeadlineExceeded):
            async for launch in client.launcher.watch_launch(name=name, timeout=600):
                if has_ended(launch):
                    return
                moment = next((moment for moment in left if moment.comes(launch)), None)
                if moment is None or (process := system.process("launcher")) is None:
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    left.remove(moment)
                    crashes.hit.append(moment.words)
                    tell(f"killed the launcher (process {process}) in {moment.words}")
                await _gone(system, process)
                break
        await asyncio.sleep(_PAUSE)


async def _gone(system: System, process: int) -> None:
    """Waits until the launcher is another process, so that nobody is killed twice."""
    while system.process("launcher") in {process, None}:  # noqa: ASYNC110 - `up` tells it in a file
        await asyncio.sleep(_PAUSE)
