"""What platforms serve beside what the ledger says: each difference once, with the figures and what to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.registry.domain.inventory import FindingKind, Route, compare
from modelfleetd.registry.domain.observed import ModelServing, ServingStatus
from modelfleetd.registry.domain.resources import ModelRole
from tests.support.registry import model_type, split

NOW = datetime(2025, 6, 1, tzinfo=UTC)
CTR, EU = "modelTypes/ctr", "regions/eu"
ROLES = {"v1": ModelRole.BASELINE, "v2": ModelRole.EXPERIMENT, "v3": ModelRole.CANDIDATE}


def serving(key: str, share: int, replicas: int = 3) -> ModelServing:
    return ModelServing(
        model=f"{CTR}/models/{key}", share_basis_points=share, available_replicas=replicas, total_replicas=replicas
    )


def route(*served: ModelServing, minutes: float = 1, ledger: dict[str, int] | None = None, **fields: Any) -> Route:
    """The route of `ctr` in `eu`, whose ledger gives v1 all of its traffic."""
    shares: dict[str, Any] = {"v1": 10_000} if ledger is None else dict(ledger)
    entry = model_type(splits=(split("eu", **shares),))
    given: dict[str, Any] = {
        "entry": entry,
        "region_exists": True,
        "roles": {f"{CTR}/models/{key}": role for key, role in ROLES.items()},
        "status": ServingStatus(
            model_type=CTR, region=EU, models=served, observe_time=NOW - timedelta(minutes=minutes)
        ),
    }
    return Route(model_type=CTR, region=EU, **(given | fields))


def elsewhere() -> Route:
    entry = model_type(regions=("regions/us",))
    return route(serving("v1", 10_000), entry=entry)


FOUND: list[tuple[FindingKind, Route, str, str]] = [
    (
        FindingKind.UNREGISTERED_MODEL_TYPE,
        route(serving("v1", 10_000), entry=None),
        "v1 served, and the model type is not registered",
        "modelfleet registry type create modelTypes/ctr",
    ),
    (
        FindingKind.UNREGISTERED_REGION,
        route(serving("v1", 10_000), region_exists=False),
        "in a region that is not registered",
        "modelfleet registry region create regions/eu",
    ),
    (
        FindingKind.UNREGISTERED_REGION,
        elsewhere(),
        "in a region that the model type does not name",
        "--set 'regions=[regions/us, regions/eu]'",
    ),
    (
        FindingKind.UNREGISTERED_MODEL,
        route(serving("v1", 10_000), serving("new", 0, replicas=2)),
        "it takes 0% with 2 replicas, and is no registered model",
        "modelfleet registry model create modelTypes/ctr/models/new",
    ),
    (
        FindingKind.MISSING,
        route(serving("v1", 9_000), ledger={"v1": 9_000, "v2": 1_000}),
        "by the ledger it has 10%, by its agent 0%; a launch in flight may be the reason",
        "modelfleet launch list ctr --active",
    ),
    (
        FindingKind.ROLE_CONFLICT,
        route(serving("v1", 10_000), serving("v3", 2_000)),
        "it takes 20% with the role CANDIDATE; a launch in flight may be the reason",
        "modelfleet launch list ctr --active",
    ),
    (
        FindingKind.SHARE_CONFLICT,
        route(serving("v1", 9_500)),
        "by the ledger it has 100%, by its agent 95%; a launch in flight may be the reason",
        "modelfleet launch list ctr --active",
    ),
    (
        FindingKind.STALE,
        route(serving("v1", 10_000), minutes=11),
        "by the ledger it serves v1 100%, and its newest report is 11 minutes old",
        "modelfleet registry region get regions/eu",
    ),
    (
        FindingKind.NEVER_REPORTED,
        route(status=None),
        "by the ledger it serves v1 100%, and no agent has ever reported on it",
        "modelfleet registry region get regions/eu",
    ),
]
AGREED = [
    route(serving("v1", 10_000)),
    # Kept for a rollback, or being prepared.
    route(serving("v1", 10_000), serving("v3", 0)),
    # Nothing serves, and nothing should.
    route(ledger={}),
    route(entry=None),
    route(status=None, ledger={}),
    # Too old to say anything, and nothing should be served.
    route(serving("v1", 10_000), minutes=11, ledger={}),
    route(serving("v1", 10_000), minutes=11, entry=None),
]


@pytest.mark.parametrize(
    ("kind", "found", "message", "mend"),
    FOUND,
    ids=[f"{n}-{each[0].name}" for n, each in enumerate(FOUND)],
)
def test_a_difference_is_told_with_its_figures_and_what_to_do(
    kind: FindingKind, found: Route, message: str, mend: str
) -> None:
    (finding,) = compare(found, NOW)
    assert finding.kind is kind
    assert message in finding.message
    assert mend in finding.mend
    assert (finding.model_type, finding.region) == (CTR, EU)
    assert finding.observe_time == (None if found.status is None else found.status.observe_time)


@pytest.mark.parametrize("agreed", AGREED, ids=map(str, range(len(AGREED))))
def test_what_agrees_is_no_finding(agreed: Route) -> None:
    assert compare(agreed, NOW) == []


def test_every_kind_has_an_example() -> None:
    assert {kind for kind, *_ in FOUND} == set(FindingKind)


shares = st.dictionaries(st.sampled_from(["v1", "v2", "v3", "x"]), st.sampled_from([0, 1, 5_000, 10_000]))


@given(ledger=shares, served=shares)
def test_a_model_is_found_once_and_exactly_where_its_shares_differ_or_nobody_knows_it(
    ledger: dict[str, int], served: dict[str, int]
) -> None:
    found = compare(route(*(serving(key, share) for key, share in served.items()), ledger=ledger), NOW)
    names = [finding.model for finding in found]
    assert names == sorted(set(names))
    expected = {
        key for key in {*ledger, *served} if ledger.get(key, 0) != served.get(key, 0) or (key == "x" and key in served)
    }
    assert {name.rsplit("/", 1)[-1] for name in names} == expected
    for finding in found:
        key = finding.model.rsplit("/", 1)[-1]
        assert finding.ledger_share_basis_points == ledger.get(key, 0)
        assert finding.observed_share_basis_points == served.get(key, 0)
