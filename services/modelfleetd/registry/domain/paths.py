"""Paths of fields: `labels.owner`, `serving_spec.flavor`. Keys that are no plain words stand in backticks (AIP-161)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_SEGMENT = re.compile(r"([A-Za-z0-9_-]+)|`((?:[^`]|``)*)`")


def join(segments: Sequence[str]) -> str:
    """Returns the path of these segments."""
    return ".".join(
        segment if _PLAIN.fullmatch(segment) else "`" + segment.replace("`", "``") + "`" for segment in segments
    )


def split(path: str) -> tuple[str, ...] | None:
    """Returns the segments of a path, or None where it is not one."""
    segments: list[str] = []
    at = 0
    while (found := _SEGMENT.match(path, at)) is not None:
        segments.append(found[1] if found[1] is not None else found[2].replace("``", "`"))
        at = found.end()
        if at == len(path):
            return tuple(segments)
        if path[at] != ".":
            return None
        at += 1
    return None
