"""Verdicts on evidence in words: what was judged, with its figures and what is expected."""

from __future__ import annotations

from collections.abc import Mapping

from modelfleetd.registry.domain.evidence import EvidenceRule, Form
from modelfleetd.registry.domain.evidence_verdicts import Lack, Row


def short(name: str) -> str:
    """Returns the last id of a name."""
    return name.rsplit("/", 1)[-1]


def _figure(value: float, unit: str = "") -> str:
    return f"{value:.6g} {unit}".rstrip()


def _named(pairs: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs.items()))


def subject(rule: EvidenceRule) -> str:
    """Says what a rule is about: everything by which results are chosen."""
    parts = [rule.metric]
    if rule.form not in (None, Form.ABSOLUTE):
        parts.append(f"as a {rule.form.name.lower()}")
    if rule.slice:
        parts.append(f"of {_named(rule.slice)}")
    if rule.worst_slice_by:
        parts.append(f"by {rule.worst_slice_by}")
    if rule.conditions or rule.at:
        parts.append(f"under {_named({**rule.conditions, **rule.at})}")
    if rule.suite:
        parts.append(f"in the suite {rule.suite}")
    if rule.method is not None:
        parts.append(f"by {rule.method.name}")
    if rule.evaluators:
        parts.append(f"by an evaluator that is {' or '.join(kind.name for kind in rule.evaluators)}")
    return " ".join(parts)


def told(rule: EvidenceRule, row: Row, count: int) -> str:
    """Says what the deciding row of several says, with its figures."""
    worst = f" (the worst of {count})" if count > 1 else ""
    what = f"{_what(row)}{worst} is {_figure(row.value, row.unit)}"
    bound, held = _figure(row.bound, row.unit), _figure(row.judged, row.unit)
    if rule.minimum is not None or rule.maximum is not None:
        at_worst = f" ({held} at worst)" if rule.conservative else ""
        least = "least" if rule.minimum is not None else "most"
        return f"{what}{at_worst}; at {least} {bound} is expected."
    at_worst = "at worst " if rule.conservative else ""
    if rule.max_distance_to_target is not None:
        target = _figure(row.target or 0.0, row.unit)
        return f"{what}, {at_worst}{held} from its target {target}; at most {bound} is accepted."
    return f"{what}, {at_worst}{_compared(rule, row)}."


def _compared(rule: EvidenceRule, row: Row) -> str:
    other = row.baseline or 0.0
    is_part = rule.max_relative_loss_to_baseline is not None and other

    def amount(figure: float) -> str:
        return f"{abs(figure) * 100:.4g} %" if is_part else _figure(abs(figure), row.unit)

    how = "worse" if row.judged > 0 else "better"
    difference = f"{amount(row.judged)} {how} than" if row.judged else "the same as"
    accepted = f"at most {amount(row.bound)} worse is accepted"
    if row.bound < 0:
        accepted = f"at least {amount(row.bound)} better is expected"
    return f"{difference} the baseline's {_figure(other, row.unit)}; {accepted}"


def _what(row: Row) -> str:
    return f"{row.metric} of {_named(row.slice)}" if row.slice else row.metric


def lacking(rule: EvidenceRule, row: Row, lack: Lack) -> str:
    """Says what a row lacks."""
    what = f"{_what(row)} in {short(row.source)}"
    if lack is Lack.TOO_FEW_SAMPLES:
        known = f"{row.sample_size:,} samples" if row.sample_size else "a number of samples that it does not say"
        return f"{what} rests on {known}; at least {rule.min_sample_size:,} are needed."
    if lack is Lack.NO_INTERVAL:
        return f"{what} has no confidence interval, and the rule is conservative."
    if lack is Lack.NO_TARGET:
        return f"{what} has no target to be close to."
    if lack is Lack.EXPIRED:
        return f"What the baseline has of {what} has expired."
    return f"There is no baseline, or no result of it, to compare {what} with."


def risk_told(about: str, row: Row, count: int) -> str:
    """Says what the worst of some risks says."""
    event = row.metric if len(row.metric) <= 100 else f"{row.metric[:99]}…"
    which = f"The highest residual risk of {count} {about}" if count > 1 else "The residual risk"
    return f"{which} is {row.judged:g} ({event}); at most {row.bound:g} is accepted."
