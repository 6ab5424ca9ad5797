"""A recording of live traffic, from the wish for it to the day on which it is deleted.

PENDING ──▶ RECORDING ──▶ READY       the agent records; the worker looks at it until it has ended, and reads it once
   │            └───────▶ FAILED      nothing arrived, it cannot be written or read, or the agent is gone
   └──▶ READY, FAILED                 a client has recorded already; or it never began
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleetd import names
from modelfleetd.capacity.domain.exact import refuse
from modelfleetd.errors import FieldViolation
from modelfleetd.platform.model import RecordingPlan

DEFAULT_SAMPLE_PERMILLE = 10
DEFAULT_MAX_BYTES = 1 << 30
DEFAULT_MAX_DURATION = timedelta(hours=1)
DEFAULT_RETENTION = timedelta(days=30)
_SAMPLE = range(1, 1001)
_BYTES = (1 << 20, 1 << 40)
_DURATION = (timedelta(seconds=1), timedelta(days=7))
_RETENTION = (timedelta(hours=1), timedelta(days=365))
_PATH = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_MAX_PATH = 200


class State(enum.Enum):
    """Where a recording is in its life."""

    PENDING = "PENDING"
    RECORDING = "RECORDING"
    READY = "READY"
    FAILED = "FAILED"


class Source(enum.Enum):
    """Who records."""

    TAP = "TAP"
    CLIENT = "CLIENT"


ENDED = frozenset({State.READY, State.FAILED})
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.RECORDING, State.READY, State.FAILED}),
    State.RECORDING: ENDED,
    State.READY: frozenset(),
    State.FAILED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants recorded, or has recorded.

    Attributes:
        model_type: the route.
        region: where; None for what a client has recorded.
        source: who records.
        sample_permille: of how many of 1,000 requests.
        max_bytes: of requests, then it ends.
        max_requests: how many, then it ends; 0: no limit.
        max_duration: then it ends.
        retention_duration: how long it is kept afterwards.
        path: of a client's dataset, beneath the root.

    Raises:
        InvalidFields: names everything that is out of its range.
    """

    model_type: str
    region: str | None
    source: Source
    sample_permille: int = DEFAULT_SAMPLE_PERMILLE
    max_bytes: int = DEFAULT_MAX_BYTES
    max_requests: int = 0
    max_duration: timedelta = DEFAULT_MAX_DURATION
    retention_duration: timedelta = DEFAULT_RETENTION
    path: str = ""

    def __post_init__(self) -> None:
        wrong = [
            (self.sample_permille in _SAMPLE, "sample_permille", "must be 1 to 1,000, or 0 (the default, 10)"),
            (
                _BYTES[0] <= self.max_bytes <= _BYTES[1],
                "max_bytes",
                "must be 1 MiB to 1 TiB, or 0 (the default, 1 GiB)",
            ),
            (self.max_requests >= 0, "max_requests", "must be 0 (no limit) or more"),
            (_DURATION[0] <= self.max_duration <= _DURATION[1], "max_duration", "must be 1 s to 7 d (default 1 h)"),
            (
                _RETENTION[0] <= self.retention_duration <= _RETENTION[1],
                "retention_duration",
                "must be 1 h to 365 d (default 30 d)",
            ),
        ]
        if self.source is Source.TAP:
            wrong.append((self.region is not None, "region", "is required where the agent of a region records"))
            wrong.append((not self.path, "path", "must be empty unless source is CLIENT: the agent chooses the place"))
        else:
            wrong.append((is_path(self.path), "path", PATH_EXPECTATION))
        refuse([FieldViolation(f"recording.{field}", words) for right, field, words in wrong if not right])


PATH_EXPECTATION = (
    'must be a folder beneath the root of recordings, such as "feed_ctr/2026-11": letters, digits, ".", "_", "-" and '
    '"/", at most 200 characters, no ".."'
)


def is_path(text: str) -> bool:
    """Says whether a text names a folder beneath the root."""
    inside = all(part.strip(".") for part in text.split("/"))
    return len(text) <= _MAX_PATH and _PATH.fullmatch(text) is not None and inside


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a recording is, beside its state."""

    message: str = ""
    requests: int = 0
    bytes: int = 0
    dropped_requests: int = 0
    first_request_time: datetime | None = None
    last_request_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording. What it is to be stands in the fields of `Wanted`."""

    name: str
    model_type: str
    region: str | None
    source: Source
    sample_permille: int
    max_bytes: int
    max_requests: int
    max_duration: timedelta
    retention_duration: timedelta
    path: str
    uri: str
    state: State
    message: str
    requests: int
    bytes: int
    dropped_requests: int
    digest: str
    actor: str
    create_time: datetime
    first_request_time: datetime | None
    last_request_time: datetime | None
    end_time: datetime | None
    expire_time: datetime

    @property
    def until(self) -> datetime:
        """When the agent ends it at the latest. Counted from the wish, so that a repeated start asks for the same."""
        return self.create_time + self.max_duration

    @property
    def progress(self) -> Progress:
        """How far it was when somebody last looked."""
        return Progress(
            self.message,
            self.requests,
            self.bytes,
            self.dropped_requests,
            self.first_request_time,
            self.last_request_time,
        )

    @property
    def plan(self) -> RecordingPlan:
        """What the agent is asked for."""
        (model_type,) = names.MODEL_TYPE.parse(self.model_type)
        return RecordingPlan(
            recording=self.name,
            target=names.TARGET.format(model_type),
            uri=self.uri,
            sample_permille=self.sample_permille,
            max_bytes=self.max_bytes,
            max_requests=self.max_requests,
            end_time=self.until,
        )
