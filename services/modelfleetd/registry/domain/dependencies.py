"""The graph of model types: who consumes whose output. It has no circles, and criticality flows up along it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from modelfleetd.errors import invalid
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import ModelType
from modelfleetd.registry.domain.revisions import Edit, Edits


class Dependencies:
    """The graph as it will be once one model type has changed.

    Args:
        ledger: the state before.
        name: the model type that changes.
        after: it after the change; None where it is deleted.
    """

    def __init__(self, ledger: Ledger, name: str, after: ModelType | None) -> None:
        self._ledger = ledger
        self._name = name
        self._after = after
        # A walk comes by the same types again and again.
        self._seen: dict[str, ModelType | None] = {name: after}

    def model_type(self, name: str) -> ModelType | None:
        """Returns a model type after the change."""
        if name not in self._seen:
            self._seen[name] = self._ledger.model_type(name)
        return self._seen[name]

    def upstream(self, name: str) -> tuple[str, ...]:
        """Returns the types that one consumes directly."""
        model_type = self.model_type(name)
        return () if model_type is None else model_type.upstream_types

    def dependents(self, name: str) -> Iterator[ModelType]:
        """Yields the types that consume one directly."""
        for referrer in {*self._ledger.referrers(name), self._name}:
            model_type = self.model_type(referrer)
            if model_type is not None and name in model_type.upstream_types:
                yield model_type

    def required_tier(self, name: str) -> tuple[Tier | None, tuple[str, ...]]:
        """Returns how critical a type must be, as the most critical of all that depend on it, and why.

        The path leads from the type that has this tier, through types that consume each other's output, to this one:
        the shortest, and the first by name of those. Empty where nothing that has a tier depends on it.
        """
        # How far up each dependent is, the nearest first.
        distance = {name: 0}
        waiting = deque([name])
        most_critical: tuple[Tier, int, str] | None = None
        while waiting:
            at = waiting.popleft()
            for dependent in self.dependents(at):
                if dependent.name in distance:
                    continue
                distance[dependent.name] = distance[at] + 1
                waiting.append(dependent.name)
                if dependent.tier is not None:
                    found = (dependent.tier, distance[dependent.name], dependent.name)
                    most_critical = found if most_critical is None else min(most_critical, found)
        if most_critical is None:
            return None, ()
        tier, steps, at = most_critical
        path = [at]
        for left in reversed(range(steps)):
            at = min(each for each in self.upstream(at) if distance.get(each) == left)
            path.append(at)
        return tier, tuple(path)

    def all_upstream(self, names: Iterable[str]) -> list[str]:
        """Returns these types and everything that they consume, however indirectly, by name."""
        seen: set[str] = set()
        waiting = list(names)
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting.extend(self.upstream(name))
        return sorted(seen)

    def circle(self) -> list[str] | None:
        """Returns the path from the changed type back to itself, or None."""
        came_from: dict[str, str] = {}
        waiting = [self._name]
        while waiting:
            at = waiting.pop()
            for name in self.upstream(at):
                if name == self._name:
                    path = [name, at]
                    while path[-1] != self._name:
                        path.append(came_from[path[-1]])
                    return path[::-1]
                if name not in came_from:
                    came_from[name] = at
                    waiting.append(name)
        return None


def refuse_circle(dependencies: Dependencies) -> None:
    """Raises InvalidFields where the changed type would consume its own output."""
    circle = dependencies.circle()
    if circle is not None:
        path = " -> ".join(circle)
        raise invalid("model_type.upstream_types", f"must not make a circle, and this does: {path}")


def follow_up(ledger: Ledger, before: ModelType | None, after: ModelType | None) -> Edits:
    """Returns the edits of other types whose `required_tier`, or the reason for it, changes with one type.

    They belong to the same revision as the change that caused them, so that no reader ever sees one without the other.
    """
    if ledger.follows_up_later:
        return ()
    name = (before or after or _nothing()).name
    return follow_ups(Dependencies(ledger, name, after), [(before, after)])


def follow_ups(dependencies: Dependencies, changes: Iterable[tuple[ModelType | None, ModelType | None]]) -> Edits:
    """Returns the edits of types whose `required_tier` changes with others.

    Args:
        dependencies: the graph after the changes.
        changes: each type that changes, before and after.
    """
    direct: set[str] = set()
    for before, after in changes:
        if (before and (before.tier, before.upstream_types)) != (after and (after.tier, after.upstream_types)):
            direct.update(before.upstream_types if before else (), after.upstream_types if after else ())
    edits = []
    for upstream in dependencies.all_upstream(direct):
        model_type = dependencies.model_type(upstream)
        if model_type is not None:
            required, path = dependencies.required_tier(upstream)
            after_it = replace(model_type, required_tier=required, required_tier_path=path)
            if after_it != model_type:
                edits.append(Edit(model_type, after_it))
    return tuple(edits)


def because(tier: Tier, path: Sequence[str]) -> str:
    """Returns why a type must have a tier, in words: `TIER1 because ig_feed_home_mtml depends on it`."""
    source, *between = (name.rsplit("/", 1)[-1] for name in path[:-1])
    through = f" through {', '.join(between)}" if between else ""
    return f"{tier.name} because {source} depends on it{through}"


def _nothing() -> ModelType:
    raise ValueError("a change of nothing")
