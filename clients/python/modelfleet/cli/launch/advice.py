"""What people can type next for a launch: what ends a wait, and the command of each verb."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from modelfleet.cli import render
from modelfleet.launcher.v1 import launcher_pb2 as pb

# What ends a wait that the launcher does not end by itself, or need not; the launch's id for {0}, its step for {1}.
_ENDS: Final = {
    "AwaitingApproval": "modelfleet launch approve {0}",
    "EvidenceMissing": "the evidence (asked at once by modelfleet launch resume {0}), or modelfleet launch approve {0}",
    "AwaitingPeople": "modelfleet launch approve {0}",
    "Baking": "itself, or by modelfleet launch skip {0} --step {1} --reason WHY",
    "Frozen": "itself, or by modelfleet launch override {0} --window WINDOW --reason WHY",
    "Paused": "modelfleet launch resume {0}",
}
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
    "OverrideLaunchFreeze": "modelfleet launch override {0} --window WINDOW --reason WHY",
}


def ends_by(launch: pb.Launch, reason: str) -> str:
    """What ends a wait; empty where only what is waited for does."""
    command = _filled(_ENDS.get(reason, ""), launch)
    others = any(why.author.startswith("gate/") for why in launch.pause_reasons)
    return f"{command} --any-author" if reason == "Paused" and others else command


def commands(launch: pb.Launch) -> Iterator[tuple[str, str]]:
    """The verbs that are allowed now: each command, and who may give it."""
    for allowed in launch.allowed_verbs:
        verb, _, who = allowed.partition(" ")
        yield _filled(COMMANDS.get(verb, verb), launch), who.strip("()")


def _filled(command: str, launch: pb.Launch) -> str:
    return command.format(render.short(launch.name), launch.current_step)
