"""What a snapshot knows, without I/O: how it is loaded, how it moves on, and how it is read.

Readers and the one who moves it on need no lock. What a reader gets is never changed: a revision puts new routes in the
place of old ones, each in one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from modelfleet.registry.v1 import registry_pb2 as pb

M = TypeVar("M", pb.ModelType, pb.Model)

PREFIX: Final = "modelTypes/"
_BELOW = "/models/"


class Share(NamedTuple):
    """One model's share of a route's traffic in one region."""

    model: str
    """The model's name, modelTypes/{type}/models/{model}."""
    share_basis_points: int
    """0 to 10,000; all shares of a split together are 10,000."""


class Route:
    """A model type with its models, all as of the same revision. It never changes."""

    __slots__ = ("baseline", "holdouts", "model_type", "models", "name", "splits")

    name: str
    """The model type's name, modelTypes/{type}."""
    model_type: pb.ModelType
    """The whole entry. It is shared: copy it before you change it."""
    models: Mapping[str, pb.Model]
    """Its models by name, whatever their role. They are shared too."""
    baseline: str
    """The name of the main model; empty where there is none yet."""
    holdouts: tuple[str, ...]
    """The names of the models that keep a small share for comparison."""
    splits: Mapping[str, tuple[Share, ...]]
    """How its traffic is split, by name and by id of the region; regions where nothing is served are not there.

    With a split key the order of the shares is that of the ranges of the key's hash.
    """

    def __init__(self, model_type: pb.ModelType, models: dict[str, pb.Model]) -> None:
        self.name = model_type.name
        self.model_type = model_type
        self.models = MappingProxyType(models)
        self.baseline = model_type.baseline
        self.holdouts = tuple(model_type.holdouts)
        splits = {
            split.region: tuple(Share(share.model, share.share_basis_points) for share in split.shares)
            for split in model_type.splits
        }
        splits |= {region.partition("/")[2]: shares for region, shares in splits.items()}
        self.splits = MappingProxyType(splits)

    def __repr__(self) -> str:
        return f"Route({self.name!r}, baseline={self.baseline!r}, {len(self.models)} models)"


@dataclass(frozen=True, slots=True)
class BaselineChange:
    """A model type has another baseline than before."""

    model_type: str
    before: str
    """Name of the model that was it; empty where there was none."""
    after: str
    """Name of the model that is it; empty where there is none any more."""
    revision: int
    """The revision at which the snapshot saw it."""


class _NotLoaded(dict[str, Any]):
    """What is read before anything is known: an answer would be wrong."""

    def get(self, key: object, default: object = None) -> Any:
        raise RuntimeError("the snapshot is not loaded yet: call wait_ready() before you read")

    def items(self) -> Any:
        return self.get("")


class State:
    """The fleet at one revision.

    Before it is loaded it collects pages (`add`) and revisions (`apply`); `publish` shows them to readers. Pages of a
    list may be of different revisions: an entry is taken wherever it is newer than what is known, and the whole is
    right once every revision up to the newest page's has been applied.
    """

    def __init__(self, model_types: frozenset[str] = frozenset()) -> None:
        self.filter = model_types
        self.revision = 0
        # A revision that this state was made from, the newest one whose hash is known, and that hash; empty: none is.
        self.anchor = (0, "")
        # What readers see. Routes are there by name and by id.
        self.routes: dict[str, Route] = _NotLoaded()
        self.models: dict[str, pb.Model] = _NotLoaded()
        self._types: dict[str, pb.ModelType] = {}
        self._models_of: dict[str, dict[str, pb.Model]] = {}

    @property
    def is_published(self) -> bool:
        """Whether readers see anything."""
        return not isinstance(self.routes, _NotLoaded)

    def __iter__(self) -> Iterator[Route]:
        # The list is made in one step of the interpreter: nobody changes the dict in between.
        return iter([route for key, route in list(self.routes.items()) if key == route.name])

    def add(self, entries: Iterable[pb.ModelType | pb.Model], known: State | None = None) -> None:
        """Takes entries of a page, or of a file, before the state is published.

        Args:
            entries: of one page.
            known: an older state; where it has an entry that is equal, that one is kept, so that loading again does not
                need the memory twice.
        """
        if known is not None and not known.is_published:
            known = None
        # Models of one type stand together in pages.
        prefix = ""
        below: dict[str, pb.Model] = {}
        old: dict[str, pb.Model] = {}
        for entry in entries:
            name = entry.name
            if isinstance(entry, pb.ModelType):
                self._types[name] = entry if known is None else _kept(entry, known._types)
                continue
            if not prefix or not name.startswith(prefix):
                owner, separator, _ = name.partition(_BELOW)
                prefix = owner + separator
                below = self._models_of.setdefault(owner, {})
                old = {} if known is None else known._models_of.get(owner, {})
            below[name] = _kept(entry, old) if old else entry

    def apply(self, revision: pb.Revision) -> Sequence[BaselineChange]:
        """Goes on by one revision; what it changes that is known to be newer stays. Returns which baselines changed."""
        touched: dict[str, dict[str, pb.Model]] = {}
        for change in revision.changes:
            owner, _, below = change.resource.partition(_BELOW)
            if not owner.startswith(PREFIX) or "/" in below or (self.filter and owner not in self.filter):
                continue
            if owner not in touched:
                # A route that readers have is not changed: the next one gets models of its own.
                touched[owner] = dict(self._models_of.get(owner, {}))
            if below:
                _change(touched[owner], change, change.model, revision.number)
            else:
                _change(self._types, change, change.model_type, revision.number)
        changes: list[BaselineChange] = []
        for owner, models in touched.items():
            before = self._models_of.get(owner, {})
            if models:
                self._models_of[owner] = models
            else:
                self._models_of.pop(owner, None)
            shown = self._show(owner, before, models, revision.number) if self.is_published else None
            if shown is not None:
                changes.append(shown)
        self.revision, self.anchor = revision.number, (revision.number, revision.hash)
        return changes

    def publish(self, before: State | None = None) -> Sequence[BaselineChange]:
        """Shows readers what was loaded. Returns which baselines are others than in the state before, if any."""
        routes: dict[str, Route] = {}
        models: dict[str, pb.Model] = {}
        for name, model_type in self._types.items():
            route = Route(model_type, self._models_of.get(name, {}))
            routes[name] = routes[_id(name)] = route
        for below in self._models_of.values():
            models.update(below)
        self.routes, self.models = routes, models
        if before is None or not before.is_published:
            return ()
        old = {route.name: route.baseline for route in before}
        new = {route.name: route.baseline for route in self}
        return [
            BaselineChange(name, old.get(name, ""), new.get(name, ""), self.revision)
            for name in sorted(old.keys() | new.keys())
            if old.get(name, "") != new.get(name, "")
        ]

    def _show(
        self, owner: str, before: Mapping[str, pb.Model], models: dict[str, pb.Model], number: int
    ) -> BaselineChange | None:
        """Puts what differs in the place of the old: models first, so that what a route names is there."""
        old = self.routes.get(owner)
        for name, model in models.items():
            if before.get(name) is not model:
                self.models[name] = model
        model_type = self._types.get(owner)
        if model_type is None:
            self.routes.pop(owner, None)
            self.routes.pop(_id(owner), None)
        else:
            self.routes[owner] = self.routes[_id(owner)] = Route(model_type, models)
        for name in before.keys() - models.keys():
            self.models.pop(name, None)
        was, now = "" if old is None else old.baseline, "" if model_type is None else model_type.baseline
        return None if was == now else BaselineChange(owner, was, now, number)


def _id(name: str) -> str:
    return name[len(PREFIX) :]


def _kept(entry: M, known: Mapping[str, M]) -> M:
    old = known.get(entry.name)
    return old if old is not None and old == entry else entry


def _change(table: dict[str, M], change: pb.ResourceChange, after: M, number: int) -> None:
    known = table.get(change.resource)
    if known is not None and known.revision >= number:
        return  # a page was read after this revision
    if change.action == pb.ResourceChange.DELETED:
        table.pop(change.resource, None)
    else:
        # A copy: a part of a revision keeps the whole of it in memory.
        own = type(after)()
        own.CopyFrom(after)
        table[change.resource] = own
