"""A ledger as it is after edits that nobody has written yet: what the next decision of several is made on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

from modelfleetd.registry.domain.assets import Asset, place
from modelfleetd.registry.domain.criticality import OPEN, CriticalityRequest
from modelfleetd.registry.domain.evidence import EvaluationReport, EvidenceHead, RiskAssessment
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.resource import Resource, parent_of
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Edit, Edits

R = TypeVar("R", bound=AnyResource)


class Overlay:
    """Edits on top of a ledger (`domain.ledger.Ledger`).

    Args:
        ledger: the state before.
        references: the names that a resource refers to.
        follows_up_later: whether what follows for other entries is decided after the last of the edits.
    """

    def __init__(
        self, ledger: Ledger, references: Callable[[AnyResource], Iterable[str]], *, follows_up_later: bool = False
    ) -> None:
        self.follows_up_later = follows_up_later
        self._ledger = ledger
        self._references = references
        self._edits: dict[str, Edit] = {}
        # Names of what was edited, by kind: each decision asks for everything of kinds that few edits are about.
        self._kinds: dict[type[Resource], set[str]] = {}
        self._models: dict[str, set[str]] = {}
        self._requests: dict[str, set[str]] = {}
        # Of what was edited, who refers to a name now; and the edits that are not in there yet: few decisions ask.
        self._referrers: dict[str, set[str]] = {}
        self._unread: list[Edit] = []
        # Of what was edited, the asset that has a URI now.
        self._assets: dict[str, str] = {}
        # Decisions ask for the same entries again and again.
        self._known: dict[str, AnyResource | None] = {}

    def apply(self, edits: Edits) -> None:
        """Goes on to the state after edits that were decided on this one."""
        for edit in edits:
            before = self._edits.get(edit.name)
            self._edits[edit.name] = Edit(edit.before if before is None else before.before, edit.after)
            resource = edit.after or edit.before
            if resource is not None:
                self._kinds.setdefault(type(resource), set()).add(edit.name)
            if isinstance(resource, Model):
                self._models.setdefault(parent_of(edit.name), set()).add(edit.name)
            if isinstance(edit.before, Asset):
                self._assets.pop(place(edit.before.uri), None)
            if isinstance(edit.after, Asset):
                self._assets[place(edit.after.uri)] = edit.name
            if isinstance(edit.after, CriticalityRequest):
                self._requests.setdefault(edit.after.resource, set()).add(edit.name)
        self._unread += edits

    def edited(self, name: str) -> Edit | None:
        """Returns what became of a resource since the state below; None where nothing did."""
        return self._edits.get(name)

    def edits(self, first: Iterable[str] = ()) -> Edits:
        """Returns one edit for each resource that differs from the state below, the ones named first in that order."""
        order = dict.fromkeys([*(name for name in first if name in self._edits), *self._edits])
        found = (self._edits[name] for name in order)
        return tuple(edit for edit in found if edit.before != edit.after)

    def find(self, name: str) -> AnyResource | None:
        """Returns whatever has the name, or None."""
        edit = self._edits.get(name)
        if edit is not None:
            return edit.after
        if name not in self._known:
            self._known[name] = self._ledger.find(name)
        return self._known[name]

    def team(self, name: str) -> Team | None:
        """Returns a team, or None."""
        return self._of(Team, name)

    def region(self, name: str) -> Region | None:
        """Returns a region, or None."""
        return self._of(Region, name)

    def model_type(self, name: str) -> ModelType | None:
        """Returns a model type, or None."""
        return self._of(ModelType, name)

    def model(self, name: str) -> Model | None:
        """Returns a model, or None."""
        return self._of(Model, name)

    def models_of(self, model_type: str) -> Sequence[Model]:
        """Returns the models of a type, by name."""
        edited = self._models.get(model_type, set())
        below = (model for model in self._ledger.models_of(model_type) if model.name not in edited)
        found = [*below, *(cast(Model, model) for name in edited if (model := self.find(name)) is not None)]
        return sorted(found, key=lambda model: model.name)

    def referrers(self, name: str) -> Sequence[str]:
        """Returns the names of the resources that refer to one, sorted."""
        self._read()
        below = (referrer for referrer in self._ledger.referrers(name) if referrer not in self._edits)
        return sorted({*below, *self._referrers.get(name, ())})

    def open_requests(self, name: str) -> Sequence[CriticalityRequest]:
        """Returns the requests for a tier of an entry that are PENDING or APPROVED, by name."""
        edited = self._requests.get(name, set())
        below = (each for each in self._ledger.open_requests(name) if each.name not in edited)
        found = [*below, *(cast(CriticalityRequest, self.find(each)) for each in edited)]
        return sorted((each for each in found if each.state in OPEN), key=lambda each: each.name)

    def every(self, kind: type[R]) -> Sequence[R]:
        """Returns everything of one kind, by name."""
        names = self._kinds.get(kind)
        if names is None:
            return self._ledger.every(kind)
        below = (each for each in self._ledger.every(kind) if each.name not in names)
        edited = (found for name in names if isinstance(found := self.find(name), kind))
        return sorted([*below, *edited], key=lambda each: each.name)

    def asset_at(self, uri: str) -> str | None:
        """Returns the name of the asset that has a URI, or None."""
        below = self._ledger.asset_at(uri)
        return self._assets.get(place(uri)) or (None if below in self._edits else below)

    def evidence_of(self, model: str) -> Sequence[EvidenceHead]:
        """Returns what evidence a model has, by name. How large new evidence is, is not known yet: it counts as 0."""
        below = (head for head in self._ledger.evidence_of(model) if head.name not in self._edits)
        new = (
            EvidenceHead(edit.after.name, edit.after.revision, 0)
            for edit in self._edits.values()
            if isinstance(edit.after, (EvaluationReport, RiskAssessment)) and parent_of(edit.name) == model
        )
        return sorted([*below, *new], key=lambda head: head.name)

    def pending(self) -> Edits:
        """Returns what has been decided and is not written yet: these edits, and those below them."""
        return (*(edit for edit in self._ledger.pending() if edit.name not in self._edits), *self.edits())

    def _of(self, kind: type[R], name: str) -> R | None:
        found = self.find(name)
        return found if isinstance(found, kind) else None

    def _read(self) -> None:
        for edit in self._unread:
            for name in () if edit.before is None else self._references(edit.before):
                self._referrers.setdefault(name, set()).discard(edit.name)
            for name in () if edit.after is None else self._references(edit.after):
                self._referrers.setdefault(name, set()).add(edit.name)
        self._unread = []
