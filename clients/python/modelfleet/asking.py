"""Asks several services at once, all of them until the same moment; what one cannot answer is said in its place."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from modelfleet.errors import DeadlineExceeded, ModelfleetError, Unavailable, Unimplemented

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unknown:
    """Stands where an answer would, and says why there is none."""

    reason: str


Answer: TypeAlias = T | Unknown

_SERVICES: Final = ("registry", "capacity", "launcher", "stability")


class Asking:
    """One question to a fleet, made of many calls that end together."""

    def __init__(self, within: float) -> None:
        """Begins now.

        Args:
            within: seconds until every call has ended, one way or the other.
        """
        self.within = within
        self._begin = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begin

    async def ask(self, method: Callable[..., Awaitable[T]], *, part: float = 1.0, **fields: Any) -> Answer[T]:
        """Calls a method of a service's client; gives Unknown where there is no answer, for whatever reason.

        Args:
            method: such as `client.registry.get_team`.
            part: of the time after which the answer has to be there: less than 1 where other calls need it.
            fields: of the request.
        """
        try:
            return await self.expect(method, part=part, **fields)
        except ModelfleetError as error:
            return Unknown(self.why(error))

    async def expect(self, method: Callable[..., Awaitable[T]], *, part: float = 1.0, **fields: Any) -> T:
        """Calls a method likewise, where an error says more than that there is no answer.

        Raises:
            ModelfleetError: there is none.
        """
        # A call needs a deadline that is not over; this one is over at once.
        return await method(timeout=max(part * self.within - self.elapsed, 0.001), **fields)

    def why(self, error: ModelfleetError) -> str:
        """Returns why a call was not answered, in a few words for people."""
        path, _, method = error.method.lstrip("/").partition("/")
        service = next((name for name in _SERVICES if f".{name}." in path), "service")
        if isinstance(error, DeadlineExceeded):
            return f"{service} did not answer within {self.within:g} s"
        if isinstance(error, Unimplemented):
            return f"{service} does not offer {method} here"
        if isinstance(error, Unavailable) and not error.reason:
            return f"{service} does not answer"
        return error.message.rstrip(".")
