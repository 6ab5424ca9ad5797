"""The checks that are compiled from the protos."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from google.protobuf import duration_pb2, field_mask_pb2, struct_pb2, timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.platform.v1 import platform_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.validation import plan_of

# Fixed: test ids are made of it, and every worker must find the same tests.
ID = "0456b8a1-3511-458e-bb36-64d6d9bff7a7"


def _wrong(request: Any) -> dict[str, str]:
    """Returns what is wrong with a request: field path to description."""
    plan = plan_of(request.DESCRIPTOR)
    assert plan is not None
    return {violation.path: violation.description for violation in plan(request)}


def _create(**fields: Any) -> pb.CreateModelTypeRequest:
    return pb.CreateModelTypeRequest(
        model_type_id="feed_ctr", request_id=ID, model_type=pb.ModelType(**{"team": "teams/ranking", **fields})
    )


def _update(*paths: str, **fields: Any) -> pb.UpdateModelTypeRequest:
    return pb.UpdateModelTypeRequest(
        model_type=pb.ModelType(**{"name": "modelTypes/a", **fields}),
        update_mask=field_mask_pb2.FieldMask(paths=paths),
        request_id=ID,
    )


def test_a_right_request_has_nothing_wrong() -> None:
    assert _wrong(_create(regions=["regions/eu"], upstream_types=["modelTypes/a"])) == {}
    assert _wrong(pb.GetModelTypeRequest(name="modelTypes/a")) == {}


def test_what_is_required_must_be_set() -> None:
    assert set(_wrong(pb.CreateModelTypeRequest())) == {"model_type_id", "model_type", "request_id"}
    assert "one of CANDIDATE" in _wrong(_finalize(pb.RoleChange(model="modelTypes/a/models/b")))["role_changes[0].role"]
    assert _wrong(pb.ReportServingRequest()) == {"statuses": "is required: at least one"}
    assert "modelTypes/{model_type}" in _wrong(pb.GetModelTypeRequest())["name"]


def _finalize(*changes: pb.RoleChange) -> pb.FinalizeLaunchRequest:
    return pb.FinalizeLaunchRequest(
        model_type="modelTypes/a",
        launch="launches/l",
        outcome=pb.FinalizeLaunchRequest.SUCCEEDED,
        role_changes=changes,
        request_id=ID,
    )


def test_references_must_be_names_of_their_kind() -> None:
    wrong = _wrong(_create(team="ranking", regions=["regions/eu", "teams/eu", "regions/EU"]))
    assert set(wrong) == {"model_type.team", "model_type.regions[1]", "model_type.regions[2]"}
    assert "teams/{team}" in wrong["model_type.team"]


def test_a_parent_may_be_a_wildcard_only_in_lists() -> None:
    assert _wrong(pb.ListModelsRequest(parent="modelTypes/-")) == {}
    assert _wrong(pb.ListModelsRequest(parent="modelTypes/a/models/b"))
    create = pb.CreateModelRequest(parent="modelTypes/-", model_id="m", request_id=ID)
    assert "parent" in _wrong(create)


@pytest.mark.parametrize("value", ["1", "x" * 36, ID + "0", ID.replace("-", ""), "{" + ID + "}"])
def test_a_request_id_is_a_uuid(value: str) -> None:
    request = _create()
    request.request_id = value
    assert set(_wrong(request)) == {"request_id"}


def test_a_request_id_may_be_derived_from_a_key() -> None:
    request = _create()
    request.request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, "launch/attempt/step/action"))
    assert _wrong(request) == {}


def test_enum_values_must_be_known() -> None:
    wrong = _wrong(_create(funnel_stage=99, predictions=[pb.Prediction(id="click", missing_label=7)]))  # type: ignore[arg-type]
    assert wrong["model_type.funnel_stage"] == "must be one of SOURCING, EARLY_STAGE_RANKING, LATE_STAGE_RANKING"
    assert "NEGATIVE" in wrong["model_type.predictions[0].missing_label"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_must_be_finite(value: float) -> None:
    stated = [pb.RegionDemand(region="regions/eu", peak_qps=value)]
    wrong = _wrong(_create(demand_source=pb.DemandSource(stated=stated)))
    assert wrong == {"model_type.demand_source.stated[0].peak_qps": "must be a finite number"}
    struct = struct_pb2.Struct(fields={"a": struct_pb2.Value(number_value=value)})
    assert set(_wrong(_create(attributes=struct))) == {"model_type.attributes"}


def test_text_must_be_what_the_database_can_store() -> None:
    wrong = _wrong(_create(purpose="a\0b", labels={"k": "a\0b"}, attributes={"a": [{"b": "\0"}]}))
    assert set(wrong) == {"model_type.purpose", "model_type.labels['k']", "model_type.attributes"}


def test_times_must_exist() -> None:
    late = timestamp_pb2.Timestamp(seconds=10**12)
    status = pb.ServingStatus(model_type="modelTypes/a", region="regions/eu", observe_time=late)
    assert set(_wrong(pb.ReportServingRequest(statuses=[status]))) == {"statuses[0].observe_time"}
    window = duration_pb2.Duration(seconds=1, nanos=-1)
    wrong = _wrong(_create(predictions=[pb.Prediction(id="click", attribution_window=window)]))
    assert set(wrong) == {"model_type.predictions[0].attribution_window"}


def test_page_sizes_and_revisions_are_not_negative() -> None:
    assert set(_wrong(pb.ListTeamsRequest(page_size=-1, min_revision=-1))) == {"page_size", "min_revision"}


def test_what_only_the_server_sets_is_cleared() -> None:
    request = _create(uid="mine", required_tier=99, name="nonsense", revision=7, etag="kept")
    assert _wrong(request) == {}
    assert request.model_type == pb.ModelType(team="teams/ranking", etag="kept")


def test_an_update_requires_only_what_its_mask_names() -> None:
    assert _wrong(_update(purpose="x")) == {}
    assert _wrong(_update("purpose", purpose="x")) == {}
    assert set(_wrong(_update("team"))) == {"model_type.team"}
    assert set(_wrong(_update("purpose", name=""))) == {"model_type.name"}


def test_the_mask_of_an_update_names_fields_that_exist() -> None:
    fine = ("labels.owner", "attributes.a.b", "demand_source.growth_basis_points", "baseline")
    assert _wrong(_update(*fine)) == {}
    for path in ("nope", "demand_source.nope", "purpose.x", "predictions.id", ""):
        assert set(_wrong(_update(path))) == {"update_mask"}, path


def test_repeated_messages_inside_a_request_are_checked() -> None:
    request = platform_pb2.ApplyServingRequest(
        target="targets/a",
        kind=platform_pb2.ROUTE,
        fence=platform_pb2.Fence(epoch=0, key="k"),
        desired=platform_pb2.DesiredServing(models=[platform_pb2.DesiredModel(model="nope")]),
    )
    assert set(_wrong(request)) == {"fence.epoch", "desired.models[0].model", "desired.models[0].serving_spec"}


@given(st.binary(max_size=400))
def test_nothing_that_decodes_makes_a_check_fail(data: bytes) -> None:
    for kind in (pb.CreateModelTypeRequest, pb.UpdateModelRequest, platform_pb2.ApplyServingRequest):
        try:
            request: Any = kind.FromString(data)
        except Exception:  # not a message
            continue
        _wrong(request)
