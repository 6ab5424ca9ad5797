"""FMEval's output as an evaluation report: the summary (`EvalOutput`s as JSON) and the scores per sample (JSON Lines).

A summary has values, samples have what they rest on: with both, the values are the summary's, and the number of
samples and the interval come from the samples, whose mean must agree. Samples alone are averaged as FMEval does;
precision, recall and balanced accuracy are of a whole dataset and only in summaries.

Intervals are of 95 %: Wilson's for scores that are 0 or 1, else Student's t for the mean; none for fewer than two
samples or where all are equal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

from modelfleet.registry.v1 import evidence_pb2 as pb

Scores = npt.NDArray[np.float64]

_HIGHER: Final = pb.EvaluationResult.HIGHER_IS_BETTER
_LOWER: Final = pb.EvaluationResult.LOWER_IS_BETTER
_CLOSE: Final = pb.EvaluationResult.CLOSE_TO_TARGET
# FMEval compares scores like this as well (ABS_TOL).
_TOLERANCE: Final = 1e-3
_Z: Final = 1.959963984540054
_DELTA: Final = "delta_"
_EVALS: Final = (
    "prompt_stereotyping",
    "factual_knowledge",
    "toxicity",
    "qa_toxicity",
    "summarization_toxicity",
    "general_semantic_robustness",
    "qa_accuracy",
    "qa_accuracy_semantic_robustness",
    "summarization_accuracy",
    "summarization_accuracy_semantic_robustness",
    "classification_accuracy",
    "classification_accuracy_semantic_robustness",
    "context_quality",
    "faithfulness",
    "answer_relevance",
)


@dataclass(frozen=True, slots=True)
class Score:
    """What FMEval's documentation says of a score."""

    direction: pb.EvaluationResult.Direction.ValueType
    lowest: float | None = 0.0
    highest: float | None = 1.0
    target: float | None = None


SCORES: Final[Mapping[str, Score]] = {
    **dict.fromkeys(
        (
            "factual_knowledge",
            "factual_knowledge_quasi_exact",
            "f1_score",
            "exact_match_score",
            "quasi_exact_match_score",
            "precision_over_words",
            "recall_over_words",
            "rouge",
            "meteor",
            "classification_accuracy_score",
            "balanced_accuracy_score",
            "precision_score",
            "recall_score",
            "context_precision_score",
            "faithfulness",
        ),
        Score(_HIGHER),
    ),
    # Cosines.
    **dict.fromkeys(("bertscore", "bert_score", "answer_relevance"), Score(_HIGHER, -1.0)),
    **dict.fromkeys(
        (
            "toxicity",
            "severe_toxicity",
            "obscene",
            "identity_attack",
            "insult",
            "threat",
            "sexual_explicit",
        ),
        Score(_LOWER),
    ),
    "word_error_rate": Score(_LOWER, 0.0, None),
    "bertscore_dissimilarity": Score(_LOWER, 0.0, 2.0),
    "prompt_stereotyping": Score(_CLOSE, target=0.5),
    "log_probability_difference": Score(_CLOSE, None, None, 0.0),
}


@dataclass(slots=True)
class Evaluation:
    """One evaluation on one dataset: what summary and samples say, by category ("": all) and score."""

    name: str
    dataset: str
    prompt_template: str = ""
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    samples: dict[tuple[str, str], Scores] = field(default_factory=dict)


@dataclass(slots=True)
class Output:
    """What some files hold, and what was passed over in them, for people."""

    evaluations: dict[tuple[str, str], Evaluation] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)

    def evaluation(self, name: str, dataset: str) -> Evaluation:
        """The evaluation of that name on that dataset."""
        return self.evaluations.setdefault((name, dataset), Evaluation(name, dataset))


def read(files: Iterable[tuple[str, str]]) -> Output:
    """What files hold.

    Args:
        files: name and text of each. Names of files with samples tell evaluation and dataset, as FMEval names them:
            `qa_accuracy_trivia_qa.jsonl`.

    Raises:
        click.UsageError: a file is not FMEval's output.
    """
    output = Output()
    for name, text in files:
        summaries = _summaries(text)
        if summaries is not None:
            for summary in summaries:
                _take_summary(output, name, summary)
        else:
            _take_samples(output, name, text)
    return output


def results(output: Output, directions: Mapping[str, str]) -> list[pb.EvaluationResult]:
    """The results of a report.

    Args:
        output: what files hold.
        directions: of scores that FMEval does not have: HIGHER_IS_BETTER or LOWER_IS_BETTER by name.

    Raises:
        click.UsageError: a score is not known, or summary and samples are not of the same run.
    """
    found: list[pb.EvaluationResult] = []
    unknown: set[str] = set()
    for evaluation in output.evaluations.values():
        for category, name in dict.fromkeys([*evaluation.values, *evaluation.samples]):
            score = SCORES.get(name.removeprefix(_DELTA))
            if name in directions:
                score = Score(pb.EvaluationResult.Direction.Value(directions[name]), None, None)
            if score is None:
                unknown.add(name)
            else:
                found.append(_result(evaluation, category, name, score))
    if unknown:
        raise click.UsageError(
            f"no score of FMEval's is called {', '.join(sorted(unknown))}; say which values are good: "
            f"--direction {min(unknown)}=HIGHER_IS_BETTER"
        )
    return found


def _result(evaluation: Evaluation, category: str, name: str, score: Score) -> pb.EvaluationResult:
    samples = evaluation.samples.get((category, name))
    value = evaluation.values.get((category, name))
    if value is None:
        assert samples is not None
        value = float(samples.mean())
    elif samples is not None and not abs(samples.mean() - value) <= _TOLERANCE:
        raise click.UsageError(
            f"{name} of {evaluation.name} on {evaluation.dataset} is {value:.6g} in the summary, and on average of the "
            f"samples {samples.mean():.6g}: they are not of the same run; give the files of one"
        )
    is_delta = name.startswith(_DELTA)
    made = pb.EvaluationResult(
        metric=_id(name.removeprefix(_DELTA)),
        value=value,
        direction=_LOWER if is_delta else score.direction,
        target=None if is_delta else score.target,
        lowest=0.0 if is_delta else score.lowest,
        highest=None if is_delta else score.highest,
        sample_size=0 if samples is None else samples.size,
        dataset=pb.EvaluationDataset(name=evaluation.dataset) if evaluation.dataset else None,
    )
    if is_delta:
        made.form, made.relative_to = pb.EvaluationResult.DIFFERENCE, "unperturbed input"
    if category:
        made.slice["category"] = category
    if evaluation.name:
        made.conditions["evaluation"] = evaluation.name
    if evaluation.prompt_template:
        made.conditions["prompt_template"] = _shortened(evaluation.prompt_template)
    interval = None if samples is None else confidence_interval(samples)
    if interval is not None:
        low, high = interval
        # No mean lies outside of what there can be.
        made.interval.low = max(low, made.lowest) if made.HasField("lowest") else low
        made.interval.high = min(high, made.highest) if made.HasField("highest") else high
        made.interval.confidence_basis_points = 9500
    return made


def confidence_interval(samples: Scores) -> tuple[float, float] | None:
    """The 95 % interval of the mean: Wilson's for zeros and ones, else Student's t; None where neither says a thing."""
    count, mean = samples.size, float(samples.mean())
    if count < 2:
        return None
    if bool(np.isin(samples, (0.0, 1.0)).all()):
        square = _Z * _Z
        centre = (mean + square / (2 * count)) / (1 + square / count)
        half = _Z / (1 + square / count) * math.sqrt(mean * (1 - mean) / count + square / (4 * count * count))
        return max(0.0, centre - half), min(1.0, centre + half)
    deviation = float(samples.std(ddof=1))
    if not deviation:
        return None
    half = student(count - 1) * deviation / math.sqrt(count)
    return mean - half, mean + half


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion (Abramowitz and Stegun, 26.7.5): within 1 %."""
    z, n = _Z, float(degrees)
    if degrees == 1:
        return 12.706204736432095
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


# Reading.


def _summaries(text: str) -> Sequence[Mapping[str, Any]] | None:
    """The summaries in a text; None where it holds something else."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    found = data if isinstance(data, list) else [data]
    is_summary = found and all(isinstance(each, dict) and "eval_name" in each for each in found)
    return found if is_summary else None


def _take_summary(output: Output, file: str, summary: Mapping[str, Any]) -> None:
    name, dataset = str(summary["eval_name"]), str(summary.get("dataset_name") or "")
    if summary.get("error") or not summary.get("dataset_scores"):
        output.passed_over.append(f"{file}: {name} on {dataset} failed: {summary.get('error') or 'it has no scores'}")
        return
    evaluation = output.evaluation(name, dataset)
    evaluation.prompt_template = str(summary.get("prompt_template") or "")
    parts = [("", summary["dataset_scores"])]
    parts += [(str(each.get("name")), each.get("scores") or ()) for each in summary.get("category_scores") or ()]
    for category, scores in parts:
        for score in scores:
            value = _number(score)
            if value is None:
                output.passed_over.append(f"{file}: {score.get('name')} of {category or 'all'} has no value")
            else:
                evaluation.values[category, str(score["name"])] = value


def _take_samples(output: Output, file: str, text: str) -> None:
    name, dataset = _named(file)
    collected: dict[tuple[str, str], list[float]] = {}
    without = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            scores = record["scores"]
            category = record.get("category")
            for score in scores:
                value = _number(score)
                if value is None:
                    without += 1
                    continue
                for key in {"", "" if category is None else str(category)}:
                    collected.setdefault((key, str(score["name"])), []).append(value)
        except (ValueError, KeyError, TypeError, AttributeError):
            said = "is neither a summary of FMEval's nor one of its JSON Lines with scores"
            raise click.UsageError(f"{file}, line {number}: {said}") from None
    if not collected:
        raise click.UsageError(f"{file} holds no scores")
    if without:
        output.passed_over.append(f"{file}: scores without a value, not counted as samples: {without}")
    evaluation = output.evaluation(name, dataset)
    evaluation.samples |= {key: np.asarray(values) for key, values in collected.items()}
    _derive_stereotyping(evaluation)


def _derive_stereotyping(evaluation: Evaluation) -> None:
    """FMEval keeps the difference of the log probabilities of each sample, and reports how often it is positive."""
    for category, name in list(evaluation.samples):
        if name == "log_probability_difference":
            share = (evaluation.samples[category, name] > 0).astype(np.float64)
            evaluation.samples.setdefault((category, "prompt_stereotyping"), share)


def _number(score: Any) -> float | None:
    value = score.get("value")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _named(file: str) -> tuple[str, str]:
    """Evaluation and dataset by the name of a file with samples; the longest name of an evaluation that fits."""
    stem = re.sub(r"\.[^.]*$", "", file.rsplit("/", 1)[-1])
    for name in sorted(_EVALS, key=len, reverse=True):
        if stem.startswith(f"{name}_"):
            return name, stem.removeprefix(f"{name}_")
    return "", stem


def _id(name: str) -> str:
    """A score's name as a metric's id."""
    return re.sub(r"[^a-z0-9_-]", "_", name.lower())[:63]


def _shortened(text: str) -> str:
    """A condition has at most 200 characters: longer ones end in a digest, so that different ones stay different."""
    if len(text) <= 200:
        return text
    import hashlib

    return f"{text[:120]}… sha256:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
