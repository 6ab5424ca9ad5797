"""How the stability of models looks: a line each, and all of one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from modelfleet import wording
from modelfleet.cli import render, tables
from modelfleet.stability.v1 import stability_pb2 as pb

BAD = "state = UNSTABLE OR availability.state = UNAVAILABLE"
_NOT_OBSERVED = "UNKNOWN"


def culprit(model: pb.ModelStability) -> str:
    """The prediction and metric that decided: `click calibration`."""
    metric = render.enum(model, "culprit_metric").lower()
    return f"{model.culprit_prediction} {'NE' if metric == 'ne' else metric}" if metric else ""


def decisive(model: pb.ModelStability) -> pb.MetricStability | None:
    """The culprit with its figures."""
    key = (model.culprit_prediction, model.culprit_metric)
    return next((metric for metric in model.metrics if (metric.prediction, metric.metric) == key), None)


def value(metric: pb.MetricStability | None) -> str:
    """What was measured: `1.31`; or why there is no value."""
    if metric is None:
        return ""
    if metric.value.state != pb.Estimate.VALUE:
        return {pb.Estimate.NO_DATA: "no data", pb.Estimate.UNDEFINED: "undefined"}.get(metric.value.state, "")
    return number(metric.value.value)


def limits(metric: pb.MetricStability | None) -> str:
    """The healthy range: `0.94 to 1.06`."""
    return "" if metric is None else f"{number(metric.range.low)} to {number(metric.range.high)}"


def number(figure: float) -> str:
    """Three digits, or all before the point: `1.31`, `12,400`."""
    if math.isinf(figure):
        return "any"
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


def state(model: pb.ModelStability) -> str:
    """Whether it is stable."""
    return render.enum(model, "state")


def availability(model: pb.ModelStability) -> str:
    """Whether it is available; empty where nobody says."""
    found = render.enum(model.availability, "state")
    return "" if found == _NOT_OBSERVED else found


def success(model: pb.ModelStability) -> str:
    """How its requests fare: `99.2% of 3,000 succeed, p99 41 ms`."""
    found = model.availability
    if not found.requests:
        return "no agent reports requests to it" if not found.HasField("observe_time") else "it has no requests"
    latency = f", p99 {found.latency_p99_ms:.3g} ms" if found.HasField("latency_p99_ms") else ""
    return f"{_succeeding(model):g}% of {render.count(found.requests, 'request')} succeed{latency}"


def what(model: pb.ModelStability) -> str:
    """What is wrong, in two words."""
    is_down = model.state != pb.ModelStability.UNSTABLE and model.availability.state == pb.Availability.UNAVAILABLE
    return "requests" if is_down else culprit(model)


def measured(model: pb.ModelStability) -> str:
    """The figure of what is wrong."""
    return f"{_succeeding(model):g}% succeed" if what(model) == "requests" else value(decisive(model))


def _succeeding(model: pb.ModelStability) -> float:
    """Percent of the requests; never rounded up to all."""
    return math.floor(model.availability.success_share * 10_000 + 1e-6) / 100


COLUMNS: list[render.Column] = [
    ("MODEL", lambda m: wording.short_model(m.model)),
    ("STATE", state),
    ("REQUESTS", availability),
    ("WHAT", what),
    ("VALUE", measured),
    ("RANGE", lambda m: limits(decisive(m)) if what(m) != "requests" else ""),
    ("FOR", lambda m: render.age(m.since) if what(m) != "requests" else ""),
    ("TIER", lambda m: render.enum(m, "tier") or "-"),
    ("ROLE", lambda m: render.enum(m, "role")),
    ("TEAM", lambda m: render.short(m.team)),
]
METRIC_COLUMNS: list[render.Column] = [
    ("PREDICTION", lambda m: m.prediction),
    ("METRIC", lambda m: render.enum(m, "metric")),
    ("STATE", lambda m: render.enum(m, "state")),
    ("VALUE", value),
    ("RANGE", limits),
    ("WINDOW", lambda m: f"{m.start_time.ToDatetime():%H:%M}–{m.end_time.ToDatetime():%H:%M}"),
    ("POSITIVES", lambda m: f"{m.positives:,} of {m.examples:,}"),
    ("LABELS", lambda m: f"{m.label_coverage:.0%}"),
]


# Where lines are short, what is said elsewhere too goes first.
_GAP: Final = 2
_LEFT_OUT: Final = ("TEAM", "ROLE", "REQUESTS", "TIER", "FOR", "LABELS", "WINDOW")


def table(columns: Sequence[render.Column], messages: Sequence[Any], width: int) -> tables.FittedTable:
    """A line a message, with those columns that say anything, as many as there is room for."""
    shown = {name: [cell(message) for message in messages] for name, cell in columns}
    shown = {name: cells for name, cells in shown.items() if any(cells)}
    for name in _LEFT_OUT:
        if sum(max(len(name), *map(len, cells)) + _GAP for name, cells in shown.items()) > width + _GAP:
            shown.pop(name, None)
    return tables.FittedTable(list(shown), zip(*shown.values(), strict=True))


def what_to_do(model: pb.ModelStability) -> Iterator[str]:
    """What to type next, the most urgent first."""
    name = wording.short_model(model.model)
    is_bad = model.state == pb.ModelStability.UNSTABLE or model.availability.state == pb.Availability.UNAVAILABLE
    role = render.enum(model, "role")
    if is_bad and role == "EXPERIMENT":
        yield f"An experiment may be ended, its traffic goes back to the baseline: modelfleet mitigate {name}"
    elif is_bad:
        yield f"A {role.lower()} is never simply turned off. Whom to page, what changed: modelfleet investigate {name}"
    if model.culprit_prediction:
        prediction = f"--prediction {model.culprit_prediction}"
        yield f"Its course over time: modelfleet stability show {name} {prediction} --last 6h"
    if model.state == pb.ModelStability.UNKNOWN and not is_bad and role:
        yield f"What is expected of it, and who owns it: modelfleet investigate {name}"
