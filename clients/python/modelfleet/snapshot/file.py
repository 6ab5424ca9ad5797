"""The file that a snapshot keeps itself in: replaced as a whole, and believed only where its checksum is right.

A line that says what it is, then blocks: what they are (one byte), how long (four, big endian), and their bytes. First
a block of JSON about the whole, then blocks of entries as the answers of the list methods, at the end SHA-256 over
everything before. A reader that meets another format, or damage, takes nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

from google.protobuf.message import DecodeError

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.snapshot.state import Route, State

_MAGIC: Final = b"modelfleet snapshot 1\n"
_ABOUT, _TYPES, _MODELS, _END = b"A", b"T", b"M", b"E"
_LENGTH = struct.Struct(">I")
# Entries a block: so much is in memory twice while a file is written or read.
_BLOCK = 1000


class DamagedFileError(Exception):
    """A file is no snapshot, of another format, or not as it was written."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A state as it is kept."""

    revision: int
    # A revision that it was made from, and its hash.
    anchor: tuple[int, str]
    # When it was last known to be current, seconds since 1970.
    current_time: float
    # What it is limited to.
    model_types: frozenset[str]
    routes: Sequence[Route]


def write(path: Path, kept: Kept) -> None:
    """Puts a state in the place of the file.

    Raises:
        OSError: it cannot be written; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = hashlib.sha256()
            for part in _parts(kept):
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path) -> tuple[State, float]:
    """Returns the state in a file, not yet published, and when it was last known to be current.

    Raises:
        DamagedFileError: it cannot be believed; says why.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256()
        if _take(file, len(_MAGIC), digest) != _MAGIC:
            raise DamagedFileError("it is no snapshot, or of a version that this one does not read")
        try:
            return _state(_blocks(file, digest))
        except (DecodeError, ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(f"it holds what no snapshot does ({error})") from error


def _parts(kept: Kept) -> Iterator[bytes]:
    yield _MAGIC
    about = {
        "revision": kept.revision,
        "anchor": kept.anchor,
        "current_time": kept.current_time,
        "model_types": sorted(kept.model_types),
    }
    yield _block(_ABOUT, json.dumps(about).encode())
    types = (route.model_type for route in kept.routes)
    while some_types := list(islice(types, _BLOCK)):
        yield _block(_TYPES, pb.ListModelTypesResponse(model_types=some_types).SerializeToString())
    models = (model for route in kept.routes for model in route.models.values())
    while some_models := list(islice(models, _BLOCK)):
        yield _block(_MODELS, pb.ListModelsResponse(models=some_models).SerializeToString())
    yield _block(_END, b"")


def _block(kind: bytes, content: bytes) -> bytes:
    return kind + _LENGTH.pack(len(content)) + content


def _blocks(file: IO[bytes], digest: Any) -> Iterator[tuple[bytes, bytes]]:
    """Yields blocks; after the last one the checksum was right."""
    left = os.fstat(file.fileno()).st_size
    while True:
        kind = _take(file, 1, digest)
        (length,) = _LENGTH.unpack(_take(file, _LENGTH.size, digest))
        if length > left:
            raise DamagedFileError("it ends too early")
        content = _take(file, length, digest)
        if kind == _END:
            break
        yield kind, content
    if file.read() != digest.digest():
        raise DamagedFileError("its checksum is wrong")


def _take(file: IO[bytes], count: int, digest: Any) -> bytes:
    found = file.read(count)
    if len(found) != count:
        raise DamagedFileError("it ends too early")
    digest.update(found)
    return found


def _state(blocks: Iterator[tuple[bytes, bytes]]) -> tuple[State, float]:
    about: Any = None
    state = State()
    for kind, content in blocks:
        if kind == _ABOUT:
            about = json.loads(content)
        elif kind == _TYPES:
            state.add(pb.ListModelTypesResponse.FromString(content).model_types)
        elif kind == _MODELS:
            state.add(pb.ListModelsResponse.FromString(content).models)
        else:
            raise DamagedFileError("it holds what no snapshot does")
    state.filter = frozenset(map(str, about["model_types"]))
    number, hash_ = about["anchor"]
    state.revision, state.anchor = int(about["revision"]), (int(number), str(hash_))
    return state, float(about["current_time"])
