"""Who consumes whose output: no circles, and criticality that flows up, against the plainest possible computation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import InvalidFields
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import ModelType
from tests.support.registry import LedgerOf, model_type, team

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
        try:
            edits = entries.update_model_type(ledger, asked, ("tier", "upstream_types"))
        except InvalidFields:
            types = {key: each for key, each in before.items() if isinstance(each, ModelType)}
            assert name(number) in reaches(types | {asked.name: asked}, asked.name), "refused without a circle"
            continue
        ledger.apply(edits)
        types = {key: each for key, each in ledger.entries.items() if isinstance(each, ModelType)}
        for each in types:
            assert each not in reaches(types, each)
            dependents = [other for other in types if each in reaches(types, other)]
            tiers = [tier for tier in (types[other].tier for other in dependents) if tier is not None]
            assert types[each].required_tier == min(tiers, default=None)


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
