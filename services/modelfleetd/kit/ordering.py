"""The order of lists (AIP-132): one field, turned around by `desc`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from modelfleetd.errors import invalid

BY_NAME = "name"


@dataclass(frozen=True, slots=True)
class Order:
    """By which field, and whether from the end. What is equal is in the order of names."""

    field: str = BY_NAME
    descending: bool = False

    @property
    def position(self) -> tuple[type[str | int], ...]:
        """The types of what page tokens hold: the name, after the value where it is not that."""
        return (str,) if self.field == BY_NAME else (int, str)


def read(text: str, fields: Collection[str], name: str = "order_by") -> Order:
    """Returns the order that a text asks for; by name where it is empty.

    Args:
        text: of the order.
        fields: that can be ordered by.
        name: of its field in the request.

    Raises:
        InvalidFields: it is no order, or by another field.
    """
    field, *rest = text.split() or [BY_NAME]
    if field not in fields or rest not in ([], ["desc"]):
        raise invalid(name, f"must be one of {', '.join(fields)}, with ' desc' after it for the opposite order")
    return Order(field, bool(rest))
