"""What freeze windows do to a launch: they hold back what starts it or raises weight, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain.actions import Action, Apply, Call, Wait
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.deadlines import accounted
from modelfleetd.launcher.domain.freeze import FreezeWindow, Occurrence, occurrences
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.record import Act, Frozen
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.words import span

# What a window may hold back. A launch that is queued has no deadline yet, and one that finalises has risen already.
_HELD_BACK: Final = frozenset({State.ESTIMATING, State.AWAITING_APPROVAL, State.PREPARING, State.SHIFTING})
_BEGINS: Final = frozenset({Act.ESTIMATE, Act.RESERVE, Act.ACTIVATE})
# In place of what a window holds back; `words` says why.
HELD: Final = Wait("Frozen", "waits for a freeze window to close", 60.0)
# Occurrences that a plan names.
_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class Open:
    """An occurrence of a window."""

    window: FreezeWindow
    occurrence: Occurrence


@dataclass(frozen=True, slots=True)
class Conflict:
    """An occurrence that is open, or opens, before a launch is done."""

    freeze_window: str
    reason: str
    start_time: datetime
    end_time: datetime
    overridden: bool


def is_exempt(launch: Launch) -> bool:
    """Whether it is a mitigation: no window holds it back."""
    return launch.rule.mitigation


def is_overridden(launch: Launch, window: FreezeWindow) -> bool:
    return any(override.window_uid == window.uid for override in launch.freeze_overrides)


def concerns(launch: Launch, window: FreezeWindow) -> bool:
    """Whether a launch is in the scope of a window."""
    return not is_exempt(launch) and window.concerns(launch.team, launch.surface, launch.tier)


def looked_at(
    launch: Launch, near: Sequence[Open], now: datetime, lead: timedelta
) -> tuple[Launch, tuple[str, str] | None]:
    """The launch as the windows leave it, and what its history says of it where a window has opened or closed.

    Args:
        launch: as it is.
        near: occurrences that are open, or open soon.
        now: by the database's clock.
        lead: what is decided now may still be on its way for so long: so much earlier nothing is begun any more.
    """
    found = _in_force(launch, near, now, lead)
    if found is None:
        return _thawed(launch, now)
    name, reason, end = found.window.name, found.window.reason, found.occurrence.end
    before = launch.frozen
    if before is not None:
        return replace(launch, frozen=replace(before, freeze_window=name, reason=reason, end_time=end)), None
    after = replace(launch, frozen=Frozen(name, reason, since=now, end_time=end, counted=now))
    assert after.frozen is not None
    return after, ("Frozen", f"{words(after.frozen)}; what it has it keeps")


def _in_force(launch: Launch, near: Sequence[Open], now: datetime, lead: timedelta) -> Open | None:
    """Of the windows that hold a launch back now, the one that closes last."""
    if launch.state not in _HELD_BACK or launch.queued or launch.abort is not None:
        return None
    open_now = [
        each
        for each in near
        if each.occurrence.start - lead <= now < each.occurrence.end
        and concerns(launch, each.window)
        and not is_overridden(launch, each.window)
    ]
    return max(open_now, key=lambda each: each.occurrence.end, default=None)


def _thawed(launch: Launch, now: datetime) -> tuple[Launch, tuple[str, str] | None]:
    """No window holds it back any more: its deadlines go on from here."""
    frozen = launch.frozen
    if frozen is None:
        return launch, None
    after = replace(accounted(launch, now), frozen=None)
    if after.step.bake_start is None:
        # What a gate could not say of the steps before is no matter of the next one.
        after = replace(after, step=replace(after.step, held_since=None, gate_errors=0, erring=(), next_judge=None))
    if after.state is State.PREPARING and not after.reservation:
        # What was free when the plan was made says little about now.
        after = replace(after, plan_time=None)
    return after, ("Thawed", f"{frozen.freeze_window} holds it back no more, after {span(now - frozen.since)}")


def held_back(launch: Launch, action: Action) -> Action:
    """The act, or in its place HELD where a window is open: of several regions the others may still go on."""
    return HELD if launch.frozen is not None and _rises(launch, action) else action


def _rises(launch: Launch, action: Action) -> bool:
    """Whether an act starts a launch or raises weight. Capacity is reserved only for what can begin."""
    match action:
        case Apply(act=act):
            return act in (Act.START, Act.SHIFT)
        case Call(act=act):
            return launch.state is State.PREPARING and act in _BEGINS
        case _:
            return False


def words(frozen: Frozen) -> str:
    """Says why a launch waits, and until when."""
    reason = frozen.reason.rstrip(".")
    return f"waits until {frozen.end_time:%F %R} UTC, when {frozen.freeze_window} closes ({reason})"


def conflicts(launch: Launch, windows: Sequence[FreezeWindow], now: datetime, needs: timedelta) -> tuple[Conflict, ...]:
    """The occurrences that are open now or open before a launch is done, in their order.

    Args:
        launch: whose scope and overrides count.
        windows: all of them.
        now: when it goes on.
        needs: the time that it takes where nothing holds it back. What holds it back is added.
    """
    concerned = [window for window in windows if concerns(launch, window)]
    found: list[Conflict] = []
    done = now + needs
    while len(found) < _NAMED:
        later = [
            Conflict(window.name, window.reason, each.start, each.end, is_overridden(launch, window))
            for window in concerned
            for each in occurrences(window.schedule, now, done + timedelta(microseconds=1), most=_NAMED)
        ]
        found = sorted(later, key=lambda each: (each.start_time, each.freeze_window))[:_NAMED]
        then = _done(found, now, needs)
        if then <= done:
            break
        done = then
    return tuple(found)


def _done(found: Sequence[Conflict], now: datetime, needs: timedelta) -> datetime:
    """When a launch is done that stands still while a window is open, as far as these windows tell."""
    at, left = now, needs
    for each in found:
        if each.overridden or each.end_time <= at:
            continue
        if each.start_time > at + left:
            break
        left -= max(each.start_time - at, timedelta(0))
        at = each.end_time
    return at + left
