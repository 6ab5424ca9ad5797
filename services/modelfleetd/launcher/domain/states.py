"""The states of a launch, and from which it may pass into which."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class State(enum.Enum):
    """Where a launch is in its life. The launcher moves it on; people end it, or let it wait."""

    PENDING = 1
    ESTIMATING = 2
    AWAITING_APPROVAL = 3
    PREPARING = 4
    SHIFTING = 5
    FINALIZING = 6
    SUCCEEDED = 7
    ROLLING_BACK = 8
    ROLLED_BACK = 9
    CANCELLED = 10
    FAILED = 11


ENDED: Final = frozenset({State.SUCCEEDED, State.ROLLED_BACK, State.CANCELLED, State.FAILED})
# Nothing was given to a platform yet: an abort ends them as CANCELLED.
UNCHANGED: Final = frozenset({State.PENDING, State.ESTIMATING, State.AWAITING_APPROVAL, State.PREPARING})

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.PENDING: frozenset({State.ESTIMATING, State.CANCELLED}),
    State.ESTIMATING: frozenset({State.AWAITING_APPROVAL, State.PREPARING, State.CANCELLED}),
    State.AWAITING_APPROVAL: frozenset({State.ESTIMATING, State.PREPARING, State.CANCELLED}),
    State.PREPARING: frozenset({State.AWAITING_APPROVAL, State.SHIFTING, State.ROLLING_BACK, State.CANCELLED}),
    State.SHIFTING: frozenset({State.FINALIZING, State.ROLLING_BACK}),
    State.FINALIZING: frozenset({State.SUCCEEDED, State.ROLLING_BACK}),
    State.SUCCEEDED: frozenset(),
    State.ROLLING_BACK: frozenset({State.ROLLED_BACK, State.FAILED}),
    State.ROLLED_BACK: frozenset(),
    State.CANCELLED: frozenset(),
    State.FAILED: frozenset(),
}
