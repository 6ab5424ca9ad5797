"""OpenSLO documents: what the specification demands, and references that lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.common.v1.serving_pb2 import TIER3
from modelfleet.openslo import documents, name
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.names import ID
from tests.support.slos import an_slo

SCHEMA = json.loads((Path(__file__).parent / "data" / "openslo_v1.schema.json").read_text())
LABEL = re.compile(SCHEMA["$defs"]["name"]["pattern"])
EXPERIMENT: dict[str, Any] = {
    "name": "slos/ctr.v8",
    "role": registry_pb2.Model.EXPERIMENT,
    "tier": TIER3,
    "on_call": "",
}


def check(found: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Checks documents and that each reference leads to one; returns them by kind and name."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for document in found:
        validator.validate(document)
    by_name = {(document["kind"], document["metadata"]["name"]): document for document in found}
    assert len(by_name) == len(found), "each stands once"
    for kind, document in ((document["kind"], document["spec"]) for document in found):
        referred = {
            "SLO": [("Service", document.get("service"))]
            + [("AlertPolicy", each["alertPolicyRef"]) for each in document.get("alertPolicies", ())],
            "AlertPolicy": [("AlertCondition", each["conditionRef"]) for each in document.get("conditions", ())]
            + [("AlertNotificationTarget", each["targetRef"]) for each in document.get("notificationTargets", ())],
        }.get(kind, [])
        assert set(referred) <= set(by_name)
    return by_name


def test_each_objective_is_an_slo_with_what_it_refers_to() -> None:
    found = check(list(documents([an_slo(), an_slo(model_id="v8", **EXPERIMENT)])))
    slos = [called for kind, called in found if kind == "SLO"]
    other = [called for called in slos if not called.startswith(("ctr-stability", "ctr-coverage", "ctr-availability"))]
    assert len(slos) == 6 and len(other) == 3
    stability = found["SLO", "ctr-stability"]
    assert stability["metadata"]["labels"] == {
        "model-type": "ctr", "objective": "stability", "role": "BASELINE", "team": "feed", "tier": "TIER1",
    }  # fmt: skip
    assert stability["spec"]["objectives"][0]["target"] == 0.99
    assert stability["spec"]["timeWindow"] == [{"duration": "30d", "isRolling": True}]
    good = stability["spec"]["indicator"]["spec"]["ratioMetric"]["good"]["metricSource"]["spec"]["query"]
    assert good == 'sum(max by (slo, objective) (modelfleet_slo_minute{slo="ctr",objective="stability"}))'
    policies = [each["alertPolicyRef"] for each in stability["spec"]["alertPolicies"]]
    assert policies == [
        "ctr-stability-page-1h", "ctr-stability-page-6h", "ctr-stability-ticket-1d", "ctr-stability-ticket-3d",
    ]  # fmt: skip
    page = found["AlertCondition", "burn-1h-page"]["spec"]
    assert (page["condition"]["threshold"], page["condition"]["lookbackWindow"]) == (14.4, "1h")
    assert "over 5m too" in page["description"]
    assert found["AlertNotificationTarget", "feed-page"]["spec"]["description"] == "Who is on call: feed-pager."


def test_nobody_is_paged_where_alerts_page_nobody() -> None:
    found = check(list(documents([an_slo(model_id="v8", **EXPERIMENT)])))
    conditions = [document["spec"] for (kind, _), document in found.items() if kind == "AlertCondition"]
    assert {condition["severity"] for condition in conditions} == {"ticket"}
    # What a burn rate cannot reach is no condition: at most 10 for a coverage of 90 %.
    coverage = next(document for (_, called), document in found.items() if called.endswith("-coverage"))
    assert len(coverage["spec"]["alertPolicies"]) == 3


def test_what_a_baseline_promises_does_not_change_with_the_model_that_it_is() -> None:
    assert list(documents([an_slo(model_id="v7")])) == list(documents([an_slo(model_id="v8")]))


@given(st.from_regex(rf"{ID}(\.{ID})?", fullmatch=True), st.from_regex(rf"{ID}(\.{ID})?", fullmatch=True))
def test_names_are_dns_labels_and_keep_ids_apart(one: str, other: str) -> None:
    for words in (("stability",), ("stability", "page", "1h"), ()):
        made = name(one, *words), name(other, *words)
        assert all(map(LABEL.fullmatch, made))
        assert (made[0] == made[1]) == (one == other)


def test_nothing_serves_and_nothing_is_written() -> None:
    assert list(documents([])) == []
