"""What makes a batch this one, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleetd.errors import FieldViolation, FleetError, RequestIdReused
from modelfleetd.stability.domain.columns import RejectedRows


class SequenceReused(RequestIdReused):
    """The sequence was written before with other content: what names a batch is its producer and its sequence."""

    def __init__(self, producer: str, sequence: int) -> None:
        description = "was written before with other content; each new batch takes a larger one"
        FleetError.__init__(
            self,
            f"batch.sequence {sequence} of producer {producer} {description}.",
            violations=[FieldViolation("batch.sequence", description)],
            request_id=f"{producer}/{sequence}",
        )


@dataclass(frozen=True, slots=True)
class BatchId:
    """What makes a batch this one, and the digest of its content."""

    model_type: str
    producer: str
    sequence: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch."""

    accepted_rows: int
    rejected: tuple[RejectedRows, ...]
    duplicate: bool = False
    newest_event: int | None = None  # microseconds since 1970, of the rows that were taken; is not kept
