"""What a launch leaves behind, and when it may."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import FieldOwnedByLaunches, FleetError, InvalidFields, ResourceNotFound, RevisionMismatch
from modelfleetd.registry.domain.resources import Model, ModelRole, ModelType
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.roles import (
    Adoption,
    Finalization,
    Outcome,
    RoleChange,
    adopt_serving,
    finalize_launch,
)
from tests.support.registry import LedgerOf, fleet, model_type, region, serving, split, team

TYPE = "modelTypes/ctr"
OLD, NEW = f"{TYPE}/models/old", f"{TYPE}/models/new"


def role(model: str, role: ModelRole | None) -> RoleChange:
    return RoleChange(model=model, role=role)


SWAP = (role(NEW, ModelRole.BASELINE), role(OLD, ModelRole.RETIRED))


PLANNED = Finalization(
    model_type=TYPE,
    launch="launches/l1",
    outcome=Outcome.SUCCEEDED,
    expected_revision=7,
    role_changes=SWAP,
    splits=(split(new=10_000),),
)


def finalization(**fields: Any) -> Finalization:
    return replace(PLANNED, **fields)


def after(edits: Edits) -> dict[str, ModelType | Model]:
    return {edit.name: edit.after for edit in edits if isinstance(edit.after, (ModelType, Model))}


def test_the_candidate_takes_the_place_of_the_baseline_in_one_revision() -> None:
    changed = after(finalize_launch(fleet(), finalization()))
    ctr = changed[TYPE]
    assert isinstance(ctr, ModelType)
    assert (ctr.baseline, ctr.holdouts, ctr.splits) == (NEW, (), (split(new=10_000),))
    assert {name: each.role for name, each in changed.items() if isinstance(each, Model)} == {
        NEW: ModelRole.BASELINE,
        OLD: ModelRole.RETIRED,
    }


def test_the_old_baseline_may_stay_as_a_holdout_with_a_share() -> None:
    changes = (role(NEW, ModelRole.BASELINE), role(OLD, ModelRole.HOLDOUT))
    asked = finalization(role_changes=changes, splits=(split(new=9_500, old=500),))
    ctr = after(finalize_launch(fleet(), asked))[TYPE]
    assert isinstance(ctr, ModelType)
    assert (ctr.holdouts, ctr.splits) == ((OLD,), (split(new=9_500, old=500),))


def test_the_order_of_shares_is_kept_since_it_is_the_order_of_the_split_keys_ranges() -> None:
    changes = (role(NEW, ModelRole.EXPERIMENT),)
    for shares in (split(new=500, old=9_500), split(old=9_500, new=500)):
        ctr = after(finalize_launch(fleet(), finalization(role_changes=changes, splits=(shares,))))[TYPE]
        assert isinstance(ctr, ModelType)
        assert ctr.splits == (shares,)


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        ({"outcome": None, "role_changes": (), "splits": ()}, "outcome", "SUCCEEDED or ROLLED_BACK"),
        ({"outcome": Outcome.ROLLED_BACK, "splits": ()}, "role_changes", "empty"),
        ({"outcome": Outcome.ROLLED_BACK, "role_changes": ()}, "splits", "empty"),
        ({"expected_revision": 0}, "expected_revision", "as planned on"),
        ({"role_changes": SWAP[:1]}, "role_changes", "at most one BASELINE"),
        ({"role_changes": (*SWAP, SWAP[0])}, "role_changes[2].model", "twice"),
        (
            {"role_changes": (*SWAP, role("modelTypes/x/models/y", ModelRole.RETIRED))},
            "role_changes[2].model",
            "a model of",
        ),
        ({"role_changes": (SWAP[0], role(OLD, None))}, "role_changes[1].role", "RETIRED"),
        ({"role_changes": (SWAP[0], role(OLD, ModelRole.CANDIDATE))}, "role_changes[1].role", "RETIRED"),
        ({"splits": (split(new=9_999),)}, "splits[0].shares", "they sum to 9999"),
        ({"splits": (split(new=10_001),)}, "splits[0].shares[0].share_basis_points", "0 to 10000"),
        ({"splits": (split(new=10_001, old=-1),)}, "splits[0].shares[1].share_basis_points", "0 to 10000"),
        ({"splits": (split(new=10_000), split(new=10_000))}, "splits[1].region", "twice"),
        ({"splits": (split("us", new=10_000),)}, "splits[0].region", "a region of modelTypes/ctr"),
        ({"splits": (split(new=9_000, old=1_000),)}, "splits[0].shares[1].model", "has the role RETIRED"),
        ({"splits": (split(of="other", m=10_000),)}, "splits[0].shares[0].model", "a model of modelTypes/ctr"),
        ({"splits": ()}, "splits", "models/old has the role RETIRED and cannot take a share in regions/eu"),
    ],
)
def test_roles_and_splits_fit_together(fields: dict[str, object], path: str, says: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        finalize_launch(fleet(), finalization(**fields))
    found = {violation.path: violation.description for violation in refused.value.violations}
    assert says in found[path]


def test_only_what_launches_own_makes_a_plan_old() -> None:
    # The type is at revision 7, and its baseline and split are since 5.
    for expected in (5, 6, 7):
        assert finalize_launch(fleet(), finalization(expected_revision=expected))
    for expected in (1, 4, 8):
        with pytest.raises(RevisionMismatch):
            finalize_launch(fleet(), finalization(expected_revision=expected))


def test_serving_revision_moves_with_what_launches_own_and_with_nothing_else() -> None:
    ledger = fleet()
    ctr = ledger.model_type(TYPE)
    assert ctr is not None
    from modelfleetd.registry.domain.entries import update_model_type

    ledger.apply(update_model_type(ledger, replace(ctr, purpose="other"), ("purpose",)))
    changed = ledger.model_type(TYPE)
    assert changed is not None
    assert (changed.revision, changed.serving_revision) == (8, 5)
    ledger.apply(finalize_launch(ledger, finalization()))
    changed = ledger.model_type(TYPE)
    assert changed is not None
    assert (changed.revision, changed.serving_revision) == (9, 9)


def test_a_rollback_edits_nothing_even_of_a_type_that_is_gone() -> None:
    rolled_back = finalization(outcome=Outcome.ROLLED_BACK, role_changes=(), splits=(), model_type="modelTypes/gone")
    assert finalize_launch(fleet(), rolled_back) == ()
    with pytest.raises(ResourceNotFound):
        finalize_launch(fleet(), finalization(model_type="modelTypes/gone"))


def test_a_launch_that_only_changed_replicas_edits_nothing() -> None:
    assert finalize_launch(fleet(), finalization(role_changes=(), splits=())) == ()


def test_the_digest_is_over_outcome_roles_and_splits() -> None:
    same = finalization(expected_revision=5, role_changes=SWAP[::-1])
    assert finalization().digest() == same.digest()
    others = [
        finalization(outcome=Outcome.ROLLED_BACK),
        finalization(role_changes=SWAP[:1]),
        finalization(splits=()),
        finalization(model_type="modelTypes/other"),
    ]
    assert len({finalization().digest(), *(other.digest() for other in others)}) == 5


def test_what_serves_already_is_adopted_once() -> None:
    old, new = serving(ModelRole.CANDIDATE, "old"), serving(ModelRole.CANDIDATE, "new")
    ledger = LedgerOf(team(), region(), model_type(), old, new)
    adoption = Adoption(
        model_type=TYPE,
        role_changes=(role(OLD, ModelRole.BASELINE), role(NEW, ModelRole.EXPERIMENT)),
        splits=(split(old=9_000, new=1_000),),
    )
    ledger.apply(adopt_serving(ledger, adoption))
    ctr = ledger.model_type(TYPE)
    assert ctr is not None
    assert (ctr.baseline, ctr.splits) == (OLD, adoption.splits)
    assert adopt_serving(ledger, adoption) == ()
    with pytest.raises(FieldOwnedByLaunches):
        adopt_serving(ledger, replace(adoption, splits=(split(old=10_000),)))
    with pytest.raises(InvalidFields):
        adopt_serving(ledger, replace(adoption, role_changes=(role(OLD, ModelRole.HOLDOUT),)))
    with pytest.raises(ResourceNotFound):
        adopt_serving(ledger, replace(adoption, model_type="modelTypes/nope"))


roles = st.none() | st.sampled_from(ModelRole)
ids = ("a", "b", "c")
shares = st.dictionaries(st.sampled_from(ids), st.sampled_from([0, 500, 5_000, 9_500, 10_000]), max_size=3)


@given(
    st.lists(st.tuples(st.sampled_from(ids), roles), max_size=4),
    st.lists(st.tuples(st.sampled_from(["eu", "us"]), shares), max_size=3),
)
def test_whatever_is_finalised_leaves_one_baseline_at_most_and_traffic_only_where_it_is_served(
    changes: list[tuple[str, ModelRole | None]], splits: list[tuple[str, dict[str, int]]]
) -> None:
    ctr = model_type(regions=("regions/eu", "regions/us"), baseline=f"{TYPE}/models/a", splits=(split(a=10_000),))
    models = [serving(ModelRole.BASELINE, "a"), serving(ModelRole.CANDIDATE, "b"), serving(ModelRole.EXPERIMENT, "c")]
    ledger = LedgerOf(team(), region(), region("us"), replace(ctr, revision=1, serving_revision=1), *models)
    asked = finalization(
        expected_revision=1,
        role_changes=tuple(role(f"{TYPE}/models/{key}", to) for key, to in changes),
        splits=tuple(split(where, of="ctr", **parts) for where, parts in splits),
    )
    try:
        ledger.apply(finalize_launch(ledger, asked))
    except FleetError:
        return
    found = ledger.model_type(TYPE)
    assert found is not None
    by_role = {each.name: each.role for each in ledger.models_of(TYPE)}
    baselines = [name for name, each in by_role.items() if each is ModelRole.BASELINE]
    assert baselines == ([found.baseline] if found.baseline else [])
    assert found.holdouts == tuple(sorted(name for name, each in by_role.items() if each is ModelRole.HOLDOUT))
    for each in found.splits:
        assert sum(share.share_basis_points for share in each.shares) == 10_000
        for share in each.shares:
            each_role = by_role[share.model]
            assert share.share_basis_points == 0 or (each_role is not None and each_role.serves)
