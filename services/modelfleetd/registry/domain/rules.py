"""What must be true of each resource by itself: lengths, ranges, sums. Every violation is reported, with its path."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from modelfleetd import names
from modelfleetd.registry.domain.defaults import complete_demand, complete_prediction, complete_range
from modelfleetd.registry.domain.evidence import EvidenceRule
from modelfleetd.registry.domain.lint_rules import RULE_IDS
from modelfleetd.registry.domain.monitoring import check_ranges, check_service_level
from modelfleetd.registry.domain.resource import Json
from modelfleetd.registry.domain.resources import (
    DemandSource,
    Model,
    ModelType,
    Prediction,
    PrometheusDemand,
    Region,
    Role,
    RoleBinding,
    Team,
)
from modelfleetd.registry.domain.serving import WHOLE, RegionSplit, ServingSpec
from modelfleetd.registry.domain.violations import Violations
from modelfleetd.registry.domain.waivers import MAX_AHEAD, LintWaiver

MAX_TEXT: Final = 200
MAX_PROSE: Final = 1000
MAX_URI: Final = 2000
MAX_LABELS: Final = 64
MAX_ITEMS: Final = 100
MAX_WAIVERS: Final = 50
MAX_QUERY: Final = 2000
MAX_SOURCE: Final = 500
# Of all bindings of a team: every service keeps every team's bindings.
MAX_MEMBERS: Final = 5000
MAX_ARGUMENT: Final = 4096
MAX_ATTRIBUTES_BYTES: Final = 64 * 1024
MAX_ATTRIBUTES_DEPTH: Final = 20
MAX_UNITS: Final = 1_000_000
# Bound in the installation's configuration: a team's owner must not be able to give them away.
UNBINDABLE: Final = (Role.ADMIN, Role.SERVICE)

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_team(team: Team) -> Team:
    """Returns the team if its fields are right. Raises InvalidFields."""
    wrong = Violations("team")
    wrong.text(team.display_name, "display_name", MAX_TEXT)
    wrong.text(team.on_call, "on_call", MAX_TEXT)
    wrong.count(team.contacts, "contacts", 20)
    for index, contact in enumerate(team.contacts):
        wrong.text(contact, f"contacts[{index}]", MAX_TEXT, least=1)
    wrong.count(team.role_bindings, "role_bindings", 1000)
    members = sum(len(binding.members) for binding in team.role_bindings)
    too_many = f"must have at most {MAX_MEMBERS:,} members in all, they have {members:,}; bind groups instead"
    wrong.expect(members <= MAX_MEMBERS, "role_bindings", too_many)
    for index, binding in enumerate(team.role_bindings):
        _binding(wrong, binding, f"role_bindings[{index}]")
    check_labels(wrong, team.labels)
    wrong.raise_if_any()
    return team


def _binding(wrong: Violations, binding: RoleBinding, path: str) -> None:
    bindable = [role.name for role in Role if role not in UNBINDABLE]
    accepted = f"must be one of {', '.join(bindable)}; ADMIN and SERVICE are bound in the installation's configuration"
    wrong.expect(binding.role is not None and binding.role not in UNBINDABLE, f"{path}.role", accepted)
    wrong.count(binding.members, f"{path}.members", 1000)
    for index, member in enumerate(binding.members):
        wrong.text(member, f"{path}.members[{index}]", MAX_TEXT, least=1)


def check_region(region: Region) -> Region:
    """Returns the region if its fields are right. Raises InvalidFields."""
    wrong = Violations("region")
    address = _ADDRESS.fullmatch(region.agent_address)
    is_address = address is not None and 0 < int(address[2]) < 65536
    wrong.expect(is_address, "agent_address", "must be host:port, for example 'agent.eu.example.com:8443'")
    wrong.count(region.failover_shares, "failover_shares", MAX_ITEMS)
    for index, share in enumerate(region.failover_shares):
        wrong.name(share.region, names.REGION, f"failover_shares[{index}].region")
        wrong.expect(share.region != region.name, f"failover_shares[{index}].region", "must be another region")
        in_range = 1 <= share.share_basis_points <= WHOLE
        wrong.expect(in_range, f"failover_shares[{index}].share_basis_points", f"must be 1 to {WHOLE}")
    wrong.unique([share.region for share in region.failover_shares], "failover_shares", ".region")
    total = sum(share.share_basis_points for share in region.failover_shares)
    wrong.expect(total <= WHOLE, "failover_shares", f"must sum to at most {WHOLE}, they sum to {total}")
    wrong.raise_if_any()
    return region


def check_model_type(model_type: ModelType) -> ModelType:
    """Returns the model type, defaults written out, if its fields are right. Raises InvalidFields."""
    wrong = Violations("model_type")
    wrong.text(model_type.purpose, "purpose", MAX_PROSE)
    wrong.name(model_type.team, names.TEAM, "team")
    for path, values, pattern in (
        ("regions", model_type.regions, names.REGION),
        ("upstream_types", model_type.upstream_types, names.MODEL_TYPE),
    ):
        wrong.count(values, path, MAX_ITEMS)
        for index, value in enumerate(values):
            wrong.name(value, pattern, f"{path}[{index}]")
        wrong.unique(values, path)
    wrong.count(model_type.predictions, "predictions", MAX_ITEMS)
    for index, prediction in enumerate(model_type.predictions):
        _prediction(wrong, prediction, f"predictions[{index}]")
    wrong.unique([prediction.id for prediction in model_type.predictions], "predictions", ".id")
    if model_type.demand_source is not None:
        _demand(wrong, model_type.demand_source, "demand_source")
        _prometheus(wrong, model_type.demand_source.prometheus, len(model_type.regions), "demand_source.prometheus")
    if model_type.launch_policy:
        wrong.name(model_type.launch_policy, names.LAUNCH_POLICY, "launch_policy")
    if model_type.service_level is not None:
        check_service_level(wrong, model_type.service_level, "service_level")
    check_ranges(wrong, model_type.healthy_ranges, [prediction.id for prediction in model_type.predictions])
    check_labels(wrong, model_type.labels)
    _attributes(wrong, model_type.attributes)
    _waivers(wrong, model_type.lint_waivers)
    check_evidence_rules(wrong, model_type.evidence_rules, "evidence_rules")
    wrong.raise_if_any()
    return replace(
        model_type,
        predictions=tuple(map(complete_prediction, model_type.predictions)),
        demand_source=None if model_type.demand_source is None else complete_demand(model_type.demand_source),
        healthy_ranges=tuple(map(complete_range, model_type.healthy_ranges)),
    )


def _prediction(wrong: Violations, prediction: Prediction, path: str) -> None:
    wrong.expect(names.is_id(prediction.id), f"{path}.id", names.ID_EXPECTATION)
    window = prediction.attribution_window
    in_bounds = window is None or timedelta(seconds=1) <= window <= timedelta(days=30)
    wrong.expect(in_bounds, f"{path}.attribution_window", "must be 1 s to 30 d")
    wrong.expect(0 <= prediction.min_positives <= 1_000_000, f"{path}.min_positives", "must be 1 to 1,000,000")
    wrong.expect(0 <= prediction.min_label_coverage <= 1, f"{path}.min_label_coverage", "must be 0 to 1")
    for name, bounds in (("calibration_range", prediction.calibration_range), ("ne_range", prediction.ne_range)):
        if bounds is not None:
            is_range = math.isfinite(bounds.low) and math.isfinite(bounds.high) and 0 <= bounds.low <= bounds.high
            wrong.expect(is_range, f"{path}.{name}", "must have finite ends with 0 <= low <= high")


def _demand(wrong: Violations, demand: DemandSource, path: str) -> None:
    wrong.count(demand.stated, f"{path}.stated", MAX_ITEMS)
    for index, stated in enumerate(demand.stated):
        wrong.name(stated.region, names.REGION, f"{path}.stated[{index}].region")
        is_rate = math.isfinite(stated.peak_qps) and stated.peak_qps >= 0
        wrong.expect(is_rate, f"{path}.stated[{index}].peak_qps", "must be 0 or more requests a second")
        wrong.text(stated.source, f"{path}.stated[{index}].source", MAX_SOURCE)
    wrong.unique([stated.region for stated in demand.stated], f"{path}.stated", ".region")
    wrong.expect(0 <= demand.growth_basis_points <= 100_000, f"{path}.growth_basis_points", "must be 0 to 100,000")
    wrong.expect(0 <= demand.fanout_basis_points <= 10**9, f"{path}.fanout_basis_points", "must be 0 to 1,000,000,000")


def _prometheus(wrong: Violations, source: PrometheusDemand | None, regions: int, path: str) -> None:
    if source is None:
        return
    wrong.text(source.query, f"{path}.query", MAX_QUERY, least=1)
    tells_apart = regions < 2 or "{region}" in source.query
    wrong.expect(tells_apart, f"{path}.query", "must hold {region}, since the model type has several regions")
    in_bounds = source.window is None or timedelta(hours=1) <= source.window <= timedelta(days=365)
    wrong.expect(in_bounds, f"{path}.window", "must be 1 h to 365 d")
    wrong.expect(0 <= source.quantile <= 1, f"{path}.quantile", "must be above 0 and at most 1")


def check_model(model: Model) -> Model:
    """Returns the model if its fields are right. Raises InvalidFields."""
    wrong = Violations("model")
    wrong.text(model.description, "description", MAX_PROSE)
    wrong.text(model.training_flow, "training_flow", MAX_URI)
    wrong.text(model.checkpoint, "checkpoint", MAX_URI)
    check_labels(wrong, model.labels)
    _attributes(wrong, model.attributes)
    _waivers(wrong, model.lint_waivers)
    wrong.expect(model.serving_spec is not None, "serving_spec", "is required")
    if model.serving_spec is not None:
        _serving_spec(wrong, model.serving_spec, "serving_spec")
    check_ranges(wrong, model.healthy_ranges, None)
    wrong.raise_if_any()
    return replace(model, healthy_ranges=tuple(map(complete_range, model.healthy_ranges)))


def _serving_spec(wrong: Violations, spec: ServingSpec, path: str) -> None:
    wrong.text(spec.artifact, f"{path}.artifact", MAX_URI)
    wrong.text(spec.image, f"{path}.image", MAX_TEXT * 5)
    wrong.expect(bool(spec.command or spec.image), f"{path}.command", "or image is needed: what runs a replica")
    wrong.count(spec.command, f"{path}.command", MAX_ITEMS)
    for index, argument in enumerate(spec.command):
        wrong.text(argument, f"{path}.command[{index}]", MAX_ARGUMENT)
        wrong.expect("\0" not in argument, f"{path}.command[{index}]", "must not hold a NUL character")
    wrong.name(spec.flavor, names.FLAVOR, f"{path}.flavor")
    is_count = 0 <= spec.units_per_replica <= MAX_UNITS
    wrong.expect(is_count, f"{path}.units_per_replica", f"must be 1 to {MAX_UNITS:,}")
    wrong.count(spec.environment, f"{path}.environment", MAX_LABELS)
    for key, value in spec.environment.items():
        wrong.expect(_VARIABLE.fullmatch(key) is not None, f"{path}.environment.{key}", "must be a variable's name")
        wrong.text(value, f"{path}.environment.{key}", MAX_ARGUMENT)
        wrong.expect("\0" not in value, f"{path}.environment.{key}", "must not hold a NUL character")
    startup, drain = spec.startup_timeout, spec.drain_timeout
    starts = startup is None or timedelta() < startup <= timedelta(hours=1)
    wrong.expect(starts, f"{path}.startup_timeout", "must be more than 0 and at most 1 h")
    drains = drain is None or timedelta() <= drain <= timedelta(minutes=10)
    wrong.expect(drains, f"{path}.drain_timeout", "must be 0 to 10 min")


def check_splits(wrong: Violations, splits: Sequence[RegionSplit], path: str = "splits") -> None:
    """Notes what is wrong with splits by themselves: each sums to 10,000 or is empty."""
    wrong.unique([split.region for split in splits], path, ".region")
    for index, split in enumerate(splits):
        where = f"{path}[{index}].shares"
        wrong.unique([share.model for share in split.shares], where, ".model")
        for number, share in enumerate(split.shares):
            in_range = 0 <= share.share_basis_points <= WHOLE
            wrong.expect(in_range, f"{where}[{number}].share_basis_points", f"must be 0 to {WHOLE} basis points")
        total = sum(share.share_basis_points for share in split.shares)
        fits = total == WHOLE or not split.shares
        wrong.expect(fits, where, f"must sum to {WHOLE} basis points, they sum to {total}")


def check_labels(wrong: Violations, labels: Mapping[str, str]) -> None:
    """Notes what is wrong with labels."""
    check_words(wrong, labels, "labels", MAX_LABELS)


def _waivers(wrong: Violations, waivers: Sequence[LintWaiver]) -> None:
    wrong.count(waivers, "lint_waivers", MAX_WAIVERS)
    for index, waiver in enumerate(waivers):
        path = f"lint_waivers[{index}]"
        accepted = f"must be the id of a rule: {', '.join(sorted(RULE_IDS))}"
        wrong.expect(waiver.rule in RULE_IDS, f"{path}.rule", accepted)
        wrong.text(waiver.reason, f"{path}.reason", MAX_PROSE, least=1)
        wrong.expect(waiver.expire_time is not None, f"{path}.expire_time", "is required")
    wrong.unique([waiver.rule for waiver in waivers], "lint_waivers", ".rule")


def check_waiver_times(waivers: Sequence[LintWaiver], now: datetime, path: str) -> None:
    """Raises InvalidFields where a waiver would hold for longer than it may when it is written.

    One that is stored already is always closer than that: whatever was read may be sent back.
    """
    wrong = Violations(path)
    for index, waiver in enumerate(waivers):
        ahead = waiver.expire_time is None or waiver.expire_time <= now + MAX_AHEAD
        latest = f"must be at most {MAX_AHEAD.days} days ahead, by {now + MAX_AHEAD:%Y-%m-%d}; waive it again then"
        wrong.expect(ahead, f"lint_waivers[{index}].expire_time", latest)
    wrong.raise_if_any()


def _attributes(wrong: Violations, attributes: Mapping[str, Json]) -> None:
    if not attributes:
        return
    wrong.expect(
        _depth(attributes) <= MAX_ATTRIBUTES_DEPTH, "attributes", f"must nest at most {MAX_ATTRIBUTES_DEPTH} deep"
    )
    try:
        size = len(json.dumps(attributes, allow_nan=False).encode())
    except ValueError:
        wrong.expect(False, "attributes", "must hold finite numbers only")
        return
    fits = size <= MAX_ATTRIBUTES_BYTES
    wrong.expect(
        fits, "attributes", f"must have at most {MAX_ATTRIBUTES_BYTES // 1024} KiB as JSON, they have {size} bytes"
    )


def _depth(value: Json) -> int:
    if isinstance(value, Mapping):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, (list, tuple)):
        return 1 + max(map(_depth, value), default=0)
    return 0


# What an EvidenceRule may expect: exactly one of these.
EXPECTATIONS: Final = (
    "minimum",
    "maximum",
    "max_distance_to_target",
    "max_loss_to_baseline",
    "max_relative_loss_to_baseline",
    "max_residual_risk",
)
# What makes no sense for a rule on risk assessments.
_OF_RESULTS: Final = (
    "suite",
    "metric",
    "slice",
    "worst_slice_by",
    "expected_slices",
    "evaluators",
    "method",
    "min_sample_size",
    "conservative",
    "form",
    "conditions",
    "at",
)


def check_evidence_rules(wrong: Violations, rules: Sequence[EvidenceRule], path: str) -> None:
    """Notes what is wrong with rules by themselves: each expects exactly one thing, of what there can be."""
    wrong.count(rules, path, MAX_ITEMS)
    for index, rule in enumerate(rules[:MAX_ITEMS]):
        where = f"{path}[{index}]"
        wrong.expect(names.is_id(rule.id), f"{where}.id", names.ID_EXPECTATION)
        expected = [name for name in EXPECTATIONS if getattr(rule, name) is not None]
        wrong.expect(len(expected) == 1, where, f"must expect exactly one of {', '.join(EXPECTATIONS)}")
        old_enough = rule.max_age is None or rule.max_age >= timedelta(minutes=1)
        wrong.expect(old_enough, f"{where}.max_age", "must be at least 1 min")
        if rule.max_residual_risk is not None:
            _risk_rule(wrong, rule, where)
        else:
            _result_rule(wrong, rule, where)
    wrong.unique([rule.id for rule in rules], path, ".id")


def _risk_rule(wrong: Violations, rule: EvidenceRule, path: str) -> None:
    risk = rule.max_residual_risk
    wrong.expect(risk is None or 0 <= risk <= 100, f"{path}.max_residual_risk", "must be 0 to 100")
    wrong.expect(not rule.dimension or names.is_id(rule.dimension), f"{path}.dimension", names.ID_EXPECTATION)
    for name in _OF_RESULTS:
        wrong.expect(
            not getattr(rule, name), f"{path}.{name}", "does not go with max_residual_risk: it is about results"
        )


def _result_rule(wrong: Violations, rule: EvidenceRule, path: str) -> None:
    wrong.expect(names.is_id(rule.metric), f"{path}.metric", names.ID_EXPECTATION)
    wrong.expect(not rule.suite or names.is_id(rule.suite), f"{path}.suite", names.ID_EXPECTATION)
    wrong.expect(not rule.dimension, f"{path}.dimension", "goes with max_residual_risk only")
    check_words(wrong, rule.slice, f"{path}.slice", 10, least=1)
    check_words(wrong, rule.conditions, f"{path}.conditions", 20)
    check_numbers(wrong, rule.at, f"{path}.at", 10)
    _worst_slice(wrong, rule, path)
    wrong.unique([kind.name for kind in rule.evaluators], f"{path}.evaluators")
    wrong.expect(rule.min_sample_size >= 0, f"{path}.min_sample_size", "must be 0 or more")
    for name in EXPECTATIONS:
        bound = getattr(rule, name)
        wrong.expect(bound is None or math.isfinite(bound), f"{path}.{name}", "must be a finite number")
    distance = rule.max_distance_to_target
    wrong.expect(distance is None or not distance < 0, f"{path}.max_distance_to_target", "must be 0 or more")


def _worst_slice(wrong: Violations, rule: EvidenceRule, path: str) -> None:
    key = rule.worst_slice_by
    wrong.expect(not key or names.is_id(key), f"{path}.worst_slice_by", names.ID_EXPECTATION)
    wrong.expect(not (key and rule.slice), f"{path}.worst_slice_by", "does not go with slice: name one of them")
    alone = not rule.expected_slices or bool(key)
    wrong.expect(alone, f"{path}.expected_slices", "goes with worst_slice_by: the key whose values these are")
    wrong.count(rule.expected_slices, f"{path}.expected_slices", MAX_ITEMS)
    for index, value in enumerate(rule.expected_slices[:MAX_ITEMS]):
        wrong.text(value, f"{path}.expected_slices[{index}]", MAX_TEXT, least=1)
    wrong.unique(rule.expected_slices[:MAX_ITEMS], f"{path}.expected_slices")


def check_words(wrong: Violations, words: Mapping[str, str], path: str, most: int, *, least: int = 0) -> None:
    """Notes what is wrong with a map of words, such as a slice: ids as keys, texts of some length as values."""
    wrong.count(words, path, most)
    for key, value in words.items():
        wrong.expect(names.is_id(key), f"{path}.{key[:MAX_TEXT]}", f"the key {names.ID_EXPECTATION}")
        wrong.text(value, f"{path}.{key[:MAX_TEXT]}", MAX_TEXT, least=least)


def check_numbers(wrong: Violations, numbers: Mapping[str, float], path: str, most: int) -> None:
    """Notes what is wrong with a map of numbers: ids as keys, finite values."""
    wrong.count(numbers, path, most)
    for key, value in numbers.items():
        wrong.expect(names.is_id(key), f"{path}.{key[:MAX_TEXT]}", f"the key {names.ID_EXPECTATION}")
        wrong.expect(math.isfinite(value), f"{path}.{key[:MAX_TEXT]}", "must be a finite number")
