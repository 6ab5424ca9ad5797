"""Regular expressions that people write into the ledger: RE2's syntax, matched in linear time whatever they say."""

from __future__ import annotations

import functools
from typing import Protocol

import re2

# Of the compiled form: what needs more is refused when it is written.
_MOST_MEMORY = 1 << 20


class Expression(Protocol):
    """A compiled regular expression."""

    def search(self, text: str) -> object | None:
        """Returns something where it matches anywhere in a text."""

    def fullmatch(self, text: str) -> object | None:
        """Returns something where it matches the whole of a text."""


@functools.lru_cache(maxsize=1000)
def expression(pattern: str) -> Expression:
    """Returns a compiled pattern.

    Raises:
        ValueError: it is none; says what is wrong with it.
    """
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MOST_MEMORY
    try:
        compiled: Expression = re2.compile(pattern, options)
    except re2.error as error:
        words = error.args[0]
        raise ValueError(words.decode(errors="replace") if isinstance(words, bytes) else str(words)) from None
    return compiled


def what_is_wrong_with(pattern: str) -> str | None:
    """Returns what would be accepted instead of a pattern that is none; None where it is one."""
    try:
        expression(pattern)
    except ValueError as error:
        return f"must be a regular expression in RE2's syntax, without look-around and back references: {error}"
    return None
