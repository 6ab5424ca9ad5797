"""Page sizes and page tokens. A token holds the position after the last row, bound to the request that it came from."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from modelfleetd.errors import InvalidPageToken, invalid

Row = TypeVar("Row")
Position = tuple[str | int, ...]

DEFAULT_SIZE = 50
MAX_SIZE = 1000
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

    def cut(self, rows: Sequence[Row], key: Callable[[Row], Position]) -> tuple[Sequence[Row], str]:
        """Returns the rows of the page and the token of the next one.

        Args:
            rows: up to `size + 1` rows: the one too many tells that there are more.
            key: of a row: strings and integers that the next query continues after.
        """
        if len(rows) <= self.size:
            return rows, ""
        return rows[: self.size], encode(self.scope, key(rows[self.size - 1]))


def read(request: Any) -> Page:
    """Returns the page that a request with `page_size` and, where it has one, `page_token` asks for.

    Raises:
        InvalidPageToken: the token is damaged, or of another request (filter, order, parent).
        InvalidFields: the size is negative.
    """
    scope = _scope(request)
    token = getattr(request, "page_token", "")
    return Page(page_size(request.page_size), decode(scope, token) if token else None, scope)


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
        return tuple(json.loads(body))
    except ValueError as error:
        raise InvalidPageToken from error


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
