"""What the launcher says, in the words of the command line: options for fields, commands for methods."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from modelfleet.cli import session
from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.launch.advice import COMMANDS
from modelfleet.errors import FailedPrecondition, ModelfleetError, PermissionDenied

_F = TypeVar("_F", bound=Callable[..., Any])

# The option or argument of each field that commands about launches set; those of freeze windows are in `freeze`.
FLAGS: Final = {
    "reason": "--reason",
    "launch_id": "--id",
    "expected_step": "--step",
    "envelope_digest": "--envelope",
    "freeze_window": "--window",
    "start_time": "--since",
    "team": "--team",
    "surface": "--surface",
    "hold.model": "TYPE/MODEL",
    "hold.reason": "--reason",
    "hold_id": "--id",
    "launch.model_type": "TYPE/MODEL",
    "launch.candidate": "TYPE/MODEL",
    "launch.pool": "--pool",
    "launch.strategy": "--strategy",
    "launch.target_share_basis_points": "--share",
    "launch.holdout_share_basis_points": "--holdout",
    "launch.regions": "--region",
    "launch.reason": "--reason",
    "launch.freeze_overrides": "--override",
    "launch.freeze_overrides.freeze_window": "--override",
    "launch.policy.region_order": "--region-order",
    "launch.policy.max_step_basis_points": "--max-step",
    "launch.policy.max_steps": "--max-steps",
    "launch.policy.bake_duration": "--bake",
    "launch.policy.step_deadline": "--step-deadline",
    "launch.policy.launch_deadline": "--deadline",
    "launch.policy.rollback_window": "--rollback-window",
    "launch.policy.approval": "--approval",
    "launch.policy.availability_gate.max_error_rate_increase_basis_points": "--max-error-rate-increase",
    "launch.policy.availability_gate.max_error_rate_basis_points": "--max-error-rate",
    "launch.policy.availability_gate.max_latency_p99_increase": "--max-latency-increase",
    "launch.policy.availability_gate.max_latency_p99_ms": "--max-latency",
    "launch.policy.webhook_gates": "--webhook",
    "launch.policy.people_gates": "--ask-people",
}
# `modelfleet launch pause {0} …` → `pause`.
_VERBS: Final = {method: command.split()[2] for method, command in COMMANDS.items()} | {
    "CreateLaunch": "create",
    "CreateHold": "hold create",
    "LiftHold": "hold lift",
    "CreateFreezeWindow": "freeze create",
    "UpdateFreezeWindow": "freeze update",
    "DeleteFreezeWindow": "freeze delete",
}
_METHODS: Final = re.compile(rf"\b({'|'.join(_VERBS)})\b")


def with_session(command: _F) -> _F:
    """As the session's; what is refused is told in the words of the command line."""

    @session.with_session
    @functools.wraps(command)
    def told(*args: Any, **kwargs: Any) -> Any:
        with told_in_flags(FLAGS), told_in_verbs():
            return command(*args, **kwargs)

    return told  # type: ignore[return-value]


@contextmanager
def told_in_verbs() -> Iterator[None]:
    """Says under the names of the commands what may be done instead; programs find the methods in the metadata."""
    try:
        yield
    except (FailedPrecondition, PermissionDenied) as error:
        message = _METHODS.sub(lambda method: _VERBS[method[1]], error.message)
        if message == error.message:
            raise
        raise _saying(error, message) from error


def _saying(error: ModelfleetError, message: str) -> ModelfleetError:
    return type(error)(
        message,
        code=error.code,
        reason=error.reason,
        metadata=error.metadata,
        preconditions=error.preconditions,
        method=error.method,
    )
