"""`modelfleet.StabilityReporter`: what a model predicted, and what became of it, on its way to stability."""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from modelfleet.client import Client
from modelfleet.columns import Names, Values
from modelfleet.report_sender import Counts, Sender, Settings
from modelfleet.reports import Kind, Report
from modelfleet.transport import DEFAULT_ADDRESS, Tls

# Copying the columns of so many rows takes well under a millisecond.
MAX_CALL_ROWS: Final = 50_000
BUFFER_ROWS: Final = 500_000
_ALL: Final = 1000
_CALL_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 10.0
_EXIT_SECONDS: Final = 3.0
_PREFIX: Final = 100
# Of these one may stand for all rows.
_NAMES: Final = ("model", "prediction")
_TIMES: Final = ("event_time", "label_time")
_MOMENTS: Final = (int, datetime, np.datetime64)


class StabilityReporter:
    """Reports examples, predictions and labels of one model type, from a process that serves or that learns of labels.

        with modelfleet.StabilityReporter("modelTypes/feed_ctr", "127.0.0.1:8460") as reporter:
            reporter.report_predictions(model="v7", prediction="click", request_id=ids, score=scores)
            …
            reporter.report_labels(model="v7", prediction="click", request_id=clicked)

    A call copies its columns into a buffer and returns; a thread packs and sends them. Nothing is ever raised into a
    call and none waits for the network: what cannot be taken is counted (`counts`) and said once in the log, and the
    last trouble stands in `error`. Each batch is repeated, unchanged, until the service has answered it, and
    counts once. While the service is away the buffer fills; when it is full, the oldest rows are dropped.

    Any thread may call, asyncio's too: there is nothing to await but `aflush` and `aclose` (or `async with`). After a
    fork the child reports as a producer of its own, and what had been handed over before remains the parent's. At the
    end of the process up to 3 s are spent on what is left.

    Args:
        model_type: name or id of the model type.
        address: of the front door, or of stability itself.
        principal: as of `modelfleet.Client`; `token` and `tls` likewise.
        token: a JWT, or a function that returns a fresh one.
        tls: files for an encrypted connection.
        aggregate: examples are added up in this process, exactly as the service would, so that what is sent does not
            grow with their number. Predictions and labels are sent as they are.
        sample_permille: how many of 1,000 requests are reported, chosen by request id, so that predictions and labels
            agree also where different processes report them. Of predictions and labels only; 1 to 1,000.
        flush_seconds: how long rows wait for others; a full batch goes at once.
        buffer_rows: rows that wait at most.
        producer: what the id of this producer begins with; by default the host's name. The rest is drawn anew by each
            process.

    Raises:
        ValueError: a number is out of its range, or the options of the connection do not fit together.
    """

    def __init__(
        self,
        model_type: str,
        address: str = DEFAULT_ADDRESS,
        *,
        principal: str | None = None,
        token: str | Callable[[], str] | None = None,
        tls: Tls | None = None,
        aggregate: bool = False,
        sample_permille: int = _ALL,
        flush_seconds: float = 1.0,
        buffer_rows: int = BUFFER_ROWS,
        producer: str = "",
    ) -> None:
        if not 1 <= sample_permille <= _ALL:
            raise ValueError("sample_permille must be 1 to 1,000")
        if not flush_seconds > 0 or buffer_rows < 1:
            raise ValueError("flush_seconds and buffer_rows must be above 0")

        def connect() -> Client:
            return Client(address, principal=principal, token=token, tls=tls, timeout=_CALL_SECONDS)

        connect().close()  # Says now what is wrong with the options; connects to nothing.
        self._settings = Settings(
            model_type=model_type if "/" in model_type else f"modelTypes/{model_type}",
            connect=connect,
            aggregates=aggregate,
            permille=0 if sample_permille == _ALL else sample_permille,
            flush_seconds=flush_seconds,
            buffer_rows=buffer_rows,
            producer=(producer or socket.gethostname())[:_PREFIX],
        )
        self._sender = Sender(self._settings)
        _reporters.add(self)

    def report_examples(
        self,
        *,
        model: Names,
        prediction: Names,
        label: Values,
        score: Values | None = None,
        logit: Values | None = None,
        weight: Values | None = None,
        event_time: Any = None,
    ) -> None:
        """Reports scored rows whose label is known for good.

        Args:
            model: name or id of the model, one for all rows or one for each.
            prediction: which task output, likewise.
            label: 0 or 1.
            score: probability; either this or `logit`.
            logit: log-odds.
            weight: of each row; by default 1.
            event_time: of each row or of all: datetime64, aware datetimes, microseconds since 1970; by default now.
        """
        values = {"event_time": event_time, "score": score, "logit": logit, "label": label, "weight": weight}
        self._hand_over(Kind.EXAMPLES, model, prediction, values)

    def report_predictions(
        self,
        *,
        model: Names,
        prediction: Names,
        request_id: Iterable[uuid.UUID | bytes | str],
        score: Values | None = None,
        logit: Values | None = None,
        weight: Values | None = None,
        event_time: Any = None,
    ) -> None:
        """Reports scored rows whose labels come later, joined by request id (16 bytes). Else as `report_examples`."""
        values = {
            "request_id": request_id, "event_time": event_time, "score": score, "logit": logit, "weight": weight,
        }  # fmt: skip
        self._hand_over(Kind.PREDICTIONS, model, prediction, values)

    def report_labels(
        self,
        *,
        model: Names,
        prediction: Names,
        request_id: Iterable[uuid.UUID | bytes | str],
        label: Values | None = None,
        label_time: Any = None,
    ) -> None:
        """Reports labels of predictions, reported by whomever, before or after; without `label` all are positive."""
        values = {"request_id": request_id, "label_time": label_time, "label": label}
        self._hand_over(Kind.LABELS, model, prediction, values)

    @property
    def counts(self) -> Counts:
        """What became of rows so far."""
        return self._sender.counts

    @property
    def error(self) -> str:
        """The last trouble; empty while nothing is wrong."""
        return self._sender.error

    def flush(self, timeout: float = _CLOSE_SECONDS) -> bool:
        """Sends what was handed over until now; True once the service has answered all of it, False after so long."""
        return self._sender.flush(timeout)

    async def aflush(self, timeout: float = _CLOSE_SECONDS) -> bool:
        """Does as `flush` for asyncio."""
        return await asyncio.to_thread(self.flush, timeout)

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Sends what is left, for so many seconds at most, and ends. May be repeated; later reports are dropped."""
        self._sender.close(timeout)

    async def aclose(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Does as `close` for asyncio."""
        await asyncio.to_thread(self.close, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _hand_over(self, kind: Kind, model: Names, prediction: Names, values: Mapping[str, Any]) -> None:
        sender = self._sender
        try:
            given = {name: _copy(name, value) for name, value in values.items() if value is not None}
            given.setdefault("label_time" if kind is Kind.LABELS else "event_time", time.time_ns() // 1000)
            rows = max((len(value) for value in given.values() if hasattr(value, "__len__")), default=0)
            report = Report(kind, rows, _copy("model", model), _copy("prediction", prediction), given)
        except Exception as error:  # noqa: BLE001
            # Whatever it is, it is not the caller's: he serves.
            sender.drop(1, f"a report cannot be read: {type(error).__name__}: {error}")
            return
        if rows > MAX_CALL_ROWS:
            sender.drop(rows, f"a call is too large: {rows:,} rows, at most {MAX_CALL_ROWS:,}, so that none takes long")
        else:
            sender.offer(report)

    def _begin_anew(self) -> None:
        """In the child of a fork: its parent's thread is not here, and what it has taken is the parent's to send."""
        closed = self._sender.closed
        self._sender = Sender(self._settings)
        if closed:
            self._sender.close(0)


def _copy(name: str, value: Any) -> Any:
    """Returns what the caller can no longer change; conversion is left to the thread that sends."""
    if isinstance(value, np.ndarray):
        return value.copy()
    stands_for_all = (str,) if name in _NAMES else _MOMENTS if name in _TIMES else ()
    return value if isinstance(value, stands_for_all) else list(value)


_reporters: weakref.WeakSet[StabilityReporter] = weakref.WeakSet()


def _after_fork() -> None:
    for reporter in list(_reporters):
        reporter._begin_anew()


def _at_exit() -> None:
    end = time.monotonic() + _EXIT_SECONDS
    for reporter in list(_reporters):
        reporter.close(max(0.0, end - time.monotonic()))


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
