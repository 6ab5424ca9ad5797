"""The minimum standard: of each rule an entry that breaks it and one that keeps to it; waivers; and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import InvalidFields
from modelfleetd.registry.domain import rules
from modelfleetd.registry.domain.criticality import TierGrant
from modelfleetd.registry.domain.evidence import EvidenceRule
from modelfleetd.registry.domain.lint import (
    Finding,
    ModelFacts,
    ModelView,
    RegionFacts,
    TeamFacts,
    TypeFacts,
    lint,
    next_change,
)
from modelfleetd.registry.domain.lint_rules import (
    MODEL_RULES,
    REGION_RULES,
    RULE_IDS,
    TEAM_RULES,
    TYPE_RULES,
    kinds_of_rules,
)
from modelfleetd.registry.domain.report import FleetRow, row_of
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import (
    DemandSource,
    FailoverShare,
    FunnelStage,
    HealthyRange,
    Metric,
    ModelRole,
    Prediction,
    PrometheusDemand,
    Range,
    RegionDemand,
    Role,
    RoleBinding,
    ServiceLevel,
)
from modelfleetd.registry.domain.waivers import LintWaiver
from tests.support.registry import model, model_type, region, split, team

NOW = datetime(2025, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
EU, US = "regions/eu", "regions/us"


def bound(*roles: Role) -> tuple[RoleBinding, ...]:
    return tuple(RoleBinding(role=role, members=("group:feed",)) for role in roles)


def grant(ends: timedelta, falls_to: Tier | None = Tier.TIER3) -> TierGrant:
    return TierGrant(request="criticalityRequests/r", expire_time=NOW + ends, falls_to=falls_to)


def waiver(rule: str, ends: timedelta = DAY) -> LintWaiver:
    return LintWaiver(rule=rule, reason="moving house", expire_time=NOW + ends)


def of_team(**fields: Any) -> TeamFacts:
    good: dict[str, Any] = {
        "on_call": "pager",
        "contacts": ("mei",),
        "role_bindings": bound(Role.OWNER, Role.APPROVER),
    }
    return TeamFacts(entry=team(**(good | fields)), now=NOW)


def of_region(*shares: int, several_regions: bool = True) -> RegionFacts:
    failover = tuple(
        FailoverShare(region=f"regions/r{index}", share_basis_points=part) for index, part in enumerate(shares)
    )
    return RegionFacts(entry=region(failover_shares=failover), now=NOW, several_regions=several_regions)


GOOD_TYPE: dict[str, Any] = {
    "purpose": "Ranks the feed.",
    "funnel_stage": FunnelStage.LATE_STAGE_RANKING,
    "tier": Tier.TIER1,
    "tier_grant": grant(300 * DAY),
    "regions": (EU, US),
    "predictions": (
        Prediction(id="like", attribution_window=DAY, ne_range=Range(low=0.7, high=0.9), min_positives=100),
    ),
    "demand_source": DemandSource(stated=(RegionDemand(region=EU, peak_qps=100), RegionDemand(region=US, peak_qps=50))),
    "baseline": "modelTypes/ctr/models/v1",
    "holdouts": ("modelTypes/ctr/models/v0",),
    "splits": (split("eu", v1=10_000), split("us", v1=10_000)),
    "naming": {"app": "ctr"},
    "evidence_rules": (EvidenceRule(id="ne", metric="ne", maximum=0.9),),
}
GOOD_AROUND: dict[str, Any] = {
    "has_models": True,
    "has_dashboard": True,
    "several_regions": True,
    "naming_in_force": True,
}


def of_type(around: dict[str, Any] | None = None, **fields: Any) -> TypeFacts:
    return TypeFacts(entry=model_type(**(GOOD_TYPE | fields)), now=NOW, **(GOOD_AROUND | (around or {})))


def of_model(tier: Tier | None = Tier.TIER1, **fields: Any) -> ModelFacts:
    good: dict[str, Any] = {
        "name": "modelTypes/ctr/models/v1",
        "description": "more features",
        "role": ModelRole.BASELINE,
        "training_flow": "flow://ctr/1",
        "create_time": NOW - 100 * DAY,
    }
    return ModelFacts(entry=ModelView(**(good | fields)), now=NOW, tier=tier)


MEASURED = PrometheusDemand(query="sum(x)")
FIRST = GOOD_TYPE["demand_source"].stated[:1]
REQUIRED: dict[str, Any] = {"required_tier": Tier.TIER0, "required_tier_path": ("modelTypes/home", "modelTypes/ctr")}
RETRIEVAL: dict[str, Any] = {"funnel_stage": FunnelStage.SOURCING, "predictions": ()}
PLAIN = Prediction(id="like", min_positives=7)
DEFAULT = Prediction(
    id="like",
    ne_range=Range(low=0, high=1),
    attribution_window=timedelta(hours=1),
    calibration_range=Range(low=0.5, high=2.0),
    min_positives=10,
)


def healthy(metric: Metric) -> HealthyRange:
    return HealthyRange(prediction="like", metric=metric, low=0.9, high=1.1)


# Rule, what breaks it, and what the message must name.
BROKEN: list[tuple[str, TeamFacts | RegionFacts | TypeFacts | ModelFacts, str]] = [
    ("on-call-missing", of_team(on_call=""), "on call"),
    ("contacts-missing", of_team(contacts=()), "asked"),
    ("owner-missing", of_team(role_bindings=bound(Role.APPROVER)), "OWNER"),
    ("owner-missing", of_team(role_bindings=(RoleBinding(role=Role.OWNER), *bound(Role.APPROVER))), "OWNER"),
    ("approver-missing", of_team(role_bindings=bound(Role.OWNER)), "APPROVER"),
    ("failover-incomplete", of_region(), "100%"),
    ("failover-incomplete", of_region(4_000, 3_500), "25%"),
    ("purpose-missing", of_type(purpose=""), "what it is for"),
    ("funnel-stage-missing", of_type(funnel_stage=None), "funnel"),
    ("tier-missing", of_type(tier=None, tier_grant=None), "criticality"),
    ("tier-missing", of_type(tier=None, tier_grant=None, **REQUIRED), "TIER0 because home depends on it"),
    ("tier-below-required", of_type(**REQUIRED), "it is TIER1, and must be TIER0 because home depends on it"),
    ("tier-overdue", of_type(tier_grant=grant(-DAY)), "TIER1 expired on 2025-05-31; on 2025-06-14 it falls to TIER3"),
    ("tier-overdue", of_model(tier_override=Tier.TIER0, tier_grant=grant(-DAY, falls_to=None)), "that of its type"),
    ("tier-expiring", of_type(tier_grant=grant(10 * DAY)), "on 2025-06-11, in 10 days"),
    ("tier-expiring", of_model(tier_override=Tier.TIER0, tier_grant=grant(10 * DAY)), "TIER0"),
    ("tier-unfounded", of_type(tier_grant=None), "TIER1"),
    ("tier-unfounded", of_model(tier_override=Tier.TIER1), "TIER1"),
    ("models-missing", of_type({"has_models": False}, baseline="", holdouts=(), splits=()), "no model"),
    ("baseline-missing", of_type(baseline="", splits=()), "baseline"),
    ("regions-missing", of_type(regions=(), splits=(), demand_source=None), "no region"),
    ("split-missing", of_type(splits=(split("eu", v1=10_000),)), "us"),
    (
        "single-region",
        of_type(regions=(EU,), demand_source=DemandSource(stated=GOOD_TYPE["demand_source"].stated[:1])),
        "eu",
    ),
    ("predictions-missing", of_type(predictions=()), "no prediction"),
    ("stability-not-applicable", of_type(**RETRIEVAL), "stability"),
    ("ne-range-missing", of_type(predictions=(PLAIN,)), "like"),
    (
        "prediction-defaults",
        of_type(predictions=(DEFAULT,)),
        "like",
    ),
    ("service-level-low", of_type(service_level=ServiceLevel(stability=0.99)), "0.99 of stability: TIER1 gives 0.995"),
    ("service-level-low", of_type(service_level=ServiceLevel(availability=0.95)), "0.95 of availability"),
    ("demand-missing", of_type(demand_source=DemandSource(stated=GOOD_TYPE["demand_source"].stated[:1])), "us"),
    ("demand-missing", of_type(demand_source=None), "eu, us"),
    (
        "demand-missing",
        of_type(demand_source=DemandSource(stated=(RegionDemand(region=EU, peak_qps=0),), prometheus=MEASURED)),
        "eu",
    ),
    (
        "demand-elsewhere",
        of_type(
            demand_source=DemandSource(
                stated=(*GOOD_TYPE["demand_source"].stated, RegionDemand(region="regions/asia", peak_qps=1))
            )
        ),
        "asia",
    ),
    ("naming-unfit", of_type(naming={}), "naming scheme"),
    ("holdout-missing", of_type(holdouts=()), "held out"),
    ("upstream-idle", of_type({"idle_upstream": ("modelTypes/early",)}), "early"),
    ("dashboard-missing", of_type({"has_dashboard": False}), "dashboard"),
    ("evidence-rules-missing", of_type(evidence_rules=()), "launched"),
    ("waiver-stale", of_type(lint_waivers=(waiver("purpose-missing", -DAY),)), "purpose-missing expired on 2025-05-31"),
    ("waiver-stale", of_model(lint_waivers=(waiver("gone-rule"),)), "gone-rule names no rule"),
    ("override-below-type", of_model(tier_override=Tier.TIER3), "TIER3"),
    ("provenance-missing", of_model(training_flow=""), "checkpoint"),
    ("candidate-idle", of_model(role=ModelRole.CANDIDATE), "100 days"),
    ("description-missing", of_model(description=""), "what is new"),
]
# Close to breaking a rule, and yet not.
KEPT: list[tuple[str, TeamFacts | RegionFacts | TypeFacts | ModelFacts]] = [
    ("failover-incomplete", of_region(10_000)),
    ("failover-incomplete", of_region(several_regions=False)),
    (
        "tier-below-required",
        of_type(required_tier=Tier.TIER1, required_tier_path=("modelTypes/home", "modelTypes/ctr")),
    ),
    ("tier-expiring", of_type(tier_grant=grant(31 * DAY))),
    ("tier-unfounded", of_type(tier=Tier.TIER2, tier_grant=None)),
    ("baseline-missing", of_type({"has_models": False}, baseline="", splits=())),
    ("split-missing", of_type(baseline="", splits=())),
    ("single-region", of_type({"several_regions": False}, regions=(EU,))),
    ("single-region", of_type(regions=(EU,), tier=Tier.TIER2, tier_grant=None)),
    ("predictions-missing", of_type(**RETRIEVAL)),
    ("stability-not-applicable", of_type(funnel_stage=FunnelStage.SOURCING)),
    ("ne-range-missing", of_type(predictions=(PLAIN,), healthy_ranges=(healthy(Metric.NE),))),
    ("prediction-defaults", of_type(predictions=(DEFAULT,), healthy_ranges=(healthy(Metric.CALIBRATION),))),
    ("service-level-low", of_type(service_level=ServiceLevel(stability=0.999))),
    ("service-level-low", of_type(service_level=ServiceLevel(coverage=0.5))),
    ("service-level-low", of_type(service_level=ServiceLevel(stability=0.95), tier=Tier.TIER2, tier_grant=None)),
    ("naming-unfit", of_type({"naming_in_force": False}, naming={})),
    ("demand-missing", of_type(demand_source=DemandSource(prometheus=MEASURED))),
    ("demand-missing", of_type(demand_source=DemandSource(stated=FIRST, prometheus=MEASURED))),
    ("holdout-missing", of_type(holdouts=(), tier=Tier.TIER3, tier_grant=None)),
    ("dashboard-missing", of_type({"has_dashboard": False}, tier=Tier.TIER3, tier_grant=None)),
    ("waiver-stale", of_type(lint_waivers=(waiver("purpose-missing"),))),
    ("override-below-type", of_model(role=ModelRole.EXPERIMENT, tier_override=Tier.TIER3)),
    ("override-below-type", of_model(tier_override=Tier.TIER1, tier_grant=grant(300 * DAY))),
    ("provenance-missing", of_model(training_flow="", checkpoint="s3://ctr/1")),
    ("provenance-missing", of_model(training_flow="", role=ModelRole.RETIRED)),
    ("candidate-idle", of_model(role=ModelRole.CANDIDATE, create_time=NOW - 29 * DAY)),
    ("description-missing", of_model(description="", role=ModelRole.CANDIDATE, create_time=NOW)),
]


def linted(facts: TeamFacts | RegionFacts | TypeFacts | ModelFacts) -> list[Finding]:
    if isinstance(facts, TeamFacts):
        return lint(TEAM_RULES, facts)
    if isinstance(facts, RegionFacts):
        return lint(REGION_RULES, facts)
    return lint(TYPE_RULES, facts) if isinstance(facts, TypeFacts) else lint(MODEL_RULES, facts)


def ids(findings: Sequence[Finding]) -> list[str]:
    return [finding.rule.id for finding in findings]


@pytest.mark.parametrize("facts", [of_team(), of_region(10_000), of_type(), of_model()])
def test_an_entry_that_lacks_nothing_is_without_findings(facts: Any) -> None:
    assert linted(facts) == []


@pytest.mark.parametrize(("rule", "facts", "named"), BROKEN, ids=[f"{rule}-{n}" for n, (rule, *_) in enumerate(BROKEN)])
def test_what_breaks_a_rule_is_found_with_its_figures_and_how_to_mend_it(rule: str, facts: Any, named: str) -> None:
    (finding,) = [each for each in linted(facts) if each.rule.id == rule]
    assert named in finding.message
    assert finding.resource == facts.entry.name
    assert finding.mend
    assert "{resource}" not in finding.mend
    assert finding.counts


@pytest.mark.parametrize(("rule", "facts"), KEPT, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(KEPT)])
def test_what_only_comes_close_is_not_found(rule: str, facts: Any) -> None:
    assert rule not in ids(linted(facts))


def test_every_rule_has_an_example_of_each_kind_of_entry() -> None:
    kinds = {TeamFacts: "team", RegionFacts: "region", TypeFacts: "model_type", ModelFacts: "model"}
    shown = {(rule, kinds[type(facts)]) for rule, facts, _ in BROKEN}
    declared = {(rule, kind) for rule, (_, applies_to) in kinds_of_rules().items() for kind in applies_to}
    assert shown == declared
    assert {rule for rule, _ in declared} == RULE_IDS
    for known in (TEAM_RULES, REGION_RULES, TYPE_RULES, MODEL_RULES):
        assert len({rule.id for rule in known}) == len(known)


def test_a_tier_that_needs_no_approval_is_mended_by_setting_it() -> None:
    required: dict[str, Any] = {
        "required_tier": Tier.TIER2,
        "required_tier_path": ("modelTypes/home", "modelTypes/ctr"),
    }
    (below,) = [
        each
        for each in linted(of_type(tier=Tier.TIER3, tier_grant=None, **required))
        if each.rule.id == "tier-below-required"
    ]
    assert below.mend == "modelfleet registry type update modelTypes/ctr --set tier=TIER2"
    (asked,) = [each for each in linted(of_type(**REQUIRED)) if each.rule.id == "tier-below-required"]
    assert asked.mend.startswith("modelfleet registry criticality request modelTypes/ctr --tier TIER0 ")


def test_the_worst_comes_first() -> None:
    found = linted(of_type(purpose="", funnel_stage=None, holdouts=(), baseline=""))
    severities = [finding.rule.severity for finding in found]
    assert severities == sorted(severities, reverse=True)
    assert len(set(severities)) > 1


def test_a_waiver_takes_the_weight_off_its_own_rule_until_it_expires() -> None:
    (finding,) = linted(of_type(purpose="", lint_waivers=(waiver("purpose-missing"),)))
    assert finding.waiver == waiver("purpose-missing")
    assert not finding.counts
    over = waiver("purpose-missing", timedelta())
    found = {each.rule.id: each for each in linted(of_type(purpose="", lint_waivers=(over,)))}
    assert found["purpose-missing"].counts
    assert found["purpose-missing"].expired_waiver == over
    other = linted(of_type(purpose="", lint_waivers=(waiver("tier-missing"),)))
    assert [each.counts for each in other] == [True]


moments = st.integers(-400, 400).map(lambda hours: timedelta(hours=hours * 6))


@given(ends=moments, expires=moments, age=moments, later=st.integers(1, 10_000))
def test_findings_change_with_time_only_at_the_moment_that_is_foretold(
    ends: timedelta, expires: timedelta, age: timedelta, later: int
) -> None:
    waived = (waiver("provenance-missing", ends),)
    view = of_model(
        role=ModelRole.CANDIDATE,
        create_time=NOW - age,
        tier_override=Tier.TIER1,
        tier_grant=grant(expires),
        lint_waivers=waived,
    )
    change = next_change(view.entry, NOW)
    then = NOW + timedelta(hours=later)
    if change is None or then < change:
        before = [(each.rule.id, each.counts) for each in linted(view)]
        after = [(each.rule.id, each.counts) for each in linted(replace(view, now=then))]
        assert before == after


@pytest.mark.parametrize(
    ("waivers", "path"),
    [
        ((LintWaiver(rule="nope", reason="r", expire_time=NOW),), "lint_waivers[0].rule"),
        ((LintWaiver(rule="tier-missing", reason="", expire_time=NOW),), "lint_waivers[0].reason"),
        ((LintWaiver(rule="tier-missing", reason="x" * 1001, expire_time=NOW),), "lint_waivers[0].reason"),
        ((LintWaiver(rule="tier-missing", reason="r"),), "lint_waivers[0].expire_time"),
        ((waiver("tier-missing"), waiver("tier-missing")), "lint_waivers[1].rule"),
        ((waiver("tier-missing"),) * 51, "lint_waivers"),
    ],
)
def test_a_waiver_names_a_rule_a_reason_and_an_end(waivers: tuple[LintWaiver, ...], path: str) -> None:
    for check in (
        lambda: rules.check_model_type(model_type(lint_waivers=waivers)),
        lambda: rules.check_model(model(lint_waivers=waivers)),
    ):
        with pytest.raises(InvalidFields) as refused:
            check()
        assert path in [violation.path.partition(".")[2] for violation in refused.value.violations]


def test_a_waiver_holds_for_a_year_at_most_when_it_is_written() -> None:
    rules.check_waiver_times((waiver("tier-missing", 366 * DAY), waiver("tier-missing", -DAY)), NOW, "model")
    with pytest.raises(InvalidFields, match="at most 366 days ahead, by 2026-06-02") as refused:
        rules.check_waiver_times((waiver("tier-missing", 366 * DAY + timedelta(seconds=1)),), NOW, "model")
    assert refused.value.violations[0].path == "model.lint_waivers[0].expire_time"


def test_adding_rows_adds_every_figure() -> None:
    names = [each.name for each in dataclasses.fields(FleetRow) if each.name not in ("group", "model_types_by_tier")]
    figures: dict[str, Any] = {name: number for number, name in enumerate(names, start=1)}
    row = FleetRow(**figures)
    total = FleetRow(group="all")
    total.add(row)
    total.add(row)
    assert [getattr(total, name) for name in names] == [2 * number for number in range(1, len(names) + 1)]


@given(
    st.builds(
        ModelView,
        name=st.just("modelTypes/ctr/models/v1"),
        role=st.just(ModelRole.RETIRED),
        description=st.sampled_from(["", "x"]),
        training_flow=st.sampled_from(["", "x"]),
        create_time=st.none() | st.just(NOW - 400 * DAY),
    ),
    st.none() | st.sampled_from(Tier),
)
def test_of_a_retired_model_without_tier_and_waiver_there_is_nothing_to_say(view: ModelView, tier: Tier | None) -> None:
    assert linted(ModelFacts(entry=view, now=NOW, tier=tier)) == [], "standard.is_quiet passes these over"


def test_a_row_of_the_report_says_what_a_type_has() -> None:
    row = row_of(of_type().entry)
    assert (row.model_types, row.with_baseline, row.with_stability, row.with_demand_source) == (1, 1, 1, 1)
    assert (row.expected_to_serve, row.stability_not_applicable) == (1, 0)
    assert row.model_types_by_tier == [0, 1, 0, 0, 0, 0]
    bare = row_of(model_type(**RETRIEVAL))
    assert (bare.with_baseline, bare.with_stability, bare.with_demand_source) == (0, 0, 0)
    assert (bare.expected_to_serve, bare.stability_not_applicable) == (0, 1)
    assert bare.model_types_by_tier == [0, 0, 0, 0, 0, 1]
    total = FleetRow()
    for part in (row, bare, row):
        total.add(part)
    assert (total.model_types, total.with_baseline) == (3, 2)
    assert total.model_types_by_tier == [0, 2, 0, 0, 0, 1]
    total.count(linted(of_type(purpose="", funnel_stage=None, lint_waivers=(waiver("purpose-missing"),))))
    assert (total.errors, total.warnings, total.waived) == (0, 1, 1)
