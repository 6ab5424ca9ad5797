"""Latencies as HDR histograms: precise to 0.1 %, mergeable, and readable by every HDR tool."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.capacity.loadtest.histogram import Histogram

LATENCIES = st.lists(st.floats(0.001, 7_200_000.0), min_size=1, max_size=50)


def histogram_of(latencies_ms: list[float]) -> Histogram:
    made = Histogram()
    made.record(np.array(latencies_ms))
    return made


@settings(max_examples=50)
@given(LATENCIES, st.floats(0.01, 100.0))
def test_a_percentile_is_that_of_the_sorted_latencies_to_a_thousandth(
    latencies: list[float], percentile: float
) -> None:
    exact = np.percentile(latencies, percentile, method="inverted_cdf")
    # Half a microsecond is lost where latencies are written down.
    assert histogram_of(latencies).percentile_ms(percentile) == pytest.approx(exact, rel=0.001, abs=0.0005)


@settings(max_examples=50)
@given(LATENCIES, LATENCIES)
def test_merging_is_recording_together(some: list[float], others: list[float]) -> None:
    merged = histogram_of(some)
    merged.merge(histogram_of(others))
    assert (merged.counts == histogram_of(some + others).counts).all()
    assert len(merged) == len(some) + len(others)


@settings(max_examples=50)
@given(LATENCIES, st.integers(1, 1 << 40))
def test_what_is_encoded_is_decoded(latencies: list[float], often: int) -> None:
    made = histogram_of(latencies)
    made.counts *= often
    assert (Histogram.decode(made.encode()).counts == made.counts).all()


def test_it_reads_what_other_hdr_tools_write_and_they_read_the_same_bytes() -> None:
    # HdrHistogram_py 0.10.8, lowest 1, highest 7.2e9, three digits, of these values in µs.
    foreign = "HISTFAAAADJ4nJNpmSzMwMAAwiDADKUZQXitugeD/QeoANtJfqa1Akwsi31Z9v9lZPrLzwQAv74JDw=="
    values = [1, 1, 1, 999, 2047, 2048, 2049, 60_000, 60_000, 3_600_000_000, 7_200_000_000]
    ours = histogram_of([value / 1000 for value in values])
    assert (Histogram.decode(base64.b64decode(foreign)).counts == ours.counts).all()
    assert base64.b64encode(ours.encode()).decode() == foreign


def test_latencies_out_of_range_count_as_its_nearest_end() -> None:
    made = histogram_of([0.0, -1.0, 1e12])
    assert made.percentile_ms(50) == 0.001
    assert made.percentile_ms(100) == pytest.approx(7_200_000, rel=0.001)


def test_none_has_no_percentiles_and_no_share() -> None:
    empty = Histogram.decode(Histogram().encode())
    assert (len(empty), empty.percentile_ms(99), empty.share_above(1.0)) == (0, 0.0, 0.0)


def test_the_share_above_a_limit_is_counted() -> None:
    assert histogram_of([10.0] * 98 + [61.0, 70.0]).share_above(60.0) == 0.02


@pytest.mark.parametrize("encoded", [b"", b"hello, world", Histogram().encode()[:-3], b"\0" * 40])
def test_what_is_no_histogram_is_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="HDR histogram"):
        Histogram.decode(encoded)
