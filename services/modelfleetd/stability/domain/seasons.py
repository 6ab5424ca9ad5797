"""The centre of a metric: its level, and how far each hour of the week lies from it.

Four weeks hold four values of an hour of the week, too few to go by alone. So the hours of the day are shrunk towards
the level, and hours of the week towards those of the day, as far as they differ by no more than chance (empirical
Bayes after James and Stein).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.fleet import HOURS_OF_WEEK
from modelfleetd.stability.domain.history import Values, hours_of_week

SEASONAL_DAYS: Final = 14.0
_HOURS_OF_DAY: Final = 24
# Windows further from the middle than this many times what is usual do not draw the centre towards them.
_CLIP: Final = 3.0
# Seasons are kept only where they explain this share of what varies: else 168 factors say nothing.
_EVIDENT: Final = 2.0  # standard errors
_WORTH: Final = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Centre:
    """Where values are expected, in logarithms, and how far windows lay from it."""

    level: float
    hours: Floats | None  # what to add by hour of the week; None: nothing
    residuals: Floats  # of usable windows, each against a centre that was made without its own hour


def centre(values: Values, weights: Floats, *, seasonal: bool) -> Centre:
    """Returns the centre of usable windows.

    Args:
        values: the windows.
        weights: how much each says; of all windows.
        seasonal: whether to look for seasons.
    """
    log, weight = values.log[values.usable], weights[values.usable]
    if not seasonal:
        level = float(np.average(_drawn_in(log, np.full(len(log), np.median(log))), weights=weight))
        return Centre(level, None, log - level)
    cells, place = np.unique((values.ends[values.usable] - 1) // 60, return_inverse=True)
    hours = hours_of_week(values.ends[values.usable])
    # By hours of the day and by days of the week, as an incident may well be all that is known of an hour of the week.
    rough = _medians(log, hours % _HOURS_OF_DAY)
    clipped = _drawn_in(log, rough + _medians(log - rough, hours // _HOURS_OF_DAY))
    level = float(np.average(clipped, weights=weight))
    mass: Floats = np.bincount(place, weight).astype(np.float64)
    means = np.bincount(place, weight * (clipped - level)) / mass
    week = hours_of_week(cells * 60 + 1)
    # Hours that share a window are not independent of each other.
    alone = min(1.0, 60.0 / values.width)
    day_effect, day_without = _shrunk(means, mass, week % _HOURS_OF_DAY, _HOURS_OF_DAY, alone)
    rest = means - day_effect[week % _HOURS_OF_DAY]
    week_effect, week_without = _shrunk(rest, mass, week, HOURS_OF_WEEK, alone)
    effect = day_effect[np.arange(HOURS_OF_WEEK) % _HOURS_OF_DAY] + week_effect
    residuals = log - level - (day_without + week_without)[place]
    if np.mean(np.square(effect)) < _WORTH * np.mean(np.square(clipped - level)):
        return Centre(level, None, log - level)
    return Centre(level, effect, residuals)


def _drawn_in(log: Floats, rough: Floats) -> Floats:
    """Returns the values with those that are far from a rough centre drawn in, so that they do not pull at the mean."""
    reach = _CLIP * 1.4826 * float(np.median(np.abs(log - rough)))
    return np.clip(log, rough - reach, rough + reach) if reach else log


def _medians(log: Floats, group: Integers) -> Floats:
    """Returns for each value the median of its group."""
    order = np.lexsort((log, group))
    first, last = (np.searchsorted(group[order], group, side) for side in ("left", "right"))
    found: Floats = log[order][(first + last) // 2]
    return found


def _shrunk(means: Floats, mass: Floats, group: Integers, groups: int, alone: float) -> tuple[Floats, Floats]:
    """Returns the effect of each group, and for each cell the effect that its group has without it.

    Args:
        means: of the cells.
        mass: what each says.
        group: of each cell.
        groups: how many there are.
        alone: share of the groups that are independent of each other.
    """
    total: Floats = np.bincount(group, mass, groups).astype(np.float64)
    number = np.bincount(group, minlength=groups)
    weighted: Floats = np.bincount(group, mass * means, groups).astype(np.float64)
    average = np.divide(weighted, total, out=np.zeros(groups), where=total > 0)
    within = float(np.sum(mass * np.square(means - average[group])))
    # In units of a cell of mean mass.
    size = float(np.mean(mass))
    freedom = max(1, len(means) - int(np.count_nonzero(number)))
    noise = within / size / freedom
    spare = np.divide(noise * size, total, out=np.full(groups, np.inf), where=total > 0)
    known = total > 0
    # Groups differ by as much as their averages vary beyond what chance lets them; what chance may do is no season.
    between = float(np.mean(np.square(average[known]) - spare[known]))
    if between <= _EVIDENT * math.sqrt(2.0 / (alone * int(np.count_nonzero(known)))) * float(np.mean(spare[known])):
        between = 0.0

    def shrink(sums: Floats, masses: Floats) -> Floats:
        mean = np.divide(sums, masses, out=np.zeros(len(sums)), where=masses > 1e-12)
        error = np.divide(noise * size, masses, out=np.full(len(sums), np.inf), where=masses > 1e-12)
        found: Floats = mean * between / (between + error) if between else np.zeros(len(sums))
        return found

    return shrink(weighted, total), shrink(weighted[group] - mass * means, total[group] - mass)
