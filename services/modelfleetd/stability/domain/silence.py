"""Silences: a declared maintenance, in which alerts notify nobody."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.names import MODEL, MODEL_TYPE

LONGEST: Final = timedelta(days=30)
_MOST_CHARACTERS: Final = 1000


@dataclass(frozen=True, slots=True)
class Silence:
    """Alerts of a model type, or of one of its models, notify nobody from start to end."""

    name: str
    resource: str
    reason: str
    start_time: datetime
    end_time: datetime
    creator: str
    create_time: datetime
    ended_by: str = ""  # who ended it early

    def is_active(self, now: datetime) -> bool:
        """Says whether it keeps quiet now."""
        return self.start_time <= now < self.end_time


def declared(
    name: str, resource: str, reason: str, start: datetime | None, end: datetime | None, creator: str, now: datetime
) -> Silence:
    """Returns a silence that begins now unless told otherwise.

    Raises:
        InvalidFields: what is named is no model type or model, or the times or the reason cannot be; all that is wrong.
    """
    start = start or now
    wrong = []
    if not (MODEL_TYPE.match(resource) or MODEL.match(resource)):
        accepted = f"must be a model type, {MODEL_TYPE.template}, or a model, {MODEL.template}"
        wrong.append(FieldViolation("silence.resource", accepted))
    if not 1 <= len(reason) <= _MOST_CHARACTERS:
        wrong.append(FieldViolation("silence.reason", f"must have 1 to {_MOST_CHARACTERS} characters"))
    if end is None:
        wrong.append(FieldViolation("silence.end_time", "is required: until when, at most 30 d after the start"))
    elif end <= max(start, now):
        wrong.append(FieldViolation("silence.end_time", "must be after the start, and after now"))
    elif end - start > LONGEST:
        wrong.append(FieldViolation("silence.end_time", "must be at most 30 d after the start"))
    if start - now > LONGEST:
        wrong.append(FieldViolation("silence.start_time", "must be at most 30 d from now"))
    if wrong:
        raise InvalidFields(wrong)
    assert end is not None
    # A maintenance that has begun keeps quiet from now on: what was sent before cannot be taken back.
    return Silence(name, resource, reason, start, end, creator, now)
