"""Ranges proposed from the reference period of the car loans tell its healthy chunks from the faulty ones."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from modelfleetd.stability.domain.criteria import DEFAULT_CALIBRATION, DeclaredPrediction
from modelfleetd.stability.domain.fleet import Metric
from modelfleetd.stability.domain.history import STEP, History, Windows, calibrations, entropies, of_minutes
from modelfleetd.stability.domain.range_terms import Terms
from modelfleetd.stability.domain.ranges import Basis, Proposal, propose
from tests.support import car_loan

REPAID = DeclaredPrediction("repaid", timedelta(hours=1), False, DEFAULT_CALIBRATION, None, 10)
# A chunk takes six hours, so the reference of 50,000 rows has 720 windows of five minutes: enough for a range.
WIDTH = 360
TARGET = 0.95  # where no tier is stated


def history(loans: car_loan.Loans) -> History:
    minute = np.arange(len(loans.score)) * WIDTH // car_loan.CHUNK
    p, y = loans.score, loans.label.astype(np.float64)
    clipped = np.clip(p, 1e-12, 1.0 - 1e-12)
    loss = -(y * np.log(clipped) + (1.0 - y) * np.log1p(-clipped))
    columns = {
        "examples": np.ones(len(p)),
        "weight": np.ones(len(p)),
        "weight_squares": np.ones(len(p)),
        "expected": p,
        "expected_variance": p * (1.0 - p),
        "loss": loss,
        "loss_by_squares": loss,
        "loss_squares": loss * loss,
        "observed": y,
        "observed_squares": y,
        "positive_loss": loss * y,
    }
    return of_minutes(
        29_000_160, {name: np.bincount(minute, column).astype(np.float64) for name, column in columns.items()}
    )


def chunks(past: History) -> Windows:
    """The windows that are chunks: those that do not overlap."""
    found = past.windows(WIDTH)
    own = slice(None, None, WIDTH // STEP)
    return Windows(found.width, found.times, found.ends[own], found.sums[:, own])


@pytest.fixture(scope="module")
def proposals() -> dict[Metric, Proposal]:
    found = {}
    for metric in (Metric.CALIBRATION, Metric.NE):
        proposal = propose(history(car_loan.reference()), Terms(REPAID, metric, TARGET, ranges=2, width=WIDTH))
        assert proposal is not None
        found[metric] = proposal
    return found


def test_the_chunks_have_the_calibration_that_is_published() -> None:
    reference = np.exp(calibrations(chunks(history(car_loan.reference())), 10).log)
    assert (len(reference), round(float(reference.mean()), 4)) == (10, car_loan.REFERENCE_CALIBRATION[0])
    assert round(float(reference.std()), 4) == car_loan.REFERENCE_CALIBRATION[1]
    analysis = np.exp(calibrations(chunks(history(car_loan.analysis())), 10).log)
    assert tuple(np.round(analysis[5:], 3)) == car_loan.FAULTY_CALIBRATIONS


def test_calibration_leaves_its_range_in_the_last_five_chunks_and_in_no_other(
    proposals: dict[Metric, Proposal],
) -> None:
    proposal = proposals[Metric.CALIBRATION]
    assert (proposal.basis, proposal.range.residuals, proposal.pages) == (Basis.LEVEL, 720, 0)
    values = np.exp(calibrations(chunks(history(car_loan.analysis())), 10).log)
    outside = (values < proposal.range.low) | (values > proposal.range.high)
    assert outside.tolist() == [False] * 5 + [True] * 5


def test_ne_never_leaves_its_range(proposals: dict[Metric, Proposal]) -> None:
    proposal = proposals[Metric.NE]
    for loans in (car_loan.reference(), car_loan.analysis()):
        values = np.exp(entropies(chunks(history(loans)), 10).log)
        assert ((values >= proposal.range.low) & (values <= proposal.range.high)).all()


def test_too_few_windows_get_a_wide_and_safe_default() -> None:
    # A chunk an hour: 120 windows of five minutes.
    short = history(car_loan.reference())
    few = History(short.start, short.step, short.sums[:, :120])
    proposal = propose(few, Terms(REPAID, Metric.CALIBRATION, TARGET, ranges=2))
    assert proposal is not None and proposal.basis is Basis.DEFAULT
    assert (proposal.range.low, proposal.range.high, proposal.range.residuals) == (0.5, 2.0, 0)
