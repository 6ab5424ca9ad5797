"""Finds model types and models by what somebody knows of them: a part of an id, a URI, the address of an endpoint.

Kept up by the snapshot, change by change. Looking through the ids of 100,000 models takes a few milliseconds: they are
searched as text, a block of a thousand at a time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.assets_pb2 import Asset, EntryMatch
from modelfleetd.registry.domain.assets import place
from modelfleetd.registry.wire import AnyMessage

_BLOCK = 1000
_SERVING = (pb.Model.BASELINE, pb.Model.HOLDOUT, pb.Model.EXPERIMENT)
# Where several things about an entry fit, the first of these is said.
_EXACT = (
    EntryMatch.NAME,
    EntryMatch.SERVING_ENDPOINT,
    EntryMatch.ASSET_URI,
    EntryMatch.TRAINING_FLOW,
    EntryMatch.CHECKPOINT,
    EntryMatch.ARTIFACT,
)


class Lookup:
    """What entries are found by."""

    def __init__(self) -> None:
        # Those that serve come first, so they are looked through first.
        self._serving = Names()
        self._others = Names()
        self._by_uri = Places()

    def put(self, before: AnyMessage | None, after: AnyMessage | None) -> None:
        """Goes along with the change of a resource; None where it did not exist, or does not any more."""
        for message in (before, after):
            if message is None or not isinstance(message, (Asset, pb.ModelType, pb.Model)):
                continue
            for uri in _uris(message):
                (self._by_uri.add if message is after else self._by_uri.discard)(uri, message.name)
        was, is_ = self._names_of(before), self._names_of(after)
        if was is not is_:
            if was is not None and before is not None:
                was.discard(before.name)
            if is_ is not None and after is not None:
                is_.add(after.name)

    def _names_of(self, message: AnyMessage | None) -> Names | None:
        if isinstance(message, (pb.ModelType, pb.Model)):
            return self._serving if serves(message) else self._others
        return None

    def at(self, uri: str) -> Iterable[str]:
        """Returns the names of what has something to do with a URI; perhaps of others, too: look at them."""
        return self._by_uri.names(uri)

    def ids(self, part: str, *, whole: bool) -> Iterator[str]:
        """Yields the names of entries whose id is a text, or holds it: those that serve first, then by name."""
        yield from self._serving.matching(part, whole=whole)
        yield from self._others.matching(part, whole=whole)


@dataclass(slots=True)
class _Block:
    names: list[str]
    # The last id of each, with a line break before and after it; None once it has to be made anew.
    text: str | None = None

    def lines(self) -> str:
        if self.text is None:
            self.text = "\n" + "".join(name[name.rfind("/") + 1 :] + "\n" for name in self.names)
        return self.text


class Names:
    """Names in order, found by their last id or a part of it."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._firsts: list[str] = []

    def add(self, name: str) -> None:
        """Adds a name that is not there."""
        if not self._blocks:
            self._blocks, self._firsts = [_Block([])], [name]
        index = max(bisect_right(self._firsts, name) - 1, 0)
        block = self._blocks[index]
        insort(block.names, name)
        self._changed(index)
        if len(block.names) > 2 * _BLOCK:
            self._blocks.insert(index + 1, _Block(block.names[_BLOCK:]))
            del block.names[_BLOCK:]
            self._firsts.insert(index + 1, self._blocks[index + 1].names[0])

    def discard(self, name: str) -> None:
        """Removes a name that is there."""
        index = bisect_right(self._firsts, name) - 1
        names = self._blocks[index].names
        del names[bisect_left(names, name)]
        if names:
            self._changed(index)
        else:
            del self._blocks[index], self._firsts[index]

    def _changed(self, index: int) -> None:
        block = self._blocks[index]
        block.text = None
        self._firsts[index] = block.names[0]

    def matching(self, part: str, *, whole: bool) -> Iterator[str]:
        """Yields in order the names whose last id is a text, or holds it."""
        wanted = f"\n{part}\n" if whole else part
        # Nothing may be added or removed meanwhile: whoever reads gives up control to nobody.
        for block in self._blocks:
            lines = block.lines()
            found = lines.find(wanted)
            while found >= 0:
                inside = found + whole
                yield block.names[lines.count("\n", 0, inside) - 1]
                found = lines.find(wanted, lines.index("\n", inside))


class Places:
    """Names by URI. Kept by the hash: the URIs themselves are in the messages already, and there are many."""

    def __init__(self) -> None:
        self._names: dict[int, str | set[str]] = {}

    def add(self, uri: str, name: str) -> None:
        """Adds a name at a URI."""
        key = hash(uri)
        known = self._names.get(key)
        if known is None or known == name:
            self._names[key] = name
        elif isinstance(known, set):
            known.add(name)
        else:
            self._names[key] = {known, name}

    def discard(self, uri: str, name: str) -> None:
        """Removes a name at a URI, if it is there."""
        key = hash(uri)
        known = self._names.get(key)
        if isinstance(known, set):
            known.discard(name)
            if len(known) == 1:
                self._names[key] = known.pop()
        elif known == name:
            del self._names[key]

    def names(self, uri: str) -> Iterable[str]:
        """Returns the names at a URI, and perhaps at others."""
        known = self._names.get(hash(uri))
        return () if known is None else (known,) if isinstance(known, str) else known


def serves(message: AnyMessage | None) -> bool:
    """Says whether a model type has a split, or a model a role that serves."""
    if isinstance(message, pb.ModelType):
        return bool(message.baseline or message.splits)
    return isinstance(message, pb.Model) and message.role in _SERVING


def address(uri: str) -> str:
    """Returns host and port of an endpoint, written as a URI or not: `grpc://Ranker:8500/x` is at `ranker:8500`."""
    _, _, after = uri.rpartition("://")
    return after.lstrip("/").partition("/")[0].lower()


def _uris(message: Asset | pb.ModelType | pb.Model) -> set[str]:
    """Returns everything by which a resource is found in `Places`."""
    if isinstance(message, Asset):
        found = {place(message.uri)}
        return found | {address(message.uri)} if message.kind == Asset.INFERENCE_SERVICE else found
    if isinstance(message, pb.Model):
        uris = (message.training_flow, message.checkpoint, message.serving_spec.artifact)
        return {place(uri) for uri in uris if uri}
    return set()


def find_entries(
    query: str, limit: int, lookup: Lookup, entries: Mapping[str, pb.ModelType | pb.Model], assets: Mapping[str, Asset]
) -> list[EntryMatch]:
    """Returns up to so many entries that fit a query, each once: exact before part, serving before not, then by name.

    Args:
        query: what somebody knows.
        limit: of matches.
        lookup: over these entries and assets.
        entries: model types and models by name.
        assets: by name.
    """
    exact: dict[str, EntryMatch] = {}
    for match in _exact(query.strip(), limit, lookup, entries, assets):
        known = exact.get(match.resource)
        if known is None or _EXACT.index(match.basis) < _EXACT.index(known.basis):
            exact[match.resource] = match
    ranked = sorted(exact.values(), key=lambda match: (not serves(entries[match.resource]), match.resource))
    part = query.strip().lower()
    rest = (name for name in lookup.ids(part, whole=False) if name not in exact) if _is_line(part) else iter(())
    for name in islice(rest, max(limit - len(ranked), 0)):
        ranked.append(EntryMatch(resource=name, basis=EntryMatch.PART_OF_NAME, matched=name[name.rfind("/") + 1 :]))
    return ranked[:limit]


def _exact(
    query: str, limit: int, lookup: Lookup, entries: Mapping[str, pb.ModelType | pb.Model], assets: Mapping[str, Asset]
) -> Iterator[EntryMatch]:
    short = query.lower()
    for name in (query, f"modelTypes/{short}", "modelTypes/" + short.replace("/", "/models/", 1)):
        if name in entries:
            yield EntryMatch(resource=name, basis=EntryMatch.NAME, matched=name)
    if _is_line(short):
        for name in islice(lookup.ids(short, whole=True), limit):
            yield EntryMatch(resource=name, basis=EntryMatch.NAME, matched=short)
    uri, endpoint = place(query), address(query)
    for name in sorted({*lookup.at(uri), *lookup.at(endpoint)}):
        if name in assets:
            yield from _of_asset(assets[name], uri, endpoint)
        else:
            yield from _of_model(entries[name], uri)


def _is_line(text: str) -> bool:
    return bool(text) and "\n" not in text


def _of_asset(asset: Asset, uri: str, endpoint: str) -> Iterator[EntryMatch]:
    is_service = asset.kind == Asset.INFERENCE_SERVICE
    if place(asset.uri) == uri or (is_service and address(asset.uri) == endpoint):
        basis = EntryMatch.SERVING_ENDPOINT if is_service else EntryMatch.ASSET_URI
        for name in (*asset.model_types, *asset.models):
            yield EntryMatch(resource=name, basis=basis, matched=asset.uri, asset=asset.name)


def _of_model(model: pb.ModelType | pb.Model, uri: str) -> Iterator[EntryMatch]:
    if isinstance(model, pb.Model):
        for basis, value in (
            (EntryMatch.TRAINING_FLOW, model.training_flow),
            (EntryMatch.CHECKPOINT, model.checkpoint),
            (EntryMatch.ARTIFACT, model.serving_spec.artifact),
        ):
            if value and place(value) == uri:
                yield EntryMatch(resource=model.name, basis=basis, matched=value)
