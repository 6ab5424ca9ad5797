"""What must hold of the judge whatever the evidence, and how often it errs over a bake."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import gammaincinv
from scipy.stats import binomtest

from modelfleetd.stability.domain.criteria import Criterion, DeclaredPrediction, Limits
from modelfleetd.stability.domain.demands import demanded
from modelfleetd.stability.domain.estimates import State, calibration_ratio
from modelfleetd.stability.domain.exact import SCALE
from modelfleetd.stability.domain.fleet import HealthyRange
from modelfleetd.stability.domain.fleet import Metric as Measured
from modelfleetd.stability.domain.intervals import count_ratio, garwood
from modelfleetd.stability.domain.judge import (
    Case,
    Comparison,
    Finding,
    Judgement,
    Metric,
    Verdict,
    compare,
    judge,
    verdict_of,
)
from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.points import Evidence, Span
from modelfleetd.stability.domain.sums import NOTHING, Exposure, Positives, Sums

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
WINDOW = timedelta(minutes=10)
SPAN = Span(minute_of(NOW) - 60, minute_of(NOW) + 1)
COMPARING = Criterion("click", max_ne_regression=0.05, max_calibration_difference=0.1)


def sums(examples: int, positives: int, predicted: float, weight: int = 1) -> Sums:
    """Examples of one prediction, all predicted alike, without a loop over them."""
    p = predicted / examples
    l0, l1 = -math.log1p(-p), -math.log(p)

    def scaled(value: float) -> int:
        return round(value * SCALE)

    w, w2 = weight, weight * weight
    return Sums(
        Exposure(
            examples, scaled(w * examples), scaled(w2 * examples), scaled(w * predicted),
            scaled(w2 * predicted * (1 - p)), scaled(w * examples * l0), scaled(w2 * examples * l0),
            scaled(w2 * examples * l0 * l0),
        ),
        Positives(
            positives, scaled(w * positives), scaled(w2 * positives), scaled(w2 * positives * l1),
            scaled(w * positives * (l1 - l0)), scaled(w2 * positives * (l1 - l0)),
            scaled(w2 * positives * (l1 * l1 - l0 * l0)),
        ),
    )  # fmt: skip


def many(once: Sums, times: int) -> Sums:
    """The same evidence so many times over."""

    def scaled(part: Exposure | Positives) -> list[int]:
        return [times * getattr(part, field.name) for field in dataclasses.fields(part)]

    return Sums(Exposure(*scaled(once.exposure)), Positives(*scaled(once.positives)))


def judged(criterion: Criterion, ours: Sums, theirs: Sums | None = None) -> Judgement:
    if theirs is None:
        return judge([Case(criterion, WINDOW, SPAN, NOW, Evidence(ours))], SPAN)
    both = Comparison(SPAN, ours, theirs)
    return judge([Case(criterion, WINDOW, SPAN, NOW, Evidence(ours), Evidence(theirs), both)], SPAN)


def by_metric(found: Judgement) -> dict[Metric, Finding]:
    return {finding.metric: finding for finding in found.findings}


@st.composite
def evidence(draw: st.DrawFn) -> Sums:
    """Some hundred to some million examples, at base rates from rare to one half."""
    examples = draw(st.integers(100, 2_000_000))
    rate = draw(st.floats(1e-4, 0.5))
    positives = min(examples - 1, round(examples * rate * draw(st.floats(0.3, 3.0))))
    return sums(examples, positives, max(1e-3, examples * rate))


RANGES = st.tuples(st.floats(0.1, 1.0), st.floats(1.0, 4.0)).map(lambda ends: Limits(*ends))


@given(evidence(), RANGES, st.integers(2, 50))
def test_the_same_value_by_more_evidence_never_takes_a_verdict_back(once: Sums, limits: Limits, times: int) -> None:
    criterion = Criterion("click", calibration=limits, ne=Limits(0.5, 1.0))
    few, more = by_metric(judged(criterion, once)), by_metric(judged(criterion, many(once, times)))
    for metric, finding in few.items():
        if finding.verdict is not Verdict.INCONCLUSIVE:
            assert more[metric].verdict is finding.verdict


@given(evidence(), evidence(), st.integers(2, 50))
def test_that_holds_of_comparisons_too(ours: Sums, theirs: Sums, times: int) -> None:
    few = by_metric(judged(COMPARING, ours, theirs))
    more = by_metric(judged(COMPARING, many(ours, times), many(theirs, times)))
    for metric, finding in few.items():
        if finding.verdict is not Verdict.INCONCLUSIVE:
            assert more[metric].verdict is finding.verdict


@given(st.data(), st.sampled_from([2, 10, 1000]))
def test_no_scale_of_weights_changes_a_verdict(data: st.DataObject, scale: int) -> None:
    examples = data.draw(st.integers(100, 100_000))
    positives, predicted = data.draw(st.integers(0, examples // 3)), data.draw(st.floats(0.01, 0.4)) * examples
    theirs = sums(5000, 300, 310.0)
    criterion = dataclasses.replace(COMPARING, calibration=Limits(0.8, 1.25), ne=Limits(0.0, 1.1))
    plain = judged(criterion, sums(examples, positives, predicted), theirs)
    heavy = judged(criterion, sums(examples, positives, predicted, scale), theirs)
    for finding, again in zip(plain.findings, heavy.findings, strict=True):
        # At the very edge the last digit may decide.
        assume(abs(finding.candidate.calibration.low - 1.25) > 1e-6)
        assert again.verdict is finding.verdict, (finding.explanation, again.explanation)


@given(evidence(), evidence())
def test_the_difference_of_calibrations_is_the_same_whichever_side_is_asked(ours: Sums, theirs: Sums) -> None:
    one, other = calibration_ratio(ours, theirs, 0.99), calibration_ratio(theirs, ours, 0.99)
    assert one.state is other.state
    if one.known:
        assert one.value == pytest.approx(1 / other.value)
        assert one.low <= one.value <= one.high
    if one.known or ours.observed or theirs.observed:
        assert one.low == pytest.approx(1 / other.high if math.isfinite(other.high) else 0.0, rel=1e-6, abs=1e-12)
    differing = Criterion("click", max_calibration_difference=0.1)
    verdicts = [judged(differing, *sides).verdict for sides in ((ours, theirs), (theirs, ours))]
    assert verdicts[0] is verdicts[1]


@pytest.mark.parametrize(("count", "other"), [(0, 5), (3, 9), (40, 38), (500, 1), (7, 0)])
def test_the_ratio_of_two_counts_has_the_interval_of_a_binomial_share(count: int, other: int) -> None:
    low, high = count_ratio(count, other, 0.99)
    sides = "two-sided" if count and other else "less" if not count else "greater"
    share = binomtest(count, count + other, alternative=sides).proportion_ci(0.99, method="exact")
    assert low == pytest.approx(share.low / (1 - share.low))
    assert high == pytest.approx(share.high / (1 - share.high)) if other else math.isinf(high)


def test_the_interval_of_the_difference_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    ours, theirs = rng.poisson(30, 4000), rng.poisson(90, 4000)
    pairs, counts = np.unique(np.stack((ours, theirs)), axis=1, return_counts=True)
    missed = 0
    for (k, m), times in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        # Both predict 1.2 times too much, so their calibrations do not differ.
        found = calibration_ratio(sums(100_000, k, 36.0), sums(300_000, m, 108.0), 0.95)
        missed += times * (not found.low <= 1.0 <= found.high)
    assert 0.02 <= missed / 4000 <= 0.05


def test_without_positives_on_one_side_many_on_the_other_are_evidence() -> None:
    differing = Criterion("click", max_calibration_difference=0.1)
    lost = judged(differing, sums(10_000, 0, 40.0), sums(100_000, 380, 400.0))
    assert lost.verdict is Verdict.FAIL
    assert "calibration of click cannot be compared: the candidate has 0 positives among 10,000 matured" in (
        lost.explanation
    )
    assert "over-prediction, or its labels are lost; the change is at least +" in lost.explanation
    few = judged(differing, sums(10_000, 0, 3.0), sums(100_000, 380, 400.0))
    assert (few.verdict, few.findings[0].missing_positives) == (Verdict.INCONCLUSIVE, 10)
    nothing = judged(differing, sums(10_000, 0, 40.0), sums(10_000, 0, 40.0))
    assert nothing.verdict is Verdict.INCONCLUSIVE
    assert calibration_ratio(NOTHING, sums(10_000, 10, 40.0), 0.99).state is State.NO_DATA


def test_both_models_are_compared_by_the_minutes_that_are_mature_for_both() -> None:
    part, whole = sums(1000, 20, 20.0), sums(3000, 60, 60.0)
    known, waits = Evidence(whole), Evidence(part, part, first_waiting=SPAN.end - 5)
    before = SPAN.end - 12
    alike = compare(COMPARING, SPAN, before, known, known, (part, part))
    assert alike == Comparison(SPAN, whole, whole)
    for sides in ((known, waits), (waits, known), (waits, waits)):
        assert compare(COMPARING, SPAN, before, *sides, (part, part)) == Comparison(
            Span(SPAN.start, before), part, part
        )
    assert compare(Criterion("click", Limits(0, 1)), SPAN, before, known, known, (part, part)) is None


def test_evidence_of_which_most_was_refused_is_no_verdict_on_the_model() -> None:
    good, bad = Limits(0.5, 2.0), sums(1000, 20, 200.0)

    def verdicts(candidate: Evidence, baseline: Evidence) -> dict[Metric, Verdict]:
        both = Comparison(SPAN, candidate.matured, baseline.matured)
        criterion = dataclasses.replace(COMPARING, calibration=good)
        case = Case(criterion, WINDOW, SPAN, NOW, candidate, baseline, both)
        return {finding.metric: finding.verdict for finding in judge([case], SPAN).findings}

    duplicates = Evidence(bad, rejected=5000)
    assert verdicts(duplicates, Evidence(bad))[Metric.CALIBRATION] is Verdict.FAIL
    refused = Evidence(bad, rejected=1001, malformed=1001)
    assert set(verdicts(refused, Evidence(bad)).values()) == {Verdict.ERROR}
    # Refused rows of the baseline spoil only what compares with it.
    of_baseline = verdicts(Evidence(bad), refused)
    assert of_baseline[Metric.CALIBRATION] is Verdict.FAIL
    assert of_baseline[Metric.NE_REGRESSION] is Verdict.ERROR
    case = Case(Criterion("click", good), WINDOW, SPAN, NOW, Evidence(malformed=7))
    verdict, explanation = verdict_of([case])
    assert verdict is Verdict.ERROR
    assert explanation.startswith("click cannot be judged: of the candidate 7 rows were refused as impossible and only")


def test_ranges_by_hour_of_the_week_are_as_wide_as_the_widest_hour_of_the_span() -> None:
    factors = tuple(1.0 + 0.1 * (hour % 24 == 12) - 0.2 * (hour % 24 == 3) for hour in range(168))
    ranges = {("click", Measured.CALIBRATION): HealthyRange("click", Measured.CALIBRATION, 0.9, 1.1, factors)}
    declared = {"click": DeclaredPrediction("click", WINDOW, False, Limits(0.5, 2.0), None, 25)}
    wanted = demanded((), declared, ranges, has_baseline=False)

    def limits(start: int, minutes: int) -> tuple[float, float]:
        first = minute_of(datetime(2025, 3, 1, start, tzinfo=UTC))
        (criterion,) = wanted(Span(first, first + minutes))
        assert criterion.min_positives == 25
        assert criterion.calibration is not None
        return round(criterion.calibration.low, 9), round(criterion.calibration.high, 9)

    assert limits(10, 60) == (0.9, 1.1)
    assert limits(11, 90) == (0.9, 1.21)
    assert limits(2, 11 * 60) == (0.72, 1.21)
    assert limits(0, 40 * 24 * 60) == (0.72, 1.21)


def looked_at(confidence: float, truth: float, limits: Limits, per_minute: float) -> tuple[float, float]:
    """How often a healthy model fails by the last look at an hour's bake, and by any of its 60 looks."""
    rng = np.random.default_rng(3)
    positives = np.cumsum(rng.poisson(per_minute, (4000, 60)), axis=1)
    predicted = per_minute * truth * np.arange(1, 61)
    alpha, counts = 1.0 - confidence, np.arange(positives.max() + 1.0)
    most = np.where(counts, gammaincinv(counts + 1.0, 1.0 - alpha / 2), -math.log(alpha))
    fewest = np.where(counts, gammaincinv(np.maximum(counts, 1.0), alpha / 2), 0.0)
    # That is the interval by which the judge judges.
    assert garwood(400.0, confidence) == pytest.approx((fewest[400], most[400]))
    failed = (predicted > limits.high * most[positives]) | (predicted < limits.low * fewest[positives])
    return float(failed[:, -1].mean()), float(failed.any(axis=1).mean())


def test_many_looks_make_false_failures_likely_only_at_the_edge_of_a_range() -> None:
    usual, narrow = Limits(0.5, 2.0), Limits(0.9, 1.1)
    once, ever = looked_at(0.99, 1.0, usual, per_minute=10)
    assert once == 0.0 and ever < 0.001
    # A model at the very edge is as good as one beyond it: one look errs in half a percent, sixty in some five.
    once, ever = looked_at(0.99, 1.1, narrow, per_minute=10)
    assert once < 0.008 and 0.02 < ever < 0.06
    # Who wants one percent over all sixty asks for 0.999.
    _, ever = looked_at(0.999, 1.1, narrow, per_minute=10)
    assert ever < 0.01
