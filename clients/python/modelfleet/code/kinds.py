"""What may stand in files: kinds of entries, which of their fields are whose, and the defaults that are written out."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.api import field_behavior_pb2, resource_pb2
from google.protobuf.message import Message

from modelfleet.registry.v1 import assets_pb2
from modelfleet.registry.v1 import registry_pb2 as pb

# Its runtime class is the implementation's (upb, Python), which the published types state as a union.
Descriptor = Any

ID: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of entries.

    Attributes:
        field: its name in EntryChange and ResourceChange.
        collection: what its names begin with.
        folder: where `export` puts it; models are in the file of their type.
        message: its class.
        launch_owned: fields that only launches set: in files they are shown, and never applied.
    """

    field: str
    collection: str
    folder: str
    message: type[Message]
    launch_owned: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The kind in prose."""
        return self.field.replace("_", " ")


TEAM: Final = Kind("team", "teams", "teams", pb.Team)
REGION: Final = Kind("region", "regions", "regions", pb.Region)
MODEL_TYPE: Final = Kind("model_type", "modelTypes", "types", pb.ModelType, ("baseline", "holdouts", "splits"))
MODEL: Final = Kind("model", "models", "types", pb.Model, ("role",))
ASSET: Final = Kind("asset", "assets", "assets", assets_pb2.Asset)
# In an order in which references hold.
KINDS: Final = (TEAM, REGION, MODEL_TYPE, MODEL, ASSET)
# Those that have files of their own.
FILED: Final = (TEAM, REGION, MODEL_TYPE, ASSET)
BY_FIELD: Final[Mapping[str, Kind]] = {kind.field: kind for kind in KINDS}
_BY_COLLECTIONS: Final = {
    ("teams",): TEAM,
    ("regions",): REGION,
    ("modelTypes",): MODEL_TYPE,
    ("modelTypes", "models"): MODEL,
    ("assets",): ASSET,
}


def kind_of(name: str) -> Kind | None:
    """Returns the kind of the entry that a name names; None where it is no such name."""
    parts = name.split("/")
    if len(parts) % 2 or not all(ID.fullmatch(part) for part in parts[1::2]):
        return None
    return _BY_COLLECTIONS.get(tuple(parts[::2]))


def short(name: str) -> str:
    """The last id of a name: `teams/feed` → `feed`."""
    return name.rsplit("/", 1)[-1]


def parent_of(model: str) -> str:
    """The type of a model."""
    return model.rsplit("/", 2)[0]


# Defaults that the registry writes out when it stores an entry: leaving one out is the same as writing it.
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "modelfleet.registry.v1.Prediction": {
        "attribution_window": "3600s",
        "missing_label": "NEGATIVE",
        "calibration_range": {"low": 0.5, "high": 2.0},
        "min_positives": 10,
    },
    "modelfleet.registry.v1.DemandSource": {"fanout_basis_points": 10_000},
    "modelfleet.registry.v1.PrometheusDemand": {"window": "2419200s", "quantile": 0.999},
    "modelfleet.common.v1.ServingSpec": {
        "protocol": "OPEN_INFERENCE_V2_GRPC",
        "units_per_replica": 1,
        "startup_timeout": "60s",
        "drain_timeout": "10s",
    },
}


def defaults_of(descriptor: Descriptor) -> Mapping[str, Any]:
    """Returns the defaults that the registry writes out in messages of a type."""
    return _DEFAULTS.get(descriptor.full_name, {})


@functools.cache
def stamps_of(descriptor: Descriptor) -> frozenset[str]:
    """Returns the fields of a message type that the registry sets, and those that name and guard an entry."""
    own = {"name", "etag"} if descriptor.GetOptions().HasExtension(resource_pb2.resource) else set()
    return frozenset(field.name for field in descriptor.fields if field.name in own or _is_output_only(field))


def _is_output_only(field: Descriptor) -> bool:
    return field_behavior_pb2.OUTPUT_ONLY in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def is_map(field: Descriptor) -> bool:
    """Says whether a field is a map."""
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def is_plain_message(field: Descriptor) -> bool:
    """Says whether a field holds messages that have fields of their own to a reader: no durations, times or JSON."""
    message = field.message_type
    return bool(message is not None and not is_map(field) and not message.full_name.startswith("google.protobuf."))


def references_of(message: Message, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields what a message refers to: the field's path, the type of what it names, and the name."""
    field: Descriptor
    for field, value in message.ListFields():
        where = f"{path}{field.name}"
        kind = field.GetOptions().Extensions[resource_pb2.resource_reference].type
        if kind:
            yield from ((where, kind, name) for name in ([value] if isinstance(value, str) else value))
        elif is_plain_message(field):
            for item in value if field.is_repeated else [value]:
                yield from references_of(item, f"{where}.")
