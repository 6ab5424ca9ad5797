"""Service level objectives in the words of OpenSLO v1, for tools that read those.

What OpenSLO cannot say: that a second, short window must burn too. It stands in the description of each condition.
Names there are DNS labels; an id that is none is written with what fits, and a few digits that keep it apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from modelfleet.burn_rates import enum_name, pairs, selector, severity_of, shorthand
from modelfleet.stability.v1 import slos_pb2 as pb
from modelfleet.wording import short, short_model

Document = dict[str, Any]

_VERSION: Final = "openslo/v1"
_LONGEST_NAME: Final = 63
_OUTSIDE: Final = re.compile(r"[^a-z0-9-]+")
_DIGITS: Final = 8
_MEANING: Final = {
    "stability": "Decidable minutes in which every prediction was within its healthy ranges.",
    "coverage": "Evaluated minutes in which stability was decidable.",
    "availability": "Observed minutes in which enough requests succeeded in time.",
}


def documents(slos: Iterable[pb.Slo]) -> Iterator[Document]:
    """Gives an SLO for each objective, and before it whatever it refers to, each once."""
    given: set[tuple[str, str]] = set()
    for slo in slos:
        for document in _of_slo(slo):
            key = document["kind"], document["metadata"]["name"]
            if key not in given:
                given.add(key)
                yield document


def name(id_: str, *words: str) -> str:
    """Returns an id and words as one DNS label; another id never gives the same one. Words have no hyphens."""
    made = _OUTSIDE.sub("-", id_).strip("-")
    room = _LONGEST_NAME - sum(len(word) + 1 for word in words)
    if made != id_ or len(made) > room:
        made = f"{made[: room - _DIGITS - 1].rstrip('-')}-{hashlib.sha256(id_.encode()).hexdigest()[:_DIGITS]}"
    return "-".join((made, *words))


def _of_slo(slo: pb.Slo) -> Iterator[Document]:
    type_id, slo_id = short(slo.model_type), short(slo.name)
    yield _document("Service", name(type_id), {"description": f"Predictions of {slo.model_type}."}, type_id)
    for objective in slo.objectives:
        kind = enum_name(objective, "kind").lower()
        policies = []
        for pair in pairs(slo, objective):
            severity = severity_of(slo, objective, pair)
            window = shorthand(pair.long_window)
            condition = name("burn", window, severity)
            target = name(short(slo.team), severity)
            yield _condition(condition, pair, severity)
            yield _target(target, severity, slo.on_call)
            policies.append(name(slo_id, kind, severity, window))
            yield _document(
                "AlertPolicy",
                policies[-1],
                {
                    "description": f"{kind.capitalize()} of {slo_id}, a {severity} by the window of {window}.",
                    "alertWhenNoData": False,
                    "alertWhenBreaching": True,
                    "alertWhenResolved": True,
                    "conditions": [{"conditionRef": condition}],
                    "notificationTargets": [{"targetRef": target}],
                },
            )
        yield _slo(slo, objective, kind, policies)


def _slo(slo: pb.Slo, objective: pb.Objective, kind: str, policies: list[str]) -> Document:
    type_id, slo_id = short(slo.model_type), short(slo.name)
    chosen = selector(slo, objective)
    spec = {
        "description": f"{_MEANING[kind]} What is not known, or was not evaluated, does not count.",
        "service": name(type_id),
        "indicator": {
            "metadata": {"name": name(slo_id, kind, "minutes")},
            "spec": {
                "ratioMetric": {
                    "counter": False,
                    "good": _query(f"sum(max by (slo, objective) ({chosen}))"),
                    "total": _query(f"count(max by (slo, objective) ({chosen}))"),
                }
            },
        },
        "timeWindow": [{"duration": shorthand(slo.period), "isRolling": True}],
        "budgetingMethod": "Timeslices",
        "objectives": [
            {
                "displayName": kind,
                "target": objective.target,
                "timeSliceTarget": 1.0,
                "timeSliceWindow": "1m",
            }
        ],
        "alertPolicies": [{"alertPolicyRef": policy} for policy in policies],
    }
    labels = {
        "model-type": type_id,
        "objective": kind,
        "role": enum_name(slo, "role"),
        "team": short(slo.team),
        "tier": enum_name(slo, "tier") or "none",
    }
    if labels["role"] != "BASELINE":
        # A baseline's objectives are those of whichever model it is.
        labels["model"] = short_model(slo.model).partition("/")[2]
    made = _document("SLO", name(slo_id, kind), spec, f"{kind.capitalize()} of {slo_id}")
    made["metadata"]["labels"] = labels
    return made


def _query(query: str) -> Document:
    return {"metricSource": {"type": "Prometheus", "spec": {"query": query}}}


def _condition(called: str, pair: pb.BurnRate, severity: str) -> Document:
    long, brief = shorthand(pair.long_window), shorthand(pair.short_window)
    told = (
        f"The budget burns at more than {pair.factor:g} times its even rate over {long}, and over {brief} too; with at "
        "least 3 bad minutes, and half of both windows known."
    )
    condition = {
        "kind": "burnrate",
        "op": "gt",
        "threshold": pair.factor,
        "lookbackWindow": long,
        "alertAfter": "1m",
    }
    return _document("AlertCondition", called, {"description": told, "severity": severity, "condition": condition})


def _target(called: str, severity: str, on_call: str) -> Document:
    told = f"Who is on call: {on_call}." if on_call else "The team has nobody on call."
    return _document("AlertNotificationTarget", called, {"target": f"alertmanager-{severity}", "description": told})


def _document(kind: str, called: str, spec: Document, display: str = "") -> Document:
    metadata: Document = {"name": called}
    if display:
        metadata["displayName"] = display[:_LONGEST_NAME]
    return {"apiVersion": _VERSION, "kind": kind, "metadata": metadata, "spec": spec}
