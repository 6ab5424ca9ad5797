"""What must be true of each resource by itself: lengths, ranges, sums. Every violation is reported, with its path."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from modelfleetd import names
from modelfleetd.errors import FieldViolation, InvalidFields
from modelfleetd.names import Pattern
from modelfleetd.registry.domain.resource import Json
from modelfleetd.registry.domain.resources import (
    DemandSource,
    MissingLabel,
    Model,
    ModelType,
    Prediction,
    Range,
    Region,
    Role,
    RoleBinding,
    Team,
)
from modelfleetd.registry.domain.serving import WHOLE, RegionSplit, ServingSpec

MAX_TEXT: Final = 200
MAX_PROSE: Final = 1000
MAX_URI: Final = 2000
MAX_LABELS: Final = 64
MAX_ITEMS: Final = 100
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


class Violations:
    """Collects what is wrong, below one path."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: list[FieldViolation] = []

    def expect(self, holds: bool, path: str, description: str) -> None:
        """Notes a violation at a path below this one's unless something holds."""
        if not holds:
            self.found.append(FieldViolation(f"{self.path}.{path}" if self.path else path, description))

    def text(self, value: str, path: str, longest: int, *, least: int = 0) -> None:
        """Expects a text of some length."""
        wanted = f"at most {longest}" if least == 0 else f"{least} to {longest}"
        self.expect(least <= len(value) <= longest, path, f"must have {wanted} characters")

    def count(self, values: Sequence[object] | Mapping[str, object], path: str, most: int) -> None:
        """Expects no more than so many."""
        self.expect(len(values) <= most, path, f"must have at most {most} entries")

    def name(self, value: str, pattern: Pattern, path: str) -> None:
        """Expects a resource name."""
        self.expect(pattern.match(value) is not None, path, pattern.expectation)

    def unique(self, values: Sequence[str], path: str, item: str = "") -> None:
        """Expects that nothing is named twice."""
        seen: set[str] = set()
        for index, value in enumerate(values):
            where = f"{path}[{index}]{item}"
            self.expect(value not in seen, where, f"{value!r} is there twice; name each once")
            seen.add(value)

    def raise_if_any(self) -> None:
        """Raises InvalidFields with everything that was found."""
        if self.found:
            raise InvalidFields(self.found)


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
    check_labels(wrong, model_type.labels)
    _attributes(wrong, model_type.attributes)
    wrong.raise_if_any()
    return replace(
        model_type,
        predictions=tuple(map(complete_prediction, model_type.predictions)),
        demand_source=None if model_type.demand_source is None else complete_demand(model_type.demand_source),
    )


def complete_prediction(prediction: Prediction) -> Prediction:
    """Returns a prediction with its defaults written out: a later change of a default changes no entry."""
    return replace(
        prediction,
        attribution_window=prediction.attribution_window or timedelta(hours=1),
        missing_label=prediction.missing_label or MissingLabel.NEGATIVE,
        calibration_range=prediction.calibration_range or Range(low=0.5, high=2.0),
        min_positives=prediction.min_positives or 10,
    )


def complete_demand(demand: DemandSource) -> DemandSource:
    """Returns a demand source with its defaults written out."""
    return replace(demand, fanout_basis_points=demand.fanout_basis_points or WHOLE)


def _prediction(wrong: Violations, prediction: Prediction, path: str) -> None:
    wrong.expect(names.is_id(prediction.id), f"{path}.id", names.ID_EXPECTATION)
    window = prediction.attribution_window
    in_bounds = window is None or timedelta(seconds=1) <= window <= timedelta(days=30)
    wrong.expect(in_bounds, f"{path}.attribution_window", "must be 1 s to 30 d")
    wrong.expect(0 <= prediction.min_positives <= 1_000_000, f"{path}.min_positives", "must be 1 to 1,000,000")
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
    wrong.unique([stated.region for stated in demand.stated], f"{path}.stated", ".region")
    wrong.expect(0 <= demand.growth_basis_points <= 100_000, f"{path}.growth_basis_points", "must be 0 to 100,000")
    wrong.expect(0 <= demand.fanout_basis_points <= 10**9, f"{path}.fanout_basis_points", "must be 0 to 1,000,000,000")


def check_model(model: Model) -> Model:
    """Returns the model if its fields are right. Raises InvalidFields."""
    wrong = Violations("model")
    wrong.text(model.description, "description", MAX_PROSE)
    wrong.text(model.training_flow, "training_flow", MAX_URI)
    wrong.text(model.checkpoint, "checkpoint", MAX_URI)
    check_labels(wrong, model.labels)
    _attributes(wrong, model.attributes)
    wrong.expect(model.serving_spec is not None, "serving_spec", "is required")
    if model.serving_spec is not None:
        _serving_spec(wrong, model.serving_spec, "serving_spec")
    wrong.raise_if_any()
    return model


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
    wrong.count(labels, "labels", MAX_LABELS)
    for key, value in labels.items():
        wrong.expect(names.is_id(key), f"labels.{key[:MAX_TEXT]}", f"the key {names.ID_EXPECTATION}")
        wrong.text(value, f"labels.{key[:MAX_TEXT]}", MAX_TEXT)


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
