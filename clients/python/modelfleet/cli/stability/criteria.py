"""Criteria as options: what `judge` and `replay` demand instead of what the registry says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from modelfleet.cli.parameters import RANGE, RATIO
from modelfleet.cli.session import Session
from modelfleet.stability.v1 import stability_pb2 as pb

_OPTIONS = (
    click.option("--prediction", "predictions", multiple=True, help="What the criteria are for. Default: all."),
    click.option("--calibration", type=RANGE, metavar="LOW..HIGH", help="Range for calibration: 0.95..1.05."),
    click.option("--ne", type=RANGE, metavar="LOW..HIGH", help="Range for normalized entropy: ..0.9."),
    click.option("--max-ne-regression", type=RATIO, help="Most by which NE may exceed the baseline's: 1%."),
    click.option(
        "--max-calibration-difference",
        type=RATIO,
        help="Most by which calibration may differ from the baseline's, either way: 5%.",
    ),
    click.option("--min-positives", type=click.IntRange(1, 1_000_000), help="Fewest positives that a PASS rests on."),
    click.option("--confidence", type=float, help="Confidence of the intervals. Default 0.99."),
    click.option("--include-immature", is_flag=True, help="Count events whose labels are still to come."),
)
# The options by the fields that they are put into.
FLAGS = {
    "criteria.prediction": "--prediction",
    "criteria.calibration": "--calibration",
    "criteria.ne": "--ne",
    "criteria.max_ne_regression": "--max-ne-regression",
    "criteria.max_calibration_difference": "--max-calibration-difference",
    "criteria.min_positives": "--min-positives",
    "criteria.confidence": "--confidence",
    "criteria": "criteria",
    "baseline": "--baseline",
}
_FIELDS = ("max_ne_regression", "max_calibration_difference", "min_positives", "confidence", "include_immature")


def with_criteria(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that criteria are made of; they arrive as keyword arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def criteria(session: Session, model: str, base: Sequence[pb.Criterion] = (), **given: Any) -> list[pb.Criterion]:
    """Returns what is demanded, prediction by prediction; nothing where no criterion is given and there is no base.

    Args:
        session: with the registry, which knows the predictions.
        model: name of the model.
        base: what is demanded where the options do not say otherwise.
        given: the options of `with_criteria`.
    """
    predictions = given["predictions"]
    ranges = {name: given[name] for name in ("calibration", "ne") if given[name]}
    fields = {name: given[name] for name in _FIELDS if given[name]}
    if not ranges and not fields:
        if predictions and not base:
            raise click.UsageError("--prediction says what criteria are for; give one, such as --calibration 0.9..1.1")
        return [criterion for criterion in base if not predictions or criterion.prediction in predictions]
    if not base:
        model_type = session.client.registry.get_model_type(name=model.rsplit("/models/", 1)[0])
        base = [pb.Criterion(prediction=declared.id) for declared in model_type.predictions]
    known = {criterion.prediction: criterion for criterion in base}
    made = []
    for prediction in predictions or known:
        criterion = pb.Criterion(prediction=prediction, **fields)
        for name, (low, high) in ranges.items():
            getattr(criterion, name).CopyFrom(pb.Limits(low=low, high=high))
        whole = pb.Criterion()
        whole.CopyFrom(known.get(prediction, pb.Criterion()))
        whole.MergeFrom(criterion)
        made.append(whole)
    return made
