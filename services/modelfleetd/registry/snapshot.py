"""The current state in memory: every resource as the message that answers for it, by name, parent and reference.

It changes only by whole revisions and without giving up control in between, so every read sees one revision. Messages
in it are never changed: a new revision of a resource is a new message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

from google.protobuf.message import Message

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.assets_pb2 import Asset
from modelfleet.registry.v1.classification_pb2 import ExtensionSchema
from modelfleet.registry.v1.criticality_pb2 import CriticalityRequest as RequestMessage
from modelfleetd import names
from modelfleetd.kit.auth import Role
from modelfleetd.kit.fields import Reading
from modelfleetd.kit.filter import Node
from modelfleetd.kit.ordering import Order
from modelfleetd.kit.paging import Position
from modelfleetd.registry import listing
from modelfleetd.registry.domain.assets import place
from modelfleetd.registry.domain.criticality import CriticalityRequest
from modelfleetd.registry.domain.evidence import EvidenceHead
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.index import Index
from modelfleetd.registry.listing import MODEL_TYPES, MODELS_OF_ALL, REGIONS, TEAMS
from modelfleetd.registry.lookup import Lookup
from modelfleetd.registry.wire import (
    KINDS,
    AnyMessage,
    after_of,
    copy_of,
    kind_of_message,
    kind_of_name,
    kind_of_resource,
    references_of,
    resource_of,
)

M = TypeVar("M", bound=AnyMessage)
R = TypeVar("R", bound=AnyResource)

__all__ = ["MODELS_OF_ALL", "MODEL_TYPES", "REGIONS", "TEAMS", "Snapshot", "SnapshotLedger", "models_of", "type_of"]
# How many names are copied at a time by whoever walks a collection.
_CHUNK = 200


def models_of(model_type: str) -> str:
    """Returns the collection of a type's models."""
    return f"{model_type}/models"


class Snapshot:
    """The ledger at one revision."""

    def __init__(self) -> None:
        self.revision = 0
        self.hash = b""
        # By kind, then by name.
        self._tables: dict[str, dict[str, AnyMessage]] = {kind.name: {} for kind in KINDS if kind.in_memory}
        # By kind: what pages are cut from.
        self._indexes = listing.indexes()
        # Who refers to a name.
        self._referrers: dict[str, set[str]] = {}
        # Kinds as plain data, as long as nothing of them changes: each write asks for all schemas.
        self._plain: dict[str, Sequence[AnyResource]] = {}
        # What entries are found by when somebody does not know their name.
        self.lookup = Lookup()
        # Roles by member and team.
        self.bindings: dict[str, dict[str, frozenset[Role]]] = {}
        # Requests for a tier that are pending or in force, by the entry that they are about.
        self.open_requests: dict[str, set[str]] = {}
        # Revision of the last change of a model type or of its models; where it is not here, from before this snapshot.
        self._touched: dict[str, int] = {}
        self._loaded_revision = 0

    @property
    def teams(self) -> Mapping[str, pb.Team]:
        """All teams, by name."""
        return cast("Mapping[str, pb.Team]", self._tables["team"])

    @property
    def regions(self) -> Mapping[str, pb.Region]:
        """All regions, by name."""
        return cast("Mapping[str, pb.Region]", self._tables["region"])

    @property
    def model_types(self) -> Mapping[str, pb.ModelType]:
        """All model types, by name."""
        return cast("Mapping[str, pb.ModelType]", self._tables["model_type"])

    @property
    def models(self) -> Mapping[str, pb.Model]:
        """All models of all types, by name."""
        return cast("Mapping[str, pb.Model]", self._tables["model"])

    def table(self, kind: type[M]) -> Mapping[str, M]:
        """Returns everything of one kind that is kept in memory, by name."""
        return cast("Mapping[str, M]", self._tables[kind_of_message(kind).name])

    @classmethod
    def of(cls, resources: Iterable[AnyMessage], revision: int, hash_: bytes) -> Snapshot:
        """Returns the snapshot of a whole state."""
        made = cls()
        made.revision, made.hash = revision, hash_
        made._loaded_revision = revision
        for message in sorted(resources, key=lambda each: each.name):
            made._keep(None, message)
        made._find_attributes()
        for kind, table in made._tables.items():
            made._indexes[kind].load(list(table.values()))
        return made

    def apply(self, revision: pb.Revision) -> None:
        """Goes on to the next revision.

        Raises:
            ValueError: it is not the next one, or not the successor of this state's last one.
        """
        if revision.number != self.revision + 1 or revision.previous_hash != self.hash.hex():
            raise ValueError(f"revision {revision.number} does not follow {self.revision}")
        for change in revision.changes:
            kind = kind_of_name(change.resource)
            if kind is None or not kind.in_memory:
                continue
            if kind.name in ("model_type", "model"):
                self._touched[type_of(change.resource)] = revision.number
            after = after_of(change)
            if after is None:
                self._remove(change.resource)
            else:
                self._put(copy_of(after))
        self.revision, self.hash = revision.number, bytes.fromhex(revision.hash)

    def page(
        self,
        collection: str,
        after: Position | None,
        limit: int,
        where: Node | None = None,
        order: Order = Order(),  # noqa: B008 (it never changes)
    ) -> Sequence[str]:
        """Returns up to `limit` names of a collection, from the one after a position on.

        Args:
            collection: `teams`, `modelTypes/ctr/models`, or with any parent `modelTypes/-/models`.
            after: where the page before ended, as `index_of(…).position` says it.
            limit: how many at most.
            where: only of entries that fit, bound to the fields of `index_of`.
            order: of the names.
        """
        prefix = "" if names.WILDCARD in collection.split("/") or "/" not in collection else f"{collection}/"
        return self.index_of(collection).page(prefix, where, order, after, limit)

    def attributes_of(self, kind: type[Message]) -> Mapping[str, Reading]:
        """Returns the attributes that entries of a kind can be filtered by, by path."""
        schemas = self.table(ExtensionSchema)
        return listing.attributes((schemas[name] for name in sorted(schemas)), kind)

    def index_of(self, collection: str) -> Index:
        """Returns the index of a collection's kind."""
        kind = kind_of_name(f"{collection}/id")
        if kind is None:
            raise ValueError(f"{collection} is no collection")
        return self._indexes[kind.name]

    def names_from(self, collection: str, start: str = "") -> Iterator[str]:
        """Yields the names of a collection in order, from one on, that one included. Nothing may change meanwhile."""
        if start and self.find(start) is not None:
            yield start
        after = (start,) if start else None
        while page := self.page(collection, after, _CHUNK):
            yield from page
            after = (page[-1],)

    def referrers(self, name: str) -> Sequence[str]:
        """Returns the names of the resources that refer to one, sorted."""
        return sorted(self._referrers.get(name, ()))

    def touched(self, model_type: str) -> int:
        """Returns a revision since which neither a model type nor any of its models has changed."""
        return self._touched.get(model_type, self._loaded_revision)

    def find(self, name: str) -> AnyMessage | None:
        """Returns whatever has the name, or None."""
        return self._table(name).get(name)

    def every(self, kind: type[R]) -> Sequence[R]:
        """Returns everything of one kind as plain data, by name: the same objects until something of it changes."""
        key = kind_of_resource(kind).name
        if key not in self._plain:
            table = self._tables[key]
            self._plain[key] = [resource_of(table[name]) for name in sorted(table)]
        return cast(Sequence[R], self._plain[key])

    def _table(self, name: str) -> dict[str, AnyMessage]:
        kind = kind_of_name(name)
        return {} if kind is None else self._tables.get(kind.name, {})

    def _put(self, message: AnyMessage) -> None:
        before = self.find(message.name)
        self._keep(before, message)
        self._indexes[kind_of_message(type(message)).name].put(before, message)
        if isinstance(message, ExtensionSchema):
            self._find_attributes()

    def _keep(self, before: AnyMessage | None, message: AnyMessage) -> None:
        name = message.name
        self._table(name)[name] = message
        self._plain.pop(kind_of_message(type(message)).name, None)
        self._refer(name, frozenset() if before is None else references_of(before), references_of(message))
        self.lookup.put(before, message)
        if isinstance(message, pb.Team):
            self._unbind(cast(pb.Team | None, before))
            self._bind(message)
        if isinstance(message, RequestMessage):
            self._note_request(message)

    def _remove(self, name: str) -> None:
        before = self._table(name).pop(name)
        kind = kind_of_message(type(before)).name
        self._indexes[kind].remove(before)
        self._plain.pop(kind, None)
        self._refer(name, references_of(before), frozenset())
        self.lookup.put(before, None)
        if isinstance(before, pb.Team):
            self._unbind(before)
        if isinstance(before, ExtensionSchema):
            self._find_attributes()

    def _find_attributes(self) -> None:
        """Makes those attributes fields of lists that the schemas of now declare to be."""
        for kind in (pb.ModelType, pb.Model):
            self._indexes[kind_of_message(kind).name].set_attributes(self.attributes_of(kind))

    def _note_request(self, request: RequestMessage) -> None:
        """Keeps at hand what is open: of the others there are more and more, since requests are never deleted."""
        if request.state in (RequestMessage.PENDING, RequestMessage.APPROVED):
            self.open_requests.setdefault(request.resource, set()).add(request.name)
        elif request.name in (known := self.open_requests.get(request.resource, set())):
            known.discard(request.name)
            if not known:
                del self.open_requests[request.resource]

    def _bind(self, team: pb.Team) -> None:
        for binding in team.role_bindings:
            for member in binding.members:
                roles = self.bindings.setdefault(member, {})
                roles[team.name] = roles.get(team.name, frozenset()) | {Role(binding.role)}

    def _unbind(self, team: pb.Team | None) -> None:
        if team is None:
            return
        for member in {member for binding in team.role_bindings for member in binding.members}:
            del self.bindings[member][team.name]
            if not self.bindings[member]:
                del self.bindings[member]

    def _refer(self, name: str, before: frozenset[str], after: frozenset[str]) -> None:
        for target in before - after:
            self._referrers[target].discard(name)
            if not self._referrers[target]:
                del self._referrers[target]
        for target in after - before:
            self._referrers.setdefault(target, set()).add(name)


def type_of(name: str) -> str:
    """Returns the model type that a model type's or a model's name is about."""
    return "/".join(name.split("/", 2)[:2])


class SnapshotLedger:
    """The snapshot as decisions see it (`domain.ledger.Ledger`): messages become plain data when asked for."""

    follows_up_later = False

    def __init__(self, snapshot: Snapshot, evidence: Mapping[str, Sequence[EvidenceHead]] | None = None) -> None:
        """Makes a view of a snapshot.

        Args:
            snapshot: at one revision.
            evidence: by model, of the models whose evidence was read from the database at that revision.
        """
        self._snapshot = snapshot
        self._evidence = evidence or {}

    def team(self, name: str) -> Team | None:
        """Returns a team, or None."""
        return cast(Team | None, _resource(self._snapshot.teams.get(name)))

    def region(self, name: str) -> Region | None:
        """Returns a region, or None."""
        return cast(Region | None, _resource(self._snapshot.regions.get(name)))

    def model_type(self, name: str) -> ModelType | None:
        """Returns a model type, or None."""
        return cast(ModelType | None, _resource(self._snapshot.model_types.get(name)))

    def model(self, name: str) -> Model | None:
        """Returns a model, or None."""
        return cast(Model | None, _resource(self._snapshot.models.get(name)))

    def models_of(self, model_type: str) -> Sequence[Model]:
        """Returns the models of a type, by name."""
        every = self._snapshot.page(models_of(model_type), None, len(self._snapshot.models))
        return [cast(Model, resource_of(self._snapshot.models[name])) for name in every]

    def referrers(self, name: str) -> Sequence[str]:
        """Returns the names of the resources that refer to one, sorted."""
        return self._snapshot.referrers(name)

    def open_requests(self, name: str) -> Sequence[CriticalityRequest]:
        """Returns the requests for a tier of an entry that are PENDING or APPROVED, by name."""
        found = (self._snapshot.find(each) for each in sorted(self._snapshot.open_requests.get(name, ())))
        return [cast(CriticalityRequest, _resource(message)) for message in found]

    def find(self, name: str) -> AnyResource | None:
        """Returns whatever has the name, or None."""
        return _resource(self._snapshot.find(name))

    def every(self, kind: type[R]) -> Sequence[R]:
        """Returns everything of one kind, by name."""
        return self._snapshot.every(kind)

    def pending(self) -> Edits:
        """Returns what has been decided and is not written yet: nothing."""
        return ()

    def asset_at(self, uri: str) -> str | None:
        """Returns the name of the asset that has a URI, or None."""
        assets = self._snapshot.table(Asset)
        for name in self._snapshot.lookup.at(place(uri)):
            if name in assets and place(assets[name].uri) == place(uri):
                return name
        return None

    def evidence_of(self, model: str) -> Sequence[EvidenceHead]:
        """Returns what evidence a model has, by name.

        Raises:
            LookupError: nobody told the writer to read it: a defect.
        """
        found = self._evidence.get(model)
        if found is None:
            raise LookupError(f"the evidence of {model} was not read for this decision")
        return found


def _resource(message: AnyMessage | None) -> AnyResource | None:
    return None if message is None else resource_of(message)
