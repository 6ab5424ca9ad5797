"""Writes a dataset: rows become row groups, row groups files, and a file is seen once it is complete."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfleet.recordings import layout
from modelfleet.recordings.layout import Digest, RecordingError

PART_BYTES = 64 << 20
PART_SECONDS = 60.0
ROW_GROUP_BYTES = 4 << 20
ROW_GROUP_ROWS = 16_384
HOUR_US = 3_600_000_000

# Object stores have no folders to create.
_WITHOUT_FOLDERS = frozenset({"s3", "gcs", "abfs"})
_METADATA = "modelfleet."


@dataclass(frozen=True, slots=True)
class Written:
    """What is in complete files.

    Attributes:
        requests: how many.
        bytes: of the requests, not of the files.
        first_us: when the first one arrived, in microseconds since 1970; None while there is none.
        last_us: when the last one arrived.
    """

    requests: int = 0
    bytes: int = 0
    first_us: int | None = None
    last_us: int | None = None

    def __add__(self, other: Written) -> Written:
        firsts = [us for us in (self.first_us, other.first_us) if us is not None]
        lasts = [us for us in (self.last_us, other.last_us) if us is not None]
        return Written(
            self.requests + other.requests,
            self.bytes + other.bytes,
            min(firsts, default=None),
            max(lasts, default=None),
        )


class DatasetWriter:
    """Writes the requests of one model type into a dataset. For one thread.

    Several writers may share a dataset: their files are merged when it is read.

    Args:
        uri: the dataset's folder: a local path, or a URI (`s3://`, `gs://`, `file://` …).
        model_type: id of the model type.
        resume: the dataset is this writer's alone, and may have been begun by one that died: what is complete counts as
            written, what is not is removed.
        part_bytes, part_seconds: a file is complete once it has so many bytes of requests, or is so old.
        row_group_bytes: readers have so much in memory at a time.

    Raises:
        RecordingError: there is no such filesystem, or what is there cannot be read.
    """

    def __init__(
        self,
        uri: str,
        model_type: str,
        *,
        resume: bool = False,
        part_bytes: int = PART_BYTES,
        part_seconds: float = PART_SECONDS,
        row_group_bytes: int = ROW_GROUP_BYTES,
    ) -> None:
        self._filesystem, self._root = layout.locate(uri)
        self._model_type = model_type
        self._part_bytes = part_bytes
        self._part_us = int(part_seconds * 1e6)
        self._row_group_bytes = row_group_bytes
        self._id = secrets.token_hex(4)
        self._parts = 0
        self._part: _Part | None = None
        self.written = Written()
        if resume:
            with _as_recording_error("cannot be read"):
                self.written = _take_over(self._filesystem, self._root)
        # After what is there: in the same microsecond the files' names would decide, and these are drawn.
        self._last_us = 0 if self.written.last_us is None else self.written.last_us + 1

    @property
    def accepted(self) -> Written:
        """What is written, or waits for its file to be complete."""
        return self.written if self._part is None else self.written + self._part.content

    @property
    def accepted_requests(self) -> int:
        """Its requests."""
        return self.written.requests + (0 if self._part is None else self._part.requests)

    @property
    def accepted_bytes(self) -> int:
        """Their bytes, quickly."""
        return self.written.bytes + (0 if self._part is None else self._part.bytes)

    def write(self, request: bytes, arrival_us: int, method: str) -> None:
        """Adds a request. One that arrived before the one before it (clocks are set back) counts as no earlier.

        Raises:
            RecordingError: it cannot be written; the file that was begun is lost, and complete ones stay.
        """
        self._last_us = arrival_us = max(arrival_us, self._last_us)
        with self._losing_the_part():
            part = self._part
            if part is not None and (
                part.bytes >= self._part_bytes
                or arrival_us - part.begun_us >= self._part_us
                or arrival_us // HOUR_US != part.begun_us // HOUR_US
            ):
                self._complete()
                part = None
            if part is None:
                part = self._part = self._begin(arrival_us)
            part.add(request, arrival_us, method)

    def _begin(self, first_us: int) -> _Part:
        self._parts += 1
        folder = f"{self._root}/{layout.partition(self._model_type, first_us)}"
        name = layout.part_name(first_us, self._id, self._parts)
        return _Part(self._filesystem, folder, name, first_us, self._row_group_bytes)

    def complete_old(self, now_us: int) -> None:
        """Completes the file that is being written where it is old enough; for times when nothing arrives.

        Raises:
            RecordingError: it cannot be written.
        """
        if self._part is not None and now_us - self._part.begun_us >= self._part_us:
            self.complete()

    def complete(self) -> None:
        """Completes the file that is being written; all that was added is written then.

        Raises:
            RecordingError: it cannot be written.
        """
        with self._losing_the_part():
            self._complete()

    def _complete(self) -> None:
        if self._part is not None:
            self._part.complete()
            self.written += self._part.content
            self._part = None

    @contextlib.contextmanager
    def _losing_the_part(self) -> Any:
        try:
            with _as_recording_error("cannot be written"):
                yield
        except RecordingError:
            if self._part is not None:
                self._part.abandon()
                self._part = None
            raise


class _Part:
    """One file, under its temporary name until it is complete."""

    def __init__(self, filesystem: Any, folder: str, name: str, first_us: int, row_group_bytes: int) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.begun_us = self._last_us = first_us
        self.requests = self.bytes = 0
        self._filesystem = filesystem
        self._row_group_bytes = row_group_bytes
        self._path = f"{folder}/{name}"
        self._draft = f"{folder}/.{name}.tmp"
        self._digest = Digest()
        self._rows: tuple[list[int], list[str], list[bytes]] = ([], [], [])
        self._waiting = 0
        self._schema = pa.schema(
            [
                pa.field("arrival_time", pa.timestamp("us", "UTC"), nullable=False),
                pa.field("method", pa.string(), nullable=False),
                pa.field("request", pa.binary(), nullable=False),
            ]
        )
        if filesystem.type_name not in _WITHOUT_FOLDERS:
            filesystem.create_dir(folder, recursive=True)
        self._stream = filesystem.open_output_stream(self._draft)
        self._writer = parquet.ParquetWriter(
            self._stream,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["method"],
            # Of the requests they would be whole requests.
            write_statistics=["arrival_time"],
        )

    @property
    def content(self) -> Written:
        return Written(self.requests, self.bytes, self.begun_us, self._last_us)

    def add(self, request: bytes, arrival_us: int, method: str) -> None:
        times, methods, requests = self._rows
        times.append(arrival_us)
        methods.append(method)
        requests.append(request)
        self._digest.add(request)
        self._waiting += len(request)
        self.requests += 1
        self.bytes += len(request)
        self._last_us = arrival_us
        if self._waiting >= self._row_group_bytes or len(self._rows[0]) >= ROW_GROUP_ROWS:
            self._write_rows()

    def complete(self) -> None:
        self._write_rows()
        content = self.content
        facts = {
            "requests": content.requests,
            "bytes": content.bytes,
            "first_us": content.first_us,
            "last_us": content.last_us,
            "digest": self._digest,
        }
        self._writer.add_key_value_metadata({f"{_METADATA}{name}": str(fact) for name, fact in facts.items()})
        self._writer.close()
        self._stream.close()
        _make_durable(self._filesystem, self._draft)
        self._filesystem.move(self._draft, self._path)
        _make_durable(self._filesystem, self._path.rpartition("/")[0])

    def abandon(self) -> None:
        """Gives up: nothing stays, where that can be done."""
        for give_up in (self._writer.close, self._stream.close, lambda: self._filesystem.delete_file(self._draft)):
            with contextlib.suppress(Exception):
                give_up()

    def _write_rows(self) -> None:
        import pyarrow as pa

        if not self._rows[0]:
            return
        columns = [pa.array(values, field.type) for values, field in zip(self._rows, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=ROW_GROUP_ROWS)
        self._rows = ([], [], [])
        self._waiting = 0


def content_of(metadata: Any) -> Written | None:
    """Returns what a file has, by its metadata; None for a file that something else has written."""
    facts = metadata.metadata or {}

    def fact(name: str) -> int:
        return int(facts[f"{_METADATA}{name}".encode()])

    try:
        return Written(fact("requests"), fact("bytes"), fact("first_us"), fact("last_us"))
    except (KeyError, ValueError):
        return None


def _take_over(filesystem: Any, root: str) -> Written:
    """Removes what was not completed and adds up what was."""
    from pyarrow import fs, parquet

    written = Written()
    for file in filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True)):
        if file.base_name.startswith(layout.HIDDEN) and file.base_name.endswith(".tmp"):
            filesystem.delete_file(file.path)
        elif file.base_name.endswith(layout.PARQUET):
            written += content_of(parquet.read_metadata(file.path, filesystem=filesystem)) or Written()
    return written


def _make_durable(filesystem: Any, path: str) -> None:
    """Survives the loss of power, on filesystems of this machine; object stores promise it themselves."""
    if filesystem.type_name != "local":
        return
    opened = os.open(Path(path), os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _as_recording_error(what: str) -> Any:
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException) as error:
        raise RecordingError(f"the recording {what}: {layout.first_line(error)}") from error
