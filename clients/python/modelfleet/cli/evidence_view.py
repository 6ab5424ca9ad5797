"""How evidence looks on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelfleet.cli import render
from modelfleet.cli.tables import FittedTable
from modelfleet.registry.v1 import evidence_pb2 as pb

_GOOD = {pb.EvaluationResult.HIGHER_IS_BETTER: "higher", pb.EvaluationResult.LOWER_IS_BETTER: "lower"}


def figure(value: float, unit: str = "") -> str:
    """A number with its unit, short: `0.8125`, `42.5 steps`."""
    return f"{value:.6g} {unit}".rstrip()


def pairs(values: Mapping[str, Any]) -> str:
    """Keys and values in the order of the keys: `harm_category=violence, language=de`."""
    return ", ".join(f"{key}={figure(v) if isinstance(v, float) else v}" for key, v in sorted(values.items()))


def report_lines(report: pb.EvaluationReport) -> Sequence[str]:
    """What stands above a report's results."""
    who = f"{render.enum(report.evaluator, 'kind')} {report.evaluator.name}".strip()
    lines = [
        f"{report.name}",
        f"suite {report.suite} {report.suite_version}".rstrip() + f", by {who}",
        f"evaluated {render.clock(report.evaluate_time)}, expires {render.clock(report.expire_time) or 'never'}",
    ]
    optional = {
        "dataset": _dataset(report.dataset),
        "baseline": report.baseline,
        "about": report.description,
        "labels": pairs(report.labels),
    }
    lines += [f"{label}: {value}" for label, value in optional.items() if value]
    return [*lines, *(f"see {link}" for link in report.links)]


def result_table(report: pb.EvaluationReport) -> FittedTable:
    """A report's results, a line each; columns that nobody fills are left out."""
    cells = [
        {
            "METRIC": _metric(each),
            "SLICE": pairs(each.slice),
            "VALUE": figure(each.value, each.unit),
            "INTERVAL": _interval(each.interval) if each.HasField("interval") else "",
            "SAMPLES": f"{each.sample_size:,}" if each.sample_size else "",
            "GOOD": _GOOD.get(each.direction) or f"near {figure(each.target)}",
            "UNDER": pairs({**each.conditions, **each.at}),
            "DATASET": _dataset(each.dataset),
            "HOW": _how(each),
            "GRADES": ", ".join(f"{grade.label} {grade.count:,}" for grade in each.grades),
            "OTHERS": ", ".join(f"{other.name} {figure(other.value)}" for other in each.comparators),
        }
        for each in report.results
    ]
    return _filled(cells)


def assessment_lines(assessment: pb.RiskAssessment) -> Sequence[str]:
    """What stands above an assessment's risks."""
    expires = render.clock(assessment.expire_time) or "never"
    lines = [
        assessment.name,
        f"assessed {render.clock(assessment.assess_time)} by {assessment.assessor}, expires {expires}, "
        f"{assessment.levels} levels",
    ]
    if assessment.description:
        lines.append(f"about: {assessment.description}")
    return [*lines, *(f"see {link}" for link in assessment.links)]


def risk_table(assessment: pb.RiskAssessment) -> FittedTable:
    """An assessment's risks, the highest residual one first."""
    cells = [
        {
            "RESIDUAL": f"{each.residual_likelihood} × {each.residual_severity} = {each.residual}",
            "INHERENT": f"{each.likelihood} × {each.severity} = {each.inherent}",
            "DIMENSION": each.dimension,
            "STAKEHOLDER": each.stakeholder,
            "ASSESSOR": each.assessor,
            "ASSESSED": render.clock(each.assess_time),
            "EVENT": each.event,
            "MITIGATIONS": "; ".join(each.mitigations),
        }
        for each in sorted(assessment.risks, key=lambda risk: -risk.residual)
    ]
    return _filled(cells)


def judgement_rows(found: pb.EvaluateEvidenceResponse) -> Iterable[Sequence[str]]:
    """A row a rule: its verdict, and the figures of the row that decided."""
    for each in found.judgements:
        row = each.rows[0] if each.rows else None
        shown = row is not None and row.verdict != pb.INCONCLUSIVE
        yield [
            each.rule,
            render.enum(each, "verdict"),
            figure(row.judged) if row is not None and shown else "",
            figure(row.bound) if row is not None and shown else "",
            render.short(row.source) if row is not None else "",
            f"{each.explanation} [{render.enum(each, 'lack')}]" if each.lack else each.explanation,
        ]


def _filled(cells: Sequence[Mapping[str, str]]) -> FittedTable:
    headers = [header for header in cells[0] if any(row[header] for row in cells)]
    return render.table(headers, ([row[header] for header in headers] for row in cells))


def _metric(result: pb.EvaluationResult) -> str:
    form = render.enum(result, "form")
    return result.metric if form in ("", "ABSOLUTE") else f"{result.metric} ({form.lower()} to {result.relative_to})"


def _interval(interval: pb.ConfidenceInterval) -> str:
    return f"[{figure(interval.low)}, {figure(interval.high)}] {render.percent(interval.confidence_basis_points)}"


def _dataset(dataset: pb.EvaluationDataset) -> str:
    return " ".join(filter(None, (dataset.name or dataset.uri, dataset.version)))


def _how(result: pb.EvaluationResult) -> str:
    if result.HasField("offline_estimate"):
        estimate = result.offline_estimate
        return f"{estimate.estimator} on logs of {estimate.logging_policy}"
    if result.HasField("online_experiment"):
        return f"experiment {result.online_experiment.experiment}"
    if result.HasField("human_rating"):
        raters = result.human_rating.raters
        return f"{raters} raters" if raters else "raters"
    return ""
