"""Records samples of live requests: a small gRPC server that Envoy sends copies to, and a writer for each recording.

Envoy draws the sample, with the highest rate of the recordings of a route, in whole percents; each recording keeps its
part of that at random. What is to be recorded is durable before it begins, and the agent's next life goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from modelfleet.recordings import Limits, Recorder, is_beneath
from modelfleet.recordings.layout import microseconds, moment
from modelfleetd import names
from modelfleetd.clock import Clock
from modelfleetd.errors import NotConfigured, Overloaded, RequestIdReused, ResourceNotFound
from modelfleetd.node.admin import ProxyUnreachable
from modelfleetd.node.envoy_config import RECORDED_METHOD, TYPE_HEADER
from modelfleetd.node.state import State
from modelfleetd.node.store import Store
from modelfleetd.platform import rules
from modelfleetd.platform.model import RecordingPlan, RecordingStatus, TargetKind

_log = logging.getLogger(__name__)

# Each has a thread, a buffer and an open file.
_MOST_ACTIVE = 16
_PART_SECONDS = 30.0
_SAVE_SECONDS = 5.0
# Larger than any request that a recording takes, so that a dropped one is counted.
_MESSAGE_BYTES = 64 << 20
# More copies than that are not taken, so that recording never keeps the agent from its work: Envoy drops them.
_MOST_A_SECOND = 1000
_SLACK_SECONDS = 0.05
_GIVEN_UP = "given_up_copies"


class Copier(Protocol):
    """What sends copies: the proxy."""

    @property
    def tap_socket(self) -> str: ...
    async def given_up_copies(self) -> int: ...


@dataclass(slots=True)
class _Active:
    plan: RecordingPlan
    recorder: Recorder
    # What was dropped before it came here: by an earlier life of the agent, which has its rest in the dataset, and by
    # Envoy.
    dropped_before: float


class Tap:
    """The agent's recordings.

    Args:
        state: the targets; woken when what Envoy has to copy changes.
        store: where recordings are durable.
        copier: sends the copies, and says how many it could not send.
        root: recordings are written beneath it: a folder, or a URI.
        clock: the time.
    """

    name = "tap"

    def __init__(self, state: State, store: Store, copier: Copier, root: str, clock: Clock) -> None:
        self._state = state
        self._store = store
        self._copier = copier
        self._root = root
        self._clock = clock
        self._draw = random.random
        # Known before anything is routed: Envoy goes on copying where it did so.
        self._plans = {plan.recording: plan for plan, _ in store.active_recordings()}
        self._active: dict[str, _Active] = {}
        self._ended = asyncio.Event()
        self._finishing = asyncio.Lock()
        self._next_take = 0.0

    def percents(self) -> Mapping[str, int]:
        """Of how many of 100 requests Envoy has to send a copy, by target."""
        rates: dict[str, int] = {}
        for plan in self._plans.values():
            rates[plan.target] = max(rates.get(plan.target, 0), -(-plan.sample_permille // 10))
        return rates

    # What callers ask

    def start(self, plan: RecordingPlan) -> RecordingStatus:
        """Starts a recording, durably (see `Platform.start_recording`)."""
        rules.check_plan(plan)
        known = self._store.recording(plan.recording)
        if known is not None:
            if known[0] != plan:
                raise RequestIdReused(plan.recording)
            return self.observe(plan.recording)
        target = self._state.targets.get(plan.target)
        if target is None or target.kind is not TargetKind.ROUTE:
            raise ResourceNotFound(plan.target)
        if not is_beneath(self._root, plan.uri):
            raise NotConfigured(self._state.region, f"folder of recordings (--recordings-uri) that holds {plan.uri}")
        if len(self._plans) >= _MOST_ACTIVE:
            raise Overloaded(60.0)
        self._save(plan, RecordingStatus(plan.recording, active=True))
        self._plans[plan.recording] = plan
        self._begin(plan)
        self._state.changed.set()
        return self.observe(plan.recording)

    def observe(self, recording: str) -> RecordingStatus:
        """Says how far a recording is (see `Platform.observe_recording`)."""
        active = self._active.get(recording)
        if active is not None:
            return _status(active)
        known = self._store.recording(recording)
        if known is None:
            raise ResourceNotFound(recording)
        return known[1]

    async def stop(self, recording: str) -> RecordingStatus:
        """Ends a recording once its last file is written (see `Platform.stop_recording`)."""
        if recording in self._plans and recording not in self._active:
            self._begin(self._plans[recording])
        await self._finish(recording, "It was stopped")
        return self.observe(recording)

    # What goes on

    async def run(self) -> None:
        """Takes copies until it is cancelled; what it has then is written, and goes on with the agent's next life."""
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", _MESSAGE_BYTES)])
        server.add_generic_rpc_handlers((_Copies(self._take),))
        with contextlib.suppress(FileNotFoundError):
            Path(self._copier.tap_socket).unlink()
        server.add_insecure_port(f"unix:{self._copier.tap_socket}")
        await server.start()
        try:
            for plan in self._plans.values():
                if plan.recording not in self._active:
                    self._begin(plan)
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), _SAVE_SECONDS)
                self._ended.clear()
                if self._active:
                    await self._count_given_up()
                for recording, active in list(self._active.items()):
                    if active.recorder.active:
                        self._save(active.plan, _status(active))
                    else:
                        await self._finish(recording)
        finally:
            await server.stop(0)
            for active in self._active.values():
                await asyncio.to_thread(active.recorder.close)
                # Also one that has just ended: the next life finds out by itself.
                self._save(active.plan, replace(_status(active), active=True, failed=False, message=""))
            self._active.clear()

    def _begin(self, plan: RecordingPlan) -> None:
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.call_soon_threadsafe(self._ended.set)

        known = self._store.recording(plan.recording)
        recorder = Recorder(
            plan.uri,
            names.TARGET.parse(plan.target)[0],
            limits=Limits(plan.max_bytes, plan.max_requests, microseconds(plan.end_time)),
            resume=True,
            on_end=ended,
            part_seconds=_PART_SECONDS,
        )
        self._active[plan.recording] = _Active(plan, recorder, known[1].dropped_requests if known else 0)

    async def _finish(self, recording: str, why: str = "") -> None:
        async with self._finishing:
            active = self._active.get(recording)
            if active is None:
                return
            await self._count_given_up()
            await asyncio.to_thread(active.recorder.close)
            ended = replace(_status(active), active=False)
            if not ended.message:
                ended = replace(ended, message=f"{why}.")
            self._save(active.plan, ended)
            del self._active[recording], self._plans[recording]
        _log.info("%s has ended with %d requests: %s", recording, ended.requests, ended.message)
        self._state.changed.set()

    async def _take(self, request: bytes, context: Any) -> bytes:
        """Takes the copy of a request. What is answered nobody reads."""
        target = next((value for key, value in context.invocation_metadata() if key == TYPE_HEADER), "")
        for recorder in self._sampling(names.TARGET.format(target)):
            recorder.offer(request, RECORDED_METHOD)
        now = asyncio.get_running_loop().time()
        self._next_take = max(now, self._next_take) + 1 / _MOST_A_SECOND
        if self._next_take > now + _SLACK_SECONDS:
            # As long as this is not answered Envoy has one less to send.
            await asyncio.sleep(self._next_take - now)
        return b""

    async def _count_given_up(self) -> None:
        """Counts what Envoy could not send as dropped, to each recording by its part of the sample."""
        try:
            given_up = await self._copier.given_up_copies()
        except ProxyUnreachable:
            return
        before = int(self._store.fact(_GIVEN_UP) or 0)
        # An Envoy that began anew counts from nothing.
        more = given_up - before if given_up >= before else given_up
        if given_up != before:
            with self._store.transaction("recording"):
                self._store.remember(_GIVEN_UP, str(given_up))
        copied = max(self.percents().values(), default=1) * 10
        for each in self._active.values():
            each.dropped_before += more * each.plan.sample_permille / copied

    def _sampling(self, target: str) -> Iterator[Recorder]:
        """The recordings of a target that take this one of its sampled requests."""
        copied = self.percents().get(target, 0) * 10
        return (
            each.recorder
            for each in self._active.values()
            if each.plan.target == target and self._draw() * copied < each.plan.sample_permille
        )

    def _save(self, plan: RecordingPlan, status: RecordingStatus) -> None:
        with self._store.transaction("recording"):
            self._store.save_recording(plan, status, self._clock.now())


class _Copies(grpc.GenericRpcHandler):
    """Takes the calls that are recorded, their messages as bytes."""

    def __init__(self, take: Callable[[bytes, Any], Awaitable[bytes]]) -> None:
        self._handler: Any = grpc.unary_unary_rpc_method_handler(take)

    def service(self, handler_call_details: Any) -> Any:
        return self._handler if handler_call_details.method == RECORDED_METHOD else None


def _status(active: _Active) -> RecordingStatus:
    recorder, recorded = active.recorder, active.recorder.recorded
    said = recorder.error or recorder.end_reason
    return RecordingStatus(
        recording=active.plan.recording,
        active=recorder.active,
        requests=recorded.requests,
        bytes=recorded.bytes,
        dropped_requests=round(active.dropped_before) + recorder.dropped_requests,
        first_request_time=_time(recorded.first_us),
        last_request_time=_time(recorded.last_us),
        message=f"{said[0].upper()}{said[1:]}." if said else "",
        failed=bool(recorder.error),
    )


def _time(us: int | None) -> datetime | None:
    return None if us is None else moment(us)
