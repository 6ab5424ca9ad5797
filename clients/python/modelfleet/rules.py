"""Rules for Prometheus: burn rates over several windows, and an alert for each objective of each model that serves.

They need `modelfleet_slo_minute` and `modelfleet_model_info` of stability's metrics, and Prometheus 2.42 or newer. Any
number of replicas may be scraped. Windows count whole minutes, as stability does: one without the evidence of half of
its minutes has no value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelfleet.burn_rates import MIN_BAD, MINUTE, enum_name, pairs, selector, severity_of, shorthand
from modelfleet.stability.v1 import slos_pb2 as pb
from modelfleet.wording import short

Rule = dict[str, Any]

GOOD: Final = "slo:modelfleet_minute:good"
MODEL: Final = "slo:modelfleet_model:info"
_BAD_RATIO, _BAD_MINUTES = "slo:modelfleet_bad:ratio", "slo:modelfleet_bad:minutes"
_EVALUATED: Final = "modelfleet_stability_evaluated_timestamp_seconds"
# Windows that pages need are brought up to date each minute; a ticket can wait.
_QUICK: Final = {"5m": 5, "30m": 30, "1h": 60, "6h": 360}
_SLOW: Final = {"2h": 120, "1d": 1440, "3d": 4320}
# As stability itself holds on to its alerts.
_HOLD: Final = "5m"
_ALERTS: Final = {"stability": "ModelUnstable", "availability": "ModelUnavailable", "coverage": "ModelNotObserved"}
_HAPPENS: Final = {
    "stability": "is unstable: minutes with predictions outside of their healthy ranges",
    "availability": "is unavailable: minutes in which too many requests failed or took too long",
    "coverage": "is not observed: minutes in which the evidence for stability did not suffice",
}


def rules(slos: Iterable[pb.Slo]) -> dict[str, Any]:
    """Returns a file of rules, as plain data."""
    by_type: dict[str, list[Rule]] = defaultdict(list)
    for slo in slos:
        by_type[short(slo.model_type)] += _alerts(slo)
    groups = [
        {"name": "modelfleet-minutes", "interval": "1m", "rules": [*_minutes(), *_windows(_QUICK)]},
        {"name": "modelfleet-windows", "interval": "2m", "rules": _windows(_SLOW)},
        {"name": "modelfleet-stability", "interval": "1m", "rules": [_not_evaluated()]},
    ]
    groups += [{"name": f"modelfleet-{id_}", "interval": "1m", "rules": by_type[id_]} for id_ in sorted(by_type)]
    return {"groups": groups}


def _minutes() -> list[Rule]:
    """One sample a minute for each objective, and one model, however many replicas are scraped."""
    labels = "slo, model_type, model, team, surface, tier, role"
    return [
        {"record": GOOD, "expr": f"max by (slo, objective) ({MINUTE})"},
        # While a baseline is handed over, replicas may name two for a moment.
        {"record": MODEL, "expr": f"topk by (slo) (1, max by ({labels}) (modelfleet_model_info))"},
    ]


def _windows(windows: Mapping[str, int]) -> list[Rule]:
    found = []
    for window, minutes in windows.items():
        count = f"count_over_time({GOOD}[{window}])"
        bad = f"(1 - avg_over_time({GOOD}[{window}]))"
        found += [
            {"record": f"{_BAD_RATIO}{window}", "expr": f"{bad} and {count} >= {-(-minutes // 2)}"},
            {"record": f"{_BAD_MINUTES}{window}", "expr": f"{count} - sum_over_time({GOOD}[{window}])"},
        ]
    return found


def _alerts(slo: pb.Slo) -> list[Rule]:
    found = []
    for objective in slo.objectives:
        firing: dict[str, list[str]] = defaultdict(list)
        for pair in pairs(slo, objective):
            firing[severity_of(slo, objective, pair)].append(_fires(slo, objective, pair))
        for severity, conditions in firing.items():
            kind = enum_name(objective, "kind").lower()
            burning = " or ".join(f"({condition})" for condition in conditions)
            labels = {
                "severity": severity,
                "slo": short(slo.name),
                "objective": kind,
                "team": short(slo.team),
                "tier": enum_name(slo, "tier"),
                "on_call": slo.on_call,
            }
            found.append(
                {
                    "alert": _ALERTS[kind],
                    "expr": f"({burning}) * on (slo) group_left (model_type, model, role) {MODEL}",
                    "keep_firing_for": _HOLD,
                    "labels": {name: value for name, value in labels.items() if value},
                    "annotations": _annotations(slo, objective, kind),
                }
            )
    return found


def _fires(slo: pb.Slo, objective: pb.Objective, pair: pb.BurnRate) -> str:
    long, brief = shorthand(pair.long_window), shorthand(pair.short_window)
    burn = f"{{}} / (1 - {objective.target:.12g}) > {pair.factor:g}"
    return (
        f"{burn.format(selector(slo, objective, _BAD_RATIO + long))}"
        f" and {burn.format(selector(slo, objective, _BAD_RATIO + brief))}"
        f" and {selector(slo, objective, _BAD_MINUTES + long)} >= {MIN_BAD}"
    )


def _annotations(slo: pb.Slo, objective: pb.Objective, kind: str) -> dict[str, str]:
    model = "{{ $labels.model_type }}/{{ $labels.model }}"
    look = f"Look: modelfleet investigate {model}"
    if kind == "coverage":
        response = f"Find out why its labels or predictions do not come: modelfleet stability get {model}"
    elif enum_name(slo, "role") == "EXPERIMENT":
        response = f"It is an experiment: end it in one action: modelfleet mitigate {model}. {look}"
    else:
        response = f"Never turn it off: page its owner. {look}"
    return {
        "summary": f"{model} {_HAPPENS[kind]}",
        "description": (
            f"The budget of {short(slo.name)} ({objective.target:.12g} of minutes) burns at "
            '{{ printf "%.0f" $value }} times its even rate.'
        ),
        "response": response,
        "budget": f"modelfleet stability slo get {short(slo.name)}",
    }


def _not_evaluated() -> Rule:
    return {
        "alert": "StabilityNotEvaluated",
        "expr": f"time() - max({_EVALUATED}) > 300 or absent({_EVALUATED})",
        "for": "5m",
        "labels": {"severity": "page"},
        "annotations": {
            "summary": "No model has been evaluated for five minutes: problems with models are not noticed meanwhile",
            "response": "See whether stability runs and reaches PostgreSQL and the registry: its log says.",
        },
    }
