"""Who consumes whose output: no circles, and criticality that flows up, against the plainest possible computation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import InvalidFields
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.criticality import BY_REQUEST
from modelfleetd.registry.domain.dependencies import because
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import ModelType
from tests.support.registry import LedgerOf, model_type, raise_tier, team

SIZE = 6
graphs = st.lists(
    st.tuples(st.none() | st.sampled_from(Tier), st.sets(st.integers(0, SIZE - 1), max_size=3)),
    min_size=SIZE,
    max_size=SIZE,
)


def name(number: int) -> str:
    return f"modelTypes/t{number}"


def reaches(types: dict[str, ModelType], start: str) -> set[str]:
    """Everything that a type consumes, by going round until nothing is added."""
    found: set[str] = set(types[start].upstream_types)
    for _ in range(len(types)):
        found |= {upstream for each in found for upstream in types[each].upstream_types}
    return found


@given(graphs, st.permutations(range(SIZE)))
def test_a_ledger_never_has_a_circle_and_every_required_tier_is_that_of_the_most_critical_dependent(
    graph: list[tuple[Tier | None, set[int]]], order: list[int]
) -> None:
    ledger = LedgerOf(team(), *(model_type(f"t{number}", regions=()) for number in range(SIZE)))
    for number in order:
        tier, upstream = graph[number]
        asked = model_type(f"t{number}", regions=(), tier=tier, upstream_types=tuple(map(name, sorted(upstream))))
        before = dict(ledger.entries)
        by_request = tier in BY_REQUEST
        try:
            mask = ("upstream_types",) if by_request else ("tier", "upstream_types")
            edits = entries.update_model_type(ledger, asked, mask)
        except InvalidFields:
            types = {key: each for key, each in before.items() if isinstance(each, ModelType)}
            assert name(number) in reaches(types | {asked.name: asked}, asked.name), "refused without a circle"
            continue
        ledger.apply(edits)
        if tier is not None and by_request:
            raise_tier(ledger, asked.name, tier)
        types = {key: each for key, each in ledger.entries.items() if isinstance(each, ModelType)}
        for each in types:
            assert each not in reaches(types, each)
            dependents = [other for other in types if each in reaches(types, other)]
            tiers = [tier for tier in (types[other].tier for other in dependents) if tier is not None]
            assert types[each].required_tier == min(tiers, default=None)
            assert types[each].required_tier_path == reason(types, each)


def reason(types: dict[str, ModelType], name: str) -> tuple[str, ...]:
    """Of all ways from a type with the required tier down to one, the shortest, and of these the first by name."""

    def ways(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for other, candidate in types.items():
            if path[0] in candidate.upstream_types:
                yield from ways((other, *path))

    required = types[name].required_tier
    found = [path for path in ways((name,)) if len(path) > 1 and required is not None]
    return min((path for path in found if types[path[0]].tier == required), key=lambda p: (len(p), p), default=())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (["feed_home", "feed_ctr"], "TIER1 because feed_home depends on it"),
        (["home", "feed", "early", "ctr"], "TIER1 because home depends on it through feed, early"),
    ],
)
def test_why_a_tier_is_required_is_said_in_words(path: list[str], words: str) -> None:
    assert because(Tier.TIER1, [f"modelTypes/{key}" for key in path]) == words


def test_a_new_reason_for_the_same_tier_reaches_the_types_upstream_in_the_same_revision() -> None:
    ledger = LedgerOf(
        team(),
        model_type("a", regions=(), tier=Tier.TIER2, upstream_types=("modelTypes/c",)),
        model_type("b", regions=(), tier=Tier.TIER2),
        model_type("c", regions=(), required_tier=Tier.TIER2, required_tier_path=("modelTypes/a", "modelTypes/c")),
    )
    asked = model_type("a", regions=(), tier=Tier.TIER3)
    ledger.apply(
        entries.update_model_type(ledger, model_type("b", upstream_types=("modelTypes/c",)), ("upstream_types",))
    )
    revision = ledger.revision
    ledger.apply(entries.update_model_type(ledger, asked, ("tier",)))
    after = ledger.model_type("modelTypes/c")
    assert after is not None
    assert (after.required_tier, after.required_tier_path) == (Tier.TIER2, ("modelTypes/b", "modelTypes/c"))
    assert after.revision == ledger.revision == revision + 1


def test_a_circle_is_shown_from_end_to_end() -> None:
    ledger = LedgerOf(
        team(),
        model_type("a", regions=(), upstream_types=("modelTypes/b",)),
        model_type("b", regions=(), upstream_types=("modelTypes/c",)),
        model_type("c", regions=()),
    )
    with pytest.raises(InvalidFields, match="modelTypes/c -> modelTypes/a -> modelTypes/b -> modelTypes/c"):
        entries.update_model_type(ledger, model_type("c", regions=(), upstream_types=("modelTypes/a",)), ())


def test_a_type_does_not_consume_itself() -> None:
    for asked, call in itertools.product(
        [model_type("a", regions=(), upstream_types=("modelTypes/a",))],
        [
            lambda asked: entries.create_model_type(LedgerOf(team()), asked, "u"),
            lambda asked: entries.update_model_type(LedgerOf(team(), model_type("a", regions=())), asked, ()),
        ],
    ):
        with pytest.raises(InvalidFields, match="modelTypes/a -> modelTypes/a"):
            call(asked)
