"""The synthetic fleet: right by the registry's own rules, the same from the same seed, and shaped like a real one."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.synthetic import Fleet, generate, is_synthetic
from modelfleetd.kit.codec import from_proto
from modelfleetd.registry import wire
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelRole, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Edit, Edits, Stamp, revise
from modelfleetd.registry.domain.roles import Adoption, RoleChange, adopt_serving
from tests.support.registry import LedgerOf
from tests.support.synthetic import START, completed, stored_model

fleets = st.builds(generate, st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32))


def written(fleet: Fleet) -> LedgerOf:
    """The ledger after each entry was created, in the order of the fleet, by the registry's own decisions."""
    ledger = LedgerOf()

    def write(*edits: Edits) -> None:
        for each in edits:
            ledger.apply(each)

    for team in fleet.teams():
        write(entries.create_team(ledger, from_proto(team, Team), "uid"))
    regions = [from_proto(region, Region) for region in fleet.regions()]
    # They point at each other: shares come once all are there.
    for region in regions:
        write(entries.create_region(ledger, Region(name=region.name, agent_address=region.agent_address), "uid"))
    for region in regions:
        write(entries.update_region(ledger, region, ("failover_shares",)))
    for message in fleet.model_types():
        asked = from_proto(message, ModelType)
        message.ClearField("baseline")
        message.ClearField("holdouts")
        message.ClearField("splits")
        # TIER0 and TIER1 are granted later, on request; what is held here is everything else.
        write(entries.create_model_type(ledger, from_proto(message, ModelType, tier=None), "uid"))
        roles = []
        for model in fleet.models_of(message):
            role = from_proto(model, Model).role
            if role is not ModelRole.CANDIDATE:
                roles.append(RoleChange(model=model.name, role=role))
            model.ClearField("role")
            write(entries.create_model(ledger, from_proto(model, Model), "uid"))
        if roles:
            adoption = Adoption(model_type=asked.name, role_changes=tuple(roles), splits=asked.splits)
            write(adopt_serving(ledger, adoption))
        made = ledger.model_type(asked.name)
        assert made is not None
        assert (made.baseline, made.holdouts, made.splits) == (asked.baseline, asked.holdouts, asked.splits)
    return ledger


@settings(max_examples=5)
@given(fleets)
def test_a_registry_takes_every_entry_in_the_order_of_the_fleet(fleet: Fleet) -> None:
    ledger = written(fleet)
    assert len(ledger.every(ModelType)) == fleet.types


@settings(max_examples=15)
@given(fleets, st.integers(1, 60))
def test_the_same_seed_gives_the_same_and_a_smaller_fleet_is_the_beginning(fleet: Fleet, fewer: int) -> None:
    smaller = generate(min(fewer, fleet.types), fleet.models_per_type, fleet.seed)
    types = list(islice(fleet.model_types(), smaller.types))
    assert list(smaller.model_types()) == types
    assert [list(smaller.models_of(each)) for each in types] == [list(fleet.models_of(each)) for each in types]
    assert {team.name for team in smaller.teams()} <= {team.name for team in fleet.teams()}
    another = generate(smaller.types, fleet.models_per_type, fleet.seed + 1)
    assert list(another.model_types()) != types


@settings(max_examples=15)
@given(fleets)
def test_everything_says_that_it_is_synthetic(fleet: Fleet) -> None:
    types = list(fleet.model_types())
    models = [model for each in types for model in fleet.models_of(each)]
    for team in fleet.teams():
        assert is_synthetic(team)
    for region in fleet.regions():
        assert is_synthetic(region)
    for model_type in types:
        assert is_synthetic(model_type)
    for model in models:
        assert is_synthetic(model)
    for asset in fleet.assets():
        assert is_synthetic(asset)
    assert all(each.purpose.startswith("Synthetic: ") for each in types)
    assert all(model.description.startswith("Synthetic: ") for model in models)
    assert not is_synthetic(pb.Region(agent_address="synthetic.invalid.example.com:8443"))
    assert not is_synthetic(pb.Team(labels={"synthetic": "false"}))


@settings(max_examples=15)
@given(fleets)
def test_funnels_lead_from_sourcing_to_late_ranking_without_circles(fleet: Fleet) -> None:
    seen: dict[str, pb.ModelType] = {}
    for each in fleet.model_types():
        for upstream in each.upstream_types:
            # Earlier ones only: so there is no circle.
            assert upstream in seen
            assert seen[upstream].labels["app"] == each.labels["app"]
        if each.funnel_stage != pb.SOURCING:
            assert each.upstream_types
        own = {seen[u].funnel_stage for u in each.upstream_types if u.rsplit("_", 1)[0] == each.name.rsplit("_", 1)[0]}
        assert all(stage <= each.funnel_stage for stage in own)
        seen[each.name] = each
    assert len(seen) == fleet.types


@settings(max_examples=25)
@given(fleets)
def test_ids_fit_the_naming_scheme_that_comes_with_them(fleet: Fleet) -> None:
    scheme = fleet.naming_scheme()
    *listed, cell = scheme.fields
    for each in fleet.model_types():
        words = each.name.split("/")[1].split(scheme.separator)
        assert len(words) in (len(listed), len(listed) + 1)
        for field, word in zip(listed, words, strict=False):
            assert word in {known.word for known in field.words}
    assert cell.optional


def test_a_large_fleet_is_shaped_like_a_real_one() -> None:
    fleet = generate(1000, 20, seed=7)
    types = list(fleet.model_types())
    assert len({each.name for each in types}) == 1000
    tiers = Counter(each.tier for each in types)
    assert 2 <= tiers[serving_pb2.TIER0] <= 0.03 * 1000
    assert tiers[serving_pb2.TIER0] < tiers[serving_pb2.TIER1] < tiers[serving_pb2.TIER2] < tiers[serving_pb2.TIER3]
    assert 0 < tiers[serving_pb2.TIER_UNSPECIFIED] < 0.1 * 1000
    sizes = sorted(Counter(each.team for each in types).values())
    assert len(sizes) > 10 and sizes[-1] > 10 * sizes[len(sizes) // 2]
    peaks = sorted(sum(each.peak_qps for each in found.demand_source.stated) for found in types)
    assert sum(peaks[-100:]) > 0.4 * sum(peaks), "a tenth of the types has most of the demand"
    counts = [sum(1 for _ in fleet.models_of(each)) for each in types]
    assert sum(counts) == 20_000 and min(counts) < 10 < 40 < max(counts)
    on_call = [bool(team.on_call) for team in fleet.teams()]
    assert any(on_call) and not all(on_call), "some entries are not as the minimum standard wants them"


@pytest.mark.parametrize("wrong", [{"types": 0}, {"types": 2_000_000}, {"types": 1, "models_per_type": 0}])
def test_what_it_cannot_make_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be 1 to "):
        generate(**wrong)


def test_the_quick_way_into_a_database_stores_what_the_writer_would() -> None:
    fleet = generate(40, 10, seed=3)
    stamp = Stamp(5, START)
    for model_type in fleet.model_types():
        for model in fleet.models_of(model_type):
            plain = from_proto(model, Model)
            assert plain.serving_spec is not None
            complete: AnyResource = from_proto(model, Model, uid="uid", serving_spec=plain.serving_spec.complete())
            (change,) = revise((Edit(None, complete),), stamp)
            assert stored_model(model, "uid", stamp) == wire.stored_change(change, stamp.revision)


def test_the_quick_way_derives_what_the_writer_would() -> None:
    fleet = generate(40, 3, seed=5)
    ledger = LedgerOf()
    for each in completed(fleet):
        ledger.entries[each.name] = each
    for each in completed(fleet):
        found = ledger.model_type(each.name)
        tiers = [
            other.tier
            for other in ledger.every(ModelType)
            if other.tier is not None and each.name in _all_upstream(ledger, other.name)
        ]
        assert found is not None and found.required_tier == min(tiers, default=None)


def _all_upstream(ledger: LedgerOf, name: str) -> set[str]:
    found = ledger.model_type(name)
    assert found is not None
    return {*found.upstream_types, *(far for near in found.upstream_types for far in _all_upstream(ledger, near))}
