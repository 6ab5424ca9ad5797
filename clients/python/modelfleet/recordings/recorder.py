"""Takes requests from serving threads and event loops and writes them in a thread of its own.

Whoever offers a request never waits and never sees an error: what does not fit the buffer is dropped and counted, and
what goes wrong while writing ends the recording, which says why.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from modelfleet.recordings import layout
from modelfleet.recordings.layout import RecordingError
from modelfleet.recordings.writer import PART_BYTES, PART_SECONDS, DatasetWriter, Written

BUFFER_BYTES = 32 << 20
BUFFER_REQUESTS = 20_000
MAX_REQUEST_BYTES = 16 << 20
# How long requests wait for others before they are written together.
_GATHER_SECONDS = 0.1
_IDLE_SECONDS = 1.0
_CLOSE_SECONDS = 30.0

Redact = Callable[[bytes], bytes | None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a recording; 0: nothing does.

    Attributes:
        max_bytes: of requests.
        max_requests: how many.
        end_us: the time, in microseconds since 1970.
    """

    max_bytes: int = 0
    max_requests: int = 0
    end_us: int = 0

    def reached(self, requests: int, size: int) -> str:
        """Says which limit so many requests and bytes reach; empty: none."""
        if self.max_requests and requests >= self.max_requests:
            return f"{self.max_requests:,} requests are recorded"
        if self.max_bytes and size >= self.max_bytes:
            return f"{self.max_bytes:,} bytes are recorded"
        return ""


NO_LIMITS = Limits()


class Recorder:
    """Records into one dataset until a limit is reached, it is closed, or it cannot write.

    Args:
        uri: the dataset's folder: a local path, or a URI.
        model_type: id of the model type.
        limits: what ends it.
        redact: given the bytes of each request, returns what is recorded instead, or None to drop it; called in the
            writer's thread. Where it raises, the request is dropped.
        resume: the dataset is this recorder's alone and may have been begun by one that died: it is gone on with.
        on_end: called once, in the writer's thread, when it has ended by itself and all is written.
        buffer_bytes: requests that wait to be written take at most so much memory.
        part_bytes, part_seconds: a file is complete once it has so many bytes of requests, or is so old.
    """

    def __init__(
        self,
        uri: str,
        model_type: str,
        *,
        limits: Limits = NO_LIMITS,
        redact: Redact | None = None,
        resume: bool = False,
        on_end: Callable[[], None] | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        part_bytes: int = PART_BYTES,
        part_seconds: float = PART_SECONDS,
    ) -> None:
        self._limits = limits
        self._redact = redact
        self._on_end = on_end
        self._buffer_bytes = buffer_bytes
        self._open = functools.partial(
            DatasetWriter, uri, model_type, resume=resume, part_bytes=part_bytes, part_seconds=part_seconds
        )
        # Held for a few additions only.
        self._counting = threading.Lock()
        self._buffer: deque[tuple[bytes, int, str]] = deque()
        self._taken_bytes = 0
        self._given_bytes = 0
        self._dropped = 0
        self._written = self._recorded = Written()
        self._ended = threading.Event()
        self._end_reason = ""
        self._error = ""
        self._thread = threading.Thread(target=self._run, name="modelfleet recorder", daemon=True)
        self._thread.start()

    def offer(self, request: bytes, method: str) -> bool:
        """Records a request, unless it must be dropped; True where it will be. Waits for no writer, never raises."""
        if self._ended.is_set():
            return False
        size = len(request)
        with self._counting:
            waiting = self._given_bytes - self._taken_bytes
            if size > MAX_REQUEST_BYTES or waiting + size > self._buffer_bytes or len(self._buffer) >= BUFFER_REQUESTS:
                self._dropped += 1
                return False
            self._given_bytes += size
            self._buffer.append((request, time.time_ns() // 1000, method))
        return True

    def drop(self) -> None:
        """Counts a request that could not even be offered."""
        with self._counting:
            self._dropped += 1

    @property
    def active(self) -> bool:
        """Whether it still records."""
        return not self._ended.is_set()

    @property
    def written(self) -> Written:
        """What is in complete files."""
        return self._written

    @property
    def recorded(self) -> Written:
        """What is recorded so far; what is not in a complete file yet is lost where the process dies."""
        return self._recorded

    @property
    def dropped_requests(self) -> int:
        """Requests that were to be recorded and are not: too large, the writer too slow, or redaction dropped them."""
        return self._dropped

    @property
    def error(self) -> str:
        """Why it cannot write; empty while nothing is wrong."""
        return self._error

    @property
    def end_reason(self) -> str:
        """Which limit has ended it; empty where none has."""
        return self._end_reason

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Ends the recording; returns once the last file is written, or after so many seconds. May be repeated."""
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The writer's thread

    def _run(self) -> None:
        closed_from_outside = True
        writer: DatasetWriter | None = None
        try:
            writer = self._open()
            self._written = self._recorded = writer.written
            closed_from_outside = self._record(writer)
            writer.complete()
        except RecordingError as error:
            self._error = str(error)
            closed_from_outside = False
        except Exception as error:  # noqa: BLE001
            # Whatever it is, it is not the caller's: he serves.
            self._error = f"the recorder failed: {type(error).__name__}: {layout.first_line(error)}"
            closed_from_outside = False
        if writer is not None:
            # A file that could not be completed is gone.
            self._written = self._recorded = writer.written
        self._ended.set()
        self._buffer.clear()
        if self._on_end is not None and not closed_from_outside:
            with contextlib.suppress(Exception):
                self._on_end()

    def _record(self, writer: DatasetWriter) -> bool:
        """Writes what is offered; True where it was closed, False where a limit has ended it."""
        while True:
            # Before the buffer is looked at: what was offered before the end is written.
            closed = self._ended.wait(_GATHER_SECONDS if self._buffer else _IDLE_SECONDS / 10)
            if self._drain(writer):
                return False
            if closed:
                return True
            now_us = time.time_ns() // 1000
            if self._limits.end_us and now_us >= self._limits.end_us:
                self._end_reason = "its time is over"
                return False
            writer.complete_old(now_us)
            self._written, self._recorded = writer.written, writer.accepted

    def _drain(self, writer: DatasetWriter) -> bool:
        """Writes what waits; True where a limit is reached."""
        while self._buffer:
            if reason := self._limits.reached(writer.accepted_requests, writer.accepted_bytes):
                self._end_reason = reason
                return True
            request, arrival_us, method = self._buffer.popleft()
            self._taken_bytes += len(request)
            kept = self._redacted(request)
            if kept is None:
                self.drop()
            else:
                writer.write(kept, arrival_us, method)
        if reason := self._limits.reached(writer.accepted_requests, writer.accepted_bytes):
            self._end_reason = reason
            return True
        return False

    def _redacted(self, request: bytes) -> bytes | None:
        if self._redact is None:
            return request
        try:
            return self._redact(request)
        except Exception:  # noqa: BLE001
            # What could not be redacted must not be kept.
            return None
