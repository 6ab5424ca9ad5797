"""A new attempt of a launch: what is asked for stays, and everything that was found out or done is done anew."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import PhaseTime
from modelfleetd.launcher.domain.states import State

# What was asked for, by whom, and which launch it is. Everything else of a launch is of one attempt.
KEPT: Final = frozenset(
    {
        "name", "uid", "model_type", "candidate", "strategy", "pool", "regions", "policy", "actor", "trace_id",
        "create_time", "reason", "target_share", "holdout_share", "known_full", "names_rollback_window", "rolls_back",
        "takes_over", "team", "surface", "tier", "freeze_overrides",
    }
)  # fmt: skip
# What counts through all attempts: whoever still acts for the one before is told by it that it is over.
COUNTED: Final = frozenset({"attempt", "version", "epoch", "intents", "update_time"})


def next_attempt(launch: Launch, author: str, now: datetime) -> Launch:
    """The launch as it begins once more. Its baseline is pinned by whoever stores it."""
    kept: dict[str, Any] = {name: getattr(launch, name) for name in KEPT | COUNTED}
    return replace(
        Launch(**kept),
        attempt=launch.attempt + 1,
        retried_by=author,
        phase_times=(PhaseTime(State.PENDING, now),),
    )
