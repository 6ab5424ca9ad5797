"""The demo's traffic as it is planned, and what the screen makes of a picture."""

from __future__ import annotations

import numpy as np
import pytest

from modelfleetd.local.demo_data import Impressions
from modelfleetd.local.demo_traffic import BATCH, Traffic, plan


def impressions(number: int, seconds: float) -> Impressions:
    text = np.array(["x"] * number)
    ones = np.ones(number, dtype=np.int64)
    click = np.zeros(number, dtype=np.int64)
    click[5] = 1
    time = np.linspace(0.0, seconds, number)
    return Impressions(time, text, ones, ones, text, text, text, text, np.zeros(number), click)


def test_requests_follow_the_logs_clock_and_carry_every_impression_once() -> None:
    requests = plan("route", impressions(100, 3_600.0), compression=360.0)
    assert sum(len(request.message.inputs[1].contents.int64_contents) for request in requests) == 100
    assert [request.at for request in requests] == sorted(request.at for request in requests)
    assert requests[-1].at == pytest.approx(10.0)
    assert [request.clicks for request in requests if request.clicks] == [(5,)]
    assert {request.message.model_name for request in requests} == {"route"}


def test_the_rates_are_those_of_the_plan() -> None:
    traffic = Traffic("127.0.0.1:1", "modelTypes/route", impressions(1_600, 100.0), compression=10.0)
    assert traffic.mean_rate == pytest.approx(1_600 / BATCH / traffic.duration)
    assert traffic.peak_rate >= traffic.mean_rate
