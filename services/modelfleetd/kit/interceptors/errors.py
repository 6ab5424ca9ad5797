"""Turns whatever is raised into the answer that the caller gets. The only place that aborts a call."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

import grpc

from modelfleet.errors import DeadlineExceeded, ModelfleetError, Unavailable
from modelfleetd.errors import Code, DeadlinePassed, FleetError, InternalError, PartUnavailable, RefusedElsewhere
from modelfleetd.kit import deadline, status
from modelfleetd.kit.call import current_call
from modelfleetd.kit.interceptors.base import Context, Stream, Unary
from modelfleetd.kit.method import Method

_log = logging.getLogger(__name__)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ErrorsInterceptor:
    """Answers with a canonical code and details; an unexpected exception with INTERNAL, its words only in the log."""

    def unary(self, method: Method, inner: Unary) -> Unary:
        async def guarded(request: Any, context: Context) -> Any:
            try:
                return await inner(request, context)
            except Exception as error:  # noqa: BLE001
                await _refuse(context, error)

        return guarded

    def stream(self, method: Method, inner: Stream) -> Stream:
        async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async with aclosing(inner(request, context)) as answers:  # type: ignore[type-var]
                    async for answer in answers:
                        yield answer
            except Exception as error:  # noqa: BLE001
                await _refuse(context, error)

        return guarded


async def _refuse(context: Context, raised: Exception) -> NoReturn:
    call = current_call()
    error = _as_fleet_error(raised, call.method.path, f"{call.trace_id:032x}")
    call.code = error.code
    if error.code is not Code.INTERNAL:
        _log.debug("%s refused: %s", call.method.name, error.reason)
    await context.abort(_CODES[error.code], error.message[:1000], trailing_metadata=status.trailing_metadata(error))


def _as_fleet_error(raised: Exception, method: str, trace_id: str) -> FleetError:
    if isinstance(raised, FleetError):
        return raised
    if isinstance(raised, TimeoutError):
        return DeadlinePassed()
    if isinstance(raised, ModelfleetError) and (passed_on := _pass_on(raised)) is not None:
        return passed_on
    _log.error("%s failed unexpectedly", method, exc_info=raised)
    return InternalError(trace_id)


# What the caller can act upon, whichever service says it. Anything else that another service answers to a call of ours
# (a wrong field, a missing role) is a defect of ours.
_PASSED_ON = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


def _pass_on(answered: ModelfleetError) -> FleetError | None:
    """Returns what our caller is told of another service's answer; None where it is no business of theirs."""
    if isinstance(answered, (Unavailable, DeadlineExceeded)):
        if deadline.remaining() == 0:
            return DeadlinePassed()
        # /modelfleet.registry.v1.RegistryService/GetTeam: the registry.
        part = answered.metadata.get("part") or answered.method.removeprefix("/modelfleet.").partition(".")[0]
        return PartUnavailable(part or "another service", answered.retry_after)
    if answered.code in _PASSED_ON and answered.reason:
        return RefusedElsewhere(Code[answered.code.name], answered.reason, answered.message, answered.metadata)
    return None
