"""What the demo concludes from a launch that has ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.platform.v1 import platform_pb2
from modelfleetd.local import demo_fleet as fleet
from modelfleetd.local.demo_summary import Summary, deviations, peak

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def summary(**changes: object) -> Summary:
    values: dict[str, object] = {
        "scenario": "replace",
        "state": "SUCCEEDED",
        "summary": "",
        "reason": "",
        "steps": [],
        "phases": {},
        "hold_units": 8,
        "peak_units": 8,
        "replicas": {},
        "requests": {},
        "failed_requests": 0,
        "failures": {},
        "impressions": 0,
        "clicks": 0,
        "passes": 1,
        "evidence": {},
        "rejected_rows": {},
        "revision": 9,
        "changes": [],
        "baseline": fleet.CANDIDATE,
        "trace_id": "",
    }
    return Summary(**{**values, **changes})  # type: ignore[arg-type]


def gone_back(**changes: object) -> Summary:
    values: dict[str, object] = {
        "scenario": "miscalibrated",
        "state": "ROLLED_BACK",
        "reason": "gate/stability: calibration 4.1",
        "revision": 0,
        "baseline": fleet.BASELINE,
    }
    return summary(**{**values, **changes})


def test_a_launch_that_went_as_promised_deviates_in_nothing() -> None:
    assert deviations(summary()) == []
    assert deviations(gone_back()) == []


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        (summary(state="ROLLED_BACK"), "not as SUCCEEDED"),
        (summary(baseline=fleet.BASELINE), "baseline is"),
        (summary(failed_requests=1), "1 requests failed"),
        (summary(peak_units=9), "the launch held 8"),
        (summary(replicas={fleet.BASELINE: {"running": 2}}), "2 replicas of"),
        (summary(scenario="crash", kills=["ESTIMATING", "SHIFTING, while", "FINALIZING"]), "PREPARING passed too fast"),
        (gone_back(state="SUCCEEDED"), "not as ROLLED_BACK"),
        (gone_back(reason="deadline: too slow"), "not the gate"),
        (gone_back(revision=12), "revision 12"),
        (gone_back(baseline=fleet.CANDIDATE), "baseline is"),
    ],
)
def test_each_deviation_is_said_in_a_sentence(ended: Summary, says: str) -> None:
    (sentence,) = deviations(ended)
    assert says in sentence


def test_the_peak_counts_a_replica_until_it_has_ended_and_only_during_the_launch() -> None:
    kinds = platform_pb2.Effect
    story = [
        (0, kinds.REPLICA_STARTED, "a"),
        (1, kinds.REPLICA_STARTED, "b"),
        (2, kinds.REPLICA_TERMINATED, "b"),
        (10, kinds.REPLICA_STARTED, "c"),
        (11, kinds.REPLICA_DRAINING, "a"),
        (12, kinds.REPLICA_STARTED, "d"),
        (13, kinds.REPLICA_TERMINATED, "a"),
        (14, kinds.REPLICA_STARTED, "e"),
    ]
    effects = [
        platform_pb2.Effect(kind=kind, replica=replica, time=_timestamp(second)) for second, kind, replica in story
    ]
    assert peak(effects, _timestamp(9)) == 3


def _timestamp(second: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(_BEGIN + timedelta(seconds=second))
    return stamp


def test_the_certificates_say_what_makes_the_route_need_so_many_replicas() -> None:
    for peak_qps in (47, 116, 900):
        for replicas in (2, 5, 6):
            needed = peak_qps / (fleet.max_qps(peak_qps, replicas) * 0.7) / 0.98
            assert replicas - 1 < needed <= replicas
