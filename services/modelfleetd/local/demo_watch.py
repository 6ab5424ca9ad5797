"""What the demo knows of a launch at the moment, gathered from the public API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.errors import DeadlineExceeded, ModelfleetError, Unavailable
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.stability.v1 import stability_pb2
from modelfleetd.local import demo_fleet as fleet
from modelfleetd.local.demo_evidence import Evidence
from modelfleetd.local.demo_traffic import Traffic
from modelfleetd.local.refusals import CannotRun

_PAUSE = 0.5
# Far beyond what any scenario takes.
_PATIENCE = 300.0
_ENDED = {
    launcher_pb2.Launch.SUCCEEDED,
    launcher_pb2.Launch.ROLLED_BACK,
    launcher_pb2.Launch.CANCELLED,
    launcher_pb2.Launch.FAILED,
}


@dataclass(slots=True)
class Picture:
    """Everything that the screen shows."""

    traffic: Traffic
    evidence: Evidence
    began: float = field(default_factory=time.monotonic)
    launch: launcher_pb2.Launch | None = None
    usage: capacity_pb2.Usage | None = None
    points: dict[str, stability_pb2.Point] = field(default_factory=dict)
    """Evidence of each model since traffic began."""
    silent_since: float | None = None
    """Since when the launcher does not answer; None: it answers."""


def has_ended(launch: launcher_pb2.Launch) -> bool:
    """Says whether nothing will happen to a launch any more."""
    return launch.state in _ENDED


def _last_words(picture: Picture) -> str:
    if picture.silent_since is not None or picture.launch is None:
        return "the launcher does not answer."
    return picture.launch.summary


class Watch:
    """Keeps the picture up to date until the launch has ended."""

    def __init__(self, client: AsyncClient, picture: Picture, tell: Callable[[str, datetime], None]) -> None:
        """Makes one.

        Args:
            client: of the front door.
            picture: to keep up to date.
            tell: takes a line for each event of a launch, and when it happened.
        """
        self._client = client
        self._picture = picture
        self._tell = tell
        self._began = datetime.now(UTC)
        self._last_verdict = ""

    async def until_ended(self, name: str, *, evidence: bool = True) -> launcher_pb2.Launch:
        """Follows a launch to its end and returns it.

        Raises:
            CannotRun: it does not end.
        """
        told = 0
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                launch = await self._client.launcher.get_launch(name=name, timeout=2)
                self._picture.launch, self._picture.silent_since = launch, None
                told = await self._tell_events(name, told)
                await self.look(evidence=evidence)
                if has_ended(launch):
                    return launch
            except (Unavailable, DeadlineExceeded):
                self._picture.silent_since = self._picture.silent_since or time.monotonic()
            await asyncio.sleep(_PAUSE)
        raise CannotRun(f"{name} did not end within {_PATIENCE:.0f} s: {_last_words(self._picture)}")

    async def _tell_events(self, name: str, told: int) -> int:
        answer = await self._client.launcher.list_launch_events(name=name, page_size=1000, timeout=2)
        for event in answer.events:
            if event.sequence > told and not self._is_repetition(event):
                step = f"step {event.step}: " if event.step else ""
                self._tell(f"{step}{event.message}", event.time.ToDatetime(UTC))
        return max((event.sequence for event in answer.events), default=told)

    def _is_repetition(self, event: launcher_pb2.LaunchEvent) -> bool:
        """Says whether a gate only says again, with fresher numbers, what it has said before."""
        if event.type != "GateJudged":
            self._last_verdict = ""
            return False
        verdict = " ".join(event.message.split()[:2])
        repeated, self._last_verdict = verdict == self._last_verdict, verdict
        return repeated

    async def look(self, *, evidence: bool = True) -> None:
        """Looks once at capacity, and at the models' evidence where it is asked for."""
        pool = await self._client.capacity.get_pool(name=fleet.POOL, timeout=2)
        self._picture.usage = next((usage for usage in pool.usages if usage.region == fleet.REGION), None)
        if not evidence:
            return
        for model in (fleet.BASELINE, fleet.CANDIDATE):
            request = stability_pb2.QuerySeriesRequest(model=model, prediction=fleet.PREDICTION)
            request.start_time.FromDatetime(self._began)
            request.confidence = fleet.CONFIDENCE
            try:
                series = await self._client.stability.query_series(request, timeout=2)
            except ModelfleetError as error:
                if isinstance(error, (Unavailable, DeadlineExceeded)):
                    raise
                continue
            self._picture.points[model] = series.total
