"""Evidence carries every sort of finding that the product names, unbent; what is wrong with one is told all at once."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from modelfleet.registry.v1 import evidence_pb2
from modelfleetd.errors import (
    EtagMismatch,
    InvalidFields,
    ReferenceNotFound,
    ResourceExists,
    ResourceNotFound,
    WrongState,
)
from modelfleetd.kit.codec import from_proto, to_proto
from modelfleetd.registry.domain import entries, evidence_entries
from modelfleetd.registry.domain.documents import diff, document
from modelfleetd.registry.domain.evidence import (
    Comparator,
    ConfidenceInterval,
    Direction,
    EvaluationDataset,
    EvaluationReport,
    Evaluator,
    EvidenceHead,
    Form,
    Grade,
    HumanRating,
    OfflineEstimate,
    OnlineExperiment,
    RiskAssessment,
)
from modelfleetd.registry.domain.evidence_checks import MAX_RESULTS, check_assessment, check_report, complete_result
from modelfleetd.registry.domain.evidence_entries import MAX_PIECES, MAX_TOTAL_BYTES
from modelfleetd.registry.domain.revisions import Action, Stamp, revise
from tests.support.evidence import (
    BASELINE,
    MODEL,
    NOW,
    RISKS,
    WRITTEN,
    assessment,
    message,
    read,
    report,
    result,
    risk,
    risks,
    rule,
    with_values,
)
from tests.support.registry import LedgerOf, fleet


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_every_sort_of_finding_fits_into_a_report(written: dict[str, Any]) -> None:
    checked = check_report(read(written), NOW)
    back = to_proto(checked, evidence_pb2.EvaluationReport)
    assert from_proto(back, EvaluationReport) == checked
    back.ClearField("name")
    # Nothing is lost or bent: what comes back is what was written, with defaults written out.
    expected = message(written)
    for each in expected.results:
        each.form = each.form or evidence_pb2.EvaluationResult.ABSOLUTE
        intervals = [each.interval] if each.HasField("interval") else []
        for interval in [*intervals, *(other.interval for other in each.comparators if other.HasField("interval"))]:
            interval.confidence_basis_points = interval.confidence_basis_points or 9500
    assert back == expected
    assert MessageToDict(message(written), preserving_proto_field_name=True).keys() == written.keys()


def test_risks_are_multiplied_before_and_after_mitigation() -> None:
    checked = check_assessment(from_proto(risks(), RiskAssessment, name=f"{MODEL}/riskAssessments/a"), NOW)
    assert checked.levels == 5
    fairness, privacy = checked.risks
    residuals = [(each.residual_likelihood, each.residual_severity, each.residual) for each in checked.risks]
    assert (fairness.inherent, privacy.inherent) == (12, 5)
    assert residuals == [(2, 3, 6), (1, 5, 5)]
    # The row: event, stakeholder, dimension, likelihood, severity, mitigations, assessor, date.
    row = RISKS["risks"][0]
    assert (fairness.event, fairness.stakeholder, fairness.dimension) == (row["event"], "creators", "fairness")
    assert (fairness.assessor, fairness.mitigations) == ("responsible AI", tuple(row["mitigations"]))
    assert fairness.assess_time is not None and fairness.assess_time.isoformat() == "2025-05-01T00:00:00+00:00"


def test_what_came_by_different_ways_is_told_apart() -> None:
    gain = WRITTEN["offline gain by a counterfactual estimator, apart from the online gain of an A/B test"]
    offline, online = read(gain).results
    assert (offline.metric, offline.method.name) == ("time_spent", "OFFLINE_ESTIMATE")
    assert (online.metric, online.method.name) == ("time_spent", "ONLINE_EXPERIMENT")
    assert offline.offline_estimate is not None and offline.offline_estimate.logging_policy == "production of May"
    assert offline.interval is not None and offline.interval.confidence_basis_points == 9000


def test_defaults_are_written_out_once() -> None:
    bare = result(interval=ConfidenceInterval(low=0, high=1), comparators=(Comparator(name="x", value=1),))
    completed = complete_result(bare)
    assert completed.form is Form.ABSOLUTE
    assert completed.interval is not None and completed.interval.confidence_basis_points == 9500
    assert complete_result(completed) == completed
    done = check_assessment(assessment(risk(residual_likelihood=1)), NOW)
    assert check_assessment(done, NOW) == done


def paths(wrong: pytest.ExceptionInfo[InvalidFields]) -> dict[str, str]:
    return {each.path: each.description for each in wrong.value.violations}


CLOSE = Direction.CLOSE_TO_TARGET
INF = float("inf")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"metric": "Word F1"}, "metric"),
        ({"value": INF}, "value"),
        ({"value": 1.5, "highest": 1.0}, "value"),
        ({"value": -0.5, "lowest": 0.0}, "value"),
        ({"lowest": 2.0, "highest": 1.0, "value": 1.0}, "highest"),
        ({"direction": None}, "direction"),
        ({"direction": CLOSE}, "target"),
        ({"direction": CLOSE, "target": 2.0, "highest": 1.0}, "target"),
        ({"target": 0.5}, "target"),
        ({"sample_size": -1}, "sample_size"),
        ({"slice": {"Not an id": "x"}}, "slice.Not an id"),
        ({"slice": {"a": ""}}, "slice.a"),
        ({"slice": {f"k{i}": "x" for i in range(11)}}, "slice"),
        ({"conditions": {"a": "x" * 201}}, "conditions.a"),
        ({"at": {"flops": INF}}, "at.flops"),
        ({"unit": "x" * 51}, "unit"),
        ({"interval": ConfidenceInterval(low=1, high=0)}, "interval"),
        ({"interval": ConfidenceInterval(low=0, high=INF)}, "interval"),
        (
            {"interval": ConfidenceInterval(low=0, high=1, confidence_basis_points=10_000)},
            "interval.confidence_basis_points",
        ),
        ({"form": Form.DIFFERENCE}, "relative_to"),
        ({"relative_to": "unperturbed"}, "relative_to"),
        ({"comparators": (Comparator(name="", value=1),)}, "comparators[0].name"),
        ({"comparators": (Comparator(name="a", value=1), Comparator(name="a", value=2))}, "comparators[1].name"),
        ({"comparators": (Comparator(name="a", value=INF),)}, "comparators[0].value"),
        ({"comparators": tuple(Comparator(name=str(i), value=1) for i in range(51))}, "comparators"),
        ({"grades": (Grade(label="a", count=-1),)}, "grades[0].count"),
        ({"grades": (Grade(label="a"), Grade(label="a"))}, "grades[1].label"),
        ({"dataset": EvaluationDataset(uri="x" * 2001)}, "dataset.uri"),
        ({"offline_estimate": OfflineEstimate(estimator="", logging_policy="l")}, "offline_estimate.estimator"),
        ({"offline_estimate": OfflineEstimate(estimator="ips")}, "offline_estimate.logging_policy"),
        (
            {"offline_estimate": OfflineEstimate(estimator="i", logging_policy="l", weight_clip=0.0)},
            "offline_estimate.weight_clip",
        ),
        ({"online_experiment": OnlineExperiment(experiment="")}, "online_experiment.experiment"),
        (
            {"online_experiment": OnlineExperiment(experiment="x", start_time=NOW, end_time=NOW - timedelta(1))},
            "online_experiment.end_time",
        ),
        ({"human_rating": HumanRating(scale_low=2, scale_high=1)}, "human_rating.scale_high"),
        ({"human_rating": HumanRating(raters=-1)}, "human_rating.raters"),
    ],
)
def test_a_result_that_is_wrong_is_refused_with_its_path(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidFields) as wrong:
        check_report(with_values(report(), **fields), NOW)
    assert set(paths(wrong)) == {f"evaluation_report.results[0].{path}"}


def test_everything_that_is_wrong_is_told_at_once() -> None:
    bad = report(
        result(value=2.0, highest=1.0),
        result(direction=CLOSE, slice={"a": "b"}),
        suite="Not an id",
        evaluator=Evaluator(),
        evaluate_time=NOW + timedelta(minutes=6),
        expire_time=NOW,
        links=("",),
        labels={"UPPER": "x"},
    )
    with pytest.raises(InvalidFields) as wrong:
        check_report(bad, NOW)
    assert set(paths(wrong)) == {
        f"evaluation_report.{path}"
        for path in (
            "suite",
            "evaluator.kind",
            "evaluate_time",
            "expire_time",
            "links[0]",
            "labels.UPPER",
            "results[0].value",
            "results[1].target",
        )
    }
    assert "0.5" not in paths(wrong)["evaluation_report.results[0].value"]
    assert "-inf to 1" in paths(wrong)["evaluation_report.results[0].value"]


def test_clocks_may_differ_a_little_and_no_more() -> None:
    check_report(report(evaluate_time=NOW + timedelta(minutes=5)), NOW)
    with pytest.raises(InvalidFields):
        check_report(report(evaluate_time=NOW + timedelta(minutes=5, seconds=1)), NOW)
    for missing in (None, NOW + timedelta(days=1)):
        with pytest.raises(InvalidFields):
            check_assessment(assessment(assess_time=missing), NOW)


def test_two_values_of_the_same_thing_are_refused_and_of_another_thing_are_not() -> None:
    with pytest.raises(InvalidFields) as wrong:
        check_report(report(result(), result(value=0.9)), NOW)
    assert "results[0]" in paths(wrong)["evaluation_report.results[1]"]
    others: list[dict[str, Any]] = [
        {"slice": {"a": "b"}},
        {"conditions": {"a": "b"}},
        {"at": {"flops": 1.0}},
        {"form": Form.RATIO, "relative_to": "x"},
        {"dataset": EvaluationDataset(name="other")},
        {"human_rating": HumanRating()},
    ]
    check_report(report(result(), *(result(**fields) for fields in others)), NOW)


@pytest.mark.parametrize("count", [0, MAX_RESULTS + 1])
def test_a_report_has_at_least_one_result_and_not_too_many(count: int) -> None:
    results = tuple(result(slice={"n": str(number)}) for number in range(count))
    with pytest.raises(InvalidFields) as wrong:
        check_report(replace(report(), results=results), NOW)
    assert set(paths(wrong)) == {"evaluation_report.results"}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"likelihood": 0}, "likelihood"),
        ({"severity": 6}, "severity"),
        ({"residual_severity": 6}, "residual_severity"),
        ({"event": ""}, "event"),
        ({"stakeholder": ""}, "stakeholder"),
        ({"dimension": "Not an id"}, "dimension"),
        ({"mitigations": ("",)}, "mitigations[0]"),
        ({"assess_time": NOW + timedelta(days=1)}, "assess_time"),
    ],
)
def test_a_risk_that_is_wrong_is_refused_with_its_path(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidFields) as wrong:
        check_assessment(assessment(risk(**fields)), NOW)
    assert set(paths(wrong)) == {f"risk_assessment.risks[0].{path}"}


def test_levels_bound_what_a_risk_may_have() -> None:
    assert check_assessment(assessment(risk(9, 10), levels=10), NOW).risks[0].inherent == 90
    with pytest.raises(InvalidFields) as wrong:
        check_assessment(assessment(risk(3, 3), levels=11, expire_time=NOW), NOW)
    assert set(paths(wrong)) == {"risk_assessment.levels", "risk_assessment.expire_time"}


def stored(*pieces: EvaluationReport | RiskAssessment) -> LedgerOf:
    return fleet(*(replace(piece, revision=9, etag="r9") for piece in pieces))


def test_a_report_refers_only_to_models_that_exist() -> None:
    ledger = fleet()
    edits = evidence_entries.create_evaluation_report(ledger, report(baseline=BASELINE), "u", 1)
    assert edits[0].before is None and edits[0].after is not None and edits[0].after.uid == "u"
    with pytest.raises(ReferenceNotFound, match=r"evaluation_report\.baseline refers to modelTypes/ctr/models/nope"):
        evidence_entries.create_evaluation_report(ledger, report(baseline="modelTypes/ctr/models/nope"), "u", 1)
    compared = report(result(comparators=(Comparator(name="x", model="modelTypes/x/models/y", value=1),)))
    with pytest.raises(ReferenceNotFound, match=r"results\[0\].comparators\[0\].model"):
        evidence_entries.create_evaluation_report(ledger, compared, "u", 1)
    with pytest.raises(ResourceNotFound, match="modelTypes/ctr/models/nope does not exist"):
        evidence_entries.create_evaluation_report(ledger, report(of="modelTypes/ctr/models/nope"), "u", 1)
    with pytest.raises(ResourceExists):
        evidence_entries.create_evaluation_report(stored(report()), report(), "u", 1)


def test_a_model_has_only_so_much_evidence() -> None:
    full = stored(*(report(key=f"r{number}") for number in range(MAX_PIECES)))
    with pytest.raises(WrongState, match=r"501 pieces .* 500 and 32 MiB are the most; allowed now: to delete old"):
        evidence_entries.create_risk_assessment(full, assessment(), "u", 1)

    class Large(LedgerOf):
        def evidence_of(self, model: str) -> list[EvidenceHead]:
            return [EvidenceHead(f"{model}/evaluationReports/x", 1, MAX_TOTAL_BYTES - 10)]

    large = Large(*fleet().entries.values())
    assert evidence_entries.create_evaluation_report(large, report(), "u", 10)
    with pytest.raises(WrongState, match="full of evidence"):
        evidence_entries.create_evaluation_report(large, report(), "u", 11)


def test_evidence_is_deleted_as_it_was_seen() -> None:
    ledger = stored(report(), assessment())
    with pytest.raises(EtagMismatch):
        evidence_entries.delete_evidence(ledger, report().name, "r8")
    with pytest.raises(ResourceNotFound):
        evidence_entries.delete_evidence(ledger, f"{MODEL}/evaluationReports/other", "")
    ledger.apply(evidence_entries.delete_evidence(ledger, report().name, "r9"))
    assert [head.name for head in ledger.evidence_of(MODEL)] == [assessment().name]


def test_a_model_takes_its_evidence_along_and_leaves_that_of_others() -> None:
    ledger = stored(report(), assessment(), report(of=BASELINE))
    edits = entries.delete_model(ledger, MODEL, "")
    assert [edit.name for edit in edits] == [MODEL, report().name, assessment().name]
    assert all(edit.after is None for edit in edits)
    changes = revise(edits, Stamp(10, NOW))
    assert [(change.action, change.previous_revision) for change in changes[1:]] == [(Action.DELETED, 9)] * 2
    ledger.apply(edits)
    assert ledger.evidence_of(MODEL) == []
    assert len(ledger.evidence_of(BASELINE)) == 1


def test_the_difference_of_evidence_does_not_repeat_it() -> None:
    assert diff(None, report()) == diff(report(), None) == diff(None, assessment()) == ()


def test_zero_is_a_bound_and_no_bound_is_none() -> None:
    assert document(rule(max_loss_to_baseline=0.0)) == {"id": "r", "metric": "f1", "max_loss_to_baseline": 0.0}
