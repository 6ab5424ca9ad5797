"""The crash scenario: the launcher is killed with SIGKILL in the middle of each phase, and the launch must not care.

Some phases last a few milliseconds. So that they can be hit, registry and capacity are slowed down around them: they
are stopped and continued by turns, which makes every call to them take long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from modelfleet import AsyncClient
from modelfleet.errors import DeadlineExceeded, NotFound, Unavailable
from modelfleet.launcher.v1 import launcher_pb2
from modelfleetd.local.demo_screen import steps_of
from modelfleetd.local.demo_system import System
from modelfleetd.local.demo_watch import has_ended

_State = launcher_pb2.Launch
_SLOWED = ("registry", "capacity")
_STOPPED_SECONDS, _RUNNING_SECONDS = 0.06, 0.005
_LOOK_CLOSELY, _LOOK = 0.005, 0.05


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a launch at which the launcher is killed, and how to recognise it."""

    words: str
    comes: Callable[[launcher_pb2.Launch], bool]


def _in(state: launcher_pb2.Launch.State.ValueType) -> Callable[[launcher_pb2.Launch], bool]:
    return lambda launch: launch.state == state


def _shifting(look: Callable[[launcher_pb2.RegionProgress], bool]) -> Callable[[launcher_pb2.Launch], bool]:
    return lambda launch: launch.state == _State.SHIFTING and any(look(region) for region in launch.progress)


MOMENTS = (
    Moment("ESTIMATING", _in(_State.ESTIMATING)),
    Moment("PREPARING", _in(_State.PREPARING)),
    Moment(
        "SHIFTING, while replicas of the candidate start",
        _shifting(lambda region: region.candidate.available_replicas < region.candidate.desired_replicas),
    ),
    Moment(
        "SHIFTING, while weight moves",
        _shifting(
            lambda region: (
                region.candidate.intended_basis_points > 0
                and region.candidate.available_replicas >= region.candidate.desired_replicas
                and not region.HasField("bake_end_time")
            )
        ),
    ),
    Moment("SHIFTING, while a step bakes", _shifting(lambda region: region.HasField("bake_end_time"))),
    Moment(
        "SHIFTING, while old replicas stop",
        _shifting(lambda region: region.baseline.total_replicas > region.baseline.desired_replicas),
    ),
    Moment("FINALIZING", _in(_State.FINALIZING)),
)


@dataclass(slots=True)
class Crashes:
    """What was hit, and what passed too fast to be seen."""

    hit: list[str] = field(default_factory=list)

    @property
    def left(self) -> list[Moment]:
        """Moments that were not hit yet."""
        return [moment for moment in MOMENTS if moment.words not in self.hit]

    @property
    def missed(self) -> list[str]:
        """Their words."""
        return [moment.words for moment in self.left]


async def crash(client: AsyncClient, system: System, name: str, crashes: Crashes, tell: Callable[[str], None]) -> None:
    """Kills the launcher once in each moment that can be seen, until the launch has ended."""
    async with asyncio.TaskGroup() as group:
        slow = asyncio.Event()
        slowing = group.create_task(_slow_down(system, slow))
        try:
            await _crash(client, system, name, crashes, tell, slow)
        finally:
            slowing.cancel()


async def _crash(
    client: AsyncClient,
    system: System,
    name: str,
    crashes: Crashes,
    tell: Callable[[str], None],
    slow: asyncio.Event,
) -> None:
    slow.set()
    while crashes.left:
        await asyncio.sleep(_LOOK_CLOSELY if slow.is_set() else _LOOK)
        try:
            launch = await client.launcher.get_launch(name=name, timeout=2)
        except (NotFound, Unavailable, DeadlineExceeded):
            continue
        if has_ended(launch):
            return
        moment = next((moment for moment in crashes.left if moment.comes(launch)), None)
        process = system.process("launcher")
        if moment is not None and process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                crashes.hit.append(moment.words)
                tell(f"KILLED the launcher (process {process}) in {moment.words}")
            await _replaced(system, process)
        _choose(slow, launch)


def _choose(slow: asyncio.Event, launch: launcher_pb2.Launch) -> None:
    """Slows down before shifting has begun, and in the last step, after which finalising comes."""
    if launch.state != _State.SHIFTING or launch.current_step == steps_of(launch):
        slow.set()
    else:
        slow.clear()


async def _replaced(system: System, process: int) -> None:
    """Waits until the launcher is another process, so that nobody is killed twice."""
    while system.process("launcher") in {process, None}:  # noqa: ASYNC110 - `up` tells it in a file
        await asyncio.sleep(_LOOK)


async def _slow_down(system: System, slow: asyncio.Event) -> None:
    while True:
        await slow.wait()
        processes = [process for part in _SLOWED if (process := system.process(part)) is not None]
        try:
            _send(processes, signal.SIGSTOP)
            await asyncio.sleep(_STOPPED_SECONDS)
        finally:
            _send(processes, signal.SIGCONT)
        await asyncio.sleep(_RUNNING_SECONDS)


def _send(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
