"""The ids of the trace that the work at hand belongs to: a call's, or a launch's that a worker carries on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from modelfleetd.kit.call import find_call


@dataclass(frozen=True, slots=True)
class Ids:
    """Where in which trace."""

    trace_id: int
    span_id: int
    sampled: bool

    @property
    def traceparent(self) -> str:
        """The header that carries them on (W3C Trace Context)."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"


_ids: ContextVar[Ids | None] = ContextVar("modelfleet_trace", default=None)


def current_ids() -> Ids | None:
    """Returns the ids of the work at hand; None outside of any trace."""
    ids = _ids.get()
    if ids is None and (call := find_call()) is not None:
        return Ids(call.trace_id, call.span_id, call.sampled)
    return ids


@contextmanager
def enter_ids(ids: Ids) -> Iterator[None]:
    """Makes them the ids of what is done inside."""
    token = _ids.set(ids)
    try:
        yield
    finally:
        _ids.reset(token)
