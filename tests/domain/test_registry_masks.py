"""Updates by mask, for every resource and any mask."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import InvalidFields
from modelfleetd.registry.domain.documents import diff, owner_of
from modelfleetd.registry.domain.masks import merge
from modelfleetd.registry.domain.paths import join, split
from modelfleetd.registry.domain.resource import Owner, Tier
from modelfleetd.registry.domain.resources import DemandSource, ModelType, RegionDemand
from tests.support.registry import model_type

FIELDS = [field.name for field in dataclasses.fields(ModelType) if owner_of(field) is None]

texts = st.text(max_size=5)
model_types = st.builds(
    model_type,
    purpose=texts,
    team=texts,
    tier=st.none() | st.sampled_from(Tier),
    regions=st.lists(texts, max_size=2).map(tuple),
    labels=st.dictionaries(texts, texts, max_size=3),
    attributes=st.dictionaries(texts, st.integers() | texts, max_size=3),
    # Never None: a path below it leaves an empty one rather than none.
    demand_source=st.builds(DemandSource, growth_basis_points=st.integers(0, 9)),
    revision=st.integers(0, 9),
)


@given(model_types, model_types, st.sets(st.sampled_from(FIELDS), min_size=1))
def test_exactly_the_fields_of_the_mask_change(current: ModelType, asked: ModelType, mask: set[str]) -> None:
    merged = merge(current, asked, sorted(mask), field="model_type")
    for field in dataclasses.fields(ModelType):
        source = asked if field.name in mask else current
        assert getattr(merged, field.name) == getattr(source, field.name)


@given(model_types, model_types)
def test_an_empty_mask_takes_what_is_set_and_a_star_takes_all(current: ModelType, asked: ModelType) -> None:
    some, everything = merge(current, asked, (), field="x"), merge(current, asked, ("*",), field="x")
    for name in FIELDS:
        value = getattr(asked, name)
        is_set = value is not None and value != "" and value != () and value != {}
        assert getattr(some, name) == (value if is_set else getattr(current, name))
        assert getattr(everything, name) == value
    assert everything.revision == some.revision == current.revision


@given(model_types, model_types)
def test_every_difference_can_be_named_in_a_mask_and_the_mask_of_a_difference_makes_it(
    current: ModelType, asked: ModelType
) -> None:
    # Below `attributes.key` and `demand_source.field` a path goes as deep as a mask may.
    paths = [change.path for change in diff(current, asked)]
    merged = merge(current, asked, paths, field="model_type") if paths else current
    assert diff(merged, asked) == ()


def test_a_key_of_a_map_is_set_and_taken_away_by_itself() -> None:
    current = model_type(labels={"a": "1", "b": "2"})
    asked = model_type(labels={"a": "3"})
    assert merge(current, asked, ("labels.a",), field="x").labels == {"a": "3", "b": "2"}
    assert merge(current, asked, ("labels.b",), field="x").labels == {"a": "1"}


def test_a_field_of_a_message_that_is_not_there_yet() -> None:
    stated = (RegionDemand(region="regions/eu", peak_qps=1.0),)
    asked = model_type(demand_source=DemandSource(stated=stated, growth_basis_points=7))
    merged = merge(model_type(), asked, ("demand_source.growth_basis_points",), field="x")
    assert merged.demand_source == DemandSource(growth_basis_points=7)
    assert merge(asked, model_type(), ("demand_source.stated",), field="x").demand_source == DemandSource(
        growth_basis_points=7
    )
    assert merge(model_type(), model_type(), ("demand_source.stated",), field="x") == model_type()


@pytest.mark.parametrize(
    "path",
    [
        *("nope", "", ".", "purpose.", "purpose.x", "regions.0", "predictions.id", "demand_source.nope", "labels.a.b"),
        *("name", "uid", "etag", "revision", "create_time", "required_tier", "naming", "serving_revision"),
    ],
)
def test_a_path_that_names_no_field_to_be_set_is_refused_with_what_would_be_accepted(path: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        merge(model_type(), model_type(), ("purpose", path), field="model_type")
    (violation,) = refused.value.violations
    assert violation.path == "update_mask"
    assert "purpose, team, funnel_stage" in violation.description


@given(st.lists(st.text(max_size=6), min_size=1, max_size=4))
def test_any_segments_make_a_path_that_gives_them_back(segments: list[str]) -> None:
    assert split(join(segments)) == tuple(segments)


def test_owners_of_fields_are_what_the_protos_say() -> None:
    from google.api import field_behavior_pb2

    from modelfleetd.registry.wire import KINDS

    expected: dict[int, set[Owner | None]] = {
        field_behavior_pb2.OUTPUT_ONLY: {Owner.STAMP, Owner.DERIVED},
        field_behavior_pb2.IMMUTABLE: {Owner.CREATION},
        field_behavior_pb2.IDENTIFIER: {Owner.STAMP},
    }
    for kind in KINDS:
        ours: dict[str, Any] = {field.name: field for field in dataclasses.fields(kind.resource)}
        theirs = kind.message.DESCRIPTOR.fields_by_name
        assert set(ours) == set(theirs), kind.name
        for name, field in theirs.items():
            behaviors: Any = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]  # type: ignore[index]
            owners = [owners for behavior, owners in expected.items() if behavior in behaviors]
            # An etag is sent back, so it is not output only.
            allowed = owners[0] if owners else {Owner.STAMP} if name == "etag" else {None, Owner.LAUNCHES}
            assert owner_of(ours[name]) in allowed, f"{kind.name}.{name}"
