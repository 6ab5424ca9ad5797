"""Protobuf ↔ domain, and how revisions are put into bytes and together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from modelfleet.registry.v1 import assets_pb2, classification_pb2, criticality_pb2, evidence_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.kit.codec import from_proto, timestamp_to_proto, to_proto
from modelfleetd.registry.domain.assets import Asset
from modelfleetd.registry.domain.criticality import CriticalityRequest
from modelfleetd.registry.domain.evidence import EvaluationReport, EvaluationResult, EvidenceRule, RiskAssessment
from modelfleetd.registry.domain.evidence_rules import metrics_of
from modelfleetd.registry.domain.evidence_verdicts import Evidence, Finding
from modelfleetd.registry.domain.naming import NamingScheme
from modelfleetd.registry.domain.resource import Json, Resource
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Author, ResourceChange, Stamp, StoredChange, StoredRevision, changed
from modelfleetd.registry.domain.schemas import ExtensionSchema

AnyMessage: TypeAlias = (
    pb.Team
    | pb.Region
    | pb.ModelType
    | pb.Model
    | assets_pb2.Asset
    | classification_pb2.ExtensionSchema
    | classification_pb2.NamingScheme
    | criticality_pb2.CriticalityRequest
    | evidence_pb2.EvaluationReport
    | evidence_pb2.RiskAssessment
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of resource: its name in the schema and in ResourceChange.after, and its two types.

    What is not `in_memory` is read from the database: there may be much of it, and no decision on other entries needs
    it.
    """

    name: str
    pattern: names.Pattern
    message: type[AnyMessage]
    resource: type[AnyResource]
    in_memory: bool = True


KINDS: Final[tuple[Kind, ...]] = (
    Kind("team", names.TEAM, pb.Team, Team),
    Kind("region", names.REGION, pb.Region, Region),
    Kind("model_type", names.MODEL_TYPE, pb.ModelType, ModelType),
    Kind("model", names.MODEL, pb.Model, Model),
    Kind("asset", names.ASSET, assets_pb2.Asset, Asset),
    Kind("extension_schema", names.EXTENSION_SCHEMA, classification_pb2.ExtensionSchema, ExtensionSchema),
    Kind("naming_scheme", names.NAMING_SCHEME, classification_pb2.NamingScheme, NamingScheme),
    Kind("criticality_request", names.CRITICALITY_REQUEST, criticality_pb2.CriticalityRequest, CriticalityRequest),
    Kind(
        "evaluation_report", names.EVALUATION_REPORT, evidence_pb2.EvaluationReport, EvaluationReport, in_memory=False
    ),
    Kind("risk_assessment", names.RISK_ASSESSMENT, evidence_pb2.RiskAssessment, RiskAssessment, in_memory=False),
)
BY_NAME: Final[Mapping[str, Kind]] = {kind.name: kind for kind in KINDS}
_BY_RESOURCE: Final[Mapping[type[Resource], Kind]] = {kind.resource: kind for kind in KINDS}
_BY_COLLECTIONS: Final = {tuple(kind.pattern.template.split("/")[::2]): kind for kind in KINDS}
_BY_MESSAGE: Final[Mapping[type[Message], Kind]] = {kind.message: kind for kind in KINDS}


def kind_of(value: AnyMessage) -> Kind:
    """Returns the kind of a resource's message."""
    return kind_of_message(type(value))


def kind_of_message(message: type[Message]) -> Kind:
    """Returns the kind of a message's class."""
    return _BY_MESSAGE[message]


def kind_of_resource(resource: type[Resource]) -> Kind:
    """Returns the kind of a resource's class."""
    return _BY_RESOURCE[resource]


def kind_of_name(name: str) -> Kind | None:
    """Returns the kind of the resource that a name names; None where it is no such name."""
    collections = tuple(name.split("/")[::2])
    return _BY_COLLECTIONS.get(collections) if name.count("/") % 2 else None


def message_of(resource: AnyResource) -> AnyMessage:
    """Returns the message of a resource."""
    return to_proto(resource, _BY_RESOURCE[type(resource)].message)


def resource_of(message: AnyMessage) -> AnyResource:
    """Returns the resource in a message."""
    return from_proto(message, _BY_MESSAGE[type(message)].resource)


def attributes_of(message: pb.ModelType | pb.Model) -> Mapping[str, Json]:
    """Returns the attributes in a message."""
    return MessageToDict(message.attributes)


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
    if isinstance(message, assets_pb2.Asset):
        return frozenset((message.team, *message.model_types, *message.models))
    return frozenset()


class EvidenceReader:
    """Makes of a model's stored evidence what rules may be about: most results are about other metrics."""

    def __init__(self, rules: Sequence[EvidenceRule]) -> None:
        self._metrics = metrics_of(rules)
        self._with_risks = any(rule.max_residual_risk is not None for rule in rules)
        self._findings: list[Finding] = []
        self._assessments: list[RiskAssessment] = []

    @property
    def evidence(self) -> Evidence:
        """What was read."""
        return Evidence(self._findings, self._assessments)

    def read(self, kind: str, state: bytes) -> None:
        """Takes in one report or assessment."""
        message = message_of_stored(kind, state)
        if isinstance(message, evidence_pb2.EvaluationReport):
            wanted = [(place, each) for place, each in enumerate(message.results) if each.metric in self._metrics]
            if wanted:
                results = [(place, from_proto(each, EvaluationResult)) for place, each in wanted]
                message.ClearField("results")
                report = from_proto(message, EvaluationReport)
                self._findings += [Finding(report, place, result) for place, result in results]
        elif isinstance(message, evidence_pb2.RiskAssessment) and self._with_risks:
            self._assessments.append(from_proto(message, RiskAssessment))


def size_of(resource: AnyResource) -> int:
    """Returns the bytes of a resource's message."""
    return message_of(resource).ByteSize()


def references_of_resource(resource: AnyResource) -> frozenset[str]:
    """Returns the names of the resources that one refers to (`references_of`)."""
    return references_of(message_of(resource))


def message_of_stored(kind: str, state: bytes) -> AnyMessage:
    """Returns the message of a resource as it is stored."""
    return BY_NAME[kind].message.FromString(state)


def revision_of(stored: StoredRevision) -> pb.Revision:
    """Returns a whole revision."""
    revision = pb.Revision.FromString(stored.header)
    for change in stored.changes:
        revision.changes.add().MergeFromString(change)
    revision.hash = stored.hash.hex()
    revision.previous_hash = stored.previous_hash.hex()
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


def stored_change(change: ResourceChange, revision: int) -> StoredChange:
    """Returns a change as it is stored with a revision."""
    after = None if change.after is None else message_of(change.after)
    kind, state = "", None
    if after is not None:
        kind, state = kind_of(after).name, after.SerializeToString(deterministic=True)
    message = _change(change, after)
    return StoredChange(
        change.resource,
        revision,
        message.SerializeToString(deterministic=True),
        change.previous_revision,
        kind,
        state,
    )


def difference(before: AnyMessage | None, after: AnyMessage | None) -> pb.ResourceChange | None:
    """Returns the change that leads from one state of a resource to another; None where nothing differs."""
    old = None if before is None else resource_of(before)
    change = changed(old, None if after is None else resource_of(after))
    return None if change is None else _change(change, after)


def _change(change: ResourceChange, after: AnyMessage | None) -> pb.ResourceChange:
    message = to_proto(change, pb.ResourceChange)
    if after is not None:
        getattr(message, kind_of(after).name).CopyFrom(after)
    return message


def is_deletion(change: bytes) -> bool:
    """Says whether a change as it is stored deletes its resource."""
    return pb.ResourceChange.FromString(change).action == pb.ResourceChange.DELETED


def after_of(change: pb.ResourceChange) -> AnyMessage | None:
    """Returns the resource after a change; None after a deletion."""
    field = change.WhichOneof("after")
    if field is None:
        return None
    after: AnyMessage = getattr(change, field)
    return after
