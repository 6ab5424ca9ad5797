"""What is known of the call at hand: set by the outermost interceptor, completed by the next, readable everywhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelfleetd.errors import Code

if TYPE_CHECKING:
    from modelfleetd.kit.auth import Principal
    from modelfleetd.kit.method import Method


@dataclass(slots=True)
class Call:
    """One call of one method."""

    method: Method
    # What the caller sent beside the request; of repeated keys the last.
    metadata: Mapping[str, Any]
    trace_id: int
    span_id: int
    sampled: bool
    principal: Principal | None = None
    # Raises RoleMissing unless the caller may call this very method on a team; set by the permission interceptor.
    expect_role_on: Callable[[str], Awaitable[None]] | None = None
    # How it ended; OK until an interceptor knows better.
    code: Code = Code.OK


_current: ContextVar[Call | None] = ContextVar("modelfleet_call", default=None)


def current_call() -> Call:
    """Returns the call at hand.

    Raises:
        LookupError: outside of a call.
    """
    call = _current.get()
    if call is None:
        raise LookupError("not inside a call")
    return call


def find_call() -> Call | None:
    """Returns the call at hand, or None outside of one."""
    return _current.get()


def enter_call(call: Call) -> None:
    """Makes it the call at hand. Never undone: every call runs in a task, and so in a context, of its own."""
    _current.set(call)
