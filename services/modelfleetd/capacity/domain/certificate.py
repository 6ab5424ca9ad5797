"""What one replica of a model carries, and why it may be believed."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelfleetd.capacity.domain.exact import in_range, refuse
from modelfleetd.errors import CertificateMissing, FieldViolation

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


def in_force(certificates: Iterable[Certificate], model: str, flavor: str, now: datetime) -> Certificate:
    """Returns the newest certificate of a model on a flavor that has not expired.

    Raises:
        CertificateMissing: there is none.
    """
    valid = [
        certificate
        for certificate in certificates
        if certificate.model == model and certificate.flavor == flavor and certificate.expire_time > now
    ]
    if not valid:
        raise CertificateMissing(model)
    return max(valid, key=lambda certificate: certificate.create_time)
