"""What the decisions on all kinds of resources have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from modelfleetd.errors import EtagMismatch, ResourceExists, ResourceInUse, ResourceNotFound
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.resources import AnyResource
from modelfleetd.registry.domain.revisions import Edit, Edits

R = TypeVar("R", bound=AnyResource)


def created(resource: AnyResource, uid: str) -> Edits:
    """Returns the edit that creates a resource."""
    return (Edit(None, replace(resource, uid=uid)),)


def changed(before: AnyResource, after: AnyResource) -> Edits:
    """Returns the edit that changes a resource; none where nothing differs."""
    return () if before == after else (Edit(before, after),)


def deleted(resource: AnyResource) -> Edits:
    """Returns the edit that deletes a resource."""
    return (Edit(resource, None),)


def current(found: R | None, name: str, etag: str) -> R:
    """Returns what was found. Raises ResourceNotFound where nothing was, EtagMismatch where it has changed since."""
    if found is None:
        raise ResourceNotFound(name)
    if etag and etag != found.etag:
        raise EtagMismatch(name, etag, found.etag)
    return found


def refuse_existing(ledger: Ledger, name: str) -> None:
    """Raises ResourceExists where the name is taken."""
    if ledger.find(name) is not None:
        raise ResourceExists(name)


def refuse_in_use(name: str, referred_by: Sequence[str]) -> None:
    """Raises ResourceInUse where something refers to it."""
    if referred_by:
        raise ResourceInUse(name, referred_by)
