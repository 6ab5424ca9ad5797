"""The judge's findings in words with figures, for people who did not ask for statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.estimates import Estimate
from modelfleetd.stability.domain.sums import Sums

_FORESEEABLE: Final = timedelta(days=90)


def number(value: float) -> str:
    """Three significant digits; no exponent for what people meet."""
    if math.isinf(value):
        return "infinity"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def count(value: int, noun: str) -> str:
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def percent(share: float) -> str:
    return f"{share * 100:.6g} %"


def share(value: float) -> str:
    return f"{value * 100:.0f} %"


def over(start: datetime, end: datetime) -> str:
    """From when to when, in UTC; the day of the end only where it is another one."""
    return f"over {start:%Y-%m-%d %H:%M} to {end:{'%H:%M' if start.date() == end.date() else '%Y-%m-%d %H:%M'}} UTC"


def subject(prediction: str, metric: str) -> str:
    return f"{metric} of {prediction}"


def measured(what: str, estimate: Estimate, confidence: float, sums: Sums) -> str:
    positives, examples = count(sums.positives.n, "positive"), count(sums.examples, "example")
    return f"{what} is {with_interval(estimate, confidence)} by {positives} among {examples}"


def position(estimate: Estimate, limits: Limits) -> str:
    """Where the value, or all of its interval, lies."""
    if limits.low <= estimate.value <= limits.high:
        return f"within {limits}"
    side = "above" if estimate.value > limits.high else "below"
    whole = estimate.low > limits.high or estimate.high < limits.low
    return f"wholly {side} {limits}" if whole else f"{side} {limits}, but its interval reaches into it"


def no_example(what: str) -> str:
    return f"{what} is not known: there is no example yet to judge it by"


def equal_labels(what: str, sums: Sums) -> str:
    kind = "positive" if sums.positives.n else "negative"
    return f"{what} is not defined: all {count(sums.examples, 'example')} are {kind}"


def no_positive(prediction: str, examples: int, expected: float) -> str:
    return f"{prediction} has no positive among {count(examples, 'example')}, where {number(expected)} were predicted"


def overpredicting(seen: str, low: float, limits: Limits, confidence: float) -> str:
    return (
        f"{seen}: over-prediction, or its labels are lost; calibration is at least {number(low)} "
        f"at {percent(confidence)} confidence, above {limits}"
    )


def compared(what: str, values: Sequence[float], ratio: Estimate, confidence: float, allowed: str) -> str:
    ours, theirs = values
    interval = f"{percent(confidence)} interval {_change(ratio.low)} to {_change(ratio.high)}"
    return (
        f"{what} is {number(ours)} against {number(theirs)} of the baseline, a change of {_change(ratio.value)} "
        f"({interval}), where {allowed} is allowed"
    )


def between(limits: Limits) -> str:
    """Limits of a ratio, as changes."""
    return f"{_change(limits.low)} to {_change(limits.high)}"


def not_comparable(what: str, ours: Sums, theirs: Sums) -> str:
    who, sums = ("the candidate", ours) if ours.positives.n <= theirs.positives.n else ("the baseline", theirs)
    return (
        f"{what} cannot be compared: {who} has {count(sums.positives.n, 'positive')} "
        f"among {count(sums.examples, 'matured example')}"
    )


def one_sided(seen: str, ratio: Estimate, confidence: float, allowed: str) -> str:
    """Where one side has no positive but, by those of the other, should have had many."""
    least = f"at least {_change(ratio.low)}" if ratio.low else f"at most {_change(ratio.high)}"
    cause = "over-prediction, or its labels are lost"
    return f"{seen}: {cause}; the change is {least} at {percent(confidence)} confidence, where {allowed} is allowed"


def unusable(prediction: str, who: str, malformed: int, examples: int) -> str:
    verb = "was" if malformed == 1 else "were"
    return (
        f"{prediction} cannot be judged: of {who} {count(malformed, 'row')} {verb} refused as impossible and only "
        f"{count(examples, 'example')} taken, which are no fair sample; the answers to its writes say what is wrong"
    )


def _change(ratio: float) -> str:
    """A ratio as people say it: +5 %; beyond tenfold as a multiple."""
    if math.isinf(ratio) or ratio >= 10.0:
        return f"{number(ratio)} times"
    return f"{(ratio - 1.0) * 100:+.3g} %"


def needs(missing: int | None, expected: datetime | None, now: datetime, of: str) -> str:
    if missing is None:
        return f"how many more positives {of} needs cannot be told"
    when = "" if expected is None else f", {_expected(expected, now)}"
    return f"{of} needs about {missing:,} more positive{'' if missing == 1 else 's'}{when}"


def _expected(moment: datetime, now: datetime) -> str:
    """When something is to be expected; far off nobody waits for it, and a date would only look exact."""
    if moment - now > _FORESEEABLE:
        return f"not to be expected within {_FORESEEABLE.days} days"
    return f"expected at {_time(moment, now)}"


def still_waiting(examples: int, first_maturity: datetime | None) -> str:
    if not examples or first_maturity is None:
        return ""
    verb = "waits for its label" if examples == 1 else "wait for their labels"
    return f" ({count(examples, 'example')} more {verb})"


def conclusion(explanations: Sequence[str], findings: int) -> str:
    """The first finding that decides, and how many others say the same; the verdict stands beside it, not in it."""
    if not explanations:
        return "Nothing was demanded."
    first = explanations[0]
    others = len(explanations) - 1
    return first if not others else f"{first} {others} more of {findings} findings say the same."


def moment(time: datetime) -> str:
    """A moment of the past."""
    return f"{time:%Y-%m-%d %H:%M} UTC"


def span(length: timedelta) -> str:
    """A span of time, to the minute: 35 min, 2 h 5 min, 3 d 4 h."""
    minutes = length // timedelta(minutes=1)
    if minutes < 60:
        return f"{minutes} min"
    units = ((minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "min"))
    return " ".join(f"{number} {unit}" for number, unit in units if number)


def with_interval(estimate: Estimate, confidence: float) -> str:
    """The value and the interval that it has at a confidence."""
    low, high = number(estimate.low), number(estimate.high)
    return f"{number(estimate.value)} ({percent(confidence)} interval {low} to {high})"


def _time(moment: datetime, now: datetime) -> str:
    return f"{moment:%H:%M} UTC" if moment - now < timedelta(hours=24) else f"{moment:%Y-%m-%d %H:%M} UTC"
