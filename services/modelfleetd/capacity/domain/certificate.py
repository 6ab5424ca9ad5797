"""What one replica of a model carries, and why it may be believed."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from modelfleetd.capacity.domain.exact import in_range, refuse
from modelfleetd.capacity.domain.loadtest import Stoppers
from modelfleetd.errors import CertificateExpired, CertificateMissing, FieldViolation

MAX_NOTE = 1000


class Source(enum.Enum):
    """Where the number comes from."""

    STATED = "STATED"
    LOAD_TEST = "LOAD_TEST"
    INFERRED = "INFERRED"


@dataclass(frozen=True, slots=True)
class GeneratorHealth:
    """How well the load generator kept up in the run that confirmed a certificate.

    Attributes:
        rate_ratio: the rate that was sent over the rate that was to be sent.
        send_late_p99_ms: one percent of the requests were sent later than intended by this much or more.
        cpu_fraction: the share of one core that its process used.
    """

    rate_ratio: float
    send_late_p99_ms: float
    cpu_fraction: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """A conservative bound of what one replica of a model carries on a flavor.

    Attributes:
        max_qps: lower bound of the maximum load, in requests a second.
        confidence: of the bound, in [0, 1]; 0 where nobody knows.
        load_test: that measured it; what follows is set by load tests only.
        region: where the replica ran.
        stoppers: what it kept while it carried the load.
        recording: what was replayed; None for sample requests.
        recording_digest: over the requests that were replayed.
        requests: of the run that confirmed it.
        serving_spec_digest: of what was measured.

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
    region: str | None = None
    stoppers: Stoppers | None = None
    recording: str | None = None
    recording_digest: str = ""
    generator_health: GeneratorHealth | None = None
    requests: int = 0
    serving_spec_digest: str = ""

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
