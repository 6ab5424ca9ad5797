"""What the parts of the store share: what is written, what is claimed, and how a row is a launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from modelfleetd.kit.db import Record
from modelfleetd.launcher.documents import from_document, to_document
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import GateVerdict, Intent
from modelfleetd.names import LAUNCH

COLUMNS = "id, state, queued, version, epoch, body, update_time"

_LOOKS = ("conditions", "progress", "splits", "step", "deadline", "approval_deadline", "watched_until", "frozen")


@dataclass(frozen=True, slots=True)
class Claim:
    """A launch that this process may act for, until its lease ends; and what time it is by the database."""

    launch: Launch
    now: datetime
    # Seconds of the lease.
    lease: float


@dataclass(frozen=True, slots=True)
class Settled:
    """How an intent ended."""

    number: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Change:
    """What a round writes, all of it or nothing.

    Attributes:
        before: the launch as it was claimed or last written: its version and epoch must still be there.
        after: the launch from now on.
        due: seconds until somebody looks again, and the lease is given back; None keeps the lease.
        time: when it was decided, for those who are told of it.
    """

    before: Launch
    after: Launch
    due: float | None
    events: Sequence[Event] = ()
    verdicts: Sequence[GateVerdict] = ()
    intent: Intent | None = None
    settled: Settled | None = None
    spans: Sequence[Mapping[str, Any]] = ()
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


def id_of(launch: Launch) -> str:
    return LAUNCH.parse(launch.name)[0]


def launch_of(row: Record) -> Launch:
    body = row["body"]
    columns = {"state": row["state"], "queued": row["queued"], "version": row["version"], "epoch": row["epoch"]}
    columns["update_time"] = row["update_time"].isoformat()
    return from_document(Launch, {**body, **columns})


def body_of(launch: Launch) -> dict[str, Any]:
    document: dict[str, Any] = to_document(launch)
    for column in ("state", "queued", "version", "epoch", "update_time"):
        del document[column]
    return document


def intent_row(intent: Intent) -> dict[str, Any]:
    document: dict[str, Any] = to_document(intent)
    document["act"] = intent.act.value
    return document


def looks_of(launch: Launch) -> dict[str, Any]:
    """What a look alone may change: the rest of the document is as it was."""
    return {field: to_document(getattr(launch, field)) for field in _LOOKS}
