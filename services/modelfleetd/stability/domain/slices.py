"""Slices: what each minute counts as for an objective. A slice is written once, at its minute, and never revised."""

from __future__ import annotations

import enum
from typing import Final

import numpy as np
import numpy.typing as npt

MINUTES_OF_HOUR: Final = 60


class Slice(enum.IntEnum):
    """What a minute counts as. The numbers are stored."""

    NONE = 0  # was not evaluated: the service was not there
    GOOD = 1
    BAD = 2
    UNKNOWN = 3


class Objective(enum.Enum):
    """What slices are of. The numbers are those of the protos, and stored. COVERAGE follows from those of STABILITY."""

    STABILITY = 1
    COVERAGE = 2
    AVAILABILITY = 3


Slices = npt.NDArray[np.uint8]  # minute by minute, oldest first, values of Slice
