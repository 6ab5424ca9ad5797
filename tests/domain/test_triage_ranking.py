"""What is wrong with a route, and which incident comes first."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleet.common.v1 import serving_pb2
from modelfleet.incidents import (
    Criticality,
    Incident,
    Kind,
    Problem,
    Route,
    criticality_of,
    incidents_of,
    problems_of,
    rank,
)
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.stability.v1 import alerts_pb2
from modelfleet.stability.v1.stability_pb2 import Availability, ModelStability
from tests.support.incidents import (
    CTR,
    NEW,
    NOW,
    OLD,
    judgement,
    launch,
    model_type,
    route,
    serving,
    split,
    stamp,
    standing,
    status,
)

TIERS = [f"TIER{number}" for number in range(5)]


def kinds(of: Route) -> list[Kind]:
    return [problem.kind for problem in problems_of(of, NOW)]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_route_that_serves_as_the_ledger_says_has_no_problem() -> None:
    assert problems_of(route(), NOW) == []


def test_what_alerts_fire_for_is_a_problem_unless_it_was_seen_just_now() -> None:
    def fires(kind: alerts_pb2.Alert.Kind.ValueType, **fields: Any) -> alerts_pb2.Alert:
        return alerts_pb2.Alert(
            name="alerts/a1", kind=kind, model=OLD, summary="It is off.", start_time=stamp(minutes=9), **fields
        )

    unstable = fires(alerts_pb2.Alert.UNSTABLE)
    of_old = replace(route(), alerts=[unstable, fires(alerts_pb2.Alert.UNAVAILABLE, silence="silences/s1")])
    failing, irrelevant = problems_of(of_old, NOW)
    assert (failing.kind, failing.message) == (Kind.FAILING, "It is off (alerts/a1, silenced by silences/s1)")
    assert (irrelevant.kind, irrelevant.since) == (Kind.IRRELEVANT, NOW - timedelta(minutes=9))
    judged = replace(route(), alerts=[unstable], judgements={OLD: [judgement(serving_pb2.FAIL)]})
    (problem,) = problems_of(judged, NOW)
    assert "alerts/a1" not in problem.message, "the newest hour tells more than an alert"


ROUTES: list[tuple[str, Route, list[Kind]]] = [
    ("no replica is available", route(None, status(serving(available_replicas=0))), [Kind.UNAVAILABLE]),
    ("nothing serves", route(None, status(serving(share_basis_points=0))), [Kind.UNAVAILABLE]),
    ("a tenth is missing", route(None, status(serving(available_replicas=9))), []),
    ("more is missing", route(None, status(serving(available_replicas=8))), [Kind.DEGRADED]),
    ("one in a hundred fails", route(None, status(serving(errors=1_000))), [Kind.FAILING]),
    ("fewer fail", route(None, status(serving(errors=999))), []),
    ("too few requests to tell", route(None, status(serving(requests=99, errors=99))), []),
    ("the report is old", route(None, status(minutes=11)), [Kind.NOT_REPORTED]),
    ("there is no report", route(statuses=[]), [Kind.NOT_REPORTED]),
    ("reports are not known", route(statuses=None), []),
    ("nothing is to serve", route(model_type(splits=[], baseline=""), statuses=[]), []),
    (
        "another split",
        route(None, status(serving(share_basis_points=9_000), serving(NEW, share_basis_points=1_000))),
        [Kind.SHARE_CONFLICT, Kind.SHARE_CONFLICT],
    ),
    (
        "another split, before the ledger's last change",
        route(model_type(update_time=stamp(seconds=30)), status(serving(NEW))),
        [],
    ),
    (
        "another split, which a launch makes",
        route(None, status(serving(NEW)), launches=[launch(launcher_pb2.Launch.SHIFTING)]),
        [],
    ),
    ("it is unstable", route(standings=[standing(ModelStability.UNSTABLE)]), [Kind.IRRELEVANT]),
    ("it is stable", route(standings=[standing(ModelStability.STABLE)]), []),
    ("it is not known to be stable", route(standings=[standing(ModelStability.UNKNOWN)]), []),
    (
        "it is unavailable",
        route(standings=[standing(ModelStability.STABLE, Availability.UNAVAILABLE)]),
        [Kind.FAILING],
    ),
    (
        "it is both, and a region's report says so already",
        route(
            None,
            status(serving(errors=50_000)),
            standings=[standing(ModelStability.UNSTABLE, Availability.UNAVAILABLE)],
        ),
        [Kind.FAILING, Kind.IRRELEVANT],
    ),
    ("stability fails", route(judgements={OLD: [judgement(serving_pb2.FAIL)]}), [Kind.IRRELEVANT]),
    ("stability cannot tell", route(judgements={OLD: [judgement(serving_pb2.INCONCLUSIVE)]}), []),
    ("a launch goes back", route(launches=[launch(launcher_pb2.Launch.ROLLING_BACK)]), [Kind.LAUNCH_ROLLING_BACK]),
    ("a launch failed", route(last_launch=launch(launcher_pb2.Launch.FAILED)), [Kind.LAUNCH_FAILED]),
    ("a launch goes on", route(launches=[launch(launcher_pb2.Launch.SHIFTING)]), []),
    (
        "a launch is paused",
        route(launches=[launch(launcher_pb2.Launch.SHIFTING, pause_reasons=[launcher_pb2.PauseReason(author="a")])]),
        [Kind.LAUNCH_PAUSED],
    ),
    (
        "its tier is overdue",
        route(model_type(tier=serving_pb2.TIER1, tier_grant={"overdue": True})),
        [Kind.CRITICALITY_OVERDUE],
    ),
]


@pytest.mark.parametrize(("given", "expected"), [(of, found) for _, of, found in ROUTES], ids=[r[0] for r in ROUTES])
def test_what_is_wrong_is_found(given: Route, expected: list[Kind]) -> None:
    assert kinds(given) == expected


def test_a_problem_says_where_how_much_and_since_when() -> None:
    found = problems_of(route(None, status(minutes=90)), NOW)
    assert found == [
        Problem(
            Kind.NOT_REPORTED,
            "the agent's last report is 1h 30m old",
            region="regions/eu",
            share_basis_points=10_000,
            since=NOW - timedelta(minutes=90),
        )
    ]


def test_what_does_not_answer_comes_before_what_answers_wrongly() -> None:
    wrong = route(
        None, status(serving(available_replicas=0, errors=50_000)), judgements={OLD: [judgement(serving_pb2.FAIL)]}
    )
    assert kinds(wrong) == [Kind.UNAVAILABLE, Kind.FAILING, Kind.IRRELEVANT]


def test_the_incidents_of_a_route_are_its_models_and_the_baseline_answers_for_the_route() -> None:
    of = route(
        model_type(splits=[split(old=9_000, new=1_000)], tier=serving_pb2.TIER3, required_tier=serving_pb2.TIER1),
        status(serving(share_basis_points=9_000), serving(NEW, share_basis_points=1_000, available_replicas=0)),
        last_launch=launch(launcher_pb2.Launch.FAILED),
    )
    found = {incident.model: incident for incident in incidents_of(of, NOW, downstream=4)}
    assert [found[OLD].role, found[NEW].role] == ["BASELINE", "EXPERIMENT"]
    assert [found[OLD].worst.kind, found[NEW].worst.kind] == [Kind.LAUNCH_FAILED, Kind.UNAVAILABLE]
    assert [found[OLD].level, found[NEW].level] == [2, 2]
    assert found[NEW].reason == (
        "can be a SEV2 (TIER1, since another type depends on it; an experiment with 10% of the traffic; "
        "4 model types downstream)"
    )


def test_a_model_has_the_role_and_the_tier_that_the_ledger_gives_it() -> None:
    model = pb.Model(name=OLD, role=pb.Model.HOLDOUT, tier_override=serving_pb2.TIER0)
    (found,) = incidents_of(route(None, status(serving(errors=5_000))), NOW, models={OLD: model})
    assert (found.role, found.criticality.counted, found.criticality.why) == ("HOLDOUT", "TIER0", "TIER0, its own")


@pytest.mark.parametrize(
    ("own", "required", "counted", "why"),
    [
        ("TIER1", "TIER3", "TIER1", "TIER1"),
        ("TIER3", "TIER1", "TIER1", "TIER1, since home depends on it"),
        ("", "TIER4", "TIER4", "TIER4, since home depends on it"),
        ("", "", "TIER2", "no tier is stated; taken as TIER2"),
    ],
)
def test_the_more_critical_of_what_it_is_and_what_it_must_be_counts(
    own: str, required: str, counted: str, why: str
) -> None:
    of = pb.ModelType(
        tier=serving_pb2.Tier.Value(own) if own else serving_pb2.TIER_UNSPECIFIED,
        required_tier=serving_pb2.Tier.Value(required) if required else serving_pb2.TIER_UNSPECIFIED,
        required_tier_path=["modelTypes/home", CTR],
    )
    found = criticality_of(of)
    assert (found.counted, found.why) == (counted, why)


# --- what comes first -------------------------------------------------------------------------------------------------


def incident(model: str = OLD, *, tier: str = "TIER2", kind: Kind = Kind.FAILING, **fields: Any) -> Incident:
    share = fields.pop("share", 10_000)
    since = fields.pop("since", None)
    problem = Problem(kind, "so it is", model, share_basis_points=share, since=since)
    given: dict[str, Any] = {"role": "BASELINE", "downstream": 0} | fields
    return Incident(CTR, model, given["role"], "teams/feed", Criticality(tier), (problem,), share, given["downstream"])


@st.composite
def incidents(draw: st.DrawFn) -> Incident:
    return incident(
        f"{CTR}/models/m{draw(st.integers(0, 999))}",
        tier=draw(st.sampled_from(TIERS)),
        kind=draw(st.sampled_from(Kind)),
        role=draw(st.sampled_from(["BASELINE", "HOLDOUT", "EXPERIMENT", "CANDIDATE"])),
        share=draw(st.integers(0, 10_000)),
        since=draw(st.none() | st.integers(0, 100_000).map(lambda seconds: NOW - timedelta(seconds=seconds))),
        downstream=draw(st.none() | st.integers(0, 50)),
    )


def place(of: Incident, others: list[Incident]) -> int:
    return next(at for at, found in enumerate(rank([of, *others], NOW)) if found is of)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(incidents(), max_size=6, unique_by=lambda each: each.model), st.randoms())
def test_the_order_does_not_depend_on_the_order_in_which_they_come(found: list[Incident], rng: random.Random) -> None:
    shuffled = list(found)
    rng.shuffle(shuffled)
    assert rank(shuffled, NOW) == rank(found, NOW)
    levels = [each.level for each in rank(found, NOW)]
    assert levels == sorted(levels)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(incidents(), st.lists(incidents(), max_size=3))
def test_whatever_makes_an_incident_worse_never_puts_it_later(one: Incident, others: list[Incident]) -> None:
    tier = int(one.criticality.counted[-1])
    problem = one.worst
    kind = list(Kind)[max(list(Kind).index(problem.kind) - 1, 0)]
    share = min(problem.share_basis_points + 1_000, 10_000)
    worse = [
        replace(one, criticality=Criticality(f"TIER{max(tier - 1, 0)}")),
        replace(one, role="BASELINE"),
        replace(one, problems=(replace(problem, kind=kind),)),
        replace(one, share_basis_points=share, problems=(replace(problem, share_basis_points=share),)),
        replace(one, downstream=(one.downstream or 0) + 1),
        replace(one, problems=(replace(problem, since=(problem.since or NOW) - timedelta(hours=1)),)),
    ]
    before = place(one, others)
    assert all(place(each, others) <= before for each in worse)


def test_each_ground_decides_where_those_before_it_are_equal() -> None:
    expected = [
        incident("tier", tier="TIER0", kind=Kind.UNAVAILABLE),
        incident("next tier", tier="TIER1", kind=Kind.UNAVAILABLE),
        incident("wrong answers", tier="TIER0", kind=Kind.IRRELEVANT),
        incident("traffic", kind=Kind.UNAVAILABLE, share=9_000),
        incident("downstream", kind=Kind.UNAVAILABLE, share=8_000, downstream=3),
        incident("older", kind=Kind.UNAVAILABLE, share=8_000, downstream=2, since=NOW - timedelta(hours=2)),
        incident("newer", kind=Kind.UNAVAILABLE, share=8_000, downstream=2, since=NOW - timedelta(hours=1)),
        incident("of unknown age", kind=Kind.UNAVAILABLE, share=8_000, downstream=2),
        incident("an experiment", tier="TIER1", kind=Kind.UNAVAILABLE, role="EXPERIMENT", share=1_000),
        incident("a formality", tier="TIER0", kind=Kind.CRITICALITY_OVERDUE),
        incident("a formality of little weight", tier="TIER4", kind=Kind.CRITICALITY_OVERDUE),
    ]
    assert [each.model for each in rank(reversed(expected), NOW)] == [each.model for each in expected]
    assert [each.level for each in expected] == [0, 1, 1, 2, 2, 2, 2, 2, 2, 4, 8]
