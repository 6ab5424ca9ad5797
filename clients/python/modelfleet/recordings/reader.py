"""Reads a dataset in the order of arrival. What is in memory is a batch of each file that is open, and those are the
files whose times overlap: one, where one writer has recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from modelfleet.recordings import layout
from modelfleet.recordings.layout import Digest, NothingRecorded, RecordingError

_COLUMNS = ("arrival_time", "request")
_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 8192
# Compressed bytes that are read at a time.
_READ_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_CHUNK_REQUESTS = 4096


class Recorded(NamedTuple):
    """One request.

    Attributes:
        arrival_us: when it arrived, in microseconds since 1970.
        method: gRPC method; empty where the dataset has none.
        request: the serialized message.
    """

    arrival_us: int
    method: str
    request: bytes


@dataclass(frozen=True, slots=True)
class Summary:
    """What a whole recording is: requests, their bytes, first and last arrival (µs since 1970), and the digest."""

    requests: int
    bytes: int
    first_us: int | None
    last_us: int | None
    digest: str


@dataclass(frozen=True, slots=True, order=True)
class _File:
    first_us: int
    path: str


class Dataset:
    """A recording, to be read as often as one likes: each `iter()` begins anew."""

    def __init__(self, uri: str, filesystem: Any, files: tuple[_File, ...]) -> None:
        self.uri = uri
        self._filesystem = filesystem
        self._files = files

    @classmethod
    def open(cls, uri: str) -> Dataset:
        """Finds the files of a recording; those that are completed later are not seen.

        Args:
            uri: the dataset's folder: a local path, or a URI (`s3://`, `gs://`, `file://` …).

        Raises:
            NothingRecorded: there is none, or it is empty.
            RecordingError: it cannot be read.
        """
        filesystem, root = layout.locate(uri)
        from pyarrow import fs

        with _readable(uri):
            if filesystem.get_file_info(root).type is fs.FileType.NotFound:
                raise NothingRecorded(f"there is no dataset at {uri}")
            found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
            files = [
                _File(_first_us(filesystem, file), file.path)
                for file in found
                if file.is_file and file.base_name.endswith(layout.PARQUET) and not _hidden(root, file.path)
            ]
        if not files:
            raise NothingRecorded(f"the dataset at {uri} is empty")
        return cls(uri, filesystem, tuple(sorted(files)))

    @property
    def model_types(self) -> frozenset[str]:
        """Ids of the model types whose requests it has, by its folders; "" where a file is in no such folder."""
        return frozenset(layout.model_type_of(file.path) for file in self._files)

    def __iter__(self) -> Iterator[Recorded]:
        """Gives every request in the order of arrival.

        Raises:
            RecordingError: a file cannot be read, or is not in the order of arrival.
        """
        # Of each open file its next row; files come in the order of their first.
        open_files: list[tuple[int, int, Recorded, Iterator[Recorded]]] = []
        waiting = 0
        while True:
            while waiting < len(self._files) and (not open_files or self._files[waiting].first_us <= open_files[0][0]):
                rows = self._rows(self._files[waiting])
                if (row := next(rows, None)) is not None:
                    heapq.heappush(open_files, (row.arrival_us, waiting, row, rows))
                waiting += 1
            if not open_files:
                return
            _, number, row, rows = open_files[0]
            yield row
            if (following := next(rows, None)) is None:
                heapq.heappop(open_files)
            else:
                heapq.heapreplace(open_files, (following.arrival_us, number, following, rows))

    def requests(self) -> Iterator[bytes]:
        """Gives the bytes of every request, as `iter` does."""
        return (row.request for row in self)

    def summarize(self, progress: Callable[[int], None] = lambda _: None) -> Summary:
        """Reads all of it; says what it is.

        Args:
            progress: told after each request how many were read; what it raises ends the reading.

        Raises:
            RecordingError: it cannot be read.
        """
        digest = Digest()
        requests = size = 0
        first_us = last_us = None
        for row in self:
            if first_us is None:
                first_us = row.arrival_us
            last_us = row.arrival_us
            requests += 1
            size += len(row.request)
            digest.add(row.request)
            progress(requests)
        return Summary(requests, size, first_us, last_us, str(digest))

    def _rows(self, file: _File) -> Iterator[Recorded]:
        from pyarrow import parquet

        before = 0
        with _readable(self.uri), self._filesystem.open_input_file(file.path) as source:
            reader = parquet.ParquetFile(source, buffer_size=_READ_BYTES, pre_buffer=False)
            known = set(reader.schema_arrow.names)
            if missing := [column for column in _COLUMNS if column not in known]:
                raise RecordingError(f"{file.path} is no part of a recording: it has no column {missing[0]}")
            columns = [*_COLUMNS, *({"method"} & known)]
            for batch in reader.iter_batches(_batch_rows(reader.metadata), columns=columns, use_threads=False):
                times = _as_microseconds(batch.column("arrival_time")).to_pylist()
                requests = batch.column("request").to_pylist()
                if batch.column("request").null_count or batch.column("arrival_time").null_count:
                    raise RecordingError(f"{file.path} has rows without a request or a time")
                methods = batch.column("method").to_pylist() if "method" in known else [""] * len(times)
                for row in map(Recorded, times, methods, requests):
                    if row.arrival_us < before:
                        raise RecordingError(f"{file.path} is not in the order of arrival")
                    before = row.arrival_us
                    yield row


class Replay:
    """The requests of a recording for an event loop, over and over; a thread reads ahead, so that nothing waits for it.

        async with Replay(dataset) as requests:
            async for request in requests: …

    Args:
        dataset: what is replayed.
        repeat: whether it begins anew at the end.

    Raises:
        RecordingError: while it is read: it cannot be.
    """

    def __init__(self, dataset: Dataset, *, repeat: bool = True) -> None:
        self._dataset = dataset
        self._repeat = repeat
        self._rows = dataset.requests()
        self._thread = ThreadPoolExecutor(1, "replay")
        self._chunk: Iterator[bytes] = iter(())
        self._next: Future[list[bytes]] = self._thread.submit(self._read)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        request = next(self._chunk, None)
        while request is None:
            chunk = await asyncio.wrap_future(self._next)
            if not chunk:
                raise StopAsyncIteration
            self._chunk = iter(chunk)
            self._next = self._thread.submit(self._read)
            request = next(self._chunk, None)
        return request

    def _read(self) -> list[bytes]:
        chunk: list[bytes] = []
        size = 0
        while size < _CHUNK_BYTES and len(chunk) < _CHUNK_REQUESTS:
            request = next(self._rows, None)
            if request is None:
                if chunk or not self._repeat:
                    self._rows = self._dataset.requests() if self._repeat else iter(())
                    break
                self._rows = self._dataset.requests()
                request = next(self._rows, None)
                if request is None:
                    raise RecordingError(f"the dataset at {self._dataset.uri} is empty")
            chunk.append(request)
            size += len(request)
        return chunk


def _batch_rows(metadata: Any) -> int:
    """How many rows are about a MiB, so that large requests do not become large batches."""
    rows: int = max(1, metadata.num_rows)
    size: int = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))


def _first_us(filesystem: Any, file: Any) -> int:
    """When the first request of a file arrived: by its name, and by its first row where something else has named it."""
    named = layout.first_of_part(file.base_name)
    if named is not None:
        return named
    from pyarrow import ArrowException, parquet

    with filesystem.open_input_file(file.path) as source:
        try:
            for batch in parquet.ParquetFile(source).iter_batches(1, columns=["arrival_time"], use_threads=False):
                first: int = _as_microseconds(batch.column("arrival_time"))[0].as_py()
                return first
        except (KeyError, TypeError, ArrowException) as error:
            raise RecordingError(f"{file.path} is no part of a recording: {layout.first_line(error)}") from error
    return 0


def _as_microseconds(times: Any) -> Any:
    """Whatever the unit and zone of the file's times are."""
    import pyarrow as pa

    return times.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64())


def _hidden(root: str, path: str) -> bool:
    return any(part.startswith(layout.HIDDEN) for part in path.removeprefix(root).strip("/").split("/"))


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException) as error:
        raise RecordingError(f"the dataset at {uri} cannot be read: {layout.first_line(error)}") from error
