"""Which of many accidents a run has: a few, drawn anew each day from a seed that can be given, or all of them.

MODELFLEET_FAULTS=all            every one (`make faults`)
MODELFLEET_FAULTS_SEED=20261127  the ones that a run of that day had
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

import pytest

_T = TypeVar("_T")

# Processes of one run choose the same, also where it goes on past midnight.
SEED = os.environ.setdefault("MODELFLEET_FAULTS_SEED", f"{datetime.now(UTC):%Y%m%d}")

# Whether this run has all accidents.
ALL = os.environ.get("MODELFLEET_FAULTS") == "all"


def chosen(accidents: Sequence[_T], count: int) -> list[_T]:
    """Returns the accidents of this run, in their order; all of them where all are asked for."""
    if ALL:
        return list(accidents)
    draw = random.Random(f"{SEED} of {len(accidents)}")
    return [accidents[place] for place in sorted(draw.sample(range(len(accidents)), count))]


# Accidents on a whole running system, each in its own way; it takes long to start one, so a day has two of the three.
_ON_WHOLE_SYSTEMS: Final = ("at places", "now and then", "in the middle")


def on_its_day(accidents: str) -> pytest.MarkDecorator:
    """Leaves accidents on a whole system out on the days of the others."""
    drawn = chosen(_ON_WHOLE_SYSTEMS, 2)
    return pytest.mark.skipif(accidents not in drawn, reason=f"not drawn by {SEED}; `make faults` has it")
