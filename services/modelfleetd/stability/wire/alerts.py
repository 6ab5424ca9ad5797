"""Alerts and silences."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from modelfleet.stability.v1 import alerts_pb2 as pb
from modelfleetd.kit.codec import timestamp_from_proto, to_proto
from modelfleetd.kit.filter import Field
from modelfleetd.kit.filter import Kind as FieldKind
from modelfleetd.stability.domain.alert import Alert
from modelfleetd.stability.domain.fleet import Tier
from modelfleetd.stability.domain.silence import Silence, declared


def _field(path: str, prefix: str = "") -> Field:
    enum = pb.Alert.DESCRIPTOR.fields_by_name[path].enum_type
    if enum is None:
        return Field(path, prefix=prefix)
    return Field(path, FieldKind.ENUM, numbers={value.name: value.number for value in enum.values if value.number})


# What lists of alerts can be filtered by.
FIELDS = {
    field.path: field
    for field in (
        *map(_field, ("state", "kind", "severity", "tier", "role", "model")),
        _field("model_type", "modelTypes/"),
        _field("team", "teams/"),
    )
}


def alert_to_proto(alert: Alert) -> pb.Alert:
    unset: Any = None
    return to_proto(replace(alert, tier=unset) if alert.tier is Tier.UNSTATED else alert, pb.Alert)


def silence_to_proto(silence: Silence) -> pb.Silence:
    return to_proto(silence, pb.Silence)


def silence_from_proto(message: pb.Silence, name: str, creator: str, now: datetime) -> Silence:
    """Raises InvalidFields: all that is wrong."""
    start, end = (
        timestamp_from_proto(getattr(message, field)) if message.HasField(field) else None
        for field in ("start_time", "end_time")
    )
    return declared(name, message.resource, message.reason, start, end, creator, now)
