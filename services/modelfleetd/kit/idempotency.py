"""Answers that are given again when a call is repeated: the same request_id with the same content gets the same answer.

The answer is stored in the transaction that does the work, so either both are there or neither. A second call with the
same id waits at the table's key until the first has committed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from modelfleetd.errors import RequestIdReused
from modelfleetd.kit.db import Connection

Answer = TypeVar("Answer", bound=Message)

# For the first migration of each service.
TABLE = """
CREATE TABLE requests (
    request_id  uuid PRIMARY KEY,
    method      text NOT NULL,
    digest      bytea NOT NULL,
    response    bytea,
    create_time timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE requests IS 'Answers by request_id, given again when a call is repeated';
"""


async def once(conn: Connection, request: Any, answer: type[Answer], act: Callable[[], Awaitable[Answer]]) -> Answer:
    """Does what a request asks for unless its request_id was answered before; returns the answer.

    Args:
        conn: with the open transaction in which `act` writes.
        request: a message with the field `request_id`.
        answer: the class of the answer.
        act: does the work and makes the answer. Not called for a repetition.

    Raises:
        RequestIdReused: the id was used with other content.
    """
    if getattr(request, "validate_only", False):
        return await act()
    # The type of the request names the method: each has its own.
    method, digest = request.DESCRIPTOR.full_name, digest_of(request)
    is_new = await conn.fetchval(
        "INSERT INTO requests (request_id, method, digest) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true",
        request.request_id,
        method,
        digest,
    )
    if is_new:
        made = await act()
        await conn.execute(
            "UPDATE requests SET response = $2 WHERE request_id = $1", request.request_id, made.SerializeToString()
        )
        return made
    stored = await answered(conn, request, answer)
    if stored is None:
        raise RequestIdReused(request.request_id)
    return stored


async def answered(conn: Connection, request: Any, answer: type[Answer]) -> Answer | None:
    """Returns the answer that a request_id was given before; None where it is new.

    For methods that ask other services before they write: no transaction is open meanwhile, and `once` decides at the
    end.

    Raises:
        RequestIdReused: the id was used with other content.
    """
    if getattr(request, "validate_only", False):
        return None
    stored = await conn.fetchrow(
        "SELECT method, digest, response FROM requests WHERE request_id = $1", request.request_id
    )
    if stored is None:
        return None
    if stored["method"] != request.DESCRIPTOR.full_name or stored["digest"] != digest_of(request):
        raise RequestIdReused(request.request_id)
    return answer.FromString(stored["response"])


def digest_of(request: Message) -> bytes:
    """Returns the digest of a request's content, its request_id left out."""
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()
