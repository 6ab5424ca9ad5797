"""Dataclasses to messages and back."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.common.v1 import serving_pb2
from modelfleet.platform.v1 import platform_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit import codec
from modelfleetd.kit.codec import from_proto, to_proto


class Protocol(enum.Enum):
    OPEN_INFERENCE_V2_GRPC = "v2"


@dataclass(frozen=True, slots=True)
class ServingSpec:
    flavor: str
    artifact: str | None = None
    command: tuple[str, ...] = ()
    protocol: Protocol | None = None
    units_per_replica: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    startup_timeout: timedelta | None = None
    drain_timeout: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Prediction:
    id: str
    min_positives: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    serving_spec: ServingSpec | None
    labels: Mapping[str, str]
    attributes: Mapping[str, Any]
    create_time: datetime | None
    # Not in the message.
    hidden: int = 7


@dataclass(frozen=True, slots=True)
class ModelType:
    name: str
    regions: frozenset[str]
    predictions: list[Prediction]


@dataclass(frozen=True, slots=True)
class Observed:
    model: str
    latency_p50_ms: float | None
    requests: int


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
SPANS = st.timedeltas(-timedelta(days=3650), timedelta(days=3650))
SPECS = st.builds(
    ServingSpec,
    flavor=TEXT,
    artifact=st.none() | TEXT.filter(bool),
    command=st.lists(TEXT).map(tuple),
    protocol=st.none() | st.sampled_from(Protocol),
    units_per_replica=st.integers(-(2**31), 2**31 - 1),
    environment=st.dictionaries(TEXT, TEXT, max_size=3),
    startup_timeout=st.none() | SPANS,
    drain_timeout=SPANS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
MODELS = st.builds(
    Model,
    name=TEXT,
    serving_spec=st.none() | SPECS,
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
    attributes=st.dictionaries(TEXT, JSON, max_size=3),
    create_time=st.none() | TIMES,
)


@given(MODELS)
def test_what_goes_out_comes_back(model: Model) -> None:
    message = to_proto(model, pb.Model)
    assert from_proto(pb.Model.FromString(message.SerializeToString()), Model) == model


@given(st.builds(ModelType, TEXT, st.frozensets(TEXT, max_size=4), st.lists(st.builds(Prediction, TEXT), max_size=3)))
def test_containers_keep_their_kind(model_type: ModelType) -> None:
    assert from_proto(to_proto(model_type, pb.ModelType), ModelType) == model_type


@given(st.builds(Observed, TEXT, st.none() | st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1)))
def test_zero_is_not_the_same_as_unset_where_the_field_tells(observed: Observed) -> None:
    message = to_proto(observed, platform_pb2.ObservedModel)
    assert message.HasField("latency_p50_ms") == (observed.latency_p50_ms is not None)
    assert from_proto(message, Observed) == observed


@given(SPANS)
def test_durations_are_what_json_says_of_them(span: timedelta) -> None:
    message = codec.duration_to_proto(span)
    assert message == duration_pb2.Duration.FromString(_duration(span).SerializeToString())
    assert codec.duration_from_proto(message) == span


def _duration(span: timedelta) -> duration_pb2.Duration:
    made = duration_pb2.Duration()
    made.FromTimedelta(span)
    return made


@given(TIMES)
def test_timestamps_are_protobufs_own(moment: datetime) -> None:
    expected = timestamp_pb2.Timestamp()
    expected.FromDatetime(moment)
    assert codec.timestamp_to_proto(moment) == expected
    assert codec.timestamp_from_proto(expected) == moment


def test_an_unspecified_enum_is_none_or_a_member_of_that_name() -> None:
    class WithUnspecified(enum.Enum):
        PROTOCOL_UNSPECIFIED = 0
        OPEN_INFERENCE_V2_GRPC = 1

    @dataclass
    class Spec:
        protocol: WithUnspecified

    Spec.__annotations__["protocol"] = WithUnspecified
    assert from_proto(serving_pb2.ServingSpec(), Spec).protocol is WithUnspecified.PROTOCOL_UNSPECIFIED
    assert from_proto(serving_pb2.ServingSpec(), ServingSpec).protocol is None


def test_an_enum_that_lacks_a_value_of_the_proto_is_found_out_at_once() -> None:
    class Tier(enum.Enum):
        TIER0 = 0

    @dataclass
    class Type:
        tier: Tier | None

    Type.__annotations__["tier"] = Tier
    with pytest.raises(TypeError, match="Tier lacks TIER1"):
        from_proto(pb.ModelType(), Type)


def test_fields_that_the_message_lacks_are_given_by_keyword() -> None:
    model = from_proto(pb.Model(name="x"), Model, hidden=3, name="y")
    assert (model.name, model.hidden) == ("y", 3)


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        codec.timestamp_to_proto(datetime(2025, 1, 1))  # noqa: DTZ001
