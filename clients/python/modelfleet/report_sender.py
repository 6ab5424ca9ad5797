"""How reports travel: a thread that packs what was handed over, and repeats each batch until it is answered."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from modelfleet import errors
from modelfleet.client import Client
from modelfleet.reports import MAX_BATCH_ROWS, Aggregate, Batch, Batches, Kind, Part, Report, Request, parts
from modelfleet.stability.v1 import stability_pb2 as pb

_log = logging.getLogger(__name__)

_BACKOFF: Final = (0.1, 5.0)
# Of 4 MB at most, each many minutes of many predictions.
_MOST_AGGREGATES: Final = 8
_METHODS: Final = {
    pb.WriteExamplesRequest: "write_examples",
    pb.WritePredictionsRequest: "write_predictions",
    pb.WriteLabelsRequest: "write_labels",
    pb.WriteStatisticsRequest: "write_statistics",
}
# What no repetition will change: the batch is given up, the next one may be better.
_REFUSED: Final = (
    errors.InvalidArgument,
    errors.NotFound,
    errors.AlreadyExists,
    errors.FailedPrecondition,
    errors.PermissionDenied,
    errors.OutOfRange,
    errors.Unimplemented,
)
_UNANSWERED: Final = "the service does not answer"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is sent, where and how; as StabilityReporter's arguments. `permille` is 0 where nothing is sampled."""

    model_type: str
    connect: Callable[[], Client]
    aggregates: bool
    permille: int
    flush_seconds: float
    buffer_rows: int
    producer: str


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of rows since the process, or the fork that it is, began.

    Attributes:
        accepted: rows that the service counts, or stores until their counterpart comes; of sums, those.
        rejected: rows that it refused, by reason (`BAD_SCORE`, `DUPLICATE`, `TOO_LATE` …).
        dropped: rows that it never got: the buffer was full, they made no sense, or their batch was refused as a whole.
        waiting: rows that are still to be sent.
    """

    accepted: int
    rejected: Mapping[str, int]
    dropped: int
    waiting: int


class Sender:
    """Sends what one process reports, as one producer: its id is drawn here, its sequence begins with 1."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # So many rows are not left waiting for others.
        self._enough = min(MAX_BATCH_ROWS, settings.buffer_rows // 4 + 1)
        # Held for a few additions only.
        self._lock = threading.Lock()
        self._settled = threading.Condition()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._client: Client | None = None
        self._producer = f"{settings.producer}-{os.getpid()}-{uuid.uuid4().hex}"
        self._sequence = itertools.count(1)
        self._to_send, self._to_aggregate = _Queue(), _Queue()
        self._batches = Batches()
        self._ready: deque[_Ready] = deque()
        self._packed_rows = self._accepted = self._dropped = 0
        self._rejected: Counter[str] = Counter()
        self._said: set[str] = set()
        self._flush_asked = self._flushed = 0
        self._closing_at: float | None = None
        self._ended = False
        self.error = ""

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        return self._closing_at is not None

    @property
    def counts(self) -> Counts:
        """What became of rows so far."""
        with self._lock:
            waiting = self._to_send.rows + self._to_aggregate.rows + self._packed_rows
            return Counts(self._accepted, dict(self._rejected), self._dropped, waiting)

    def offer(self, report: Report) -> None:
        """Takes a report; drops the oldest ones where there is no room. Waits for nothing."""
        lost, wake = 0, False
        with self._lock:
            closed = self._closing_at is not None
            if closed:
                lost = report.rows
            else:
                summed = self._settings.aggregates and report.kind is Kind.EXAMPLES
                queue = self._to_aggregate if summed else self._to_send
                queue.put(report)
                while self._to_send.rows + self._to_aggregate.rows > self._settings.buffer_rows:
                    lost += (self._to_send if self._to_send.rows else self._to_aggregate).get().rows
                wake = queue.rows >= self._enough and (summed or not self._ready)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="modelfleet reporter", daemon=True)
                    self._thread.start()
        if lost:
            full = f"the buffer is full: {self._settings.buffer_rows:,} rows wait already"
            self.drop(lost, "it is closed" if closed else full)
        if wake and not self._wake.is_set():
            self._wake.set()

    def drop(self, rows: int, why: str) -> None:
        """Counts rows that are not sent."""
        with self._lock:
            self._dropped += rows
        self._trouble(why)

    def flush(self, timeout: float) -> bool:
        """Sends what was taken until now; True once all of it is settled."""
        with self._lock:
            if self._thread is None:
                return True
            self._flush_asked += 1
            asked = self._flush_asked
        self._wake.set()
        with self._settled:
            self._settled.wait_for(lambda: self._flushed >= asked or self._ended, timeout)
        return self._flushed >= asked

    def close(self, timeout: float) -> None:
        """Takes no more, sends what is left, and ends after so many seconds at most."""
        with self._lock:
            thread = self._thread
            end = time.monotonic() + timeout
            self._closing_at = end if self._closing_at is None else min(self._closing_at, end)
        if thread is None or thread is threading.current_thread():
            return
        self._wake.set()
        thread.join(timeout)
        if thread.is_alive() and self._client is not None:
            # Cancels the call that it waits for.
            self._client.close()
            thread.join(1.0)

    def _trouble(self, why: str) -> None:
        self.error = why
        # Once for each kind of it; the counts say the rest.
        kind = why.partition(":")[0]
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("reporter of %s: %s (said once; see its counts)", self._settings.model_type, why)

    # The thread that sends

    def _run(self) -> None:
        try:
            with self._settings.connect() as client:
                self._client = client
                self._send_until_closed(client)
        except Exception as error:  # noqa: BLE001
            # Nobody awaits this thread.
            _log.exception("the reporter of %s failed", self._settings.model_type)
            self.error = f"it failed: {type(error).__name__}: {error}"
        with self._lock:
            self._closing_at = time.monotonic()
            left = self._to_send.rows + self._to_aggregate.rows + self._packed_rows
            self._to_send, self._to_aggregate, self._packed_rows = _Queue(), _Queue(), 0
        if left:
            self.drop(left, f"it ended with rows unsent: {left:,}; {self.error or 'there was no time left'}")
        with self._settled:
            self._ended = True
            self._settled.notify_all()

    def _send_until_closed(self, client: Client) -> None:
        flush_at, retry_at, failures = time.monotonic() + self._settings.flush_seconds, 0.0, 0
        while True:
            self._wait(retry_at if self._ready else flush_at)
            # Asked before it is looked at what waits: what was handed over until then is included.
            asked, closing_at = self._flush_asked, self._closing_at
            urgent = closing_at is not None or asked > self._flushed
            now = time.monotonic()
            self._collect(everything=urgent)
            if urgent or (now >= flush_at and not self._ready):
                flush_at = now + self._settings.flush_seconds
                self._make_ready(self._batches.take_all())
            else:
                self._make_ready(self._batches.take_full())
            while self._ready and time.monotonic() >= retry_at:
                wait_seconds = self._send(client)
                failures = 0 if wait_seconds is None else failures + 1
                if wait_seconds is not None:
                    backoff = min(_BACKOFF[0] * 2 ** min(failures - 1, 10), _BACKOFF[1])
                    retry_at = time.monotonic() + max(wait_seconds, backoff)
            if urgent and not self._ready:
                with self._settled:
                    self._flushed = asked
                    self._settled.notify_all()
            if closing_at is not None and (not self._ready or time.monotonic() >= closing_at):
                return

    def _wait(self, until: float) -> None:
        closing_at = self._closing_at
        until = until if closing_at is None else min(until, closing_at)
        self._wake.wait(max(0.0, until - time.monotonic()))
        self._wake.clear()

    def _collect(self, *, everything: bool) -> None:
        """Packs what waits: examples to be added up always, other rows while none is ready to be sent."""
        now_micros = time.time_ns() // 1000
        for _ in range(len(self._to_aggregate)):
            for part in self._packed(self._to_aggregate):
                self._batches.aggregate(part, now_micros)
        for _ in range(len(self._to_send)):
            if everything or not (self._ready or self._batches.has_full):
                for part in self._packed(self._to_send):
                    self._batches.add(part)

    def _packed(self, queue: _Queue) -> Iterator[Part]:
        """Takes the oldest report and packs it."""
        with self._lock:
            if not len(queue):
                return
            report = queue.get()
            self._packed_rows += report.rows
        done = 0
        try:
            for part in parts(report, self._settings.model_type, self._settings.permille):
                done += part.rows
                yield part
                # Whoever serves goes first.
                time.sleep(0)
        except Exception as error:  # noqa: BLE001
            self.drop(report.rows - done, f"a report cannot be packed: {type(error).__name__}: {error}")
        with self._lock:
            self._packed_rows -= report.rows - done

    def _make_ready(self, batches: Iterable[Batch | Aggregate]) -> None:
        for batch in batches:
            head = pb.Batch(
                model_type=self._settings.model_type, producer=self._producer, sequence=next(self._sequence)
            )
            if self._settings.permille and batch.has_request_ids:
                head.sample_permille = self._settings.permille
            self._ready.append(_Ready(batch, batch.request(head)))
        # Rows that wait are bounded before they are packed; sums, which are to outlast long absences, are here.
        sums = [place for place, ready in enumerate(self._ready) if isinstance(ready.batch, Aggregate)]
        if len(sums) > _MOST_AGGREGATES:
            # Not the first one, which the service may have written.
            lost = self._ready[sums[1]].batch
            del self._ready[sums[1]]
            self._settle(lost)
            self.drop(lost.rows, "the buffer is full: the oldest sums are dropped")

    def _send(self, client: Client) -> float | None:
        """Sends the oldest batch; None once it is settled, else the seconds after which to try again."""
        batch, request = self._ready[0].batch, self._ready[0].request
        try:
            answer = getattr(client.stability, _METHODS[type(request)])(request)
        except _REFUSED as error:
            self._ready.popleft()
            if len(apart := batch.split()) > 1:
                # It was refused as a whole: what is wrong with one model must not cost the others.
                self._make_ready(apart)
                return None
            self._settle(batch)
            self.drop(batch.rows, f"a batch is refused: {error.message}")
            return None
        except errors.ModelfleetError as error:
            self._trouble(f"{_UNANSWERED}: {error.message}")
            return error.retry_after or 0.0
        self._ready.popleft()
        self._settle(batch)
        whole = isinstance(batch, Aggregate) and not answer.rejected
        with self._lock:
            self._accepted += batch.rows if whole else answer.accepted_rows
            for entry in answer.rejected:
                self._rejected[pb.RejectedRows.Reason.Name(entry.reason)] += entry.rows
        if self.error.startswith(_UNANSWERED):
            self.error = ""
            self._said.discard(_UNANSWERED)
        return None

    def _settle(self, batch: Batch | Aggregate) -> None:
        with self._lock:
            self._packed_rows -= batch.rows


@dataclass(frozen=True, slots=True)
class _Ready:
    """A batch with its request, which never changes any more: it may have been written."""

    batch: Batch | Aggregate
    request: Request


class _Queue:
    """Reports in the order in which they came, and how many rows they have together."""

    def __init__(self) -> None:
        self.rows = 0
        self._reports: deque[Report] = deque()

    def __len__(self) -> int:
        return len(self._reports)

    def put(self, report: Report) -> None:
        self._reports.append(report)
        self.rows += report.rows

    def get(self) -> Report:
        report = self._reports.popleft()
        self.rows -= report.rows
        return report
