"""The rules of the minimum standard, kind by kind. An id is for ever: waivers name it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from modelfleetd.registry.domain.criticality import BY_REQUEST, GRACE, TierGrant, request_command
from modelfleetd.registry.domain.defaults import complete_prediction
from modelfleetd.registry.domain.dependencies import because
from modelfleetd.registry.domain.lint import (
    EXPIRES_SOON,
    IDLE,
    Fault,
    ModelFacts,
    RegionFacts,
    Rule,
    Severity,
    TeamFacts,
    TypeFacts,
    is_expired,
)
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import FunnelStage, Metric, ModelRole, ModelType, Prediction, Role
from modelfleetd.registry.domain.serving import WHOLE
from modelfleetd.registry.domain.waivers import LintWaiver

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

_TEAM: Final = "modelfleet registry team update {resource} --set "
_TYPE: Final = "modelfleet registry type update {resource} --set "
_MODEL: Final = "modelfleet registry model update {resource} --set "


def _short(names: Iterable[str]) -> str:
    """Returns names as people say them: `eu, us`, and how many more where there are many."""
    ids = [name.rsplit("/", 1)[-1] for name in names]
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _fault(holds: bool, message: str, mend: str = "") -> Fault | None:
    return Fault(message, mend) if holds else None


# Teams.


def _on_call(facts: TeamFacts) -> Fault | None:
    return _fault(not facts.entry.on_call, "nobody is on call for what it owns")


def _contacts(facts: TeamFacts) -> Fault | None:
    return _fault(not facts.entry.contacts, "nobody is named who could be asked when the on-call does not answer")


def _bound(facts: TeamFacts, role: Role) -> bool:
    return any(binding.role is role and binding.members for binding in facts.entry.role_bindings)


def _owner(facts: TeamFacts) -> Fault | None:
    return _fault(not _bound(facts, Role.OWNER), "no principal or group is bound as OWNER")


def _approver(facts: TeamFacts) -> Fault | None:
    message = "nobody is bound as APPROVER: only administrators can approve its launches and its tiers"
    return _fault(not _bound(facts, Role.APPROVER), message)


_BIND: Final = (
    "modelfleet registry team get {resource} > team.yaml; add the binding to role_bindings; "
    "modelfleet registry team update {resource} -f team.yaml"
)
TEAM_RULES: Final[tuple[Rule[TeamFacts], ...]] = (
    Rule("on-call-missing", ERROR, "A team has an on-call.", _TEAM + "on_call=ROTATION", _on_call),
    Rule(
        "contacts-missing",
        WARNING,
        "A team names whom to ask when its on-call does not answer.",
        _TEAM + "'contacts=[PERSON]'",
        _contacts,
    ),
    Rule("owner-missing", ERROR, "A team has an owner.", _BIND, _owner),
    Rule("approver-missing", WARNING, "A team has somebody who approves.", _BIND, _approver),
)


# Regions.


def _failover(facts: RegionFacts) -> Fault | None:
    going = sum(share.share_basis_points for share in facts.entry.failover_shares)
    if not facts.several_regions or going == WHOLE:
        return None
    return Fault(f"{(WHOLE - going) / 100:g}% of its traffic goes nowhere when it fails, and nobody plans for it")


REGION_RULES: Final[tuple[Rule[RegionFacts], ...]] = (
    Rule(
        "failover-incomplete",
        WARNING,
        "Where there are several regions, the failover shares of each sum to 100%.",
        "modelfleet registry region update {resource} "
        "--set 'failover_shares=[{region: regions/OTHER, share_basis_points: 10000}]'",
        _failover,
    ),
)


# Tiers, of model types and models alike.


def _overdue(grant: TierGrant | None, tier: Tier | None, name: str, now: datetime) -> Fault | None:
    if grant is None or grant.expire_time is None or tier is None or now < grant.expire_time:
        return None
    falls = "that of its type" if grant.falls_to is None else grant.falls_to.name
    last_day = grant.expire_time + GRACE
    message = f"{tier.name} expired on {grant.expire_time:%Y-%m-%d}; on {last_day:%Y-%m-%d} it falls to {falls}"
    return Fault(message, request_command(name, tier))


def _expiring(grant: TierGrant | None, tier: Tier | None, name: str, now: datetime) -> Fault | None:
    if grant is None or grant.expire_time is None or tier is None:
        return None
    if not grant.expire_time - EXPIRES_SOON <= now < grant.expire_time:
        return None
    left = (grant.expire_time - now).days
    message = f"{tier.name} expires on {grant.expire_time:%Y-%m-%d}, in {left} days"
    return Fault(message, request_command(name, tier))


def _unfounded(grant: TierGrant | None, tier: Tier | None, name: str) -> Fault | None:
    if grant is not None or tier is None or tier not in BY_REQUEST:
        return None
    return Fault(f"{tier.name} rests on no request that somebody has approved", request_command(name, tier))


def _type_overdue(facts: TypeFacts) -> Fault | None:
    return _overdue(facts.entry.tier_grant, facts.entry.tier, facts.entry.name, facts.now)


def _type_expiring(facts: TypeFacts) -> Fault | None:
    return _expiring(facts.entry.tier_grant, facts.entry.tier, facts.entry.name, facts.now)


def _type_unfounded(facts: TypeFacts) -> Fault | None:
    return _unfounded(facts.entry.tier_grant, facts.entry.tier, facts.entry.name)


def _model_overdue(facts: ModelFacts) -> Fault | None:
    return _overdue(facts.entry.tier_grant, facts.entry.tier_override, facts.entry.name, facts.now)


def _model_expiring(facts: ModelFacts) -> Fault | None:
    return _expiring(facts.entry.tier_grant, facts.entry.tier_override, facts.entry.name, facts.now)


def _model_unfounded(facts: ModelFacts) -> Fault | None:
    return _unfounded(facts.entry.tier_grant, facts.entry.tier_override, facts.entry.name)


# Waivers, of model types and models alike.


def _stale(waivers: Sequence[LintWaiver], now: datetime) -> Fault | None:
    stale = [f"{each.rule} names no rule" for each in waivers if each.rule not in RULE_IDS]
    stale += [f"that of {each.rule} expired on {_day(each.expire_time)}" for each in waivers if is_expired(each, now)]
    return _fault(bool(stale), f"waivers that hold no longer: {'; '.join(stale)}")


def _day(moment: datetime | None) -> str:
    return "an unknown day" if moment is None else f"{moment:%Y-%m-%d}"


def _type_waivers(facts: TypeFacts) -> Fault | None:
    return _stale(facts.entry.lint_waivers, facts.now)


def _model_waivers(facts: ModelFacts) -> Fault | None:
    return _stale(facts.entry.lint_waivers, facts.now)


# Id, severity, description and mend of rules that model types and models have in common.
_ASK: Final = (
    "modelfleet registry criticality request {resource} --tier TIER "
    "--on-call ROTATION --metric METRIC --contribution WHY"
)
_OVERDUE: Final = ("tier-overdue", ERROR, "TIER0 and TIER1 are renewed before they expire.", _ASK)
_EXPIRING: Final = ("tier-expiring", INFO, "TIER0 and TIER1 are renewed a month before they expire.", _ASK)
_UNFOUNDED: Final = ("tier-unfounded", WARNING, "TIER0 and TIER1 rest on an approved request.", _ASK)
_STALE: Final = (
    "waiver-stale",
    INFO,
    "Waivers that have expired, or name a rule that is gone, are taken away.",
    "modelfleet registry waive {resource} RULE --remove",
)


# Model types.


def _purpose(facts: TypeFacts) -> Fault | None:
    return _fault(not facts.entry.purpose, "nobody has written what it is for")


def _stage(facts: TypeFacts) -> Fault | None:
    return _fault(facts.entry.funnel_stage is None, "its place in the funnel is not stated")


def _tier(facts: TypeFacts) -> Fault | None:
    entry = facts.entry
    if entry.tier is not None:
        return None
    if entry.required_tier is None:
        return Fault("its criticality is not stated")
    why = because(entry.required_tier, entry.required_tier_path)
    return Fault(f"its criticality is not stated; it must be {why}", _to_tier(entry.required_tier))


def _below_required(facts: TypeFacts) -> Fault | None:
    entry = facts.entry
    if entry.tier is None or entry.required_tier is None or entry.tier <= entry.required_tier:
        return None
    why = because(entry.required_tier, entry.required_tier_path)
    return Fault(f"it is {entry.tier.name}, and must be {why}", _to_tier(entry.required_tier))


def _to_tier(tier: Tier) -> str:
    return request_command("{resource}", tier) if tier in BY_REQUEST else _TYPE + f"tier={tier.name}"


def _models(facts: TypeFacts) -> Fault | None:
    return _fault(not facts.has_models, "no model of it is registered")


def _baseline(facts: TypeFacts) -> Fault | None:
    return _fault(facts.has_models and not facts.entry.baseline, "no model of it is the baseline")


def _regions(facts: TypeFacts) -> Fault | None:
    return _fault(not facts.entry.regions, "it names no region, so nothing of it can be launched")


def _splits(facts: TypeFacts) -> Fault | None:
    entry = facts.entry
    split = {each.region for each in entry.splits if each.shares}
    without = [region for region in entry.regions if region not in split]
    if not entry.baseline or not without:
        return None
    mend = f"modelfleet launch create {entry.baseline} --pool POOL --region {_short(without[:1])}"
    return Fault(f"it has a baseline, and no split in {_short(without)}: nothing of it is served there", mend)


def _single_region(facts: TypeFacts) -> Fault | None:
    entry = facts.entry
    alone = facts.several_regions and entry.tier in BY_REQUEST and len(entry.regions) == 1
    return _fault(alone, f"it is served in {_short(entry.regions)} alone, and fails with it")


def _predictions(facts: TypeFacts) -> Fault | None:
    ranks = facts.entry.funnel_stage is not FunnelStage.SOURCING
    return _fault(ranks and not facts.entry.predictions, "it states no prediction, so its stability is not known")


def _not_applicable(facts: TypeFacts) -> Fault | None:
    retrieves = facts.entry.funnel_stage is FunnelStage.SOURCING
    message = "it retrieves and predicts nothing: stability does not apply to it, availability does"
    return _fault(retrieves and not facts.entry.predictions, message)


def _ne_range(facts: TypeFacts) -> Fault | None:
    ranged = _ranged(facts.entry, Metric.NE)
    predictions = facts.entry.predictions
    without = [each.id for each in predictions if each.ne_range is None and each.id not in ranged]
    message = f"it has no healthy range for the normalized entropy of {_short(without)}"
    return _fault(bool(without), f"{message}: models without a range of their own are not judged by it")


def _defaults(facts: TypeFacts) -> Fault | None:
    ranged = _ranged(facts.entry, Metric.CALIBRATION)
    untouched = [each.id for each in facts.entry.predictions if _is_default(each) and each.id not in ranged]
    message = (
        f"window, calibration range and positives of {_short(untouched)} are the defaults: none is chosen for the type"
    )
    return _fault(bool(untouched), message)


def _ranged(entry: ModelType, metric: Metric) -> set[str]:
    """Returns the predictions that have a healthy range of a metric."""
    return {healthy.prediction for healthy in entry.healthy_ranges if healthy.metric is metric}


def _is_default(prediction: Prediction) -> bool:
    default = complete_prediction(Prediction(id=prediction.id))
    return (prediction.attribution_window, prediction.calibration_range, prediction.min_positives) == (
        default.attribution_window,
        default.calibration_range,
        default.min_positives,
    )


def demand_known(entry: ModelType) -> list[str]:
    """Returns the regions of a type for which it states a demand, or says how it is measured."""
    source = entry.demand_source
    if source is None:
        return []
    # What is stated counts, also where it says 0.
    stated = {each.region: each.peak_qps for each in source.stated}
    measured = 0.0 if source.prometheus is None else 1.0
    known = {region for region in entry.regions if stated.get(region, measured) > 0}
    return [region for region in entry.regions if region in known]


def _demand(facts: TypeFacts) -> Fault | None:
    known = demand_known(facts.entry)
    without = [region for region in facts.entry.regions if region not in known]
    message = f"no demand is stated or measured for {_short(without)}: nobody can say what a launch needs there"
    return _fault(bool(without), message)


def _demand_elsewhere(facts: TypeFacts) -> Fault | None:
    stated = () if facts.entry.demand_source is None else facts.entry.demand_source.stated
    elsewhere = [each.region for each in stated if each.region not in facts.entry.regions]
    return _fault(bool(elsewhere), f"demand is stated for {_short(elsewhere)}, where it is not served")


def _naming(facts: TypeFacts) -> Fault | None:
    return _fault(facts.naming_in_force and not facts.entry.naming, "its id fits no naming scheme")


def _holdout(facts: TypeFacts) -> Fault | None:
    entry = facts.entry
    wanted = entry.tier in BY_REQUEST and bool(entry.baseline) and not entry.holdouts
    return _fault(wanted, "no model is held out: what its launches bring over time cannot be told")


def _upstream(facts: TypeFacts) -> Fault | None:
    message = f"it consumes {_short(facts.idle_upstream)}, which serves nothing: it has no baseline"
    return _fault(bool(facts.idle_upstream), message)


def _dashboard(facts: TypeFacts) -> Fault | None:
    wanted = facts.entry.tier in BY_REQUEST and not facts.has_dashboard
    return _fault(wanted, "no dashboard is registered that an on-call could look at")


def _evidence_rules(facts: TypeFacts) -> Fault | None:
    wanted = facts.entry.tier in BY_REQUEST and not facts.entry.evidence_rules
    return _fault(wanted, "no rule says what a model must show before it is launched")


# What the tiers give that come by request; others may promise what they like.
_PROMISED: Final = {Tier.TIER0: 0.999, Tier.TIER1: 0.995}


def _service_level(facts: TypeFacts) -> Fault | None:
    tier, level = facts.entry.tier, facts.entry.service_level
    promised = _PROMISED.get(tier) if tier is not None else None
    if promised is None or level is None:
        return None
    stated = {"stability": level.stability, "availability": level.availability}
    low = [f"{target:g} of {name}" for name, target in stated.items() if 0 < target < promised]
    assert tier is not None
    return _fault(bool(low), f"it promises {' and '.join(low)}: {tier.name} gives {promised:g}")


TYPE_RULES: Final[tuple[Rule[TypeFacts], ...]] = (
    Rule("purpose-missing", ERROR, "A model type says what it is for.", _TYPE + "purpose='WHAT IT IS FOR'", _purpose),
    Rule(
        "funnel-stage-missing",
        WARNING,
        "A model type says where in the funnel it stands.",
        _TYPE + "funnel_stage=LATE_STAGE_RANKING",
        _stage,
    ),
    Rule("tier-missing", ERROR, "A model type says how critical it is.", _TYPE + "tier=TIER3", _tier),
    Rule(
        "tier-below-required",
        ERROR,
        "A model type is as critical as the types that consume its output.",
        _ASK,
        _below_required,
    ),
    Rule(*_OVERDUE, _type_overdue),
    Rule(*_EXPIRING, _type_expiring),
    Rule(*_UNFOUNDED, _type_unfounded),
    Rule(*_STALE, _type_waivers),
    Rule(
        "models-missing",
        WARNING,
        "A model type has a model.",
        "modelfleet registry model create {resource}/models/MODEL -f model.yaml",
        _models,
    ),
    Rule(
        "baseline-missing",
        ERROR,
        "A model type that has models has a baseline.",
        "modelfleet launch create {resource}/models/MODEL --pool POOL",
        _baseline,
    ),
    Rule("regions-missing", WARNING, "A model type names its regions.", _TYPE + "'regions=[regions/REGION]'", _regions),
    Rule(
        "split-missing",
        WARNING,
        "A model type with a baseline has a split in each of its regions.",
        "modelfleet launch create {resource}/models/MODEL --pool POOL --region REGION",
        _splits,
    ),
    Rule(
        "single-region",
        WARNING,
        "TIER0 and TIER1 are served in more than one region.",
        _TYPE + "'regions=[regions/REGION, regions/OTHER]'",
        _single_region,
    ),
    Rule(
        "predictions-missing",
        ERROR,
        "A model type that ranks states its predictions.",
        _TYPE + "'predictions=[{id: click}]'",
        _predictions,
    ),
    Rule(
        "stability-not-applicable",
        INFO,
        "A model type that retrieves has no predictions to judge.",
        "nothing to do; if it does predict: " + _TYPE + "'predictions=[{id: click}]'",
        _not_applicable,
    ),
    Rule(
        "ne-range-missing",
        WARNING,
        "Each prediction has a healthy range of its normalized entropy.",
        _TYPE + "'predictions=[{id: click, ne_range: {low: 0.7, high: 0.95}}]', with all its predictions",
        _ne_range,
    ),
    Rule(
        "prediction-defaults",
        INFO,
        "Attribution window, calibration range and fewest positives of a prediction are chosen, not the defaults.",
        _TYPE + "'predictions=[{id: click, attribution_window: 1800s}]', with all its predictions",
        _defaults,
    ),
    Rule(
        "service-level-low",
        WARNING,
        "TIER0 and TIER1 promise no less than what their tier gives.",
        _TYPE + "'service_level={}' for what the tier gives",
        _service_level,
    ),
    Rule(
        "demand-missing",
        ERROR,
        "A model type states its demand in each of its regions, or how Prometheus measures it.",
        _TYPE + "'demand_source.stated=[{region: regions/REGION, peak_qps: 100}]', with all its regions",
        _demand,
    ),
    Rule(
        "demand-elsewhere",
        INFO,
        "A model type states its demand in its own regions only.",
        _TYPE + "'demand_source.stated=[{region: regions/REGION, peak_qps: 100}]', without the others",
        _demand_elsewhere,
    ),
    Rule(
        "naming-unfit",
        WARNING,
        "The id of a model type fits a naming scheme.",
        "modelfleet registry name explain {resource} says which word does not fit; register it under an id that does",
        _naming,
    ),
    Rule(
        "holdout-missing",
        INFO,
        "TIER0 and TIER1 have a holdout.",
        "hold the old baseline out when the next launch is finalised",
        _holdout,
    ),
    Rule(
        "upstream-idle",
        WARNING,
        "What a model type consumes is served.",
        "modelfleet registry lint says what the upstream type lacks; or take it out of upstream_types",
        _upstream,
    ),
    Rule(
        "dashboard-missing",
        WARNING,
        "TIER0 and TIER1 have a dashboard.",
        "modelfleet registry asset create ID --set kind=DASHBOARD --set uri=URI --set team=TEAM "
        "--set 'model_types=[{resource}]'",
        _dashboard,
    ),
    Rule(
        "evidence-rules-missing",
        INFO,
        "TIER0 and TIER1 have rules for the evidence of their models.",
        _TYPE + "'evidence_rules=[{id: RULE, metric: METRIC, minimum: 0.5}]'",
        _evidence_rules,
    ),
)


# Models.


def _override_below(facts: ModelFacts) -> Fault | None:
    override, tier = facts.entry.tier_override, facts.tier
    if facts.entry.role is not ModelRole.BASELINE or override is None or tier is None or override <= tier:
        return None
    return Fault(f"it is the baseline of a type that is {tier.name}, and {override.name} by its own tier")


def _provenance(facts: ModelFacts) -> Fault | None:
    entry = facts.entry
    serves = entry.role is not None and entry.role.serves
    message = "it serves, and neither its training flow nor its checkpoint is known: nobody could make it again"
    return _fault(serves and not (entry.training_flow or entry.checkpoint), message)


def _idle(facts: ModelFacts) -> Fault | None:
    entry = facts.entry
    if entry.role is not ModelRole.CANDIDATE or entry.create_time is None or facts.now < entry.create_time + IDLE:
        return None
    return Fault(f"it was registered {(facts.now - entry.create_time).days} days ago and has never been launched")


def _description(facts: ModelFacts) -> Fault | None:
    serves = facts.entry.role is not None and facts.entry.role.serves
    return _fault(serves and not facts.entry.description, "nobody has written what is new about it")


MODEL_RULES: Final[tuple[Rule[ModelFacts], ...]] = (
    Rule(*_OVERDUE, _model_overdue),
    Rule(*_EXPIRING, _model_expiring),
    Rule(*_UNFOUNDED, _model_unfounded),
    Rule(*_STALE, _model_waivers),
    Rule(
        "override-below-type",
        WARNING,
        "A baseline is as critical as its type.",
        "modelfleet registry model update {resource} --set tier_override=null",
        _override_below,
    ),
    Rule(
        "provenance-missing",
        WARNING,
        "A model that serves names its training flow or its checkpoint.",
        _MODEL + "training_flow=URI",
        _provenance,
    ),
    Rule(
        "candidate-idle",
        INFO,
        f"A candidate is launched within {IDLE.days} days.",
        "modelfleet launch create {resource} --pool POOL, or modelfleet registry model delete {resource}",
        _idle,
    ),
    Rule(
        "description-missing",
        INFO,
        "A model that serves says what is new about it.",
        _MODEL + "description='WHAT IS NEW'",
        _description,
    ),
)


RULE_IDS: Final = frozenset(rule.id for rules in (TEAM_RULES, REGION_RULES, TYPE_RULES, MODEL_RULES) for rule in rules)
"""Ids that waivers may name."""


def kinds_of_rules() -> Mapping[str, tuple[Rule[Any], tuple[str, ...]]]:
    """Returns each rule once, by id, with the kinds of entries that it is about."""
    kinds: dict[str, tuple[Rule[Any], tuple[str, ...]]] = {}
    for kind, rules in (
        ("team", TEAM_RULES),
        ("region", REGION_RULES),
        ("model_type", TYPE_RULES),
        ("model", MODEL_RULES),
    ):
        for rule in rules:
            _, known = kinds.get(rule.id, (rule, ()))
            kinds[rule.id] = (rule, (*known, kind))
    return dict(sorted(kinds.items()))
