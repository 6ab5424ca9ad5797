"""What one replica of a model carries, and why it may be believed."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleetd.capacity.domain.exact import in_range, refuse
from modelfleetd.errors import CertificateExpired, CertificateMissing, FieldViolation

MAX_NOTE = 1000
VALIDITY = timedelta(days=90)


class Source(enum.Enum):
    """Where the number comes from."""

    STATED = "STATED"
    LOAD_TEST = "LOAD_TEST"
    INFERRED = "INFERRED"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A conservative bound of what one replica of a model carries on a flavor.

    Attributes:
        max_qps: lower bound of the maximum load, in requests a second.
        confidence: of the bound, in [0, 1]; 0 where nobody knows.

    Raises:
        InvalidFields: a number is out of its range, the note is too long, or it expires before it is made.
    """

    name: str
    model: str
    flavor: str
    max_qps: float
    confidence: float
    source: Source
    note: str
    actor: str
    create_time: datetime
    expire_time: datetime
    load_test: str | None = None

    def __post_init__(self) -> None:
        wrong = []
        if not in_range(self.max_qps, 0, 1e9, low_open=True):
            wrong.append(FieldViolation("certificate.max_qps", "must be above 0 and at most 1e9"))
        if not in_range(self.confidence, 0, 1):
            wrong.append(FieldViolation("certificate.confidence", "must be 0 to 1"))
        if len(self.note) > MAX_NOTE:
            wrong.append(FieldViolation("certificate.note", f"must have at most {MAX_NOTE:,} characters"))
        if self.expire_time <= self.create_time:
            wrong.append(FieldViolation("certificate.expire_time", "must be in the future"))
        refuse(wrong)


def in_force(
    certificates: Iterable[Certificate], model: str, flavor: str, now: datetime, *, allow_expired: bool = False
) -> Certificate:
    """Returns the newest certificate of a model on a flavor that has not expired.

    Args:
        certificates: to choose from.
        model: whose.
        flavor: the kind of machine.
        now: decides what has expired.
        allow_expired: take the newest expired one where there is no other.

    Raises:
        CertificateMissing: there is none at all.
        CertificateExpired: all have expired, and that is not allowed.
    """
    known = [each for each in certificates if each.model == model and each.flavor == flavor]
    if not known:
        raise CertificateMissing(model)
    valid = [each for each in known if each.expire_time > now]
    newest = max(valid or known, key=lambda certificate: certificate.create_time)
    if not (valid or allow_expired):
        raise CertificateExpired(model, newest.name, f"{newest.expire_time:%Y-%m-%d %H:%M} UTC")
    return newest
