"""Extended attributes: what the schemas of an organisation ask of them, and how these schemas change."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from modelfleetd.errors import FieldViolation, invalid
from modelfleetd.registry.domain.edits import changed, created, current, deleted, refuse_existing
from modelfleetd.registry.domain.identity import Same
from modelfleetd.registry.domain.json_schema import JsonSchema, scalar_properties, what_is_wrong
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.masks import merge
from modelfleetd.registry.domain.resource import Json
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.rules import MAX_PROSE
from modelfleetd.registry.domain.schemas import ExtensionSchema, SchemaTarget
from modelfleetd.registry.domain.violations import Violations

MAX_FILTERABLE: Final = 20
# Of one target: each write of an entry is checked against all of them.
MAX_SCHEMAS: Final = 50


@functools.lru_cache(maxsize=2 * 2 * MAX_SCHEMAS)
def _compiled(schema: Same[ExtensionSchema]) -> JsonSchema:
    return JsonSchema(schema.value.schema)


def violations_of(schema: ExtensionSchema, attributes: Mapping[str, Json], path: str) -> list[FieldViolation]:
    """Returns what a schema finds wrong with attributes, below their path. It is compiled once for each revision."""
    found = []
    for each in _compiled(Same(schema)).findings(attributes):
        below = f".{each.path}" if each.path and not each.path.startswith("[") else each.path
        asked_by = f"{schema.name}: {each.reason}" if each.reason else schema.name
        found.append(FieldViolation(f"{path}{below}", f"{each.description} ({asked_by})"))
    return found


def wrong_attributes(
    ledger: Ledger, target: SchemaTarget, attributes: Mapping[str, Json], path: str
) -> list[FieldViolation]:
    """Returns where attributes do not fulfil the schemas of their kind of entry, and what would be accepted.

    Args:
        ledger: with the schemas.
        target: the kind of entry.
        attributes: of the entry.
        path: of the entry in the request, such as `model_type`.
    """
    return [
        violation
        for schema in ledger.every(ExtensionSchema)
        if schema.target is target
        for violation in violations_of(schema, attributes, f"{path}.attributes")
    ]


# --- schemas ----------------------------------------------------------------------------------------------------------


def check_schema(schema: ExtensionSchema) -> ExtensionSchema:
    """Returns the schema if its fields are right. Takes up to a second for the largest. Raises InvalidFields."""
    wrong = Violations("extension_schema")
    wrong.expect(schema.target is not None, "target", "must be MODEL_TYPE or MODEL")
    wrong.text(schema.description, "description", MAX_PROSE)
    problems = what_is_wrong(schema.schema)
    for problem in problems:
        wrong.expect(False, "schema" + (f".{problem.path}" if problem.path else ""), problem.description)
    wrong.count(schema.filterable, "filterable", MAX_FILTERABLE)
    wrong.unique(schema.filterable, "filterable")
    if not problems:
        accepted = scalar_properties(schema.schema)
        description = "must be one of the schema's own properties that hold text, numbers or booleans: "
        description += ", ".join(accepted[:20]) or "it has none"
        for index, key in enumerate(schema.filterable):
            wrong.expect(key in accepted, f"filterable[{index}]", description)
    wrong.raise_if_any()
    return schema


def create_schema(ledger: Ledger, asked: ExtensionSchema, uid: str) -> Edits:
    """Decides CreateExtensionSchema of a schema that has been checked."""
    refuse_existing(ledger, asked.name)
    _refuse_too_many(ledger, asked)
    return created(replace(asked, version=1), uid)


def updated_schema(ledger: Ledger, asked: ExtensionSchema, mask: Sequence[str]) -> ExtensionSchema:
    """Returns a schema as UpdateExtensionSchema would leave it, its fields not checked yet."""
    before = current(_schema(ledger, asked.name), asked.name, asked.etag)
    instead = "create another schema, and delete this one"
    after = merge(before, asked, mask, field="extension_schema", instead=instead)
    return after if after.schema == before.schema else replace(after, version=before.version + 1)


def update_schema(ledger: Ledger, after: ExtensionSchema) -> Edits:
    """Decides UpdateExtensionSchema: to a schema that was made by `updated_schema` and has been checked."""
    return changed(current(_schema(ledger, after.name), after.name, ""), after)


def delete_schema(ledger: Ledger, name: str, etag: str) -> Edits:
    """Decides DeleteExtensionSchema. The attributes stay."""
    return deleted(current(_schema(ledger, name), name, etag))


def _schema(ledger: Ledger, name: str) -> ExtensionSchema | None:
    found = ledger.find(name)
    return found if isinstance(found, ExtensionSchema) else None


def _refuse_too_many(ledger: Ledger, asked: ExtensionSchema) -> None:
    others = sum(schema.target is asked.target for schema in ledger.every(ExtensionSchema))
    if others >= MAX_SCHEMAS:
        description = (
            f"there are {MAX_SCHEMAS} schemas of this target, the most; extend one of them, or delete one first"
        )
        raise invalid("extension_schema_id", description)
