"""Sums that no order, batching, merge or repetition can change by a bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.stability.domain import losses, summary
from modelfleetd.stability.domain.bins import bins_of
from modelfleetd.stability.domain.exact import BLOCK, SCALE
from modelfleetd.stability.domain.losses import Block
from modelfleetd.stability.domain.maturity import AGE_BOUNDS, MINUTE_MICROS, age_buckets
from modelfleetd.stability.domain.summary import Statistics, count_positives, expose, pick, scored, summarise_examples
from tests.domain.stability_rows import Row, bin_oracle, bin_totals, examples, oracle, total, totals

rows = st.lists(
    st.builds(
        Row,
        p=st.floats(0, 1),
        y=st.integers(0, 1),
        w=st.one_of(st.just(1.0), st.floats(0, 1e6), st.floats(0, 1e-3)),
        model=st.integers(0, 2),
        prediction=st.integers(0, 1),
        minute=st.integers(0, 3),
    ),
    max_size=60,
)


@given(rows)
@settings(max_examples=60)
def test_sums_are_those_of_plain_integers(given_rows: list[Row]) -> None:
    by_key: dict[tuple[int, int, int], list[Row]] = {}
    for row in given_rows:
        by_key.setdefault((row.model, row.prediction, row.minute), []).append(row)
    found = totals(summarise_examples(examples(given_rows)))
    start = min((minute for _, _, minute in found), default=0) - min((r.minute for r in given_rows), default=0)
    assert found == {(m, p, t + start): oracle(group) for (m, p, t), group in by_key.items()}


@given(rows)
@settings(max_examples=60)
def test_bins_are_those_of_plain_integers(given_rows: list[Row]) -> None:
    assert bin_totals(summarise_examples(examples(given_rows))) == bin_oracle(given_rows)


@given(rows, st.randoms(use_true_random=False), st.integers(1, 5))
@settings(max_examples=60)
def test_no_permutation_and_no_batching_changes_a_bit(given_rows: list[Row], random: object, batches: int) -> None:
    shuffled = list(given_rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    merged = Statistics.none()
    for index in range(batches):
        merged += summarise_examples(examples(shuffled[index::batches]))
    at_once = summarise_examples(examples(given_rows))
    assert totals(merged) == totals(at_once)
    assert bin_totals(merged) == bin_totals(at_once)


@given(rows)
@settings(max_examples=60)
def test_labels_that_come_late_end_in_the_sums_of_labels_known_at_once(given_rows: list[Row]) -> None:
    batch = examples(given_rows)
    at_once = summarise_examples(batch)
    positive = np.flatnonzero(batch.label)
    ages = np.arange(len(positive), dtype=np.int64) % 5
    late = expose(scored(batch)) + count_positives(pick(scored(batch), positive), ages)
    assert totals(late) == totals(at_once)
    assert bin_totals(late) == bin_totals(at_once)


@pytest.mark.parametrize("weighted", [True, False])
def test_many_blocks_and_mixed_keys_sum_like_one_row_after_the_other(weighted: bool) -> None:
    rng = np.random.default_rng(3)
    size = 2 * BLOCK + 17
    drawn = [
        Row(float(p), int(y), float(w), int(m), 0, int(t))
        for p, y, w, m, t in zip(
            rng.beta(0.5, 20, size),
            rng.random(size) < 0.1,
            rng.lognormal(0, 3, size).clip(0, 1e6) if weighted else np.ones(size),
            rng.integers(0, 2, size),
            rng.integers(0, 3, size),
            strict=True,
        )
    ]
    assert total(drawn, weighted=weighted) == oracle(drawn)
    assert bin_totals(summarise_examples(examples(drawn, weighted=weighted))) == bin_oracle(drawn)


def test_the_largest_addends_fit() -> None:
    drawn = [Row(0.0, 1, 1e6)] * BLOCK
    sums = total(drawn)
    assert sums == oracle(drawn)
    assert sums.positives.w2l2 > 2**60 * SCALE // 1000
    assert bin_totals(summarise_examples(examples(drawn))) == bin_oracle(drawn)


def test_logits_and_their_probabilities_agree() -> None:
    drawn = examples([Row(0.3, 1), Row(0.001, 0), Row(0.9999, 1)])
    logits = np.log(drawn.value / (1 - drawn.value))
    as_logits = summary.Scored(drawn.model, drawn.prediction, drawn.event, logits, True, None)
    as_scores = summary.Scored(drawn.model, drawn.prediction, drawn.event, drawn.value, False, None)
    for one, other in zip(expose(as_logits).exposure.columns, expose(as_scores).exposure.columns, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_extreme_logits_stay_finite_and_bounded() -> None:
    drawn = examples([Row(0.5, 1)] * 4)
    extreme = np.array([1e308, -1e308, 745.0, -745.0])
    rows_of = summary.Scored(drawn.model, drawn.prediction, drawn.event, extreme, True, None)
    ages = np.zeros(4, dtype=np.int64)
    assert expose(rows_of).exposure.columns[4][0] == 200 * SCALE
    assert count_positives(rows_of, ages).positives.columns[3][0] == 0


@given(st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=50), st.booleans())
def test_a_blocks_terms_are_those_of_each_value_to_the_last_bit(values: list[float], is_logit: bool) -> None:
    given_values = np.array(values) if is_logit else np.abs(np.array(values)) / 1e308
    block = Block(is_logit=is_logit, positives=True)
    block.load(given_values)
    x = np.clip(given_values, -losses.MAX_LOGIT, losses.MAX_LOGIT) if is_logit else given_values
    # Beyond the bounds of a loss, the probability differs by less than the sums resolve.
    assert block.probabilities.tolist() == losses.probabilities(x, is_logit=is_logit).tolist()
    assert block.negative_losses.tolist() == losses.negative_losses(given_values, is_logit=is_logit).tolist()
    assert block.positive_losses.tolist() == losses.positive_losses(given_values, is_logit=is_logit).tolist()


def test_bins_are_of_equal_width_and_open_at_the_ends() -> None:
    edges = np.arange(-8.0, 8.0, 0.5)
    assert bins_of(edges.copy()).tolist() == list(range(32))
    assert bins_of(edges[1:] - 1e-9).tolist() == list(range(31))
    assert bins_of(np.array([-100.0, -8.1, 8.0, 100.0])).tolist() == [0, 0, 31, 31]


def test_buckets_of_age_grow_by_half_octaves() -> None:
    minutes = AGE_BOUNDS // MINUTE_MICROS
    assert minutes[:9].tolist() == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert minutes[-1] > 30 * 24 * 60
    assert len(AGE_BOUNDS) < 64
    event = np.zeros(4, dtype=np.int64)
    label = np.array([-5, MINUTE_MICROS - 1, MINUTE_MICROS, 10**15], dtype=np.int64)
    assert age_buckets(event, label).tolist() == [0, 0, 1, len(AGE_BOUNDS)]
