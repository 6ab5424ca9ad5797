"""Schemas of attributes and naming schemes through a real channel and PostgreSQL, also on two replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.classification_pb2 import ExtensionSchema, NamingScheme
from modelfleetd.kit.db import Database
from modelfleetd.registry.domain.revisions import Author, Edit, Edits
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.renaming import Renaming
from modelfleetd.registry.store import Store
from modelfleetd.registry.survey import MOST_LEFT, Inquiry
from modelfleetd.registry.writer import Writer
from tests.support import registry as builders
from tests.support import registry_calls
from tests.support.registry_calls import CTR, Registry, populate, refused, request_id, spec
from tests.support.wait import until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
FINANCE: dict[str, Any] = {
    "type": "object",
    "required": ["cost_center"],
    "properties": {"cost_center": {"type": "string", "pattern": "^CC-[0-9]{4}$"}},
}


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as found:
        await populate(found)
        yield found


def schema(of: dict[str, Any] | None = None, **fields: Any) -> ExtensionSchema:
    made = ExtensionSchema(**({"target": ExtensionSchema.MODEL_TYPE} | fields))
    made.schema.update(FINANCE if of is None else of)
    return made


def scheme(*fields: tuple[str, list[str]], **more: Any) -> NamingScheme:
    parts = [{"id": id_, "words": [{"word": word, "meaning": word.title()} for word in words]} for id_, words in fields]
    return ParseDict({"fields": parts} | more, NamingScheme())


def typed(**attributes: Any) -> pb.ModelType:
    made = pb.ModelType(team="teams/feed")
    made.attributes.update(attributes)
    return made


async def fill(database_url: str, count: int) -> None:
    """Writes so many model types x000, x001 … in one revision, past the API."""
    database = await Database.open(database_url, "registry")
    try:
        store = Store(database)
        follower = Follower(store)
        await follower.load()
        made: Edits = tuple(Edit(None, builders.model_type(f"x{number:03}")) for number in range(count))
        await Writer(store, follower).change_unasked(Author("test"), lambda _: made)
    finally:
        await database.close()


# --- schemas ----------------------------------------------------------------------------------------------------------


async def test_a_schema_is_created_read_listed_changed_and_deleted(registry: Registry) -> None:
    loose = schema({"type": "object", "properties": {"pii": {"type": "string"}}}, filterable=["pii"])
    made = await registry.CreateExtensionSchema(extension_schema_id="privacy", extension_schema=loose)
    assert (made.version, made.revision) == (1, made.revision)
    assert await registry.GetExtensionSchema(name=made.name, min_revision=made.revision) == made
    assert list((await registry.ListExtensionSchemas()).extension_schemas) == [made]
    asked = ExtensionSchema(name=made.name, description="x", etag=made.etag)
    described = await registry.UpdateExtensionSchema(extension_schema=asked)
    assert (described.version, described.schema) == (1, made.schema)
    changed = await registry.UpdateExtensionSchema(
        extension_schema=schema({"type": "object"}, name=made.name),
        update_mask=FieldMask(paths=["schema", "filterable"]),
    )
    assert (changed.version, list(changed.filterable)) == (2, [])
    await registry.DeleteExtensionSchema(name=made.name, etag=changed.etag)
    await refused(registry.GetExtensionSchema(name=made.name), grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_entries_have_to_fulfil_a_schema_and_are_told_where_they_do_not(registry: Registry) -> None:
    await registry.UpdateModelType(
        model_type=pb.ModelType(name=CTR, attributes=typed(cost_center="CC-1234").attributes)
    )
    await registry.CreateExtensionSchema(extension_schema_id="finance", extension_schema=schema())
    for call in (
        registry.CreateModelType(model_type_id="x", model_type=typed(cost_center="x")),
        registry.UpdateModelType(model_type=pb.ModelType(name=CTR, attributes=typed(cost_center="x").attributes)),
    ):
        found = await refused(call, INVALID, "INVALID_FIELDS")
        assert found.paths == {
            "model_type.attributes.cost_center": "must match ^CC-[0-9]{4}$ (extensionSchemas/finance)"
        }
    assert await registry.CreateModelType(model_type_id="x", model_type=typed(cost_center="CC-0001"))
    of_models = schema({"type": "object", "required": ["data"]}, target=ExtensionSchema.MODEL)
    await registry.CreateExtensionSchema(extension_schema_id="data", extension_schema=of_models, force=True)
    call = registry.CreateModel(parent=CTR, model_id="v9", model=pb.Model(serving_spec=spec()))
    assert set((await refused(call, INVALID, "INVALID_FIELDS")).paths) == {"model.attributes.data"}


async def test_a_schema_that_would_invalidate_entries_lists_them_and_is_written_only_by_force(
    registry: Registry,
) -> None:
    before = (await registry.ListTeams()).revision
    for dry in (True, False):
        call = registry.CreateExtensionSchema(
            extension_schema_id="finance", extension_schema=schema(), validate_only=dry
        )
        found = await refused(call, PRECONDITION, "ENTRIES_INVALIDATED")
        metadata = found.infos[0].metadata
        assert (metadata["count"], metadata["entries"]) == ("1", CTR)
        assert "attributes.cost_center is required" in found.message
    assert (await registry.ListTeams()).revision == before
    id_ = request_id()
    forced = {"extension_schema_id": "finance", "extension_schema": schema(), "force": True, "request_id": id_}
    made = await registry.CreateExtensionSchema(**forced)
    assert await registry.CreateExtensionSchema(**forced) == made, "the same call gets the same answer"
    # What was there is refused at its next change.
    call = registry.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose="x"))
    await refused(call, INVALID, "INVALID_FIELDS")
    # What asks nothing new of entries is no reason to list them again.
    described = ExtensionSchema(name=made.name, description="x")
    assert (await registry.UpdateExtensionSchema(extension_schema=described)).description == "x"
    stricter = schema(FINANCE | {"maxProperties": 1}, name=made.name)
    update = registry.UpdateExtensionSchema(extension_schema=stricter, update_mask=FieldMask(paths=["schema"]))
    await refused(update, PRECONDITION, "ENTRIES_INVALIDATED")


async def test_a_schema_that_is_none_is_refused_with_paths_and_before_anything_else_is_done(
    registry: Registry,
) -> None:
    wrong = schema({"type": "object", "properties": {"a": {"type": "strin"}, "b": {"minLength": -1}}})
    call = registry.CreateExtensionSchema(extension_schema_id="x", extension_schema=wrong, force=True)
    found = await refused(call, INVALID, "INVALID_FIELDS")
    assert set(found.paths) == {
        "extension_schema.schema.properties.a.type",
        "extension_schema.schema.properties.b.minLength",
    }
    assert "did you mean 'string'?" in found.paths["extension_schema.schema.properties.a.type"]


async def test_many_entries_are_looked_at_before_the_ledger_is_held_and_what_comes_meanwhile_counts(
    registry: Registry, database_url: str
) -> None:
    await registry.UpdateModelType(
        model_type=pb.ModelType(name=CTR, attributes=typed(cost_center="CC-1234").attributes)
    )
    await fill(database_url, MOST_LEFT + 60)
    call = registry.CreateExtensionSchema(extension_schema_id="finance", extension_schema=schema())
    found = await refused(call, PRECONDITION, "ENTRIES_INVALIDATED")
    assert found.infos[0].metadata["count"] == str(MOST_LEFT + 60)
    assert len(found.message) < 1000

    # Either the schema comes first and refuses the type, or the type comes first and refuses the schema.
    def tightened(number: int) -> ExtensionSchema:
        return schema({"type": "object", "properties": {"n": {"not": {"const": number}}}})

    for number in range(6):
        schema_id = f"s{number}"
        outcomes = await asyncio.gather(
            registry.CreateExtensionSchema(extension_schema_id=schema_id, extension_schema=tightened(number)),
            _later(number, registry.CreateModelType(model_type_id=f"t{number}", model_type=typed(n=number))),
            return_exceptions=True,
        )
        failed = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert len(failed) == 1, outcomes
        assert failed[0].code() in (INVALID, PRECONDITION)


async def test_what_was_decided_just_before_counts_though_it_is_not_written_yet(database_url: str) -> None:
    database = await Database.open(database_url, "registry")
    try:
        follower = Follower(Store(database))
        await follower.load()
        writer = Writer(Store(database), follower)
        before: Edits = tuple(Edit(None, builders.model_type(key)) for key in ("gone", "mended", "wrong"))
        await writer.change_unasked(Author("test"), lambda _: before)

        def check(_: str) -> Callable[[pb.ModelType], str | None]:
            return lambda entry: None if entry.purpose else "has no purpose"

        inquiry = Inquiry[str](follower, lambda _: pb.ModelType, check, lambda _: None, force=False)
        pending = (
            Edit(builders.model_type("gone"), None),
            Edit(builders.model_type("mended"), builders.model_type("mended", purpose="x")),
            Edit(None, builders.model_type("new")),
            Edit(None, builders.model("v1")),
        )

        async def attempt() -> list[str]:
            return [*inquiry.problems("a change", pending)]

        assert await inquiry.answer(attempt) == ["modelTypes/new", "modelTypes/wrong"]
    finally:
        await database.close()


async def _later(turns: int, call: Any) -> Any:
    """Makes a call after some turns of the event loop."""
    for _ in range(turns * 3):
        await asyncio.sleep(0)
    return await call


# --- naming schemes ---------------------------------------------------------------------------------------------------


async def naming(registry: Registry, name: str) -> dict[str, str]:
    return dict((await registry.GetModelType(name=name)).naming)


async def test_a_scheme_is_created_read_listed_changed_and_deleted(registry: Registry) -> None:
    made = await registry.CreateNamingScheme(naming_scheme_id="ig", naming_scheme=scheme(("app", ["ig"])))
    assert made.separator == "_"
    assert await registry.GetNamingScheme(name=made.name, min_revision=made.revision) == made
    assert list((await registry.ListNamingSchemes()).naming_schemes) == [made]
    asked = NamingScheme(name=made.name, description="x", etag=made.etag)
    changed = await registry.UpdateNamingScheme(naming_scheme=asked)
    assert (changed.description, changed.fields) == ("x", made.fields)
    await registry.DeleteNamingScheme(name=made.name, etag=changed.etag)
    await refused(registry.GetNamingScheme(name=made.name), grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_words_follow_the_scheme_in_revisions_of_the_registry_itself(
    registry: Registry, database_url: str
) -> None:
    await fill(database_url, 450)
    many = [f"x{number:03}" for number in range(450)]
    made = await registry.CreateNamingScheme(naming_scheme_id="x", naming_scheme=scheme(("what", [*many, "ctr"])))

    async def all_named() -> bool:
        listed = (await registry.ListModelTypes(page_size=1000)).model_types
        return all(each.naming for each in listed)

    await until(all_named, timeout=30)
    assert await naming(registry, "modelTypes/x449") == {"what": "x449"}
    written = [
        revision
        for revision in (await registry.ListRevisions(page_size=10)).revisions
        if revision.number > made.revision
    ]
    # Some hundred types each; nothing is written twice; it says who and why.
    assert sum(len(revision.changes) for revision in written) == 451
    assert max(len(revision.changes) for revision in written) <= 200
    assert {(revision.actor, revision.reason) for revision in written} == {
        ("registry", "Words of these ids by namingSchemes/x.")
    }
    # A new type has its words at once, and loses them when the scheme goes.
    new = await registry.CreateModelType(model_type_id="ctr-2", model_type=pb.ModelType(team="teams/feed"))
    assert not new.naming
    await registry.DeleteNamingScheme(name="namingSchemes/x")

    async def none_named() -> bool:
        listed = (await registry.ListModelTypes(page_size=1000)).model_types
        return not any(each.naming for each in listed)

    await until(none_named, timeout=30)
    (last,) = (await registry.ListRevisions(page_size=1)).revisions
    assert last.reason == "These ids fit no naming scheme any more."


async def test_two_replicas_write_words_once_and_a_third_finds_nothing_to_do(database_url: str) -> None:
    databases = [await Database.open(database_url, "registry") for _ in range(3)]
    try:
        replicas = []
        for database in databases:
            follower = Follower(Store(database))
            await follower.load()
            replicas.append((follower, Writer(Store(database), follower)))
        types: Edits = tuple(Edit(None, builders.model_type(f"x{number:03}")) for number in range(300))
        await replicas[0][1].change_unasked(Author("test"), lambda _: types)
        word = builders.naming_scheme("x", ("what", ["x000", "x299"]))
        await replicas[0][1].change_unasked(Author("test"), lambda _: (Edit(None, word),))
        for follower, _ in replicas:
            await follower.catch_up()
        await asyncio.gather(*(Renaming(*replica).round() for replica in replicas[:2]))
        for follower, _ in replicas:
            await follower.catch_up()
        assert {follower.snapshot.revision for follower, _ in replicas} == {3}
        third = Renaming(*replicas[2])
        await third.round()
        await third.round()
        assert replicas[2][0].snapshot.revision == 3
        named = [each.name for each in replicas[2][0].snapshot.model_types.values() if each.naming]
        assert named == ["modelTypes/x000", "modelTypes/x299"]
    finally:
        for database in databases:
            await database.close()


async def test_while_a_scheme_is_enforced_new_ids_have_to_fit(registry: Registry) -> None:
    strict = scheme(("app", ["ig"]), ("surface", ["stories", "feed"]), enforced=True)
    call = registry.CreateNamingScheme(naming_scheme_id="ig", naming_scheme=strict)
    found = await refused(call, PRECONDITION, "ENTRIES_INVALIDATED")
    assert found.infos[0].metadata["entries"] == CTR
    assert await registry.CreateNamingScheme(naming_scheme_id="ig", naming_scheme=strict, force=True)
    call = registry.CreateModelType(model_type_id="ig_strys", model_type=pb.ModelType(team="teams/feed"))
    found = await refused(call, INVALID, "INVALID_FIELDS")
    assert "'strys' is no surface; did you mean 'stories'?" in found.paths["model_type_id"]
    made = await registry.CreateModelType(model_type_id="ig_stories", model_type=pb.ModelType(team="teams/feed"))
    assert dict(made.naming) == {"app": "ig", "surface": "stories"}
    # What was let through is not counted again; what fits now and would not any more is.
    narrower = scheme(("app", ["ig"]), ("surface", ["feed"]), name="namingSchemes/ig")
    update = registry.UpdateNamingScheme(naming_scheme=narrower, update_mask=FieldMask(paths=["fields"]))
    found = await refused(update, PRECONDITION, "ENTRIES_INVALIDATED")
    assert found.infos[0].metadata["entries"] == "modelTypes/ig_stories"
    assert (await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose="x"))).purpose == "x"


async def test_an_id_is_explained_word_by_word_registered_or_not(registry: Registry) -> None:
    nothing = await registry.ExplainName(id="ig_stories")
    assert (nothing.scheme, nothing.valid, list(nothing.problems)) == ("", False, ["there is no naming scheme"])
    ig = scheme(("app", ["ig"]), ("surface", ["stories", "feed"]))
    await registry.CreateNamingScheme(naming_scheme_id="ig", naming_scheme=ig)
    await registry.CreateNamingScheme(naming_scheme_id="any", naming_scheme=scheme(("one", []), ("two", [])))
    await registry.CreateModelType(model_type_id="ig_stories", model_type=pb.ModelType(team="teams/feed"))
    fits = await registry.ExplainName(id="modelTypes/ig_stories", scheme="namingSchemes/ig")
    assert (fits.scheme, fits.valid, fits.registered) == ("namingSchemes/ig", True, True)
    assert [(part.word, part.field, part.meaning) for part in fits.parts] == [
        ("ig", "app", "Ig"),
        ("stories", "surface", "Stories"),
    ]
    wrong = await registry.ExplainName(id="ig_strys_x", scheme="namingSchemes/ig")
    assert (wrong.valid, wrong.registered) == (False, False)
    _, second, third = wrong.parts
    assert (second.field, list(second.accepted)) == ("surface", ["stories", "feed"])
    assert "did you mean 'stories'?" in second.problem
    assert (third.field, third.problem) == ("", "is one word too many: namingSchemes/ig has 2 fields")
    # By the one that fits, where none is named.
    assert (await registry.ExplainName(id="ig_x")).scheme == "namingSchemes/any"
    missing = await registry.ExplainName(id="ig", scheme="namingSchemes/ig")
    assert list(missing.problems) == ["surface is missing; accepted: stories, feed"]
    assert not (await registry.ExplainName(id="Ig_X", scheme="namingSchemes/any")).valid
    call = registry.ExplainName(id="x", scheme="namingSchemes/nope")
    await refused(call, grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    await refused(registry.ExplainName(id="x" * 201), INVALID, "INVALID_FIELDS")
