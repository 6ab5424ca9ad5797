"""The failpoints of a launch's path, by name: those that every launch passes, and those of the way back.

Before and after each commit and each outgoing call of the launcher, capacity, the registry and the node agent. A name
is `<part>.<before|after>_<kind>.<what>`. A `commit` is called what the method is that commits, a `call` what is called,
a `record` what the launcher writes of a round, an `act` what it asks of an agent.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class Way(enum.Enum):
    """Which launch passes a place."""

    FORWARD = 1
    BACK = 2
    """One that is aborted after it has shifted traffic, and goes back; it passes those of the way there as well."""


_FORWARD: Final[Mapping[str, str]] = {
    "launcher.commit": "CreateLaunch claim watched",
    "launcher.record": (
        "change intent_estimate intent_reserve intent_activate intent_start intent_shift intent_reduce intent_finalize "
        "intent_settle outcome"
    ),
    "launcher.act": "start shift reduce",
    "launcher.call": (
        "GetModelType GetModel GetFlavor GetPool CreateEstimate CreateLaunchDecision SimulateReservation "
        "CreateReservation ActivateReservation ObserveServing ApplyServing FinalizeLaunch SettleReservation"
    ),
    "capacity.commit": ("CreateEstimate CreateLaunchDecision CreateReservation ActivateReservation SettleReservation"),
    "capacity.call": "GetModel",
    "registry.commit": "FinalizeLaunch",
    "node.commit": (
        "accepted floor_raised replica_started starting ready replica_available shares_acknowledged replica_draining "
        "stopping replica_ended"
    ),
    "node.call": "envoy envoy_file start_replica ModelReady end_replica",
}
_BACK: Final[Mapping[str, str]] = {
    "launcher.commit": "AbortLaunch",
    "launcher.record": "intent_grow intent_return intent_shed intent_forgo intent_release",
    "launcher.act": "grow return shed",
}


def _pairs(named: Mapping[str, str], way: Way) -> dict[str, Way]:
    found: dict[str, Way] = {}
    for of, names in named.items():
        part, _, kind = of.partition(".")
        for name in names.split():
            found |= {f"{part}.{side}_{kind}.{name}": way for side in ("before", "after")}
    return found


PLACES: Final[Mapping[str, Way]] = _pairs(_FORWARD, Way.FORWARD) | _pairs(_BACK, Way.BACK)
