"""Refuses requests that break what the protos declare, naming every wrong field at once."""

from __future__ import annotations

from typing import Any

from modelfleetd.errors import InvalidFields
from modelfleetd.kit.interceptors.base import Check, CheckingInterceptor, Context
from modelfleetd.kit.method import Method
from modelfleetd.kit.validation import plan_of


class ValidationInterceptor(CheckingInterceptor):
    """Runs the plan that kit.validation compiles from the request's descriptor."""

    def prepare(self, method: Method) -> Check | None:
        plan = plan_of(method.request.DESCRIPTOR)
        if plan is None:
            return None

        async def check(request: Any, _context: Context) -> None:
            if violations := plan(request):
                raise InvalidFields(violations)

        return check
