"""What lists of each kind can be filtered and ordered by: one table for all of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.assets_pb2 import Asset
from modelfleet.registry.v1.classification_pb2 import ExtensionSchema, NamingScheme
from modelfleet.registry.v1.criticality_pb2 import CriticalityRequest
from modelfleet.registry.v1.evidence_pb2 import EvaluationReport, RiskAssessment
from modelfleetd.kit.fields import Reading, attribute, readings
from modelfleetd.kit.filter import Field, Kind
from modelfleetd.registry.domain.resource import parent_of
from modelfleetd.registry.index import Index
from modelfleetd.registry.wire import BY_NAME, KINDS, AnyMessage

_TIMES = ("create_time", "update_time")
# Searched rather than named: not indexed.
_PROSE = frozenset({"description", "purpose", "display_name"})


@dataclass(frozen=True, slots=True)
class _Lists:
    """The fields of one kind."""

    filterable: tuple[str, ...]
    # Beside `name`.
    ordered: tuple[str, ...] = _TIMES


_LISTS: Final[Mapping[type[AnyMessage], _Lists]] = {
    pb.Team: _Lists(
        (
            "name", "display_name", "on_call", "contacts", "role_bindings.role", "role_bindings.members", "labels",
            *_TIMES,
        )
    ),
    pb.Region: _Lists(("name", "agent_address", "failover_shares.region", *_TIMES)),
    pb.ModelType: _Lists(
        (
            "name", "purpose", "team", "funnel_stage", "tier", "required_tier", "regions", "upstream_types",
            "predictions.id", "baseline", "holdouts", "naming", "labels", "tier_grant.overdue",
            "tier_grant.expire_time", "lint_waivers.rule", *_TIMES,
        ),
        (*_TIMES, "tier"),
    ),
    pb.Model: _Lists(
        (
            "name", "description", "role", "serving_spec.flavor", "serving_spec.protocol", "serving_spec.image",
            "serving_spec.artifact", "training_flow", "checkpoint", "tier_override", "labels", "tier_grant.overdue",
            "tier_grant.expire_time", "lint_waivers.rule", *_TIMES,
        ),
        (*_TIMES, "tier_override"),
    ),
    Asset: _Lists(("name", "kind", "uri", "display_name", "team", "model_types", "models", "labels", *_TIMES)),
    ExtensionSchema: _Lists(("name", "target", "description", "filterable", *_TIMES)),
    NamingScheme: _Lists(("name", "description", "enforced", *_TIMES)),
    CriticalityRequest: _Lists(
        ("name", "resource", "tier", "state", "requester", "decided_by", "decide_time", "expire_time", *_TIMES)
    ),
    # Not in memory: read in the order of names, and looked at one by one.
    EvaluationReport: _Lists(
        (
            "name", "suite", "suite_version", "description", "evaluator.kind", "evaluator.name", "dataset.name",
            "baseline", "results.metric", "evaluate_time", "expire_time", "labels", *_TIMES,
        ),
        (),
    ),
    RiskAssessment: _Lists(
        (
            "name", "description", "assessor", "assess_time", "expire_time", "risks.dimension", "risks.stakeholder",
            *_TIMES,
        ),
        (),
    ),
}  # fmt: skip

TEAMS: Final = "teams"
REGIONS: Final = "regions"
MODEL_TYPES: Final = "modelTypes"
MODELS_OF_ALL: Final = "modelTypes/-/models"

# Of models: the type, by name, and its fields.
_PARENT = "model_type"
_KINDS: Final = {"number": Kind.NUMBER, "integer": Kind.NUMBER, "boolean": Kind.BOOL}
_TARGETS: Final[Mapping[int, type[AnyMessage]]] = {
    ExtensionSchema.MODEL_TYPE: pb.ModelType,
    ExtensionSchema.MODEL: pb.Model,
}


def indexes() -> dict[str, Index]:
    """Returns an empty index for each kind that is kept in memory, by its name."""
    made: dict[str, Index] = {}
    for kind in KINDS:
        if kind.in_memory:
            parents = (_PARENT, made["model_type"]) if kind.message is pb.Model else None
            made[kind.name] = Index(fields(kind.name), _LISTS[kind.message].ordered, parents)
    return made


@functools.cache
def fields(kind: str) -> Mapping[str, Reading]:
    """Returns the fields of a kind, by path, without attributes."""
    message = BY_NAME[kind].message
    found = readings(message, _LISTS[message].filterable, _PROSE)
    if message is pb.Model:
        parent = Field(_PARENT, prefix=f"{MODEL_TYPES}/")
        found[_PARENT] = Reading(parent, lambda message: (parent_of(message.name),))
    return found


def attributes(schemas: Iterable[ExtensionSchema], kind: type[Message]) -> dict[str, Reading]:
    """Returns the attributes of a kind that its schemas say can be filtered by, by path."""
    found: dict[str, Reading] = {}
    for schema in schemas:
        if _TARGETS.get(schema.target) is not kind:
            continue
        properties = MessageToDict(schema.schema).get("properties")
        for key in schema.filterable:
            stated = properties.get(key) if isinstance(properties, dict) else None
            type_ = stated.get("type") if isinstance(stated, dict) else None
            found[f"attributes.{key}"] = attribute("attributes", key, _KINDS.get(str(type_), Kind.TEXT))
    return found
