"""Roles, baseline and splits: what launches own.

They change when a launch is finalised, or, before the first launch, when what is served already is adopted.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modelfleetd.errors import FieldOwnedByLaunches, ResourceNotFound, RevisionMismatch
from modelfleetd.registry.domain.documents import document
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.resource import parent_of
from modelfleetd.registry.domain.resources import Model, ModelRole, ModelType
from modelfleetd.registry.domain.revisions import Edit, Edits
from modelfleetd.registry.domain.rules import check_splits
from modelfleetd.registry.domain.serving import RegionSplit
from modelfleetd.registry.domain.violations import Violations


class Outcome(enum.Enum):
    """How a launch ended."""

    SUCCEEDED = "SUCCEEDED"
    ROLLED_BACK = "ROLLED_BACK"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChange:
    """A model's new role."""

    model: str
    role: ModelRole | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalization:
    """What a launch leaves behind."""

    model_type: str
    launch: str
    outcome: Outcome | None = None
    expected_revision: int = 0
    role_changes: tuple[RoleChange, ...] = ()
    splits: tuple[RegionSplit, ...] = ()
    attempt: int = 0

    @property
    def counted(self) -> int:
        """The attempt that has ended; who says nothing of attempts makes only one."""
        return self.attempt or 1

    def digest(self) -> bytes:
        """Returns the digest of its content: two calls for one attempt are the same call if these are equal.

        The expected revision guards the content and is no part of it, nor is the attempt, which is half of the key; the
        order of role changes means nothing.
        """
        content = document(replace(self, expected_revision=0, role_changes=(), attempt=0))
        content["role_changes"] = sorted(map(document, self.role_changes), key=lambda change: str(change["model"]))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What serves already when a model type is registered."""

    model_type: str
    role_changes: tuple[RoleChange, ...] = ()
    splits: tuple[RegionSplit, ...] = ()


def finalize_launch(ledger: Ledger, asked: Finalization) -> Edits:
    """Decides FinalizeLaunch of a launch that has no outcome yet: the type first, then its models, all in one revision.

    Raises:
        ResourceNotFound: the model type does not exist.
        RevisionMismatch: what launches own of the type changed after `expected_revision`. Other fields may have
            changed: a new on-call or label does not undo hours of a launch.
        InvalidFields: the roles and splits do not fit together, or name what does not exist.
    """
    if asked.outcome is not Outcome.SUCCEEDED:
        wrong = Violations("")
        wrong.expect(asked.outcome is not None, "outcome", "must be SUCCEEDED or ROLLED_BACK")
        wrong.expect(not asked.role_changes, "role_changes", "must be empty with ROLLED_BACK, which changes nothing")
        wrong.expect(not asked.splits, "splits", "must be empty with ROLLED_BACK, which changes nothing")
        wrong.raise_if_any()
        return ()
    model_type = _model_type(ledger, asked.model_type)
    wrong = Violations("")
    wrong.expect(asked.expected_revision > 0, "expected_revision", "must be the model type's revision as planned on")
    wrong.raise_if_any()
    if not model_type.serving_revision <= asked.expected_revision <= model_type.revision:
        raise RevisionMismatch(asked.expected_revision, model_type.revision)
    return _assigned(ledger, model_type, asked.role_changes, asked.splits)


def adopt_serving(ledger: Ledger, asked: Adoption) -> Edits:
    """Decides AdoptServing: the roles and splits of a type whose traffic no launch has shaped yet.

    Raises:
        ResourceNotFound: the model type does not exist.
        FieldOwnedByLaunches: the type has a baseline: from then on launches own it.
        InvalidFields: the roles and splits do not fit together, or name what does not exist.
    """
    model_type = _model_type(ledger, asked.model_type)
    wrong = Violations("")
    has_baseline = any(change.role is ModelRole.BASELINE for change in asked.role_changes)
    wrong.expect(has_baseline, "role_changes", "must name the BASELINE")
    wrong.raise_if_any()
    edits = _assigned(ledger, model_type, asked.role_changes, asked.splits)
    if model_type.baseline and edits:
        raise FieldOwnedByLaunches("baseline", launch_command(model_type.name))
    return edits


def _model_type(ledger: Ledger, name: str) -> ModelType:
    model_type = ledger.model_type(name)
    if model_type is None:
        raise ResourceNotFound(name)
    return model_type


def _assigned(
    ledger: Ledger, model_type: ModelType, changes: Sequence[RoleChange], splits: Sequence[RegionSplit]
) -> Edits:
    """Returns the edits that give models new roles and regions new splits."""
    models = {model.name: model for model in ledger.models_of(model_type.name)}
    wrong = Violations("")
    _check_role_changes(wrong, model_type, models, changes)
    check_splits(wrong, splits)
    for index, split in enumerate(splits):
        expected = f"must be a region of {model_type.name}"
        wrong.expect(split.region in model_type.regions, f"splits[{index}].region", expected)
    wrong.raise_if_any()
    roles = {name: model.role for name, model in models.items()} | {change.model: change.role for change in changes}
    merged = _merged(model_type.splits, splits)
    _check_together(wrong, model_type, roles, merged, splits)
    wrong.raise_if_any()
    after = replace(
        model_type,
        baseline=next((name for name, role in roles.items() if role is ModelRole.BASELINE), ""),
        holdouts=tuple(sorted(name for name, role in roles.items() if role is ModelRole.HOLDOUT)),
        splits=merged,
    )
    edits = [Edit(model_type, after)] if after != model_type else []
    for name, model in sorted(models.items()):
        if roles[name] is not model.role:
            edits.append(Edit(model, replace(model, role=roles[name])))
    return tuple(edits)


def _check_role_changes(
    wrong: Violations, model_type: ModelType, models: dict[str, Model], changes: Sequence[RoleChange]
) -> None:
    wrong.unique([change.model for change in changes], "role_changes", ".model")
    for index, change in enumerate(changes):
        path = f"role_changes[{index}]"
        wrong.expect(change.model in models, f"{path}.model", f"must be a model of {model_type.name}")
        assignable = change.role not in (None, ModelRole.CANDIDATE)
        wrong.expect(assignable, f"{path}.role", "must be BASELINE, HOLDOUT, EXPERIMENT or RETIRED")


def _check_together(
    wrong: Violations,
    model_type: ModelType,
    roles: dict[str, ModelRole | None],
    merged: Sequence[RegionSplit],
    asked: Sequence[RegionSplit],
) -> None:
    """Notes what is wrong with roles and splits as they would be afterwards."""
    baselines = sorted(name for name, role in roles.items() if role is ModelRole.BASELINE)
    description = f"must leave at most one BASELINE, and leave {', '.join(baselines)}: give the old one another role"
    wrong.expect(len(baselines) <= 1, "role_changes", description)
    index_of = {split.region: index for index, split in enumerate(asked)}
    for split in merged:
        # A region that the request leaves out is as wrong as one that it names: the split would point at nothing.
        path = f"splits[{index_of[split.region]}].shares" if split.region in index_of else "splits"
        for number, share in enumerate(split.shares):
            role = roles.get(share.model)
            where = f"{path}[{number}].model" if split.region in index_of else path
            if share.model not in roles:
                wrong.expect(False, where, f"{share.model} in {split.region} must be a model of {model_type.name}")
            elif share.share_basis_points > 0 and (role is None or not role.serves):
                shown = "no role" if role is None else f"the role {role.name}"
                expected = f"{share.model} has {shown} and cannot take a share in {split.region}"
                wrong.expect(False, where, expected)


def _merged(current: Sequence[RegionSplit], asked: Sequence[RegionSplit]) -> tuple[RegionSplit, ...]:
    by_region = {split.region: split for split in (*current, *asked)}
    return tuple(by_region[region] for region in sorted(by_region) if by_region[region].shares)


def refuse_launch_owned(asked: ModelType | Model) -> None:
    """Raises FieldOwnedByLaunches where a new entry sets what only launches may."""
    if isinstance(asked, Model):
        if asked.role not in (None, ModelRole.CANDIDATE):
            raise FieldOwnedByLaunches("model.role", launch_command(parent_of(asked.name), asked.name))
        return
    for field in ("baseline", "holdouts", "splits"):
        if getattr(asked, field):
            raise FieldOwnedByLaunches(f"model_type.{field}", launch_command(asked.name))


def launch_command(model_type: str, model: str = "") -> str:
    """Returns the command that changes what launches own."""
    return f"modelfleet launch create {model or f'{model_type}/models/MODEL'}"
