"""Whose minutes are whose: an SLO passes from baseline to baseline, the alerts of a model look at its own minutes alone.

A model that becomes the baseline does not answer for what the one before it did, nor does it forget what it did itself as
an experiment. Minutes in which it did not serve count as good: it is found as soon as any other model that was well
before, which a window that begins anew would delay until half of it has passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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


def pass_on(
    open_tenures: Mapping[str, Tenure], slos: Mapping[str, str], revision: int, minute: int, evaluated_by: int
) -> list[Tenure]:
    """Returns the tenures that begin, change or end; those that change start as those that are known.

    Args:
        open_tenures: those that go on, by model.
        slos: of the models that serve now, by model.
        revision: of the registry that says so.
        minute: the newest one that was evaluated.
        evaluated_by: the revision of the registry that it was evaluated by; it may be an earlier one.
    """
    found = []
    for model, tenure in open_tenures.items():
        if slos.get(model) != tenure.slo:
            found.append(
                Tenure(model, tenure.slo, tenure.revision, tenure.start_minute, max(minute, tenure.start_minute))
            )
    for model, slo in slos.items():
        known = open_tenures.get(model)
        first = minute if evaluated_by >= revision else minute + 1
        if known is None or known.slo != slo:
            found.append(Tenure(model, slo, revision, first))
        elif known.revision > evaluated_by and known.start_minute <= minute:
            # Whoever evaluates has not seen that revision yet: this minute is still about the model before.
            found.append(Tenure(model, slo, known.revision, minute + 1))
    return found


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
