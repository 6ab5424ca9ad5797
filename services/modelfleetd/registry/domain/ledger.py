"""What decisions may ask of the ledger: its state at one revision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from modelfleetd.registry.domain.criticality import CriticalityRequest
from modelfleetd.registry.domain.evidence import EvidenceHead
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Edits

R = TypeVar("R", bound=AnyResource)


class Ledger(Protocol):
    """Everything that exists at one revision."""

    @property
    def follows_up_later(self) -> bool:
        """Whether this is the middle of several changes: what follows for other entries is decided after the last."""

    def team(self, name: str) -> Team | None:
        """Returns a team, or None."""

    def region(self, name: str) -> Region | None:
        """Returns a region, or None."""

    def model_type(self, name: str) -> ModelType | None:
        """Returns a model type, or None."""

    def model(self, name: str) -> Model | None:
        """Returns a model, or None."""

    def models_of(self, model_type: str) -> Sequence[Model]:
        """Returns the models of a type, by name."""

    def referrers(self, name: str) -> Sequence[str]:
        """Returns the names of the resources that refer to one, sorted; a model type's own models are not counted."""

    def open_requests(self, name: str) -> Sequence[CriticalityRequest]:
        """Returns the requests for a tier of an entry that are PENDING or APPROVED, by name."""

    def find(self, name: str) -> AnyResource | None:
        """Returns whatever has the name, or None."""

    def every(self, kind: type[R]) -> Sequence[R]:
        """Returns everything of one kind, by name: of kinds of which there is little, such as schemas."""

    def asset_at(self, uri: str) -> str | None:
        """Returns the name of the asset that has a URI, or None."""

    def evidence_of(self, model: str) -> Sequence[EvidenceHead]:
        """Returns what evidence a model has, by name. It is not in memory: the writer has to be told to read it."""

    def pending(self) -> Edits:
        """Returns what has been decided just before and is not written yet: the ledger is as it is after it."""
