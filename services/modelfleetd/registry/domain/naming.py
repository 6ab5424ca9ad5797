"""Naming schemes: how ids of model types are made of words."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleetd.registry.domain.resource import Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class NamingWord:
    """A word that a field may be, and what it means."""

    word: str
    meaning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamingField:
    """One field of a naming scheme."""

    id: str
    description: str = ""
    words: tuple[NamingWord, ...] = ()
    pattern: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NamingScheme(Resource):
    """How ids of model types are made of words."""

    description: str = ""
    separator: str = ""
    fields: tuple[NamingField, ...] = ()
    enforced: bool = False
