"""Errors of other services as our own: what an act's refusal means is decided on `FleetError`s."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from modelfleet.errors import DeadlineExceeded, ModelfleetError, Unavailable
from modelfleetd import errors
from modelfleetd.errors import DeadlinePassed, FleetError, PartUnavailable
from modelfleetd.kit import deadline

_TIMEOUT = 5.0
# A call that hangs leaves the rest, for its caller to write down that it did.
_SHARE = 0.6

# What these say is not that the act was refused: it may have happened, or may happen if it is tried again.
_UNDECIDED = frozenset(
    {
        errors.Code.UNAVAILABLE,
        errors.Code.DEADLINE_EXCEEDED,
        errors.Code.CANCELLED,
        errors.Code.INTERNAL,
        errors.Code.UNKNOWN,
        errors.Code.UNAUTHENTICATED,
        errors.Code.PERMISSION_DENIED,
        errors.Code.UNIMPLEMENTED,
    }
)


def timeout() -> float:
    """Returns the seconds that a call may take: clearly less than what is left of the work that it is part of."""
    left = deadline.remaining()
    if left is not None and left <= 0:
        raise DeadlinePassed
    return _TIMEOUT if left is None else min(_TIMEOUT, _SHARE * left)


@contextmanager
def translated(part: str) -> Iterator[None]:
    """Raises what a service answered as the FleetError that it was there.

    Args:
        part: the service, for what is said when it does not answer.
    """
    try:
        yield
    except Unavailable as error:
        raise PartUnavailable(error.metadata.get("part", part)) from error
    except DeadlineExceeded as error:
        raise DeadlinePassed from error
    except ModelfleetError as error:
        raise _fleet_error(error) from error


def is_undecided(error: FleetError) -> bool:
    """Whether an act that failed so may have happened, or may yet: it is repeated with its own key."""
    return error.code in _UNDECIDED or isinstance(error, errors.Overloaded)


@functools.cache
def _classes() -> dict[str, type[FleetError]]:
    return {kind.reason: kind for kind in FleetError.__subclasses__()}


def _fleet_error(error: ModelfleetError) -> FleetError:
    kind = _classes().get(error.reason)
    if kind is None:
        made = FleetError(error.message, retry_after=error.retry_after)
        made.metadata = dict(error.metadata)
        return made
    # Its constructor makes the message from the data; here the message has come already.
    made = kind.__new__(kind)
    FleetError.__init__(made, error.message, retry_after=error.retry_after)
    made.metadata = dict(error.metadata)
    made.violations = tuple(errors.FieldViolation(v.field, v.description) for v in error.violations)
    return made
