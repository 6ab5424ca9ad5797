"""Load tests."""

from __future__ import annotations

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity.domain.loadtest import (
    DEFAULT_CERTIFICATION_REQUESTS,
    DEFAULT_ERROR_RATE,
    LoadTest,
    Stoppers,
    Wanted,
)
from modelfleetd.kit.codec import to_proto


def wanted_from_proto(message: pb.LoadTest, flavor: str, default_start_qps: float) -> Wanted:
    """Returns what a load test is to find out, with the defaults where nothing is asked for."""
    stoppers = Stoppers(message.stoppers.latency_p99_ms, message.stoppers.error_rate or DEFAULT_ERROR_RATE)
    return Wanted(
        model=message.model,
        region=message.region,
        flavor=flavor,
        sample_requests=tuple(message.sample_requests),
        stoppers=stoppers,
        start_qps=message.start_qps or default_start_qps,
        certification_requests=message.certification_requests
        or max(DEFAULT_CERTIFICATION_REQUESTS, stoppers.needed_requests),
    )


def load_test_to_proto(test: LoadTest) -> pb.LoadTest:
    made = to_proto(test, pb.LoadTest)
    made.highest_within_qps = test.highest_within_qps
    made.lowest_beyond_qps = test.lowest_beyond_qps
    return made
