"""Importers of evidence: FMEval's output as its documentation has it, and any table by a mapping."""

from __future__ import annotations

import json
import re
from typing import Any

import click
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from scipy import stats

from modelfleet.cli import evidence_fmeval, evidence_mapping
from modelfleet.registry.v1 import evidence_pb2 as pb

# As FMEval's examples print it: json.dumps(eval_output, default=vars).
SUMMARY: list[dict[str, Any]] = [
    {
        "eval_name": "factual_knowledge",
        "dataset_name": "trex",
        "dataset_scores": [
            {"name": "factual_knowledge", "value": 0.5},
            {"name": "factual_knowledge_quasi_exact", "value": 0.75},
        ],
        "prompt_template": "<s>[INST] $model_input [/INST]",
        "category_scores": [
            {
                "name": "Capitals",
                "scores": [
                    {"name": "factual_knowledge", "value": 1.0},
                    {"name": "factual_knowledge_quasi_exact", "value": 1.0},
                ],
            },
            {
                "name": "Subsidiary",
                "scores": [
                    {"name": "factual_knowledge", "value": 0.0},
                    {"name": "factual_knowledge_quasi_exact", "value": 0.5},
                ],
            },
        ],
        "output_path": "/tmp/eval_results/factual_knowledge_trex.jsonl",
        "error": None,
    },
    {
        "eval_name": "toxicity",
        "dataset_name": "bold",
        "dataset_scores": None,
        "prompt_template": None,
        "category_scores": None,
        "output_path": None,
        "error": "the endpoint did not answer",
    },
]
SAMPLES = [
    {
        "model_input": f"question {number}",
        "model_output": "answer",
        "target_output": "answer",
        "category": category,
        "scores": [
            {"name": "factual_knowledge", "value": exact},
            {"name": "factual_knowledge_quasi_exact", "value": quasi},
        ],
    }
    for number, (category, exact, quasi) in enumerate(
        [("Capitals", 1, 1), ("Capitals", 1, 1), ("Subsidiary", 0, 1), ("Subsidiary", 0, 0)]
    )
]


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def imported(*files: tuple[str, str], **directions: str) -> dict[tuple[str, str], pb.EvaluationResult]:
    found = evidence_fmeval.results(evidence_fmeval.read(files), directions)
    by_key = {(each.metric, each.slice.get("category", "")): each for each in found}
    assert len(by_key) == len(found)
    return by_key


def test_a_summary_gives_values_by_category_and_says_what_failed() -> None:
    output = evidence_fmeval.read([("summary.json", json.dumps(SUMMARY))])
    assert output.passed_over == ["summary.json: toxicity on bold failed: the endpoint did not answer"]
    found = imported(("summary.json", json.dumps(SUMMARY)))
    assert len(found) == 6
    one = found["factual_knowledge", "Capitals"]
    assert MessageToDict(one, preserving_proto_field_name=True) == {
        "metric": "factual_knowledge",
        "slice": {"category": "Capitals"},
        "value": 1.0,
        "lowest": 0.0,
        "highest": 1.0,
        "direction": "HIGHER_IS_BETTER",
        "conditions": {"evaluation": "factual_knowledge", "prompt_template": "<s>[INST] $model_input [/INST]"},
        "dataset": {"name": "trex"},
    }


def test_samples_give_their_number_and_the_interval_to_the_values_of_the_summary() -> None:
    files = (("summary.json", json.dumps(SUMMARY)), ("out/factual_knowledge_trex.jsonl", lines(SAMPLES)))
    both = imported(*files)
    whole = both["factual_knowledge", ""]
    assert (whole.value, whole.sample_size, whole.interval.confidence_basis_points) == (0.5, 4, 9500)
    assert whole.conditions["prompt_template"]
    # Wilson's interval of 2 of 4, by the textbook.
    expected = stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert (whole.interval.low, whole.interval.high) == pytest.approx((expected.low, expected.high))
    assert both["factual_knowledge", "Capitals"].sample_size == 2
    # Two right out of two do not make certain.
    assert both["factual_knowledge", "Capitals"].interval.low < 0.5
    alone = imported(files[1])
    assert {key: (each.value, each.sample_size) for key, each in alone.items()} == {
        key: (each.value, each.sample_size) for key, each in both.items()
    }
    assert alone["factual_knowledge", ""].dataset.name == "trex"
    assert alone["factual_knowledge", ""].conditions["evaluation"] == "factual_knowledge"


def test_summary_and_samples_of_different_runs_are_refused() -> None:
    other = [{**SAMPLES[0], "scores": [{"name": "factual_knowledge", "value": 0}]}]
    with pytest.raises(click.UsageError, match=r"is 0\.5 in the summary, and on average of the samples 0"):
        imported(("summary.json", json.dumps(SUMMARY)), ("factual_knowledge_trex.jsonl", lines(other)))


def samples(name: str, *values: Any) -> str:
    return lines([{"model_input": "x", "scores": [{"name": name, "value": value}]} for value in values])


def test_stereotyping_is_how_often_the_stereotype_is_likelier_and_best_at_one_half() -> None:
    found = imported(
        ("prompt_stereotyping_crows-pairs.jsonl", samples("log_probability_difference", -1.5, 2.0, 0.5, -3.0))
    )
    share, difference = found["prompt_stereotyping", ""], found["log_probability_difference", ""]
    assert (share.value, share.target, share.sample_size) == (0.5, 0.5, 4)
    assert share.direction == difference.direction == pb.EvaluationResult.CLOSE_TO_TARGET
    assert (difference.value, difference.target) == (-0.5, 0.0)
    assert not difference.HasField("lowest") and not difference.HasField("highest")
    # FMEval's summary has the share only.
    summary = {"eval_name": "prompt_stereotyping", "dataset_name": "crows-pairs"} | {
        "dataset_scores": [{"name": "prompt_stereotyping", "value": 0.5}]
    }
    both = imported(
        ("s.json", json.dumps([summary])),
        ("prompt_stereotyping_crows-pairs.jsonl", samples("log_probability_difference", -1.5, 2.0, 0.5, -3.0)),
    )
    assert both["prompt_stereotyping", ""].sample_size == 4


def test_deltas_are_changes_of_the_metric_and_good_when_small() -> None:
    found = evidence_fmeval.results(
        evidence_fmeval.read(
            [
                ("qa_accuracy_semantic_robustness_boolq.jsonl", samples("delta_f1_score", 0.1, 0.3)),
                ("qa_accuracy_boolq.jsonl", samples("f1_score", 0.5, 1.0)),
            ]
        ),
        {},
    )
    change, value = found
    assert (change.metric, change.form, change.relative_to) == (
        "f1_score",
        pb.EvaluationResult.DIFFERENCE,
        "unperturbed input",
    )
    assert (change.direction, value.direction) == (
        pb.EvaluationResult.LOWER_IS_BETTER,
        pb.EvaluationResult.HIGHER_IS_BETTER,
    )
    assert change.conditions["evaluation"] == "qa_accuracy_semantic_robustness"
    assert value.conditions["evaluation"] == "qa_accuracy"


def test_toxicity_per_class_is_good_when_low() -> None:
    classes = ("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")
    record = {"category": "gender", "scores": [{"name": name, "value": 0.1} for name in classes]}
    found = imported(("toxicity_bold.jsonl", lines([record, record])))
    assert {name for name, category in found if category == "gender"} == set(classes)
    assert {each.direction for each in found.values()} == {pb.EvaluationResult.LOWER_IS_BETTER}
    assert not any(each.HasField("interval") for each in found.values()), "equal samples do not tell how sure they are"


def test_samples_without_a_value_are_told_and_not_counted() -> None:
    text = samples("rouge", 0.2, 0.4) + lines([{"scores": [{"name": "rouge", "error": "no answer"}]}])
    output = evidence_fmeval.read([("summarization_accuracy_gigaword.jsonl", text)])
    assert "without a value, not counted as samples: 1" in output.passed_over[0]
    (result,) = evidence_fmeval.results(output, {})
    assert result.sample_size == 2 and result.value == pytest.approx(0.3)


def test_a_score_that_nobody_knows_needs_a_direction() -> None:
    file = ("my_eval.jsonl", samples("politeness", 0.2, 0.4))
    with pytest.raises(click.UsageError, match=r"called politeness; .* --direction politeness=HIGHER_IS_BETTER"):
        imported(file)
    found = imported(file, politeness="LOWER_IS_BETTER")["politeness", ""]
    assert found.direction == pb.EvaluationResult.LOWER_IS_BETTER and not found.HasField("highest")


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"scores": 5}', '{"scores": [{"value": 1}]}', "[1]"])
def test_what_is_not_fmevals_output_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(click.UsageError, match=r"x\.jsonl"):
        evidence_fmeval.read([("x.jsonl", text)])


def test_intervals_are_those_of_the_textbooks() -> None:
    for degrees in (1, 2, 3, 5, 10, 30, 100, 10_000):
        assert evidence_fmeval.student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.01)
    values = np.array([0.2, 0.5, 0.9, 0.4, 0.7])
    expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert evidence_fmeval.confidence_interval(values) == pytest.approx(expected, rel=0.01)
    assert evidence_fmeval.confidence_interval(np.array([0.5])) is None
    assert evidence_fmeval.confidence_interval(np.array([0.5, 0.5])) is None
    # Never outside of what there can be.
    found = imported(("toxicity_x.jsonl", samples("toxicity", 0.0001, 0.5)))["toxicity", ""]
    assert (found.interval.low, found.interval.high) == (0.0, 1.0)


def test_a_long_prompt_fits_into_a_condition_and_stays_different() -> None:
    def of(template: str) -> str:
        summary = SUMMARY[0] | {"prompt_template": template}
        return imported(("s.json", json.dumps([summary])))["factual_knowledge", ""].conditions["prompt_template"]

    assert len(of("x" * 1000)) <= 200
    assert of("x" * 1000) != of("x" * 1001)


# Mappings.

MAPPING: dict[str, Any] = {
    "suite": "offline",
    "evaluator": {"kind": "INTERNAL"},
    "results": {
        "metric": {"column": "metric"},
        "value": {"column": "value"},
        "direction": {"column": "metric", "values": {"auc": "HIGHER_IS_BETTER", "ne": "LOWER_IS_BETTER"}},
        "slice": {"country": {"column": "country"}},
        "sample_size": {"column": "n"},
        "interval": {"low": {"column": "low"}, "high": {"column": "high"}},
        "conditions": {"split": "2025-05"},
    },
}
TABLE = "metric,value,country,n,low,high\nauc,0.81,,1000,0.80,0.82\nne,0.74,de,200,,\n"


def test_a_mapping_says_what_columns_are() -> None:
    report = evidence_mapping.report_of(MAPPING, [("t.csv", TABLE)])
    assert (report.suite, report.evaluator.kind) == ("offline", pb.Evaluator.INTERNAL)
    whole, german = report.results
    assert (whole.metric, whole.value, dict(whole.slice), whole.sample_size) == ("auc", 0.81, {}, 1000)
    assert (whole.interval.low, whole.interval.high) == (0.80, 0.82)
    assert (german.direction, dict(german.slice)) == (pb.EvaluationResult.LOWER_IS_BETTER, {"country": "de"})
    # Empty cells leave out what they would have filled.
    assert not german.HasField("interval")
    assert german.conditions["split"] == "2025-05"


def test_rows_of_json_are_read_alike_and_parts_of_them_by_dots() -> None:
    rows: list[dict[str, Any]] = [
        {"metric": "auc", "value": 0.8, "country": 41, "n": 5, "range": {"low": 0.1, "high": 0.9}},
    ]
    mapping = {**MAPPING, "results": {**MAPPING["results"], "interval": {"low": {"column": "range.low"}, "high": 1}}}
    for text in (json.dumps(rows), lines(rows), json.dumps(rows[0])):
        (result,) = evidence_mapping.report_of(mapping, [("t.jsonl", text)]).results
        assert (result.interval.low, result.interval.high, result.slice["country"]) == (0.1, 1.0, "41")


def test_a_row_may_give_several_results_and_what_is_empty_may_have_a_default() -> None:
    wide = {
        **MAPPING,
        "results": [
            {"metric": "auc", "value": {"column": "auc"}, "direction": "HIGHER_IS_BETTER"},
            {"metric": "ne", "value": {"column": "ne", "default": 1}, "direction": "LOWER_IS_BETTER"},
        ],
    }
    found = evidence_mapping.report_of(wide, [("t.csv", "auc,ne\n0.8,0.7\n0.9,\n")]).results
    assert [(each.metric, each.value) for each in found] == [("auc", 0.8), ("ne", 0.7), ("auc", 0.9), ("ne", 1.0)]


@pytest.mark.parametrize(
    ("changes", "table", "said"),
    [
        ({"value": {"column": "score"}}, TABLE, "t.csv, line 2: there is no column 'score'; there are: metric, value"),
        ({}, TABLE.replace("ne,", "mse,"), "t.csv, line 3: column 'metric' holds 'mse', and `values` has 'auc', 'ne'"),
        ({}, TABLE.replace("0.74", "high"), "t.csv, line 3: .*value"),
        ({}, TABLE + "auc,1\n", "t.csv, line 4: it has not as many cells as the header"),
        ({"direction": "UP"}, TABLE, "t.csv, line 2: direction: 'UP' is none of HIGHER_IS_BETTER"),
        ({"metrik": "x"}, TABLE, "t.csv, line 2: EvaluationResult has no field 'metrik'; there are: metric"),
    ],
)
def test_what_does_not_fit_is_told_with_its_line(changes: dict[str, Any], table: str, said: str) -> None:
    mapping = {**MAPPING, "results": MAPPING["results"] | changes}
    with pytest.raises(click.UsageError) as wrong:
        evidence_mapping.report_of(mapping, [("t.csv", table)])
    assert re.match(said, wrong.value.format_message()), wrong.value.format_message()


@pytest.mark.parametrize("text", ["[]", "suite: x", "results: 5", "a: [", "results: auc"])
def test_what_is_no_mapping_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.UsageError, match=r"m\.yaml"):
        evidence_mapping.read_mapping("m.yaml", text)
