"""Several changes as one: each is decided on what the ones before it leave, and all become one revision, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar, cast

from modelfleetd.errors import EntriesRefused, FieldViolation, FleetError, InvalidFields, RoleMissing
from modelfleetd.registry.domain.assets import Asset
from modelfleetd.registry.domain.dependencies import Dependencies, follow_ups
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.overlay import Overlay
from modelfleetd.registry.domain.resources import AnyResource, ModelRole, ModelType, Team
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.roles import Adoption, RoleChange, adopt_serving
from modelfleetd.registry.domain.serving import RegionSplit

R = TypeVar("R", bound=AnyResource)
References = Callable[[AnyResource], Iterable[str]]

MAX_CHANGES: Final = 2000
MAX_BYTES: Final = 3 << 20
# Beyond this many, what is wrong is the whole and not its parts.
_MOST_VIOLATIONS = 200


@dataclass(frozen=True, slots=True)
class Step:
    """One of several changes.

    Attributes:
        name: of the entry that it is about.
        decide: what its own method would decide.
        path: where a field of its own method's request stands in the request for all; of "" the entry itself.
    """

    name: str
    decide: Callable[[Ledger], Edits]
    path: Callable[[str], str]


def apply(ledger: Ledger, steps: Iterable[Step], references: References) -> Iterator[Edits]:
    """Decides several changes, one after the other, each on the state that the ones before it leave.

    Yields after each step, so that others may go on meanwhile, and at last the edits. Each resource is in them once,
    with the state before all steps and the state after: first the entries that the steps are about, in their order,
    then what follows from them.

    Args:
        ledger: the state before.
        steps: in an order in which references hold.
        references: the names that a resource refers to.

    Raises:
        FleetError: a step is refused. Says everything that is wrong with any of them; what is wrong only because
            another one is refused is left out.
    """
    overlay = Overlay(ledger, references, follows_up_later=True)
    refusals = _Refusals()
    names = []
    for step in steps:
        names.append(step.name)
        try:
            overlay.apply(step.decide(overlay))
        except FleetError as error:
            refusals.add(step, error)
        yield ()
    refusals.raise_if_any()
    overlay.apply(_follow_ups(overlay))
    yield overlay.edits(names)


def _follow_ups(overlay: Overlay) -> Edits:
    changed = [
        (cast(ModelType | None, edit.before), cast(ModelType | None, edit.after))
        for edit in overlay.edits(())
        if isinstance(edit.after or edit.before, ModelType)
    ]
    return follow_ups(Dependencies(overlay, "", None), changed)


def team_of(ledger: Ledger, name: str) -> str | None:
    """Returns the team of a team, an asset, a model type, or whatever is below one; None where it does not exist."""
    found = ledger.find(name)
    if isinstance(found, Team):
        return found.name
    if isinstance(found, Asset):
        return found.team
    # modelTypes/{type}, and modelTypes/{type}/…
    model_type = ledger.model_type("/".join(name.split("/", 2)[:2]))
    return None if model_type is None else model_type.team


@dataclass
class Served:
    """What is stated of one model type that serves already: roles and splits, and where in the request each stands."""

    model_type: str
    path: Callable[[str], str]
    roles: dict[str, tuple[ModelRole, str]] = field(default_factory=dict)
    """Role by model, and the path of the field that states it."""
    splits: tuple[RegionSplit, ...] = ()

    def adoption(self) -> Adoption:
        """Returns it as AdoptServing takes it."""
        changes = tuple(RoleChange(model=name, role=role) for name, (role, _) in self.roles.items())
        return Adoption(model_type=self.model_type, role_changes=changes, splits=self.splits)

    def where(self, path: str) -> str:
        """Returns where a field of AdoptServing stands in the request: `role_changes[0].model` is a model's `role`."""
        head, _, _ = path.partition("]")
        if not head.startswith("role_changes["):
            return self.path(f"model_type.{path}" if path.startswith("splits") else "")
        return list(self.roles.values())[int(head.removeprefix("role_changes["))][1]

    def step(self, allowed: Callable[[Ledger], None]) -> Step:
        """Returns the last step for a type: AdoptServing, where no launch owns its traffic yet.

        Args:
            allowed: raises where the caller may not call AdoptServing.
        """

        def decide(ledger: Ledger) -> Edits:
            if not is_unserved(ledger, self.model_type):
                return ()  # Stated as it is: anything else was refused when the entries were decided.
            allowed(ledger)
            return adopt_serving(ledger, self.adoption())

        return Step(self.model_type, decide, self.where)


# What AdoptServing states instead.
ADOPTED: Final = frozenset({"baseline", "holdouts", "splits", "role"})


def is_unserved(ledger: Ledger, model_type: str) -> bool:
    """Says whether no launch owns the traffic of a type yet: it has no baseline, or does not exist."""
    found = ledger.model_type(model_type)
    return found is None or not found.baseline


class _Refusals:
    """Collects what is wrong with steps."""

    def __init__(self) -> None:
        self._first: FleetError | None = None
        self._violations: list[FieldViolation] = []
        self._names: set[str] = set()
        self._all_fields = True

    def add(self, step: Step, error: FleetError) -> None:
        """Notes that a step is refused."""
        follows = bool(self._names) and self._missing(error) <= self._names
        self._names.add(step.name)
        if follows:
            return
        # Who lacks a role learns that, and nothing about the others.
        if self._first is None or (isinstance(error, RoleMissing) and not isinstance(self._first, RoleMissing)):
            self._first = error
        self._all_fields &= isinstance(error, InvalidFields)
        if error.violations:
            self._violations += [FieldViolation(step.path(each.path), each.description) for each in error.violations]
        else:
            self._violations.append(FieldViolation(step.path(error.metadata.get("field", "")), error.message))

    def _missing(self, error: FleetError) -> set[str]:
        """Returns what would have to be there, or gone, for a step to succeed."""
        if error.reason in ("REFERENCE_NOT_FOUND", "RESOURCE_NOT_FOUND"):
            return {error.metadata["resource"]}
        if error.reason == "RESOURCE_IN_USE":
            return set(error.metadata["referred_by"].split(", "))
        return {""}

    def raise_if_any(self) -> None:
        """Raises what was found: InvalidFields where nothing else is wrong."""
        if self._first is None:
            return
        violations = self._violations[:_MOST_VIOLATIONS]
        if self._all_fields:
            raise InvalidFields(violations)
        raise EntriesRefused(self._first, violations, len(self._violations))
