"""What schemas ask of attributes, what is said where they are not fulfilled, and that no schema is dear to check."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.errors import FieldImmutable, InvalidFields, ResourceExists, ResourceNotFound
from modelfleetd.registry.domain import attributes, entries
from modelfleetd.registry.domain.json_schema import JsonSchema, scalar_properties, what_is_wrong
from modelfleetd.registry.domain.resource import Json
from modelfleetd.registry.domain.resources import ModelType
from modelfleetd.registry.domain.schemas import ExtensionSchema, SchemaTarget
from tests.support.registry import LedgerOf, fleet, model, model_type, region, team

FINANCE: dict[str, Json] = {
    "type": "object",
    "required": ["cost_center"],
    "properties": {
        "cost_center": {"type": "string", "pattern": "^CC-[0-9]{4}$", "description": "Who pays."},
        "pii": {"enum": ["none", "low", "high"]},
        "budget": {"$ref": "#/$defs/money"},
        "owners": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 2},
    },
    "additionalProperties": False,
    "$defs": {"money": {"type": "object", "properties": {"usd": {"type": "number", "minimum": 0}}}},
}


def schema(key: str = "finance", **fields: Any) -> ExtensionSchema:
    defaults: dict[str, Any] = {"target": SchemaTarget.MODEL_TYPE, "schema": FINANCE}
    return ExtensionSchema(name=f"extensionSchemas/{key}", **(defaults | fields))


def found(document: Json, of: Mapping[str, Json] = FINANCE) -> dict[str, str]:
    return {finding.path: finding.description for finding in JsonSchema(of).findings(document)}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"cost_center": "CC-1234", "pii": "low", "budget": {"usd": 5.0}, "owners": ["a", "b"]}, {}),
        ({}, {"cost_center": "is required"}),
        ({"cost_center": 5}, {"cost_center": "must be a text"}),
        ({"cost_center": "x"}, {"cost_center": "must match ^CC-[0-9]{4}$"}),
        (
            {"cost_center": "CC-1234", "pii": "hihg", "budget": {"usd": -1}, "owners": ["a", 3.0]},
            {
                "pii": "must be one of 'none', 'low', 'high'; did you mean 'high'?",
                "budget.usd": "must be at least 0",
                "owners[1]": "must be a text",
            },
        ),
        (
            {"cost_center": "CC-1234", "costcenter": 1},
            {"costcenter": "is none of the fields; did you mean 'cost_center'?"},
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_place_with_what_would_be_accepted(
    document: Json, expected: dict[str, str]
) -> None:
    assert expected.items() <= found(document).items()
    assert bool(expected) == bool(found(document))


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ({"type": ["integer", "null"]}, 1.5, "must be a whole number or null"),
        ({"const": 3}, True, "must be 3"),
        ({"exclusiveMinimum": 1}, 1, "must be more than 1"),
        ({"exclusiveMaximum": 1}, 1, "must be less than 1"),
        ({"maximum": 1.5}, 2, "must be at most 1.5"),
        ({"multipleOf": 0.01}, 0.005, "must be a multiple of 0.01"),
        ({"minLength": 1}, "", "must have at least 1 character"),
        ({"maxLength": 2}, "abc", "must have at most 2 characters"),
        ({"minItems": 2}, [1], "must have at least 2 entries"),
        ({"uniqueItems": True}, [{"a": 1}, {"a": 1.0}], "must name each entry once"),
        ({"minProperties": 1}, {}, "must have at least 1 field"),
        ({"maxProperties": 1}, {"a": 1, "b": 1}, "must have at most 1 field"),
        ({"contains": {"type": "string"}}, [1], "must hold at least 1 fitting entry"),
        ({"anyOf": [{"type": "string"}, {"maximum": 3}]}, 4, "must be a text; or must be at most 3"),
        ({"oneOf": [{"type": "number"}, {"maximum": 3}]}, 2, "must fulfil exactly one of 2 alternatives, it fulfils 2"),
        ({"not": {"type": "string"}}, "x", 'must not fulfil {"type": "string"}'),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, "is required where there is 'a'"),
    ],
)
def test_every_keyword_says_what_would_be_accepted(keyword: dict[str, Json], value: Json, words: str) -> None:
    of = {"type": "object", "properties": {"key": keyword}}
    assert what_is_wrong(of) == []
    assert list(found({"key": value}, of).values()) == [words]


def test_a_tenth_is_a_multiple_of_a_tenth_whatever_binary_makes_of_it() -> None:
    of = {"type": "object", "properties": {"share": {"multipleOf": 0.1}}}
    assert not found({"share": 0.3}, of)
    assert found({"share": 0.35}, of)


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab", "b1"]) | st.just(1.5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=6,
)
_kinds = st.sampled_from(["string", "number", "integer", "boolean", "null", "array", "object"])


def _schemas(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    by_key = st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    several = st.lists(inner, min_size=1, max_size=2)
    keywords: dict[str, st.SearchStrategy[Json]] = {
        "type": _kinds | st.lists(_kinds, min_size=1, max_size=2, unique=True),
        "enum": st.lists(_values, min_size=1, max_size=3),
        "const": _values,
        "minimum": st.integers(-2, 2),
        "exclusiveMaximum": st.integers(-2, 2),
        "minLength": st.integers(0, 2),
        "pattern": st.sampled_from(["a", "^b[0-9]$"]),
        "properties": by_key,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b"]), inner, max_size=2),
        "additionalProperties": inner,
        "required": st.lists(st.sampled_from(["a", "b"]), max_size=2, unique=True),
        "dependentSchemas": by_key,
        "propertyNames": inner,
        "items": inner,
        "prefixItems": several,
        "contains": inner,
        "maxContains": st.integers(0, 2),
        "minContains": st.integers(0, 2),
        "uniqueItems": st.booleans(),
        "maxItems": st.integers(0, 2),
        "minProperties": st.integers(0, 2),
        "allOf": several,
        "anyOf": several,
        "oneOf": several,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
    }
    pairs = st.one_of(*(st.tuples(st.just(key), value) for key, value in keywords.items()))
    return st.lists(pairs, max_size=4).map(dict)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    of=_schemas(_schemas(_schemas(st.booleans()))),
    document=st.dictionaries(st.sampled_from(["a", "b", "c"]), _values, max_size=3),
)
def test_documents_are_judged_as_the_library_judges_them(of: dict[str, Json], document: Json) -> None:
    of = of | {"type": "object"}
    expected = jsonschema.Draft202012Validator(of).is_valid(document)
    assert (JsonSchema(of).findings(document) == []) == expected


@pytest.mark.parametrize(
    ("wrong", "path", "words"),
    [
        ({"properties": {}}, "type", "must be 'object'"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "properties.a.type", "did you mean 'string'?"),
        ({"type": "object", "required": "a"}, "required", "must be a list"),
        ({"type": "object", "properties": {"a": {"minLength": -1}}}, "properties.a.minLength", "must be at least 0"),
        ({"type": "object", "requried": ["a"]}, "requried", "did you mean 'required'?"),
        ({"type": "object", "properties": {"a": {"pattern": "(a+"}}}, "properties.a.pattern", "RE2"),
        ({"type": "object", "properties": {"a": {"pattern": "(?=a)"}}}, "properties.a.pattern", "look-around"),
        ({"type": "object", "patternProperties": {"(": {}}}, "patternProperties.`(`", "RE2"),
        ({"type": "object", "items": {"$ref": "https://example.com/x"}}, "items.`$ref`", "inside this one"),
        ({"type": "object", "items": {"$ref": "#/$defs/nope"}}, "items.`$ref`", "inside this one"),
        ({"type": "object", "items": {"$ref": "#/properties"}, "properties": {}}, "items.`$ref`", "inside this one"),
        ({"type": "object", "items": {"$ref": "#"}}, "$ref", "must not lead back to where it came from"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties", "is not supported"),
        ({"type": "object", "items": {"$id": "https://example.com"}}, "items.`$id`", "is not supported"),
        ({"type": "object", "items": {"$dynamicRef": "#x"}}, "items.`$dynamicRef`", "is not supported"),
        ({"type": "object", "$schema": "http://json-schema.org/draft-07/schema#"}, "$schema", "2020-12"),
        ({"type": "object", "default": float("nan")}, "", "finite"),
        ({"type": "object", "description": "x" * 70_000}, "", "64 KiB"),
    ],
)
def test_a_schema_that_is_none_is_refused_at_its_place(wrong: dict[str, Json], path: str, words: str) -> None:
    (finding,) = what_is_wrong(wrong)
    assert finding.path == path and words in finding.description


def test_where_a_schema_says_that_it_comes_from_changes_nothing() -> None:
    of = FINANCE | {"$id": "https://example.com/finance", "$schema": "https://json-schema.org/draft/2020-12/schema"}
    assert what_is_wrong(of) == []
    assert found({"cost_center": "CC-1234", "budget": {"usd": -1}}, of) == {"budget.usd": "must be at least 0"}


def doubling(times: int) -> dict[str, Json]:
    """A schema that becomes twice as large with each of its definitions, once references are written out."""
    definitions: dict[str, Json] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(times)
    }
    definitions[f"d{times}"] = {"type": "string"}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": definitions}


def nested(value: Json, times: int) -> Json:
    for _ in range(times):
        value = {"allOf": [value]}
    return value


def test_no_schema_costs_much_to_refuse_or_to_check() -> None:
    began = time.process_time()
    (finding,) = what_is_wrong(doubling(100))
    assert "10,000" in finding.description
    (finding,) = what_is_wrong({"type": "object", "items": nested({}, 50)})
    assert "40 deep" in finding.description
    # Patterns that take Python's re ages, and a thousand alternatives for every one of a thousand entries.
    evil = {"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}}
    assert found({"a": "a" * 60_000 + "!"}, evil)
    many = {"type": "object", "properties": {"a": {"items": {"anyOf": [{"const": n} for n in range(1000)]}}}}
    assert "20,000 steps" in found({"a": [-1] * 1000}, many)[""]
    mixed = {"type": "object", "properties": {"a": {"uniqueItems": True}}}
    assert not found({"a": [*range(10_000), *map(str, range(10_000))]}, mixed)
    assert time.process_time() - began < 10


def test_the_steps_of_one_check_are_none_of_the_next() -> None:
    of = JsonSchema({"type": "object", "properties": {"a": {"items": {"type": "number"}}}})
    for _ in range(3):
        assert of.findings({"a": [1] * 6_000}) == []


def test_scalars_are_what_lists_can_be_filtered_by() -> None:
    of = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "whole": {"type": "integer", "minimum": 0},
            "one": {"enum": ["a", "b"]},
            "mixed": {"enum": ["a", 1]},
            "led": {"$ref": "#/$defs/text"},
            "list": {"type": "array"},
            "either": {"type": ["string", "object"]},
            "any": {},
        },
        "$defs": {"text": {"type": "string"}},
    }
    assert scalar_properties(of) == ["one", "text", "whole"]
    fine = schema(schema=of, filterable=("text", "one"))
    assert attributes.check_schema(fine) == fine
    with pytest.raises(InvalidFields) as refused:
        attributes.check_schema(schema(schema=of, filterable=("list", "text", "text")))
    assert [each.path for each in refused.value.violations] == [
        "extension_schema.filterable[2]",
        "extension_schema.filterable[0]",
    ]


# --- in the ledger ----------------------------------------------------------------------------------------------------


def refusal(deciding: Callable[[], object]) -> dict[str, str]:
    """Which fields a decision refuses, and in which words."""
    with pytest.raises(InvalidFields) as refused:
        deciding()
    return {each.path: each.description for each in refused.value.violations}


def test_attributes_fulfil_every_schema_of_their_kind_when_they_are_created_and_changed() -> None:
    both = {"type": "object", "required": ["stage"]}
    of_models = schema("models", target=SchemaTarget.MODEL, schema=both)
    ledger = fleet(schema(), schema("second", schema=both), of_models)
    new_type, old_type = model_type("x"), model_type(purpose="x")
    for refused in (
        refusal(lambda: entries.create_model_type(ledger, new_type, "u")),
        refusal(lambda: entries.update_model_type(ledger, old_type, ())),
    ):
        assert refused == {
            "model_type.attributes.cost_center": "is required (extensionSchemas/finance: Who pays.)",
            "model_type.attributes.stage": "is required (extensionSchemas/second)",
        }
    for refused in (
        refusal(lambda: entries.create_model(ledger, model("v9"), "u")),
        refusal(lambda: entries.update_model(ledger, model("new", description="x"), ())),
    ):
        assert refused == {"model.attributes.stage": "is required (extensionSchemas/models)"}
    loose = fleet(of_models)
    assert entries.create_model_type(loose, model_type("x"), "u")
    (edit,) = entries.create_model(loose, model("v9", attributes={"stage": 1}), "u")
    assert edit.after is not None


def test_the_version_grows_with_the_schema_and_with_nothing_else() -> None:
    ledger = LedgerOf()
    ledger.apply(attributes.create_schema(ledger, schema(), "u"))

    def change(**fields: Any) -> int:
        asked = ExtensionSchema(name="extensionSchemas/finance", **fields)
        after = attributes.updated_schema(ledger, asked, sorted(fields))
        ledger.apply(attributes.update_schema(ledger, after))
        return after.version

    assert change(description="x") == 1
    assert change(schema={"type": "object"}) == 2
    assert change(schema={"type": "object"}, filterable=()) == 2
    assert change(schema=FINANCE) == 3
    with pytest.raises(FieldImmutable):
        change(target=SchemaTarget.MODEL)
    with pytest.raises(ResourceExists):
        attributes.create_schema(ledger, schema(), "u")
    ledger.apply(attributes.delete_schema(ledger, "extensionSchemas/finance", ""))
    with pytest.raises(ResourceNotFound):
        change(description="x")


def test_there_are_at_most_fifty_schemas_of_a_target() -> None:
    ledger = LedgerOf(*(schema(f"s{number}") for number in range(50)))
    with pytest.raises(InvalidFields):
        attributes.create_schema(ledger, schema(), "u")
    assert attributes.create_schema(ledger, schema(target=SchemaTarget.MODEL), "u")


def test_a_deleted_schema_asks_nothing_any_more() -> None:
    ledger = LedgerOf(team(), region(), schema())
    with pytest.raises(InvalidFields):
        entries.create_model_type(ledger, model_type(), "u")
    ledger.apply(attributes.delete_schema(ledger, "extensionSchemas/finance", ""))
    (edit, *_) = entries.create_model_type(ledger, model_type(), "u")
    assert isinstance(edit.after, ModelType)
