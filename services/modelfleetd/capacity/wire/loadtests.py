"""Load tests."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from google.protobuf.message import DecodeError

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleetd.capacity.domain.exact import refuse
from modelfleetd.capacity.domain.loadtest import (
    DEFAULT_CERTIFICATION_REQUESTS,
    DEFAULT_ERROR_RATE,
    VALIDITY,
    LatencyStopper,
    LoadTest,
    Stoppers,
    Wanted,
)
from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.kit.codec import duration_from_proto, to_proto


def wanted_from_proto(message: pb.LoadTest, flavor: str, default_start_qps: float) -> Wanted:
    """Returns what a load test is to find out, with the defaults where nothing is asked for.

    Raises:
        InvalidFields: says all that is wrong with it, samples that are no ModelInferRequest among it.
    """
    wrong = [
        FieldViolation(f"load_test.sample_requests[{index}]", "must be an inference.ModelInferRequest in bytes")
        for index, sample in enumerate(message.sample_requests)
        if not _is_infer_request(sample)
    ]
    try:
        wanted = _wanted(message, flavor, default_start_qps)
    except InvalidFields as error:
        raise InvalidFields([*error.violations, *wrong]) from None
    refuse(wrong)
    return wanted


def _is_infer_request(sample: bytes) -> bool:
    """Other bytes may parse by chance, but then as fields that are unknown."""
    try:
        parsed = inference.ModelInferRequest.FromString(sample)
    except DecodeError:
        return False
    return bool(parsed.model_name or parsed.inputs)


def _wanted(message: pb.LoadTest, flavor: str, default_start_qps: float) -> Wanted:
    stoppers = Stoppers(
        message.stoppers.latency_p99_ms,
        message.stoppers.error_rate or DEFAULT_ERROR_RATE,
        tuple(LatencyStopper(one.percentile, one.latency_ms) for one in message.stoppers.latencies),
    )
    return Wanted(
        model=message.model,
        region=message.region,
        flavor=flavor,
        sample_requests=tuple(message.sample_requests),
        stoppers=stoppers,
        start_qps=message.start_qps or default_start_qps,
        certification_requests=message.certification_requests
        or max(DEFAULT_CERTIFICATION_REQUESTS, stoppers.needed_requests),
        recording=message.recording or None,
        warm_up_duration=_duration(message, "warm_up_duration"),
        validity_duration=_duration(message, "validity_duration") or VALIDITY,
    )


def _duration(message: pb.LoadTest, field: Literal["warm_up_duration", "validity_duration"]) -> timedelta | None:
    return duration_from_proto(getattr(message, field)) if message.HasField(field) else None


def load_test_to_proto(test: LoadTest) -> pb.LoadTest:
    return to_proto(test, pb.LoadTest)
