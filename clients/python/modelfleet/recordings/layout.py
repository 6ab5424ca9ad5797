"""Where the files of a recording are and what they are called, and its digest."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PART = re.compile(r"part-(\d{8}T\d{12})Z-[0-9a-f]+-\d+\.parquet")
_MODEL_TYPE = re.compile(r"(?:^|/)model_type=([^/]+)/")
_PLAIN = re.compile(r"[A-Za-z0-9._=-][A-Za-z0-9._=/-]*")
_PART_TIME = "%Y%m%dT%H%M%S%f"
PARQUET = ".parquet"
# What the names of files begin with that no reader takes.
HIDDEN = (".", "_")


class RecordingError(Exception):
    """A recording cannot be written or read; says why, in words for people."""


class NothingRecorded(RecordingError):
    """There is no dataset, or nothing in it: perhaps not yet."""


class Digest:
    """The digest of a recording, request by request: see the package."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, request: bytes) -> None:
        """Adds the next request in the order of arrival."""
        self._hash.update(len(request).to_bytes(8, "big"))
        self._hash.update(request)

    def __str__(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def locate(uri: str) -> tuple[Any, str]:
    """Returns the pyarrow filesystem of a URI or local path, and the path in it.

    Raises:
        RecordingError: pyarrow is not installed, or it knows no such filesystem.
    """
    try:
        from pyarrow import ArrowException, fs
    except ImportError:
        raise RecordingError("recordings need pyarrow: pip install modelfleet[recordings]") from None
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ArrowException, OSError, ValueError) as error:
        raise RecordingError(f"{uri} is no place for a recording: {first_line(error)}") from error
    return filesystem, str(path).rstrip("/")


def is_beneath(root: str, uri: str) -> bool:
    """Says whether a place is truly inside another one: no `..`, no link that leads out, no other scheme or bucket."""
    if ("://" in root) != ("://" in uri) or ".." in PurePosixPath(uri).parts:
        return False
    if "://" in root:
        above = f"{root.rstrip('/')}/"
        # Nothing that a URI's reader takes for something else: an escaped "..", a query.
        if not uri.startswith(above) or _PLAIN.fullmatch(uri.removeprefix(above)) is None:
            return False
        if not root.startswith("file://"):
            return True
    outer, inner = (Path(each.removeprefix("file://")).resolve() for each in (root, uri))
    return inner != outer and inner.is_relative_to(outer)


def partition(model_type: str, arrival_us: int) -> str:
    """Returns the folder of a request, within its dataset."""
    return f"model_type={quote(model_type, safe='')}/hour={moment(arrival_us):%Y-%m-%dT%H}"


def model_type_of(path: str) -> str:
    """Returns the model type in whose folder a file is; empty: in none."""
    found = _MODEL_TYPE.search(path)
    return unquote(found[1]) if found else ""


def part_name(first_us: int, writer: str, number: int) -> str:
    """Returns the name of a file: by names alone files are in the order of their first requests."""
    return f"part-{moment(first_us).strftime(_PART_TIME)}Z-{writer}-{number:05d}{PARQUET}"


def first_of_part(name: str) -> int | None:
    """Returns when the first request of a file arrived, as its name has it; None for the name of another's file."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    return microseconds(datetime.strptime(found[1], _PART_TIME).replace(tzinfo=UTC))


def moment(microseconds_since_1970: int) -> datetime:
    """Returns the time that so many microseconds after 1970 are."""
    return _EPOCH + microseconds_since_1970 * _MICROSECOND


def microseconds(time: datetime) -> int:
    """Returns how many microseconds after 1970 a time is."""
    return (time - _EPOCH) // _MICROSECOND


def first_line(error: BaseException) -> str:
    """Returns what an error says, without the details that libraries append."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
