"""The demo's data and models: what the log holds, and that the models are what the demo says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelfleetd.local.demo_data import Impressions, read_logs
from modelfleetd.local.demo_training import (
    BASELINE_FEATURES,
    CANDIDATE_FEATURES,
    TRAINING_DAYS,
    columns_of,
    evaluate,
    train,
    train_miscalibrated,
)
from modelfleetd.local.refusals import CannotRun
from modelfleetd.local.scoring import COLUMNS, ClickModel


@pytest.fixture(scope="module")
def log() -> Impressions:
    return read_logs()


def test_the_six_logs_hold_what_they_are_said_to_hold(log: Impressions) -> None:
    assert len(log) == 60_000
    assert log.clicks == 287
    assert bool((np.diff(log.time) >= 0).all())
    assert set(log.position.tolist()) == {1, 2, 3}


def test_the_log_is_cut_between_two_days(log: Impressions) -> None:
    past, future = log.split(TRAINING_DAYS)
    assert len(past) + len(future) == len(log)
    assert past.time[-1] // 86_400 < future.time[0] // 86_400
    assert (len(past), past.clicks) == (24_757, 124)


def test_both_models_are_calibrated_on_days_that_they_have_not_seen(log: Impressions) -> None:
    past, future = log.split(TRAINING_DAYS)
    for features in (BASELINE_FEATURES, CANDIDATE_FEATURES):
        quality = evaluate(train(past, features), future)
        assert quality.calibration == pytest.approx(1.0, abs=0.15)
        assert quality.ne == pytest.approx(1.0, abs=0.02)
        assert quality.auc == pytest.approx(0.5, abs=0.05)


def test_the_miscalibrated_candidate_predicts_about_four_times_too_many_clicks(log: Impressions) -> None:
    past, future = log.split(TRAINING_DAYS)
    assert evaluate(train_miscalibrated(past), future).calibration == pytest.approx(4.2, abs=0.4)


def test_a_model_scores_the_same_after_it_was_written_and_read(log: Impressions, tmp_path: Path) -> None:
    model = train(log[:2_000], CANDIDATE_FEATURES)
    model.save(tmp_path / "model.npz")
    columns = columns_of(log[2_000:2_100])
    read = ClickModel.load(tmp_path / "model.npz")
    assert read.score(columns).tolist() == model.score(columns).tolist()


def test_a_request_has_every_column_and_never_the_click(log: Impressions) -> None:
    assert tuple(columns_of(log[:3])) == COLUMNS


def test_a_category_that_training_never_saw_weighs_nothing() -> None:
    model = ClickModel((("campaign",),), 0.0, {"campaign=men": 1.0})
    assert model.score({"campaign": ["men", "children"]}).tolist() == pytest.approx([1 / (1 + np.exp(-1)), 0.5])


def test_a_missing_log_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"all\.csv is not there"):
        read_logs(tmp_path)
