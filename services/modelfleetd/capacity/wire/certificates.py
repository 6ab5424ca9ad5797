"""Certificates."""

from __future__ import annotations

from datetime import datetime

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.domain.certificate import Certificate, Source
from modelfleetd.capacity.domain.loadtest import VALIDITY
from modelfleetd.kit.codec import from_proto, timestamp_from_proto, to_proto


def certificate_from_proto(message: pb.Certificate, name: str, actor: str, now: datetime) -> Certificate:
    """Returns the certificate that somebody states."""
    return from_proto(
        message,
        Certificate,
        name=name,
        source=Source.STATED,
        load_test=None,
        region=None,
        stoppers=None,
        recording=None,
        recording_digest="",
        generator_health=None,
        requests=0,
        serving_spec_digest="",
        actor=actor,
        create_time=now,
        expire_time=timestamp_from_proto(message.expire_time) if message.HasField("expire_time") else now + VALIDITY,
    )


def certificate_to_proto(certificate: Certificate) -> pb.Certificate:
    return to_proto(certificate, pb.Certificate)
