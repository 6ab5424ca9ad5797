"""Everything that a call may raise.

ModelfleetError
├── InvalidArgument       the request is wrong: `.violations` names each field and what would be accepted
├── NotFound
├── AlreadyExists         also: a request_id used again with other content
├── FailedPrecondition    the system is not in the state that the call needs
├── Aborted               somebody else was faster: read again, decide again
├── OutOfRange            a revision that is gone or not there yet
├── PermissionDenied
├── Unauthenticated
├── ResourceExhausted     quota, or an overloaded server: `.retry_after`
├── Unavailable           the server, or a part that it needs, does not answer: try again
├── DeadlineExceeded
├── Cancelled
├── Unimplemented         the server is older than the client
└── Internal              a defect: report it with `.trace_id`

Branch on the class, or on `.reason`, one of modelfleet.common.v1.ErrorReason; never on the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field of a request: its path, and what would be accepted."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Precondition:
    """What has to be different before a call can succeed: of which resource, and what is wrong there."""

    subject: str
    description: str


class ModelfleetError(Exception):
    """A call that was refused or failed."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        preconditions: tuple[Precondition, ...] = (),
        retry_after: float | None = None,
        method: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        # Name of a modelfleet.common.v1.ErrorReason; empty where the answer did not come from a service of ours.
        self.reason = reason
        # Every variable of the message.
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = violations
        # As many as there was room for.
        self.preconditions = preconditions
        # Seconds after which to try again, where the server says so.
        self.retry_after = retry_after
        # What was called: /modelfleet.registry.v1.RegistryService/GetTeam.
        self.method = method

    @property
    def trace_id(self) -> str | None:
        """Trace id to quote in a report of a defect; None for other errors."""
        return self.metadata.get("trace_id")


class InvalidArgument(ModelfleetError):
    """The request is wrong."""


class NotFound(ModelfleetError):
    """What the request names does not exist."""


class AlreadyExists(ModelfleetError):
    """It exists already, or the request_id was used before with other content."""


class FailedPrecondition(ModelfleetError):
    """The system is not in the state that the call needs."""


class Aborted(ModelfleetError):
    """Somebody else was faster: read again, decide again."""


class OutOfRange(ModelfleetError):
    """A revision that is gone or not there yet."""


class PermissionDenied(ModelfleetError):
    """The caller's roles do not permit it."""


class Unauthenticated(ModelfleetError):
    """The call carries no identity, or one that cannot be verified."""


class ResourceExhausted(ModelfleetError):
    """Too little quota, or a server that has too much to do."""


class Unavailable(ModelfleetError):
    """The server, or a part that it needs, does not answer now."""


class DeadlineExceeded(ModelfleetError):
    """The deadline of the call passed."""


class Cancelled(ModelfleetError):
    """The call was cancelled."""


class Unimplemented(ModelfleetError):
    """The server does not know the method: it is older than the client."""


class Internal(ModelfleetError):
    """A defect of the service."""


_CLASSES: Mapping[grpc.StatusCode, type[ModelfleetError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNKNOWN: Internal,
    grpc.StatusCode.DATA_LOSS: Internal,
}


def from_rpc_error(error: Any, method: str = "") -> ModelfleetError:
    """Returns the exception of a failed call.

    Args:
        error: a grpc.RpcError, of the sync or the async API.
        method: what was called, as a path.
    """
    from google.rpc import error_details_pb2, status_pb2

    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    reason, metadata, retry_after = "", {}, None
    violations: list[Violation] = []
    preconditions: list[Precondition] = []
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS_KEY:
            continue
        for packed in status_pb2.Status.FromString(value).details:
            kind = packed.type_url.rpartition(".")[2]
            if kind == "ErrorInfo":
                info = error_details_pb2.ErrorInfo.FromString(packed.value)
                reason, metadata = info.reason, dict(info.metadata)
            elif kind == "BadRequest":
                request = error_details_pb2.BadRequest.FromString(packed.value)
                violations += [Violation(v.field, v.description) for v in request.field_violations]
            elif kind == "PreconditionFailure":
                failure = error_details_pb2.PreconditionFailure.FromString(packed.value)
                preconditions += [Precondition(v.subject, v.description) for v in failure.violations]
            elif kind == "RetryInfo":
                delay = error_details_pb2.RetryInfo.FromString(packed.value).retry_delay
                retry_after = delay.seconds + delay.nanos / 1e9
    return _CLASSES.get(code, ModelfleetError)(
        message,
        code=code,
        reason=reason,
        metadata=metadata,
        violations=tuple(violations),
        preconditions=tuple(preconditions),
        retry_after=retry_after,
        method=method,
    )
