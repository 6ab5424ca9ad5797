"""A FleetError as google.rpc.Status, in the trailing metadata where gRPC clients look for it."""

from __future__ import annotations

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from modelfleetd.errors import FleetError

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "modelfleet"
# Trailers beyond 8 KiB are dropped on the way, with everything in them.
_MAX_BYTES = 6000
_MAX_VALUE = 500


def trailing_metadata(error: FleetError) -> tuple[tuple[str, bytes], ...]:
    """Returns the trailing metadata of the answer to a call that is refused."""
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


def to_status(error: FleetError) -> status_pb2.Status:
    """Returns the status: one ErrorInfo, and the details that fit the error."""
    made = status_pb2.Status(code=int(error.code), message=error.message[:1000])
    metadata = {key: value[:_MAX_VALUE] for key, value in error.metadata.items()}
    _add(made, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.retry_after is not None:
        seconds, nanos = divmod(round(error.retry_after * 1e9), 1_000_000_000)
        _add(made, error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds, nanos=nanos)))
    if error.preconditions:
        _add(made, _precondition_failure(error, _MAX_BYTES - made.ByteSize()))
    if error.quota:
        quota = error_details_pb2.QuotaFailure()
        for shortage in error.quota:
            subject = f"{shortage.pool}/{shortage.flavor}/{shortage.region}"
            quota.violations.add(subject=subject, description=str(shortage))
        _add(made, quota)
    if error.violations:
        _add(made, _bad_request(error, _MAX_BYTES - made.ByteSize()))
    return made


def _precondition_failure(error: FleetError, room: int) -> error_details_pb2.PreconditionFailure:
    """Returns as many of the preconditions as there is room for: a schema may invalidate thousands of entries."""
    failure = error_details_pb2.PreconditionFailure()
    for each in error.preconditions:
        failure.violations.add(type=each.type, subject=each.subject, description=each.description[:_MAX_VALUE])
        if failure.ByteSize() > room:
            del failure.violations[-1]
            break
    return failure


def _bad_request(error: FleetError, room: int) -> error_details_pb2.BadRequest:
    """Returns as many of the violations as there is room for: a request may have thousands of wrong fields."""
    request = error_details_pb2.BadRequest()
    for violation in error.violations:
        request.field_violations.add(field=violation.path[:_MAX_VALUE], description=violation.description[:_MAX_VALUE])
        if request.ByteSize() > room:
            del request.field_violations[-1]
            break
    return request


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
