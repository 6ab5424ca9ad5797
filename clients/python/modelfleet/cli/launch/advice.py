"""What people can type next for a launch: what ends a wait, and the command of each verb."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from modelfleet.cli import render
from modelfleet.launcher.v1 import launcher_pb2 as pb

# What ends a wait that the launcher does not end by itself, or need not; the launch's id for {0},
# its step for {1}, the first freeze window in its way for {2}.
_ENDS: Final = {
    "AwaitingApproval": "modelfleet launch approve {0}",
    "EvidenceMissing": "the evidence (asked at once by modelfleet launch resume {0}), or modelfleet launch approve {0}",
    "AwaitingPeople": "modelfleet launch approve {0}",
    "Baking": "itself, or by modelfleet launch skip {0} --step {1} --reason WHY",
    "Frozen": "itself, or by modelfleet launch override {0} --window {2} --reason WHY",
}
# The author of a mitigation's pause: this, and its launch's id.
_MITIGATION: Final = "mitigation/"
COMMANDS: Final = {
    "PauseLaunch": "modelfleet launch pause {0} --reason WHY",
    "ResumeLaunch": "modelfleet launch resume {0}",
    "SkipLaunchStep": "modelfleet launch skip {0} --step {1} --reason WHY",
    "PromoteLaunch": "modelfleet launch promote {0} --reason WHY",
    "AbortLaunch": "modelfleet launch abort {0} --reason WHY",
    "ApproveLaunch": "modelfleet launch approve {0}",
    "RejectLaunch": "modelfleet launch reject {0} --reason WHY",
    "RetryLaunch": "modelfleet launch retry {0} --reason WHY",
    "RollBackLaunch": "modelfleet launch rollback {0} --reason WHY",
    "OverrideLaunchFreeze": "modelfleet launch override {0} --window {2} --reason WHY",
}


def ends_by(launch: pb.Launch, reason: str) -> str:
    """What ends a wait; empty where only what is waited for does."""
    return _filled(_ENDS.get(reason, ""), launch)


def pause_ends_by(launch: pb.Launch, why: pb.PauseReason) -> str:
    """What ends a pause: of a mitigation only its end, of a gate who resumes for all, of a person themselves."""
    if is_mitigation(why):
        return f"the end of launches/{why.author.removeprefix(_MITIGATION)}, not by resume"
    command = _filled("modelfleet launch resume {0}", launch)
    return f"{command} --any-author" if why.author.startswith("gate/") else command


def is_mitigation(why: pb.PauseReason) -> bool:
    """Whether a launch is paused by a mitigation on its route, which no `resume` ends."""
    return why.author.startswith(_MITIGATION)


def commands(launch: pb.Launch) -> Iterator[tuple[str, str]]:
    """The verbs that are allowed now: each command, and who may give it; an override where a window is in the way."""
    frozen = any(not each.overridden for each in launch.plan.freeze_conflicts)
    for allowed in launch.allowed_verbs:
        verb, _, who = allowed.partition(" ")
        if verb == "OverrideLaunchFreeze" and not frozen:
            continue
        yield _filled(COMMANDS.get(verb, verb), launch), who.strip("()")


def _filled(command: str, launch: pb.Launch) -> str:
    closed = [each.freeze_window for each in launch.plan.freeze_conflicts if not each.overridden]
    window = render.short(closed[0]) if closed else "WINDOW"
    return command.format(render.short(launch.name), launch.current_step, window)
