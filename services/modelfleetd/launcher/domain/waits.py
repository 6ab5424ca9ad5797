"""What a launch has waited for, and for how long: kept while it lives, cause by cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from modelfleetd.launcher.domain.changes import replace

if TYPE_CHECKING:
    from modelfleetd.launcher.domain.launch import Launch
    from modelfleetd.launcher.domain.record import Condition, GateVerdict

PAUSED: Final = "Paused"
# The causes that are up to people: approvals, and gates that ask people.
PEOPLE: Final = frozenset({"AwaitingApproval", "AwaitingPeople"})


@dataclass(frozen=True, slots=True)
class Waits:
    """At every moment a launch waits for one thing at most: its times never overlap, so that they may be added up.

    Attributes:
        cause: what it waits for now; empty where it does not wait.
        since: since when.
        times: what it waited for before, all together, cause by cause.
        failed: verdicts FAIL that were enforced, gate by gate.
    """

    cause: str = ""
    since: datetime | None = None
    times: Mapping[str, timedelta] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)


def cause_of(conditions: Sequence[Condition]) -> str:
    """The one thing that a launch waits for: a pause before all else, since nothing else would let it go on."""
    kinds = {condition.type: condition.reason for condition in conditions}
    return PAUSED if PAUSED in kinds else kinds.get("Waiting", "")


def noted(waits: Waits, conditions: Sequence[Condition], now: datetime) -> Waits:
    """The waits after the launch's conditions were found to be these; the time until now was the cause's of before."""
    cause = cause_of(conditions)
    if cause == waits.cause:
        return waits
    times = waits.times
    if waits.since is not None:
        passed = max(timedelta(0), now - waits.since)
        times = {**times, waits.cause: times.get(waits.cause, timedelta(0)) + passed}
    return replace(waits, cause=cause, since=now if cause else None, times=times)


def judged(waits: Waits, verdicts: Sequence[GateVerdict]) -> Waits:
    """The same with verdicts that were just recorded; those of a dry run fail nothing."""
    failed = dict(waits.failed)
    for verdict in verdicts:
        if verdict.verdict.name == "FAIL" and not verdict.dry_run:
            failed[verdict.gate] = failed.get(verdict.gate, 0) + 1
    return waits if failed == waits.failed else replace(waits, failed=failed)


def kept(launch: Launch, verdicts: Sequence[GateVerdict], now: datetime) -> Launch:
    """A launch that is about to be recorded, with what it has waited for so far."""
    waits = judged(noted(launch.waits, launch.conditions, now), verdicts)
    return launch if waits is launch.waits else replace(launch, waits=waits)
