"""Updates: the fields that they name."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def updated(current: M, given: M, mask: FieldMask, editable: Collection[str]) -> M:
    """Returns a resource with the fields that an update names: those of the mask, else all that are set.

    Args:
        current: the resource as it is.
        given: the resource of the request.
        mask: of the request; `*` names every editable field.
        editable: fields that a caller may change; others are passed over.
    """
    named = {path.partition(".")[0] for path in mask.paths} or {field.name for field, _ in given.ListFields()}
    paths = [field for field in sorted(editable) if field in named or "*" in named]
    made = type(current)()
    made.CopyFrom(current)
    FieldMask(paths=paths).MergeMessage(given, made, replace_message_field=True, replace_repeated_field=True)
    return made
