"""Puts a synthetic fleet into a registry's database, in bulk: as its writer would have written it, only quicker.

History, state and head are what the registry itself keeps, hashes included: a revision for teams and regions, then one
for each model type with its models. A registry that runs already does not notice; start it afterwards.
"""

from __future__ import annotations

import functools
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.struct_pb2 import Value

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.synthetic import LABEL, Fleet
from modelfleetd.kit.codec import from_proto, timestamp_to_proto, to_proto
from modelfleetd.kit.db import Database
from modelfleetd.registry import wire
from modelfleetd.registry.domain import rules
from modelfleetd.registry.domain.dependencies import Dependencies
from modelfleetd.registry.domain.resources import ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Author, Edit, Stamp, StoredChange, StoredRevision, revise
from modelfleetd.registry.domain.serving import (
    DEFAULT_DRAIN_TIMEOUT,
    DEFAULT_STARTUP_TIMEOUT,
    Protocol,
    ServingSpec,
    digest,
)
from tests.support.registry import LedgerOf

START: Final = datetime(2025, 1, 1, tzinfo=UTC)
_AUTHOR = Author("synthetic", reason="a synthetic fleet")


async def write_fleet(database_url: str, fleet: Fleet) -> int:
    """Writes a fleet into a database that has the registry's schema and nothing in it; returns the newest revision."""
    revisions: list[tuple[object, ...]] = []
    changes: list[tuple[object, ...]] = []
    resources: list[tuple[object, ...]] = []
    hash_, time = b"", START
    for number, written in enumerate(_revisions(fleet), start=1):
        time = START + timedelta(seconds=number)
        header = wire.header_of(_AUTHOR, Stamp(number, time))
        stored = StoredRevision.following(hash_, number, header, [change.change for change in written])
        revisions.append((number, time, header, hash_, stored.hash))
        for position, change in enumerate(written):
            changes.append((number, position, change.resource, change.change))
            resources.append((change.resource, change.kind, number, change.state))
        hash_ = stored.hash
    database = await Database.open(database_url, "registry")
    async with database.transaction() as conn:
        for table, records, columns in (
            ("revisions", revisions, ("number", "time", "header", "previous_hash", "hash")),
            ("changes", changes, ("revision", "position", "resource", "change")),
            ("resources", resources, ("name", "kind", "revision", "state")),
        ):
            await conn.copy_records_to_table(table, records=records, columns=columns)
        await conn.execute("UPDATE head SET number = $1, time = $2, hash = $3", len(revisions), time, hash_)
    await database.execute("ANALYZE revisions, changes, resources")
    await database.close()
    return len(revisions)


def _revisions(fleet: Fleet) -> Iterator[list[StoredChange]]:
    """Yields the changes of each revision."""
    draw = random.Random(fleet.seed)
    stamp = Stamp(1, START + timedelta(seconds=1))
    first: list[Team | Region] = [
        *(rules.check_team(from_proto(team, Team)) for team in fleet.teams()),
        *(rules.check_region(from_proto(region, Region)) for region in fleet.regions()),
    ]
    edits = [Edit(None, replace(entry, uid=_uid(draw))) for entry in first]
    yield [wire.stored_change(change, stamp.revision) for change in revise(edits, stamp)]
    for number, model_type in enumerate(completed(fleet), start=2):
        stamp = Stamp(number, START + timedelta(seconds=number))
        edit = Edit(None, replace(model_type, uid=_uid(draw)))
        created = [wire.stored_change(change, number) for change in revise((edit,), stamp)]
        models = fleet.models_of(pb.ModelType(name=model_type.name))
        yield created + [stored_model(model, _uid(draw), stamp) for model in models]


def completed(fleet: Fleet) -> list[ModelType]:
    """Returns the model types as the registry keeps them: defaults written out, what follows from others derived."""
    ledger = _Indexed([rules.check_model_type(from_proto(each, ModelType)) for each in fleet.model_types()])
    found = []
    for each in ledger.model_types:
        required, path = Dependencies(ledger, each.name, each).required_tier(each.name)
        found.append(replace(each, required_tier=required, required_tier_path=path))
    return found


class _Indexed(LedgerOf):
    """A ledger of model types that knows who consumes whose output without looking at everything."""

    def __init__(self, model_types: Sequence[ModelType]) -> None:
        super().__init__(*model_types)
        self.model_types = model_types
        self._dependents: dict[str, list[str]] = {}
        for each in model_types:
            for upstream in each.upstream_types:
                self._dependents.setdefault(upstream, []).append(each.name)

    def referrers(self, name: str) -> Sequence[str]:
        return self._dependents.get(name, ())


def stored_model(model: pb.Model, uid: str, stamp: Stamp) -> StoredChange:
    """Returns the creation of a model as it is stored: byte for byte what `revise` and `wire.stored_change` make of it.

    They take a large part of a millisecond, and there are a hundred thousand models.
    """
    spec = model.serving_spec
    complete = ServingSpec(
        artifact=spec.artifact,
        image=spec.image,
        flavor=spec.flavor,
        units_per_replica=spec.units_per_replica,
        protocol=Protocol.OPEN_INFERENCE_V2_GRPC,
        startup_timeout=DEFAULT_STARTUP_TIMEOUT,
        drain_timeout=DEFAULT_DRAIN_TIMEOUT,
    )
    spec.MergeFrom(_defaults())
    spec.digest = digest(complete)
    time = timestamp_to_proto(stamp.time)
    model.attributes.SetInParent()  # there, and empty
    model.MergeFrom(
        pb.Model(uid=uid, create_time=time, update_time=time, etag=f"r{stamp.revision}", revision=stamp.revision)
    )
    state = model.SerializeToString(deterministic=True)
    head = pb.ResourceChange(resource=model.name, action=pb.ResourceChange.CREATED).SerializeToString()
    fields = (_field(path, value) for path, value in _fields(model) if value)
    change = b"".join((head, *fields, _AFTER_MODEL, _varint(len(state)), state))
    return StoredChange(model.name, stamp.revision, change, 0, "model", state)


# Key of the field `model` in a serialised ResourceChange: its number, and that a length follows.
_AFTER_MODEL = bytes([13 << 3 | 2])


@functools.cache
def _defaults() -> serving_pb2.ServingSpec:
    complete = ServingSpec().complete()
    made: serving_pb2.ServingSpec = to_proto(replace(complete, digest=""), serving_pb2.ServingSpec)
    made.ClearField("units_per_replica")
    return made


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _fields(model: pb.Model) -> Iterator[tuple[str, str | int]]:
    """Yields what a synthetic model has, in the order of the paths."""
    spec = model.serving_spec
    yield "checkpoint", model.checkpoint
    yield "description", model.description
    yield f"labels.{LABEL}", model.labels[LABEL]
    yield "role", pb.Model.Role.Name(model.role)
    yield "serving_spec.artifact", spec.artifact
    yield "serving_spec.digest", spec.digest
    yield "serving_spec.drain_timeout", f"{spec.drain_timeout.seconds}s"
    yield "serving_spec.flavor", spec.flavor
    yield "serving_spec.image", spec.image
    yield "serving_spec.protocol", serving_pb2.ServingSpec.Protocol.Name(spec.protocol)
    yield "serving_spec.startup_timeout", f"{spec.startup_timeout.seconds}s"
    yield "serving_spec.units_per_replica", spec.units_per_replica
    if model.tier_override:
        yield "tier_override", serving_pb2.Tier.Name(model.tier_override)
    yield "training_flow", model.training_flow


def _field(path: str, value: str | int) -> bytes:
    """Returns a field of a change, serialised. Most values are those of many models; the others are not kept."""
    if path in _OF_ONE:
        return _encoded(path, value)
    return _known_field(path, value)


_OF_ONE = frozenset({"checkpoint", "serving_spec.artifact", "serving_spec.digest", "serving_spec.image"})


def _encoded(path: str, value: str | int) -> bytes:
    after = Value(string_value=value) if isinstance(value, str) else Value(number_value=value)
    return pb.ResourceChange(fields=[pb.FieldChange(path=path, after=after)]).SerializeToString(deterministic=True)


_known_field = functools.lru_cache(4096)(_encoded)


def _uid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
