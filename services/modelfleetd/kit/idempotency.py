"""Answers that are given again when a call is repeated: the same request_id with the same content gets the same answer.

The answer is stored in the transaction that does the work, so either both are there or neither. A second call with the
same id waits at the table's key until the first has committed.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
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


KNOWN = "SELECT request_id, method, digest, response FROM requests WHERE request_id = ANY($1)"
REMEMBER = """
INSERT INTO requests (request_id, method, digest, response)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[]) ON CONFLICT DO NOTHING
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
    return again(request, answer, (await known(conn, [request.request_id])).get(request.request_id))


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that was given."""

    request_id: str
    method: str
    digest: bytes
    response: bytes


def answer_of(request: Any, answer: Message) -> Answered:
    """Returns the answer to a request as it is stored."""
    return Answered(
        str(uuid.UUID(request.request_id)), request.DESCRIPTOR.full_name, digest_of(request), answer.SerializeToString()
    )


async def known(conn: Connection, request_ids: Collection[str]) -> dict[str, Answered]:
    """Returns the answers that were given to some request_ids, by request_id as it was asked for."""
    rows = await conn.fetch(KNOWN, list(request_ids))
    found = {row["request_id"]: row for row in rows}
    return {
        asked: Answered(str(row["request_id"]), row["method"], row["digest"], row["response"])
        for asked in request_ids
        if (row := found.get(uuid.UUID(asked))) is not None
    }


def again(request: Any, answer: type[Answer], given: Answered | None) -> Answer | None:
    """Returns the answer that was given to a request before; None where none was.

    Raises:
        RequestIdReused: it was given to another request with the same id.
    """
    if given is None:
        return None
    if given.method != request.DESCRIPTOR.full_name or given.digest != digest_of(request):
        raise RequestIdReused(request.request_id)
    return answer.FromString(given.response)


def digest_of(request: Message) -> bytes:
    """Returns the digest of a request's content, its request_id left out."""
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


async def remember(conn: Connection, answers: Sequence[Answered]) -> bool:
    """Stores answers that were given in this transaction. False where one was answered elsewhere meanwhile."""
    done = await conn.execute(
        REMEMBER,
        [answer.request_id for answer in answers],
        [answer.method for answer in answers],
        [answer.digest for answer in answers],
        [answer.response for answer in answers],
    )
    return done == f"INSERT 0 {len(answers)}"
