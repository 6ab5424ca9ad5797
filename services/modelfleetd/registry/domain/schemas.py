"""Schemas of extended attributes, as an organisation registers them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelfleetd.registry.domain.resource import CREATION, DERIVED, Json, Resource


class SchemaTarget(enum.Enum):
    """Whose attributes a schema is about."""

    MODEL_TYPE = "MODEL_TYPE"
    MODEL = "MODEL"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionSchema(Resource):
    """A JSON Schema that the attributes of entries of one kind must fulfil."""

    target: SchemaTarget | None = field(default=None, metadata=CREATION)
    description: str = ""
    schema: Mapping[str, Json] = field(default_factory=dict)
    filterable: tuple[str, ...] = ()
    version: int = field(default=0, metadata=DERIVED)
