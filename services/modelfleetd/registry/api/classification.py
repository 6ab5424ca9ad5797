"""Schemas of attributes, and naming schemes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from google.protobuf.empty_pb2 import Empty

from modelfleet.registry.v1 import classification_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.errors import EntriesInvalidated, invalid
from modelfleetd.kit.codec import from_proto
from modelfleetd.registry import wire
from modelfleetd.registry.api.base import Base, Context, author, found, new_uid
from modelfleetd.registry.domain import attributes, naming, type_names
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.naming import NamingScheme
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.rules import MAX_TEXT
from modelfleetd.registry.domain.schemas import ExtensionSchema, SchemaTarget
from modelfleetd.registry.domain.type_names import Tightening
from modelfleetd.registry.survey import Inquiry


class Classification(Base):
    """Schemas of attributes, and naming schemes."""

    # Schemas of attributes.

    async def GetExtensionSchema(
        self, request: classification_pb2.GetExtensionSchemaRequest, context: Context
    ) -> classification_pb2.ExtensionSchema:
        return await self._get(request, classification_pb2.ExtensionSchema)

    async def ListExtensionSchemas(
        self, request: classification_pb2.ListExtensionSchemasRequest, context: Context
    ) -> classification_pb2.ListExtensionSchemasResponse:
        schemas, token, revision = await self._list(request, classification_pb2.ExtensionSchema)
        return classification_pb2.ListExtensionSchemasResponse(
            extension_schemas=schemas, next_page_token=token, revision=revision
        )

    async def CreateExtensionSchema(
        self, request: classification_pb2.CreateExtensionSchemaRequest, context: Context
    ) -> classification_pb2.ExtensionSchema:
        name = names.EXTENSION_SCHEMA.format(names.check_id(request.extension_schema_id, "extension_schema_id"))
        asked, uid = from_proto(request.extension_schema, ExtensionSchema, name=name), new_uid()
        inquiry = self._about_schema(force=request.force)

        def decide(ledger: Ledger) -> Edits:
            edits = attributes.create_schema(ledger, asked, uid)
            refuse_invalidated(name, inquiry.problems(asked, ledger.pending()))
            return edits

        return await inquiry.answer(
            lambda: self._writer.change(request, classification_pb2.ExtensionSchema, name, author(request), decide)
        )

    async def UpdateExtensionSchema(
        self, request: classification_pb2.UpdateExtensionSchemaRequest, context: Context
    ) -> classification_pb2.ExtensionSchema:
        names.EXTENSION_SCHEMA.parse(request.extension_schema.name, "extension_schema.name")
        asked = from_proto(request.extension_schema, ExtensionSchema)
        inquiry = self._about_schema(force=request.force)

        def decide(ledger: Ledger) -> Edits:
            after = attributes.updated_schema(ledger, asked, request.update_mask.paths)
            refuse_invalidated(after.name, inquiry.problems(after, ledger.pending()))
            return attributes.update_schema(ledger, after)

        return await inquiry.answer(
            lambda: self._writer.change(
                request, classification_pb2.ExtensionSchema, asked.name, author(request), decide
            )
        )

    async def DeleteExtensionSchema(
        self, request: classification_pb2.DeleteExtensionSchemaRequest, context: Context
    ) -> Empty:
        names.EXTENSION_SCHEMA.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return attributes.delete_schema(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, author(request), decide)

    def _about_schema(self, *, force: bool) -> Inquiry[ExtensionSchema]:
        def concerns(schema: ExtensionSchema) -> type[pb.ModelType | pb.Model] | None:
            before = self._follower.snapshot.table(classification_pb2.ExtensionSchema).get(schema.name)
            if before is not None and before.version == schema.version:
                return None
            return pb.ModelType if schema.target is SchemaTarget.MODEL_TYPE else pb.Model

        return Inquiry(self._follower, concerns, _unfulfilled, attributes.check_schema, force=force)

    # Naming schemes.

    async def GetNamingScheme(
        self, request: classification_pb2.GetNamingSchemeRequest, context: Context
    ) -> classification_pb2.NamingScheme:
        return await self._get(request, classification_pb2.NamingScheme)

    async def ListNamingSchemes(
        self, request: classification_pb2.ListNamingSchemesRequest, context: Context
    ) -> classification_pb2.ListNamingSchemesResponse:
        schemes, token, revision = await self._list(request, classification_pb2.NamingScheme)
        return classification_pb2.ListNamingSchemesResponse(
            naming_schemes=schemes, next_page_token=token, revision=revision
        )

    async def CreateNamingScheme(
        self, request: classification_pb2.CreateNamingSchemeRequest, context: Context
    ) -> classification_pb2.NamingScheme:
        name = names.NAMING_SCHEME.format(names.check_id(request.naming_scheme_id, "naming_scheme_id"))
        asked, uid = from_proto(request.naming_scheme, NamingScheme, name=name), new_uid()
        inquiry = self._about_scheme(force=request.force)

        def decide(ledger: Ledger) -> Edits:
            edits = type_names.create_scheme(ledger, asked, uid)
            refuse_invalidated(name, inquiry.problems(Tightening.of(ledger, edits), ledger.pending()))
            return edits

        return await inquiry.answer(
            lambda: self._writer.change(request, classification_pb2.NamingScheme, name, author(request), decide)
        )

    async def UpdateNamingScheme(
        self, request: classification_pb2.UpdateNamingSchemeRequest, context: Context
    ) -> classification_pb2.NamingScheme:
        names.NAMING_SCHEME.parse(request.naming_scheme.name, "naming_scheme.name")
        asked = from_proto(request.naming_scheme, NamingScheme)
        inquiry = self._about_scheme(force=request.force)

        def decide(ledger: Ledger) -> Edits:
            edits = type_names.update_scheme(ledger, asked, request.update_mask.paths)
            refuse_invalidated(asked.name, inquiry.problems(Tightening.of(ledger, edits), ledger.pending()))
            return edits

        return await inquiry.answer(
            lambda: self._writer.change(request, classification_pb2.NamingScheme, asked.name, author(request), decide)
        )

    async def DeleteNamingScheme(
        self, request: classification_pb2.DeleteNamingSchemeRequest, context: Context
    ) -> Empty:
        names.NAMING_SCHEME.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return type_names.delete_scheme(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, author(request), decide)

    async def ExplainName(
        self, request: classification_pb2.ExplainNameRequest, context: Context
    ) -> classification_pb2.ExplainNameResponse:
        id_ = request.id.removeprefix("modelTypes/")
        if not 1 <= len(id_) <= MAX_TEXT:
            raise invalid("id", f"must have 1 to {MAX_TEXT} characters")
        snapshot = self._follower.snapshot
        schemes = snapshot.every(NamingScheme)
        if request.scheme:
            found(request.scheme, snapshot.table(classification_pb2.NamingScheme))
            schemes = [scheme for scheme in schemes if scheme.name == request.scheme]
        response = _explained(id_, naming.closest(id_, schemes))
        response.registered = names.MODEL_TYPE.format(id_) in snapshot.model_types
        return response

    def _about_scheme(self, *, force: bool) -> Inquiry[Tightening]:
        def concerns(change: Tightening) -> type[pb.ModelType] | None:
            return None if change.is_none else pb.ModelType

        def misnamed(change: Tightening) -> Callable[[pb.ModelType], str | None]:
            return lambda model_type: change.problem(model_type.name)

        return Inquiry(self._follower, concerns, misnamed, lambda _: None, force=force)


def refuse_invalidated(resource: str, problems: Mapping[str, str]) -> None:
    """Raises EntriesInvalidated where there are entries that would no longer be valid."""
    if problems:
        raise EntriesInvalidated(resource, problems, len(problems))


def _unfulfilled(schema: ExtensionSchema) -> Callable[[pb.ModelType | pb.Model], str | None]:
    """Returns what says how an entry does not fulfil a schema. Many have the same attributes, or none."""
    known: dict[bytes, str | None] = {}

    def check(entry: pb.ModelType | pb.Model) -> str | None:
        content = hashlib.blake2b(entry.attributes.SerializeToString(deterministic=True), digest_size=16).digest()
        if content not in known:
            wrong = attributes.violations_of(schema, wire.attributes_of(entry), "attributes")
            shown = "; ".join(f"{each.path} {each.description}" for each in wrong[:3])
            known[content] = f"{shown}; and {len(wrong) - 3} more" if len(wrong) > 3 else shown or None
        return known[content]

    return check


def _explained(
    id_: str, closest: tuple[NamingScheme, naming.Explanation] | None
) -> classification_pb2.ExplainNameResponse:
    if closest is None:
        return classification_pb2.ExplainNameResponse(problems=["there is no naming scheme"])
    scheme, explanation = closest
    response = classification_pb2.ExplainNameResponse(scheme=scheme.name, valid=explanation.valid)
    for part in explanation.parts:
        shown = response.parts.add(word=part.word, problem=naming.problem(part, scheme))
        if part.field is not None:
            shown.field, shown.field_description = part.field.id, part.field.description
            shown.meaning = naming.meaning(part.word, part.field) if part.fits else ""
            shown.accepted.extend([] if part.fits else naming.nearest(part.word, part.field))
    response.problems.extend(f"{each.id} is missing; accepted: {naming.accepted(each)}" for each in explanation.missing)
    if not names.is_id(id_):
        response.valid = False
        response.problems.append(f"the id {names.ID_EXPECTATION}")
    return response
