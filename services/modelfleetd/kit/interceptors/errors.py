"""Turns whatever is raised into the answer that the caller gets. The only place that aborts a call."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

import grpc

from modelfleetd.errors import Code, DeadlinePassed, FleetError, InternalError
from modelfleetd.kit import status
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
    _log.error("%s failed unexpectedly", method, exc_info=raised)
    return InternalError(trace_id)
