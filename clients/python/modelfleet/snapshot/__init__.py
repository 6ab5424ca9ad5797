"""The fleet in the memory of a program that orchestrates its ranking funnel by it.

    with modelfleet.Snapshot("127.0.0.1:8460", path="/var/lib/ranker/fleet.snapshot") as fleet:
        fleet.wait_ready(timeout=10)
        model = fleet.baseline("ig_stories_tray_mtml")
        compared = fleet.holdouts("ig_stories_tray_mtml")
        shares = fleet.split("ig_stories_tray_mtml", "us-east")

Reads take neither the network nor a lock, some hundred nanoseconds each, from any thread. Behind them the snapshot
follows the registry's revisions; what a launch changes is there a moment after it was written. While the registry
cannot be reached, reads go on with what is known, and `age` and `is_current` say how old that is. With `path` it is
kept in a file, so a program that starts while the registry is away begins with what it knew the last time.

Model types are named by their id or name, models by their name. Messages are shared by all readers: copy one before you
change it. One model type with its models (`route`) is always as of one revision.

Threads and connections do not survive `fork()`: make the snapshot in each worker, after the fork. One that was made
before still answers in the child, but gets older and older.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from modelfleet.client import AsyncClient, Client
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.snapshot import file
from modelfleet.snapshot.following import CURRENT_SECONDS, Ask, Following, Pause, Step, log
from modelfleet.snapshot.state import BaselineChange, Route, Share, State
from modelfleet.transport import DEFAULT_ADDRESS, Tls

__all__ = ["AsyncSnapshot", "BaselineChange", "Route", "Share", "Snapshot"]

# How long the last file may take when a snapshot is closed.
_LAST_SAVE_SECONDS = 10.0


class _Snapshot:
    """What both snapshots have in common: how they are made, and how they are read."""

    _client_class: ClassVar[Any]

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        path: str | PathLike[str] | None = None,
        model_types: Iterable[str] = (),
        on_baseline: Callable[[BaselineChange], object] | None = None,
        registry: str | None = None,
        principal: str | None = None,
        token: str | Callable[[], str] | None = None,
        tls: Tls | None = None,
        client: Any = None,
    ) -> None:
        """Makes a snapshot; it is loaded and followed once it is started (`with`).

        Args:
            address: of the front door, host:port.
            path: of the file that it keeps itself in; None: in none. Each fleet has its own.
            model_types: names or ids of the model types to hold, at most 1000; none: all.
            on_baseline: called with each change of a type's baseline, from the thread (or loop) that follows: it must
                not wait. Not called for what is there when the snapshot is loaded first.
            registry: address of the registry, where it is not behind the front door.
            principal: see `modelfleet.Client`; likewise `token` and `tls`.
            token: see `principal`.
            tls: see `principal`.
            client: asks the registry in place of a client made from the arguments above (`modelfleet.Client`; an
                `AsyncClient` for an `AsyncSnapshot`). It is left open at the end.

        Raises:
            ValueError: there are too many model types, or the connection cannot be made so (`modelfleet.Client`).
            OSError: a file of `tls` cannot be read.
        """
        self._connection: dict[str, Any] = {
            "address": address, "registry": registry, "principal": principal, "token": token, "tls": tls
        }  # fmt: skip
        self._path = None if path is None else Path(path)
        self._following = Following(model_types, on_baseline)
        self._following.on_state = self._show
        self._show(self._following.state)
        self._owns_client = client is None
        self._client = self._client_class(**self._connection) if client is None else client
        self._prepare()

    def _prepare(self) -> None:
        raise NotImplementedError

    def _show(self, state: State) -> None:
        # What reads need is one step away.
        self._routes, self._models = state.routes, state.models

    # Reads.

    def route(self, model_type: str) -> Route | None:
        """Returns a model type with its models as of one revision; None where there is none of that name or id."""
        return self._routes.get(model_type)

    def model_type(self, model_type: str) -> pb.ModelType | None:
        """Returns the whole entry of a model type, by name or id; None where there is none."""
        route = self._routes.get(model_type)
        return None if route is None else route.model_type

    def baseline(self, model_type: str) -> str | None:
        """Returns the name of a model type's main model; None where it has none, or there is no such type."""
        route = self._routes.get(model_type)
        return None if route is None else route.baseline or None

    def holdouts(self, model_type: str) -> tuple[str, ...]:
        """Returns the names of a model type's holdouts; empty where it has none, or there is no such type."""
        route = self._routes.get(model_type)
        return () if route is None else route.holdouts

    def split(self, model_type: str, region: str) -> tuple[Share, ...]:
        """Returns how a model type's traffic is split in a region, by names or ids; empty where nothing is served."""
        route = self._routes.get(model_type)
        return () if route is None else route.splits.get(region, ())

    def model(self, name: str) -> pb.Model | None:
        """Returns the whole entry of a model by its name modelTypes/…/models/…; None where there is none."""
        return self._models.get(name)

    def __iter__(self) -> Iterator[Route]:
        """Iterates over all model types as they are now; what changes meanwhile is not seen."""
        return iter(self._following.state)

    # What is known about the whole.

    @property
    def is_ready(self) -> bool:
        """Whether there is anything to read."""
        return self._following.state.is_published

    @property
    def revision(self) -> int:
        """The revision that reads answer from."""
        return self._following.state.revision

    @property
    def age(self) -> float:
        """Seconds since the snapshot was last known to be current; infinite where it never was.

        While it follows, it hears every ten seconds at least that it is; a file remembers when that was.
        """
        return self._following.age

    @property
    def is_current(self) -> bool:
        """Whether it was known to be current within the last 30 seconds."""
        return self._following.age <= CURRENT_SECONDS

    @property
    def problem(self) -> str:
        """Why it is not current, in words; empty where nothing is wrong."""
        return self._following.problem

    def _reaches(self, revision: int, max_age: float) -> Callable[[], bool]:
        return lambda: self.is_ready and self.revision >= revision and self.age <= max_age

    def _late(self, timeout: float | None) -> TimeoutError:
        where = self._connection["registry"] or self._connection["address"]
        why = self.problem or f"it is at revision {self.revision}, {self.age:.1f} s old"
        return TimeoutError(f"the snapshot of {where} is not ready after {timeout or 0:g} s: {why}")

    # The file.

    def _resume(self) -> None:
        """Begins with what the file holds, if it can be believed."""
        if self._path is None:
            return
        try:
            state, current_time = file.read(self._path)
            if state.filter != self._following.filter:
                raise file.DamagedFileError("it is limited to other model types")
        except FileNotFoundError:
            return
        except (file.DamagedFileError, OSError) as error:
            log.warning("%s is not used: %s; loading from the registry", self._path, error)
            return
        self._following.resume(state, current_time)
        log.info("begun at revision %d, %.0f s old, from %s", self.revision, self.age, self._path)

    def _save(self, kept: file.Kept) -> None:
        """Writes the file; slow disks are waited for here, by nobody else."""
        assert self._path is not None
        start = time.monotonic()
        try:
            file.write(self._path, kept)
        except OSError as error:
            log.warning("cannot keep the snapshot in %s: %s", self._path, error)
        self._following.saved(kept, time.monotonic() - start)


class Snapshot(_Snapshot):
    """The fleet in memory, for programs with threads: `with Snapshot(…) as fleet:`.

    One thread follows the registry; another one is there while the file is written.
    """

    _client_class = Client

    def _prepare(self) -> None:
        self._moved = threading.Condition()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._saver: threading.Thread | None = None

    def start(self) -> None:
        """Begins to load and follow. Returns at once; see `wait_ready`."""
        if self._thread is not None:
            raise RuntimeError("a snapshot is started once")
        self._thread = threading.Thread(target=self._follow, name="modelfleet-snapshot", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the following and writes the file. Reads go on to be answered."""
        self._closing.set()
        while self._thread is not None and self._thread.is_alive():
            # Cancels what is under way; a call that began just before is met the next time.
            if self._owns_client:
                self._client.close()
            self._thread.join(0.05)
        self._save_if_due(at_the_end=True)

    def wait_ready(self, timeout: float | None = None, *, revision: int = 0, max_age: float = float("inf")) -> None:
        """Returns once there is something to read.

        Args:
            timeout: seconds; None: for ever.
            revision: of this revision or a later one, such as that of a write.
            max_age: that was current so many seconds ago; by default a file of any age will do.

        Raises:
            TimeoutError: it took too long; says why.
        """
        with self._moved:
            if not self._moved.wait_for(self._reaches(revision, max_age), timeout):
                raise self._late(timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _follow(self) -> None:
        self._resume()
        self._tell()
        steps = self._following.steps()
        step = next(steps)
        while not self._closing.is_set():
            try:
                answer = self._do(step)
            except Exception as error:  # noqa: BLE001 - `steps` decides what to make of it
                if self._closing.is_set():
                    break
                step = steps.throw(error)
            else:
                step = steps.send(answer)
            self._tell()
            self._save_if_due()

    def _do(self, step: Step) -> Any:
        registry = self._client.registry
        if isinstance(step, Ask):
            return getattr(registry, step.method)(**step.fields)
        if isinstance(step, Pause):
            return self._closing.wait(step.seconds)
        for message in registry.watch_revisions(timeout=step.timeout, **step.fields):
            self._following.take(message)
            self._tell()
            self._save_if_due()
            if self._closing.is_set():
                break
        return None

    def _tell(self) -> None:
        with self._moved:
            self._moved.notify_all()

    def _save_if_due(self, *, at_the_end: bool = False) -> None:
        if self._path is None:
            return
        if self._saver is not None and self._saver.is_alive():
            if not at_the_end:
                return
            self._saver.join(_LAST_SAVE_SECONDS)
        kept = self._following.due(at_the_end=at_the_end)
        if kept is None:
            return
        self._saver = threading.Thread(target=self._save, args=(kept,), name="modelfleet-snapshot-file", daemon=True)
        self._saver.start()
        if at_the_end:
            self._saver.join(_LAST_SAVE_SECONDS)


class AsyncSnapshot(_Snapshot):
    """The fleet in memory, for asyncio: `async with AsyncSnapshot(…) as fleet:`. Reads need no `await`.

    A task follows the registry; the file is read and written in threads of the loop's pool.
    """

    _client_class = AsyncClient

    def _prepare(self) -> None:
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._saver: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Ends the following and writes the file. Reads go on to be answered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._owns_client:
            await self._client.close()
        try:
            async with asyncio.timeout(_LAST_SAVE_SECONDS):
                if self._saver is not None:
                    await self._saver
                self._save_if_due(at_the_end=True)
                if self._saver is not None:
                    await self._saver
        except TimeoutError:
            log.warning("writing %s takes too long; the last state is not kept", self._path)

    async def wait_ready(
        self, timeout: float | None = None, *, revision: int = 0, max_age: float = float("inf")
    ) -> None:
        """Returns once there is something to read; see `Snapshot.wait_ready`."""
        reached = self._reaches(revision, max_age)
        try:
            async with asyncio.timeout(timeout):
                while not reached():
                    await self._moved.wait()
        except TimeoutError:
            raise self._late(timeout) from None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow(), name="modelfleet-snapshot")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _follow(self) -> None:
        await asyncio.to_thread(self._resume)
        self._tell()
        steps = self._following.steps()
        step = next(steps)
        while True:
            try:
                answer = await self._do(step)
            except Exception as error:  # noqa: BLE001 - `steps` decides what to make of it
                step = steps.throw(error)
            else:
                step = steps.send(answer)
            self._tell()
            self._save_if_due()

    async def _do(self, step: Step) -> Any:
        registry = self._client.registry
        if isinstance(step, Ask):
            return await getattr(registry, step.method)(**step.fields)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        async for message in registry.watch_revisions(timeout=step.timeout, **step.fields):
            self._following.take(message)
            self._tell()
            self._save_if_due()
        return None

    def _tell(self) -> None:
        # Whoever waits now wakes up; who waits from now on waits for the next.
        self._moved.set()
        self._moved = asyncio.Event()

    def _save_if_due(self, *, at_the_end: bool = False) -> None:
        if self._path is None or (self._saver is not None and not self._saver.done()):
            return
        kept = self._following.due(at_the_end=at_the_end)
        if kept is not None:
            self._saver = asyncio.create_task(asyncio.to_thread(self._save, kept), name="modelfleet-snapshot-file")
