"""Reads from the registry what files are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from google.protobuf.message import Message

from modelfleet import errors
from modelfleet.code.fileset import FileSet
from modelfleet.code.kinds import ASSET, MODEL, MODEL_TYPE, REGION, TEAM, Kind, kind_of, parent_of
from modelfleet.code.plan import Unknown
from modelfleet.services import Registry

_PAGE: Final = 1000
# For more types than this it is quicker to list all there are.
_FEW: Final = 100


class Ledger:
    """The registry, as it is now and as it was."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._was: dict[tuple[str, int], Message | None] = {}

    def current(self, files: FileSet, *, prune: bool = False) -> dict[str, Message]:
        """Returns the entries that files are about, the models of their types; to prune, all that their teams own."""
        kinds = {entry.kind.field for entry in files.entries.values()}
        teams = {name for name in files.entries if prune and kind_of(name) is TEAM}
        found: dict[str, Message] = {}
        if "team" in kinds:
            found |= _named(self._registry.list_teams_all(page_size=_PAGE))
        if "region" in kinds:
            found |= _named(self._registry.list_regions_all(page_size=_PAGE))
        if "asset" in kinds or teams:
            found |= _named(self._registry.list_assets_all(page_size=_PAGE))
        types = {name for name in files.blocks if kind_of(name) is MODEL_TYPE}
        if teams or len(types) > _FEW:
            listed = _named(self._registry.list_model_types_all(page_size=_PAGE))
            types |= {name for name, each in listed.items() if getattr(each, "team", "") in teams}
            found |= listed
        else:
            found |= {name: each for name in types if (each := self._now(name)) is not None}
        types &= found.keys()
        if len(types) > _FEW:
            models = self._registry.list_models_all(parent="modelTypes/-", page_size=_PAGE)
            return found | {model.name: model for model in models if parent_of(model.name) in types}
        for name in types:
            found |= _named(self._registry.list_models_all(parent=name, page_size=_PAGE))
        return found

    def _now(self, name: str) -> Message | None:
        try:
            return self._registry.get_model_type(name=name)
        except errors.NotFound:
            return None

    def as_of(self, name: str, revision: int) -> Message | None:
        """Returns an entry as it was; None where it did not exist. Raises Unknown where that is not kept any more."""
        key = (name, revision)
        if key not in self._was:
            self._was[key] = self._get(name, revision)
        return self._was[key]

    def _get(self, name: str, revision: int) -> Message | None:
        kind = kind_of(name)
        if kind is None:
            return None
        try:
            found: Message = getattr(self._registry, f"get_{kind.field}")(name=name, as_of_revision=revision)
        except errors.NotFound:
            return None
        except errors.OutOfRange as error:
            raise Unknown(str(error)) from None
        return found

    def at(self, revision: int, kinds: Sequence[Kind] = (TEAM, REGION, MODEL_TYPE, MODEL, ASSET)) -> Iterator[Message]:
        """Yields every entry of some kinds as of a revision."""
        for kind in kinds:
            listing = getattr(self._registry, f"list_{kind.field}s_all")
            parent = {"parent": "modelTypes/-"} if kind is MODEL else {}
            yield from listing(page_size=_PAGE, as_of_revision=revision, **parent)

    def newest(self) -> int:
        """Returns the number of the newest revision."""
        return int(self._registry.list_teams(page_size=1).revision)


def _named(messages: Iterator[Any]) -> dict[str, Message]:
    return {message.name: message for message in messages}
