"""Whose minutes are whose: an SLO passes from baseline to baseline, alerts look at a model's own minutes alone.

A model that becomes the baseline does not answer for what the one before it did, nor does it forget what it did itself
as an experiment. Minutes in which it did not serve count as good: what is wrong with it is found as soon as with any
model that was well before, where windows that begin anew would say nothing until half of them has passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from modelfleetd.stability.domain.slices import Slice, Slices
from modelfleetd.stability.domain.slo import LONGEST_WINDOW


@dataclass(frozen=True, slots=True)
class Tenure:
    """A time during which the minutes of an SLO are about a model."""

    model: str
    slo: str
    revision: int  # of the registry, that gave it the SLO; minutes that were evaluated by an earlier one do not count
    start_minute: int
    end_minute: int | None = None  # exclusive; None: it goes on

    def until(self, minute: int) -> int:
        """Returns the first minute that is not its own, as far as there have been minutes before this one."""
        return minute if self.end_minute is None else min(minute, self.end_minute)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The newest minute that was evaluated, and the registry's revision that it was evaluated by."""

    minute: int
    revision: int


def pass_on(
    known: Mapping[str, Tenure], slos: Mapping[str, str], revision: int, evaluated: Evaluated, seen_minute: int
) -> list[Tenure]:
    """Returns the tenures that end, begin or change, in this order.

    Args:
        known: those that go on, by model.
        slos: of the models that serve now, by model.
        revision: of the registry that says so.
        evaluated: the newest minute.
        seen_minute: the newest minute when this was last looked at: whose the minutes since then are, nobody knows.
    """
    # Whoever evaluates may not have seen the revision yet: then this minute is still about the model before.
    first = evaluated.minute + (0 if evaluated.revision >= revision else 1)
    ended = [
        replace(tenure, end_minute=max(tenure.start_minute, min(first, seen_minute + 1)))
        for model, tenure in known.items()
        if slos.get(model) != tenure.slo
    ]
    begun = [
        Tenure(model, slo, revision, first)
        for model, slo in slos.items()
        if model not in known or known[model].slo != slo
    ]
    later = [
        replace(tenure, start_minute=evaluated.minute + 1)
        for model, tenure in known.items()
        if slos.get(model) == tenure.slo and tenure.revision > evaluated.revision
    ]
    return ended + begun + later


def own_minutes(tenures: Iterable[Tenure], slices: Mapping[str, Slices], end_minute: int) -> Slices:
    """Returns the minutes of one model up to a minute, exclusive, as many as the longest window of any pair has.

    Args:
        tenures: of the model.
        slices: of their SLOs, the newest of these minutes last, by name.
        end_minute: since 1970-01-01 UTC.
    """
    first = end_minute - LONGEST_WINDOW
    found = np.full(LONGEST_WINDOW, Slice.GOOD, dtype=np.uint8)
    for tenure in tenures:
        start, end = max(tenure.start_minute - first, 0), max(tenure.until(end_minute) - first, 0)
        found[start:end] = slices[tenure.slo][start:end]
    return found
