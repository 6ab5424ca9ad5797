"""Trains the demo's models on the first days of the log, and says honestly what they are worth on the days after.

With some 120 clicks in three days nobody can learn much: both models come out calibrated and no better than the base
rate. The demo shows how a launch goes, not a better recommender.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modelfleetd.local.demo_data import Impressions
from modelfleetd.local.scoring import ClickModel, Columns, category, rows_of

TRAINING_DAYS = 3

BASELINE_FEATURES = (("campaign",), ("position",))
CANDIDATE_FEATURES = (
    *BASELINE_FEATURES,
    ("campaign", "item"),
    ("user_0",),
    ("user_1",),
    ("user_2",),
    ("user_3",),
    ("hour",),
    ("close",),
)
# Pulls weights towards zero: about as much evidence as so many clicks and non-clicks at even odds would be.
_RIDGE = 50.0
# Of the impressions without click, the share that the miscalibrated candidate was trained on.
_KEPT_NEGATIVES = 0.25


@dataclass(frozen=True, slots=True)
class Quality:
    """What a model is worth on impressions that it was not trained on."""

    impressions: int
    clicks: int
    calibration: float
    """Predicted over observed clicks; 1 is perfect."""
    ne: float
    """Mean log loss over the entropy of the base rate; below 1 it knows more than the base rate."""
    auc: float
    """Chance that a clicked impression is scored above another one; 0.5 is guessing."""


def columns_of(impressions: Impressions) -> Columns:
    """Returns what a request says of impressions: everything but the click."""
    return {
        "campaign": impressions.campaign,
        "item": impressions.item,
        "position": impressions.position,
        "user_0": impressions.user_0,
        "user_1": impressions.user_1,
        "user_2": impressions.user_2,
        "user_3": impressions.user_3,
        "hour": impressions.hour,
        "close": (impressions.affinity > 0).astype(np.int64),
    }


def train(impressions: Impressions, features: tuple[tuple[str, ...], ...], ridge: float = _RIDGE) -> ClickModel:
    """Fits a logistic regression by Newton's method."""
    rows = rows_of(columns_of(impressions))
    names: dict[str, int] = {}
    cells = [[names.setdefault(category(feature, row), len(names)) for feature in features] for row in rows]
    design = np.zeros((len(rows), len(names) + 1))
    design[:, -1] = 1.0
    np.put_along_axis(design, np.array(cells), 1.0, axis=1)
    weights = _newton(design, impressions.click.astype(np.float64), ridge)
    return ClickModel(
        features=features,
        bias=float(weights[-1]),
        weights=dict(zip(names, map(float, weights[:-1]), strict=True)),
    )


def train_miscalibrated(impressions: Impressions, seed: int = 1) -> ClickModel:
    """Trains the candidate as it goes wrong in practice, so that it predicts about four times too many clicks.

    Clicks are rare, so three in four impressions without one were left out to train faster; nobody corrected for it.
    """
    kept = np.random.default_rng(seed).random(len(impressions)) < _KEPT_NEGATIVES
    return train(impressions[kept | (impressions.click == 1)], CANDIDATE_FEATURES)


def _newton(design: npt.NDArray[np.float64], label: npt.NDArray[np.float64], ridge: float) -> npt.NDArray[np.float64]:
    rate = label.mean()
    weights = np.zeros(design.shape[1])
    weights[-1] = np.log(rate / (1 - rate))
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 1e-9  # the bias is free, so that the model is calibrated on what it was trained on
    for _ in range(50):
        probability = 1.0 / (1.0 + np.exp(-design @ weights))
        gradient = design.T @ (probability - label) + penalty * weights
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def evaluate(model: ClickModel, impressions: Impressions) -> Quality:
    """Holds a model against impressions and their clicks."""
    score, label = model.score(columns_of(impressions)), impressions.click
    rate = label.mean()
    loss = -np.where(label == 1, np.log(score), np.log1p(-score)).mean()
    return Quality(
        impressions=len(label),
        clicks=impressions.clicks,
        calibration=float(score.sum() / label.sum()),
        ne=float(loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))),
        auc=_auc(score, label),
    )


def _auc(score: npt.NDArray[np.float64], label: npt.NDArray[np.int64]) -> float:
    """Mann and Whitney's statistic; ties count half."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    positives = int(label.sum())
    total = float(ranks[label == 1].sum()) - positives * (positives + 1) / 2
    return total / (positives * (len(label) - positives))
