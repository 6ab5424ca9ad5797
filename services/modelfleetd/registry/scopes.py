"""What a revision is about, for those who watch a part of the fleet only: found once for each revision, not for each of
them.

A scope is the name of a model type or team, or `surface:` with a surface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import FieldViolation, InvalidFields

MAX_MODEL_TYPES = 1000

TypeBefore: TypeAlias = Callable[[str], pb.ModelType | None]
"""Gives a model type as it was before a revision."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A revision, and what it is about."""

    revision: pb.Revision
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a watcher wants to hear of: revisions with a scope in each of these sets."""

    sets: tuple[frozenset[str], ...] = ()

    @classmethod
    def of(cls, request: pb.WatchRevisionsRequest) -> Wanted:
        """Returns what a request asks for.

        Raises:
            InvalidFields: too many model types.
        """
        if len(request.model_types) > MAX_MODEL_TYPES:
            raise InvalidFields(
                [FieldViolation("model_types", f"must be at most {MAX_MODEL_TYPES}; watch all instead")]
            )
        surface = {f"surface:{request.surface}"} if request.surface else ()
        team = {request.team} if request.team else ()
        return cls(tuple(frozenset(each) for each in (request.model_types, surface, team) if each))

    def fits(self, seen: Seen) -> bool:
        """Says whether a revision is wanted."""
        return all(not wanted.isdisjoint(seen.scopes) for wanted in self.sets)


def scopes_of(revision: pb.Revision, type_before: TypeBefore) -> frozenset[str]:
    """Returns what a revision is about: of what it changes, before and after."""
    return frozenset(scope for change in revision.changes for scope in _scopes(change, type_before) if scope)


def types_needed(revision: pb.Revision) -> Iterator[str]:
    """Yields the model types that a revision is about without changing them."""
    for change in revision.changes:
        of = _type_of(change)
        if of is not None and of != change.resource:
            yield of


def _scopes(change: pb.ResourceChange, type_before: TypeBefore) -> Sequence[str]:
    of = _type_of(change)
    if of == change.resource:
        surfaces = zip(_both(change, "naming.surface"), _both(change, "labels.surface"), strict=True)
        return [
            of,
            *_both(change, "team"),
            *(f"surface:{named or label}" for named, label in surfaces if named or label),
        ]
    if of is not None:
        # Where the type came in the same revision, the change of the type says the same.
        model_type = type_before(of)
        team, surface = ("", "") if model_type is None else (model_type.team, surface_of(model_type))
        below = change.resource.startswith(f"{of}/")
        return [of, team, surface and f"surface:{surface}"] if below else [team]
    if change.resource.startswith("teams/"):
        return [change.resource]
    return _both(change, "team")


def surface_of(model_type: pb.ModelType) -> str:
    """Returns the surface of a model type; empty where nobody says which."""
    return model_type.naming.get("surface", "") or model_type.labels.get("surface", "")


def _type_of(change: pb.ResourceChange) -> str | None:
    """Returns the model type that a change is of, or of something of; None where of none."""
    name = change.resource
    if name.startswith("criticalityRequests/"):
        name = _both(change, "resource")[1] or _both(change, "resource")[0]
    return "/".join(name.split("/", 2)[:2]) if name.startswith("modelTypes/") else None


def _both(change: pb.ResourceChange, path: str) -> tuple[str, str]:
    """Returns a field of text, or a value of a map of texts, before and after; empty where it was or is unset."""
    after = _after(change, path)
    for field in change.fields:
        if field.path == path:
            return field.before.string_value, after
    return after, after


def _after(change: pb.ResourceChange, path: str) -> str:
    kind = change.WhichOneof("after")
    if kind is None:
        return ""
    field, _, key = path.partition(".")
    resource = getattr(change, kind)
    if field not in resource.DESCRIPTOR.fields_by_name:
        return ""
    value = getattr(resource, field)
    return str(value.get(key, "") if key else value)
