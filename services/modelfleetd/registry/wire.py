"""Protobuf ↔ domain, and how revisions are put into bytes and together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.message import Message

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.kit.codec import from_proto, timestamp_to_proto, to_proto
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Author, ResourceChange, Stamp

AnyMessage: TypeAlias = pb.Team | pb.Region | pb.ModelType | pb.Model


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of resource: its name in the schema and in ResourceChange.after, and its two types."""

    name: str
    pattern: names.Pattern
    message: type[AnyMessage]
    resource: type[AnyResource]


KINDS: Final[tuple[Kind, ...]] = (
    Kind("team", names.TEAM, pb.Team, Team),
    Kind("region", names.REGION, pb.Region, Region),
    Kind("model_type", names.MODEL_TYPE, pb.ModelType, ModelType),
    Kind("model", names.MODEL, pb.Model, Model),
)
BY_NAME: Final[Mapping[str, Kind]] = {kind.name: kind for kind in KINDS}
_BY_RESOURCE: Final = {kind.resource: kind for kind in KINDS}
_BY_MESSAGE: Final[Mapping[type[Message], Kind]] = {kind.message: kind for kind in KINDS}


def kind_of(value: AnyMessage | AnyResource) -> Kind:
    """Returns the kind of a resource or of its message."""
    return _BY_MESSAGE[type(value)] if isinstance(value, Message) else _BY_RESOURCE[type(value)]


def message_of(resource: AnyResource) -> AnyMessage:
    """Returns the message of a resource."""
    return to_proto(resource, _BY_RESOURCE[type(resource)].message)


def resource_of(message: AnyMessage) -> AnyResource:
    """Returns the resource in a message."""
    return from_proto(message, _BY_MESSAGE[type(message)].resource)


def copy_of(message: AnyMessage) -> AnyMessage:
    """Returns a message of its own: a part of another one keeps the whole of that in memory."""
    made: AnyMessage = type(message)()
    made.MergeFrom(message)  # type: ignore[arg-type]
    return made


def references_of(message: AnyMessage) -> frozenset[str]:
    """Returns the names of the resources that one refers to: none of them can be deleted while it does."""
    if isinstance(message, pb.ModelType):
        regions = [*message.regions, *(stated.region for stated in message.demand_source.stated)]
        return frozenset((message.team, *regions, *(split.region for split in message.splits), *message.upstream_types))
    if isinstance(message, pb.Region):
        return frozenset(share.region for share in message.failover_shares)
    return frozenset()


@dataclass(frozen=True, slots=True)
class StoredChange:
    """One change as it is stored, and what it leaves of the resource."""

    resource: str
    change: bytes
    previous_revision: int
    after: AnyMessage | None


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """One revision as it is stored: header and changes are hashed byte for byte as they are here."""

    number: int
    header: bytes
    changes: Sequence[bytes]
    previous_hash: bytes
    hash: bytes

    def message(self) -> pb.Revision:
        """Returns the whole revision."""
        revision = pb.Revision.FromString(self.header)
        for change in self.changes:
            revision.changes.add().MergeFromString(change)
        revision.hash = self.hash.hex()
        revision.previous_hash = self.previous_hash.hex()
        return revision


def header_of(author: Author, stamp: Stamp) -> bytes:
    """Returns the header of a revision as it is stored."""
    header = pb.Revision(
        name=names.REVISION.format(stamp.revision),
        number=stamp.revision,
        time=timestamp_to_proto(stamp.time),
        actor=author.actor,
        actor_asserted=author.actor_asserted,
        on_behalf_of=author.on_behalf_of,
        reason=author.reason,
        launch=author.launch,
    )
    return header.SerializeToString(deterministic=True)


def stored_change(change: ResourceChange) -> StoredChange:
    """Returns a change as it is stored."""
    message = to_proto(change, pb.ResourceChange)
    after = None if change.after is None else message_of(change.after)
    if after is not None:
        getattr(message, kind_of(after).name).CopyFrom(after)
    return StoredChange(change.resource, message.SerializeToString(deterministic=True), change.previous_revision, after)


def after_of(change: pb.ResourceChange) -> AnyMessage | None:
    """Returns the resource after a change; None after a deletion."""
    field = change.WhichOneof("after")
    if field is None:
        return None
    after: AnyMessage = getattr(change, field)
    return after
