"""Page sizes and page tokens. A token holds the position after the last row, bound to the request that it came from.

A page ends early where it would become too large for a message: the next one goes on from there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from modelfleetd.errors import InvalidPageToken, invalid

Row = TypeVar("Row")
M = TypeVar("M", bound=Message)
Position = tuple[str | int, ...]

DEFAULT_SIZE = 50
MAX_SIZE = 1000
# Of the rows of a page. Callers take messages of 4 MiB at least, and there is more in an answer than rows.
MAX_BYTES = 3 << 20
_MOST_PARTS = 8
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHECK_BYTES = 9
# Fields that may change from page to page.
_UNBOUND = ("page_token", "page_size", "min_revision")


@dataclass(frozen=True, slots=True)
class Page:
    """The page that a request asks for."""

    size: int
    # Key of the last row of the page before; None on the first page.
    position: Position | None
    scope: bytes

    def cut(
        self, rows: Sequence[Row], key: Callable[[Row], Position], size: Callable[[Row], int] | None = None
    ) -> tuple[Sequence[Row], str]:
        """Returns the rows of the page and the token of the next one.

        Args:
            rows: up to `size + 1` rows: the one too many tells that there are more.
            key: of a row: strings and integers that the next query continues after.
            size: bytes of a row in the answer; without, rows that are messages are measured, others count for nothing.
        """
        kept = self._fitting(map(size or _bytes_of, rows[: self.size]))
        if kept == len(rows):
            return rows, ""
        return rows[:kept], encode(self.scope, key(rows[kept - 1]))

    def answer(
        self, rows: Sequence[Row], key: Callable[[Row], Position], message_of: Callable[[Row], M]
    ) -> tuple[Sequence[M], str]:
        """Returns the messages of the page's rows and the token of the next page; see `cut`."""
        messages: list[M] = []

        def made() -> Iterator[int]:
            for row in rows[: self.size]:
                messages.append(message_of(row))
                yield messages[-1].ByteSize()

        kept = self._fitting(made())
        token = "" if kept == len(rows) else encode(self.scope, key(rows[kept - 1]))
        return messages[:kept], token

    def _fitting(self, sizes: Iterable[int]) -> int:
        """Returns how many rows fit into one answer: at least one, which is an answer to whoever asks for it alone."""
        count = total = 0
        for size in sizes:
            total += size
            if count and total > MAX_BYTES:
                break
            count += 1
        return count


def read(request: Any, *kinds: type[str | int]) -> Page:
    """Returns the page that a request with `page_size` and, where it has one, `page_token` asks for.

    Args:
        request: of a method that lists.
        kinds: of the parts of its positions, `str` or `int`; where they are given, others are refused.

    Raises:
        InvalidPageToken: the token is damaged, or of another request (filter, order, parent).
        InvalidFields: the size is negative.
    """
    scope = _scope(request)
    token = getattr(request, "page_token", "")
    position = decode(scope, token) if token else None
    if position is not None and kinds and tuple(map(type, position)) != kinds:
        raise InvalidPageToken
    return Page(page_size(request.page_size), position, scope)


def page_size(asked: int) -> int:
    """Returns the size of a page: the default for 0, never more than the most.

    Raises:
        InvalidFields: it is negative.
    """
    if asked < 0:
        raise invalid("page_size", "must be 0 (the default) or more")
    return min(asked or DEFAULT_SIZE, MAX_SIZE)


def encode(scope: bytes, position: Position) -> str:
    """Returns the token of a position within a scope."""
    body = json.dumps(position, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_check(scope, body) + body).decode().rstrip("=")


def decode(scope: bytes, token: str) -> Position:
    """Returns the position in a token.

    Raises:
        InvalidPageToken: it is damaged or of another scope.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        check, body = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
        if check != _check(scope, body):
            raise InvalidPageToken
        return _position(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise InvalidPageToken from error


def _position(value: object) -> Position:
    """Returns a position: whoever can compute the check can write anything into a token."""
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_PARTS:
        raise InvalidPageToken
    for part in value:
        if type(part) is int:
            fits = -(2**63) <= part < 2**63
        else:
            # What PostgreSQL takes as text.
            fits = isinstance(part, str) and "\0" not in part and not _SURROGATE.search(part)
        if not fits:
            raise InvalidPageToken
    return tuple(value)


def _bytes_of(row: object) -> int:
    return row.ByteSize() if isinstance(row, Message) else 0


def _check(scope: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(scope + body, digest_size=_CHECK_BYTES).digest()


def _scope(request: Message) -> bytes:
    bound = type(request)()
    bound.CopyFrom(request)
    for field in _UNBOUND:
        if field in request.DESCRIPTOR.fields_by_name:
            bound.ClearField(field)
    content = request.DESCRIPTOR.full_name.encode() + b"\0" + bound.SerializeToString(deterministic=True)
    return hashlib.blake2b(content, digest_size=16).digest()
