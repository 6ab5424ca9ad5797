"""Bounds of every field: the path and what would be accepted, all violations at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from modelfleetd.errors import InvalidFields
from modelfleetd.registry.domain import rules
from modelfleetd.registry.domain.observed import ModelServing, ServingStatus, check_statuses, newest
from modelfleetd.registry.domain.resources import (
    AnyResource,
    DemandSource,
    FailoverShare,
    MissingLabel,
    Model,
    ModelType,
    Prediction,
    PrometheusDemand,
    Range,
    Region,
    RegionDemand,
    Role,
    RoleBinding,
    Team,
)
from modelfleetd.registry.domain.revisions import Author
from tests.support.registry import model, model_type, region, spec, team

NAN, INF = float("nan"), float("inf")
NOW = datetime(2025, 6, 1, tzinfo=UTC)


def bound(role: Role | None, *members: str) -> dict[str, Any]:
    return {"role_bindings": (RoleBinding(role=role, members=members),)}


def failover(*shares: tuple[str, int]) -> dict[str, Any]:
    return {"failover_shares": tuple(FailoverShare(region=f"regions/{to}", share_basis_points=x) for to, x in shares)}


def predicts(**fields: Any) -> dict[str, Any]:
    return {"predictions": (Prediction(**({"id": "click"} | fields)),)}


def demands(qps: float = 1.0, region: str = "regions/eu", source: str = "", **fields: Any) -> dict[str, Any]:
    stated = (RegionDemand(region=region, peak_qps=qps, source=source),)
    return {"demand_source": DemandSource(stated=stated, **fields)}


def measured(**fields: Any) -> dict[str, Any]:
    return {"demand_source": DemandSource(prometheus=PrometheusDemand(**{"query": "sum(x)", **fields}))}


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


PREDICTION = "predictions[0]."
SPEC = "serving_spec."
DEMAND = "demand_source."
WRONG: list[tuple[AnyResource, str]] = [
    (team(display_name="x" * 201), "display_name"),
    (
        team(
            role_bindings=(RoleBinding(role=Role.OWNER, members=("a",) * 1000),) * 5
            + (RoleBinding(role=Role.OWNER, members=("a",)),)
        ),
        "role_bindings",
    ),
    (team(on_call="x" * 201), "on_call"),
    (team(contacts=("a",) * 21), "contacts"),
    (team(contacts=("a", "")), "contacts[1]"),
    (team(**bound(None, "a")), "role_bindings[0].role"),
    (team(**bound(Role.SERVICE, "a")), "role_bindings[0].role"),
    (team(**bound(Role.OWNER, "a", "")), "role_bindings[0].members[1]"),
    (team(labels={"Nope": ""}), "labels.Nope"),
    (team(labels={"a": "x" * 201}), "labels.a"),
    (team(labels={f"k{n}": "" for n in range(65)}), "labels"),
    (region(agent_address=""), "agent_address"),
    (region(agent_address="host"), "agent_address"),
    (region(agent_address="host:0"), "agent_address"),
    (region(agent_address="host:65536"), "agent_address"),
    (region(agent_address="http://host:80"), "agent_address"),
    (region(**failover(("eu", 1))), "failover_shares[0].region"),
    (region(**failover(("us", 0))), "failover_shares[0].share_basis_points"),
    (region(**failover(("us", 1), ("us", 1))), "failover_shares[1].region"),
    (region(**failover(("us", 9_000), ("asia", 1_001))), "failover_shares"),
    (model_type(purpose="x" * 1001), "purpose"),
    (model_type(team="feed"), "team"),
    (model_type(regions=("eu",)), "regions[0]"),
    (model_type(regions=("regions/eu",) * 2), "regions[1]"),
    (model_type(upstream_types=("x",)), "upstream_types[0]"),
    (model_type(**predicts(id="Click")), PREDICTION + "id"),
    (model_type(predictions=(Prediction(id="a"),) * 2), "predictions[1].id"),
    *(
        (
            model_type(**predicts(attribution_window=window)),
            PREDICTION + "attribution_window",
        )
        for window in (timedelta(0), timedelta(seconds=0.5), timedelta(days=30, seconds=1), timedelta(seconds=-1))
    ),
    (model_type(**predicts(min_positives=-1)), PREDICTION + "min_positives"),
    (
        model_type(**predicts(min_positives=1_000_001)),
        PREDICTION + "min_positives",
    ),
    *(
        (
            model_type(**predicts(ne_range=Range(low=low, high=high))),
            PREDICTION + "ne_range",
        )
        for low, high in ((2, 1), (NAN, 1), (0, NAN), (0, INF), (-1, 1))
    ),
    *((model_type(**demands(qps)), DEMAND + "stated[0].peak_qps") for qps in (-1.0, NAN, INF)),
    (model_type(**demands(region="eu")), DEMAND + "stated[0].region"),
    (
        model_type(**demands(growth_basis_points=-1)),
        DEMAND + "growth_basis_points",
    ),
    (
        model_type(**demands(fanout_basis_points=-1)),
        DEMAND + "fanout_basis_points",
    ),
    (model_type(**demands(source="x" * 501)), DEMAND + "stated[0].source"),
    *(
        (model_type(**measured(**wrong)), DEMAND + f"prometheus.{field}")
        for field, wrong in (
            ("query", {"query": ""}),
            ("query", {"query": "x" * 2001}),
            ("window", {"window": timedelta(minutes=59)}),
            ("window", {"window": timedelta(days=366)}),
            ("quantile", {"quantile": NAN}),
            ("quantile", {"quantile": 1.01}),
        )
    ),
    (model_type(regions=("regions/eu", "regions/us"), **measured(query="sum(x)")), DEMAND + "prometheus.query"),
    (model_type(launch_policy="careful"), "launch_policy"),
    (model_type(attributes={"a": "x" * 65_536}), "attributes"),
    (model_type(attributes={"a": NAN}), "attributes"),
    (model_type(attributes=nested(21)), "attributes"),
    (model(description="x" * 1001), "description"),
    (model(training_flow="x" * 2001), "training_flow"),
    (model(checkpoint="x" * 2001), "checkpoint"),
    (model(serving_spec=None), "serving_spec"),
    (model(serving_spec=spec(command=())), SPEC + "command"),
    (model(serving_spec=spec(command=("a\0b",))), SPEC + "command[0]"),
    (model(serving_spec=spec(flavor="cpu")), SPEC + "flavor"),
    (model(serving_spec=spec(units_per_replica=-1)), SPEC + "units_per_replica"),
    (model(serving_spec=spec(environment={"A=B": ""})), SPEC + "environment.A=B"),
    (model(serving_spec=spec(environment={"A": "\0"})), SPEC + "environment.A"),
    (model(serving_spec=spec(startup_timeout=timedelta(0))), SPEC + "startup_timeout"),
    (
        model(serving_spec=spec(startup_timeout=timedelta(hours=2))),
        SPEC + "startup_timeout",
    ),
    (
        model(serving_spec=spec(drain_timeout=timedelta(minutes=11))),
        SPEC + "drain_timeout",
    ),
]


CHECKS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    Team: ("team", rules.check_team),
    Region: ("region", rules.check_region),
    ModelType: ("model_type", rules.check_model_type),
    Model: ("model", rules.check_model),
}


@pytest.mark.parametrize(("asked", "path"), WRONG, ids=[f"{n}-{path}" for n, (_, path) in enumerate(WRONG)])
def test_what_is_out_of_bounds_is_named(asked: AnyResource, path: str) -> None:
    field, check = CHECKS[type(asked)]
    with pytest.raises(InvalidFields) as refused:
        check(asked)
    assert [violation.path for violation in refused.value.violations] == [f"{field}.{path}"]
    assert refused.value.violations[0].description


def test_every_violation_is_named_at_once() -> None:
    asked = model_type(purpose="x" * 1001, team="feed", **predicts(id="", min_positives=-1))
    with pytest.raises(InvalidFields) as refused:
        rules.check_model_type(asked)
    assert {violation.path for violation in refused.value.violations} == {
        "model_type.purpose",
        "model_type.team",
        "model_type.predictions[0].id",
        "model_type.predictions[0].min_positives",
    }


def test_bounds_themselves_are_accepted() -> None:
    rules.check_team(team(display_name="x" * 200, contacts=("a",) * 20, labels={f"k{n}": "" for n in range(64)}))
    rules.check_region(region(agent_address="[::1]:65535", **failover(("us", 9_000), ("asia", 1_000))))
    rules.check_model_type(model_type(attributes=nested(20), **predicts(attribution_window=timedelta(days=30))))
    rules.check_model(model(serving_spec=spec(command=(), image="registry/image@sha256:0", drain_timeout=timedelta(0))))


def test_defaults_are_written_out() -> None:
    checked = rules.check_model_type(model_type(**predicts(), **demands()))
    assert checked.predictions == (
        Prediction(
            id="click",
            attribution_window=timedelta(hours=1),
            missing_label=MissingLabel.NEGATIVE,
            calibration_range=Range(low=0.5, high=2.0),
            min_positives=10,
            min_label_coverage=0.5,
        ),
    )
    assert checked.demand_source is not None
    assert checked.demand_source.fanout_basis_points == 10_000
    by_query = rules.check_model_type(model_type(**measured())).demand_source
    assert by_query is not None
    assert by_query.prometheus == PrometheusDemand(query="sum(x)", window=timedelta(days=28), quantile=0.999)
    assert rules.check_model_type(checked) == checked


def test_a_reason_is_short() -> None:
    with pytest.raises(InvalidFields) as refused:
        Author("a", reason="x" * 1001)
    assert refused.value.violations[0].path == "reason"


def status(seconds: float = 0, region: str = "eu", **model: Any) -> ServingStatus:
    return ServingStatus(
        model_type="modelTypes/ctr",
        region=f"regions/{region}",
        observe_time=NOW + timedelta(seconds=seconds),
        models=(ModelServing(**({"model": "modelTypes/ctr/models/a"} | model)),),
    )


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        (ServingStatus(model_type="m", region="r"), "statuses[0].observe_time"),
        (status(seconds=301), "statuses[0].observe_time"),
        (status(available_replicas=1), "statuses[0].models[0].available_replicas"),
        (status(total_replicas=-1, available_replicas=-1), "statuses[0].models[0].available_replicas"),
        (status(errors=1), "statuses[0].models[0].errors"),
        (status(share_basis_points=10_001), "statuses[0].models[0].share_basis_points"),
        (status(latency_p99_ms=NAN), "statuses[0].models[0].latency_p99_ms"),
        (status(latency_p99_ms=-1.0), "statuses[0].models[0].latency_p99_ms"),
    ],
)
def test_a_report_that_cannot_be_true_is_refused(wrong: ServingStatus, path: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        check_statuses([wrong], NOW)
    assert path in [violation.path for violation in refused.value.violations]


def test_of_several_reports_of_a_route_the_newest_counts() -> None:
    old, new, other = status(-60), status(0), status(-90, "us")
    assert newest([new, old, other]) == [new, other]
    assert newest([old, other, new]) == [new, other]
