"""Evidence of every sort that the record must carry, as people write it in a file, and builders for rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import ParseDict

from modelfleet.registry.v1 import evidence_pb2
from modelfleetd.kit.codec import from_proto
from modelfleetd.registry.domain.evidence import (
    Direction,
    EvaluationReport,
    EvaluationResult,
    Evaluator,
    EvaluatorKind,
    EvidenceRule,
    Risk,
    RiskAssessment,
)

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
MODEL = "modelTypes/ctr/models/new"
BASELINE = "modelTypes/ctr/models/old"
EVALUATED = "2025-05-30T08:00:00Z"
SHARE = {"lowest": 0, "highest": 1}


def _higher(metric: str, value: float, **fields: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value, "direction": "HIGHER_IS_BETTER"} | fields


def _lower(metric: str, value: float, **fields: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value, "direction": "LOWER_IS_BETTER"} | fields


def _written(suite: str, results: list[dict[str, Any]], kind: str = "INTERNAL", **fields: Any) -> dict[str, Any]:
    return {
        "suite": suite,
        "evaluator": {"kind": kind, "name": "eval team"},
        "evaluate_time": EVALUATED,
        "results": results,
    } | fields


WRITTEN: dict[str, dict[str, Any]] = {
    "safety by steps to elicit, per harm category, with comparators": _written(
        "red_team",
        [
            _higher(
                "steps_to_elicit",
                steps,
                unit="steps",
                lowest=0,
                slice={"harm_category": category},
                sample_size=40,
                comparators=[
                    {"name": "predecessor", "model": BASELINE, "value": steps / 2},
                    {"name": "a public model", "value": 3, "interval": {"low": 2, "high": 5}},
                ],
            )
            for category, steps in {"violence": 42.5, "self_harm": 1180.0, "weapons": 61.0}.items()
        ],
        "THIRD_PARTY",
    ),
    "flag rate of a third party": _written(
        "moderation",
        [_lower("flag_rate", 0.0031, sample_size=100_000, interval={"low": 0.0028, "high": 0.0035}, **SHARE)],
        "THIRD_PARTY",
        links=["https://reports.example.com/2025-05"],
    ),
    "factual knowledge, matches and word F1": _written(
        "question_answering",
        [
            _higher(metric, value, sample_size=300, **SHARE)
            for metric, value in {
                "factual_knowledge": 0.61,
                "exact_match": 0.48,
                "quasi_exact_match": 0.55,
                "word_f1": 0.66,
            }.items()
        ],
        "PUBLIC",
        dataset={"name": "trex", "uri": "s3://datasets/trex.jsonl", "version": "sha256:ab"},
    ),
    "ROUGE, METEOR and BERTScore": _written(
        "summarization", [_higher(each, 0.4, **SHARE) for each in ("rouge_l", "meteor", "bertscore")], "PUBLIC"
    ),
    "accuracy, precision, recall and balanced accuracy": _written(
        "classification",
        [_higher(each, 0.9, **SHARE) for each in ("accuracy", "precision", "recall", "balanced_accuracy")],
    ),
    "robustness as a change under perturbation": _written(
        "robustness",
        [
            _lower(
                "word_f1",
                0.07,
                form="DIFFERENCE",
                relative_to="unperturbed",
                conditions={"perturbation": perturbation, "probability": "0.1"},
            )
            for perturbation in ("butter_finger", "random_upper_case", "whitespace_add_remove")
        ],
    ),
    "stereotyping with the target 0.5": _written(
        "stereotyping",
        [
            {"metric": "prompt_stereotyping", "value": 0.63, "direction": "CLOSE_TO_TARGET", "target": 0.5, **SHARE}
            | {"slice": {"bias_type": bias}}
            for bias in ("gender", "age")
        ],
    ),
    "toxicity per class": _written(
        "toxicity",
        [_lower("toxicity", 0.01, slice={"class": each}, **SHARE) for each in ("insult", "threat", "obscene")],
    ),
    "edit accuracy with drawdown": _written(
        "knowledge_edits",
        [
            _higher("edit_accuracy", 0.97, at={"edits": 1000}, **SHARE),
            _lower(
                "drawdown",
                0.015,
                form="DIFFERENCE",
                relative_to="before the edits",
                at={"edits": 1000},
                conditions={"of": "accuracy on unrelated questions"},
            ),
        ],
    ),
    "macro and micro F1 with a long-tail slice": _written(
        "intents",
        [
            _higher("macro_f1", 0.71, sample_size=50_000, **SHARE),
            _higher("micro_f1", 0.93, sample_size=50_000, **SHARE),
            _higher("macro_f1", 0.38, slice={"frequency": "tail"}, sample_size=900, **SHARE),
        ],
    ),
    "graded severity and helpfulness": _written(
        "grading",
        [
            _lower(
                "severity",
                0.4,
                lowest=0,
                highest=3,
                sample_size=100,
                grades=[
                    {"label": "none", "rank": 0, "count": 70},
                    {"label": "mild", "rank": 1, "count": 22},
                    {"label": "severe", "rank": 3, "count": 8},
                ],
            ),
            _higher("helpfulness", 4.1, lowest=1, highest=5, grades=[{"label": "4 of 5", "rank": 4, "count": 61}]),
        ],
    ),
    "offline gain by a counterfactual estimator, apart from the online gain of an A/B test": _written(
        "gain",
        [
            _higher(
                "time_spent",
                0.012,
                form="RATIO",
                relative_to="the logging policy",
                interval={"low": 0.004, "high": 0.02, "confidence_basis_points": 9000},
                offline_estimate={
                    "estimator": "dr",
                    "logging_policy": "production of May",
                    "effective_sample_size": 8400.5,
                    "weight_clip": 50,
                },
            ),
            _higher(
                "time_spent",
                0.009,
                form="RATIO",
                relative_to="the logging policy",
                interval={"low": 0.007, "high": 0.011},
                online_experiment={
                    "experiment": "feed-2025-w21",
                    "control": "production",
                    "start_time": "2025-05-10T00:00:00Z",
                    "end_time": "2025-05-24T00:00:00Z",
                    "exposed_units": 2_000_000,
                },
            ),
        ],
    ),
    "NE against FLOPs with the baseline that it was measured against": _written(
        "scaling",
        [
            _lower(
                "ne", ne, lowest=0, at={"flops": flops}, comparators=[{"name": "old", "model": BASELINE, "value": 0.8}]
            )
            for flops, ne in {1e12: 0.79, 2e12: 0.781, 4e12: 0.775}.items()
        ],
        baseline=BASELINE,
        suite_version="2025-05",
    ),
    "human ratings": _written(
        "side_by_side",
        [
            _higher(
                "preference",
                0.57,
                sample_size=400,
                interval={"low": 0.52, "high": 0.62},
                human_rating={
                    "raters": 12,
                    "ratings_per_item": 3,
                    "scale_low": 1,
                    "scale_high": 7,
                    "agreement": 0.61,
                    "agreement_metric": "krippendorff_alpha",
                    "rubric": "Which answer would you rather get?",
                },
                **SHARE,
            )
        ],
        "HUMAN",
        expire_time="2025-12-01T00:00:00Z",
    ),
}

RISKS: dict[str, Any] = {
    "description": "before the launch to all",
    "assessor": "trust and safety",
    "assess_time": EVALUATED,
    "expire_time": "2026-05-30T08:00:00Z",
    "risks": [
        {
            "event": "stories of small creators are hardly ever shown",
            "stakeholder": "creators",
            "dimension": "fairness",
            "likelihood": 4,
            "severity": 3,
            "mitigations": ["exploration budget", "weekly report by audience size"],
            "residual_likelihood": 2,
            "assessor": "responsible AI",
            "assess_time": "2025-05-01T00:00:00Z",
        },
        {
            "event": "watch history can be told from the ranking",
            "stakeholder": "viewers",
            "dimension": "privacy",
            "likelihood": 1,
            "severity": 5,
        },
    ],
}


def message(written: dict[str, Any]) -> evidence_pb2.EvaluationReport:
    """The report as a message."""
    return ParseDict(written, evidence_pb2.EvaluationReport())


def risks() -> evidence_pb2.RiskAssessment:
    """The risk assessment as a message."""
    return ParseDict(RISKS, evidence_pb2.RiskAssessment())


def read(written: dict[str, Any], key: str = "r", of: str = MODEL) -> EvaluationReport:
    """The report as plain data."""
    return from_proto(message(written), EvaluationReport, name=f"{of}/evaluationReports/{key}")


def result(metric: str = "f1", value: float = 0.8, **fields: Any) -> EvaluationResult:
    return EvaluationResult(metric=metric, value=value, **({"direction": Direction.HIGHER_IS_BETTER} | fields))


def report(*results: EvaluationResult, key: str = "r", of: str = MODEL, **fields: Any) -> EvaluationReport:
    known: dict[str, Any] = {
        "suite": "eval",
        "evaluator": Evaluator(kind=EvaluatorKind.INTERNAL),
        "evaluate_time": NOW,
        "results": results or (result(),),
    }
    return EvaluationReport(name=f"{of}/evaluationReports/{key}", **(known | fields))


def rule(**fields: Any) -> EvidenceRule:
    known: dict[str, Any] = {"id": "r"} if "max_residual_risk" in fields else {"id": "r", "metric": "f1"}
    return EvidenceRule(**(known | fields))


def risk(likelihood: int = 3, severity: int = 3, **fields: Any) -> Risk:
    known: dict[str, Any] = {"event": "harm", "stakeholder": "viewers", "dimension": "safety"}
    return Risk(likelihood=likelihood, severity=severity, **(known | fields))


def assessment(*rows: Risk, key: str = "a", of: str = MODEL, **fields: Any) -> RiskAssessment:
    known: dict[str, Any] = {"assessor": "somebody", "assess_time": NOW, "risks": rows or (risk(),)}
    return RiskAssessment(name=f"{of}/riskAssessments/{key}", **(known | fields))


def with_values(given: EvaluationReport, **fields: Any) -> EvaluationReport:
    """The report with fields of its first result changed."""
    return replace(given, results=(replace(given.results[0], **fields), *given.results[1:]))
