"""Recordings."""

from __future__ import annotations

from modelfleet.capacity.v1 import recordings_pb2 as pb
from modelfleetd.capacity.domain import recording as domain
from modelfleetd.capacity.domain.recording import Recording, Source, Wanted
from modelfleetd.kit.codec import duration_from_proto, to_proto


def wanted_from_proto(message: pb.Recording) -> Wanted:
    """Returns what is to be recorded, with the defaults where nothing is said. Raises InvalidFields."""
    return Wanted(
        model_type=message.model_type,
        region=message.region or None,
        source=Source.CLIENT if message.source == pb.Recording.CLIENT else Source.TAP,
        sample_permille=message.sample_permille or domain.DEFAULT_SAMPLE_PERMILLE,
        max_bytes=message.max_bytes or domain.DEFAULT_MAX_BYTES,
        max_requests=message.max_requests,
        max_duration=duration_from_proto(message.max_duration)
        if message.HasField("max_duration")
        else domain.DEFAULT_MAX_DURATION,
        retention_duration=duration_from_proto(message.retention_duration)
        if message.HasField("retention_duration")
        else domain.DEFAULT_RETENTION,
        path=message.path,
    )


def recording_to_proto(recording: Recording) -> pb.Recording:
    return to_proto(recording, pb.Recording)
