"""Filters: the grammar against its own print, errors that say where, and what bound expressions mean."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.errors import InvalidFields
from modelfleetd.kit import ordering
from modelfleetd.kit.filter import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_SEARCHES,
    MAX_TERMS,
    And,
    Comparison,
    Field,
    Kind,
    Node,
    Not,
    Operator,
    Or,
    Restriction,
    Scalar,
    both,
    either,
    matches,
    parse,
    read,
)

NAMES = st.sampled_from(["a", "serving_spec", "_x", "NOTE", "tier-0", "labels"])
# Later parts of a path may be anything, in quotes.
PATHS = st.builds(lambda first, rest: (first, *rest), NAMES, st.lists(NAMES | st.text(max_size=6), max_size=2))
BARE = st.text(alphabet="aZ5é_-+*/.:@#%&|[]{}\\", min_size=1, max_size=10)
VALUES = st.tuples(st.text(max_size=10), st.just(True)) | st.tuples(BARE, st.just(False))
COMPARISONS = st.builds(
    lambda path, operator, value: Comparison(path, operator, *value),
    PATHS,
    st.sampled_from(["=", "!=", "<", "<=", ">", ">=", ":"]),
    VALUES,
)


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(Not, inner),
            st.lists(inner, min_size=2, max_size=3).map(both),
            st.lists(inner, min_size=2, max_size=3).map(either),
        ),
        max_leaves=8,
    )


@given(trees(COMPARISONS))
def test_what_is_printed_is_parsed_as_the_same(tree: Node) -> None:
    assert parse(str(tree)) == tree


@given(st.text(alphabet="abANDORT .:=<>!\"'()\\-*,\n", max_size=30))
def test_any_text_is_a_filter_or_is_told_where_it_is_none(text: str) -> None:
    try:
        parsed = parse(text)
    except InvalidFields as error:
        (violation,) = error.violations
        assert violation.path == "filter"
        at = re.match(r"at character (\d+): .", violation.description)
        assert at is not None and 1 <= int(at[1]) <= len(text) + 1
    else:
        assert (parsed is None) == (not text.strip())
        assert parsed is None or parse(str(parsed)) == parsed


def a(value: str, operator: str = "=") -> Comparison:
    return Comparison(("a",), operator, value, quoted=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (" \n ", None),
        ("a=1", a("1")),
        ("a = 1 a = 2", And((a("1"), a("2")))),
        # OR binds more tightly than AND: so the AIP has it.
        ("a=1 AND a=2 OR a=3", And((a("1"), Or((a("2"), a("3")))))),
        ("(a=1 AND a=2) OR a=3", Or((And((a("1"), a("2"))), a("3")))),
        ("NOT a=1 -a=2", And((Not(a("1")), Not(a("2"))))),
        ("NOT(a=1 OR -(a=2))", Not(Or((a("1"), Not(a("2")))))),
        ("a:*", a("*", ":")),
        ("a=s3://b/c:1.0-x", a("s3://b/c:1.0-x")),
        ("a>=-5", a("-5", ">=")),
        ("NOTE=1", Comparison(("NOTE",), "=", "1", quoted=False)),
        ('a."b c".d = "e\\"\\\\"', Comparison(("a", "b c", "d"), "=", 'e"\\', quoted=True)),
        ("a = 'AND'", Comparison(("a",), "=", "AND", quoted=True)),
    ],
)
def test_the_grammar_is_that_of_the_aip(text: str, expected: Node | None) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        ("role", 1, "'role' needs one of = != < <= > >= : and a value"),
        ("a=1 and b=2", 5, "write AND in capitals"),
        ("a=1 OR", 7, "expected a comparison"),
        ("a=1 AND AND b=2", 9, "expected a comparison"),
        ("(a=1", 1, "never closed"),
        ("a=1)", 4, "closes nothing"),
        ("a=", 3, "expected a value"),
        ("a=b=c", 3, "must be put in quotes"),
        ('a="b', 3, "never closed"),
        ('a="\\n"', 3, "after a backslash"),
        ("a.=1", 3, "expected a name after the dot"),
        ("5=a", 1, "expected a comparison"),
        ("f(a)", 1, "'f' needs one of"),
        ("(" * (MAX_DEPTH + 1) + "a=1", MAX_DEPTH + 1, "nested more than"),
        ("a=1 " * MAX_TERMS + "a=1", 4 * MAX_TERMS + 1, f"more than {MAX_TERMS}"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, at: int, what: str) -> None:
    with pytest.raises(InvalidFields) as raised:
        parse(text)
    (violation,) = raised.value.violations
    assert violation.description.startswith(f"at character {at}: ")
    assert what in violation.description


def test_a_filter_is_bounded_in_length_depth_and_terms() -> None:
    with pytest.raises(InvalidFields, match=f"at most {MAX_LENGTH}"):
        parse("a" * (MAX_LENGTH + 1))
    deepest = "(" * MAX_DEPTH + "a=1" + ")" * MAX_DEPTH
    assert parse(deepest) == a("1")
    assert isinstance(parse(" ".join([deepest] * MAX_TERMS)), And)


# --- fields -----------------------------------------------------------------------------------------------------------

FIELDS = {
    field.path: field
    for field in (
        Field("name"),
        Field("text"),
        Field("team", prefix="teams/"),
        Field("tier", Kind.ENUM, numbers={"TIER0": 1, "TIER1": 2, "TIER2": 3}),
        Field("size", Kind.NUMBER),
        Field("on", Kind.BOOL),
        Field("since", Kind.TIME),
        Field("parts", many=True),
        Field("labels", keyed=True),
    )
}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(year: int, *rest: int) -> float:
    return (datetime(year, *(rest or (1, 1)), tzinfo=UTC) - EPOCH).total_seconds() * 1e6  # type: ignore[misc, arg-type]


ENTRY: dict[str, Any] = {
    "name": ["modelTypes/ctr"],
    "text": ["Ranks Stories"],
    "team": ["teams/feed"],
    "tier": [2],
    "size": [4.5],
    "on": [False],
    "since": [micros(2026)],
    "parts": ["like", "comment"],
    "labels": {"owner": "alice", "empty": ""},
}
NOTHING: dict[str, Any] = {"labels": {}}


def fits(text: str, entry: Mapping[str, Any]) -> bool:
    expression = read(text, FIELDS)
    return expression is None or matches(expression, lambda asked: values(entry, asked))


def values(entry: Mapping[str, Any], asked: Restriction) -> list[Scalar]:
    found = entry.get(asked.field.path, [])
    if asked.field.keyed:
        found = [found[asked.key]] if asked.key in found else list(found.values()) if not asked.key else []
    return list(found)


@pytest.mark.parametrize(
    ("text", "of_entry", "of_nothing"),
    [
        ("", True, True),
        ('text = "Ranks Stories"', True, False),
        ('text = "ranks stories"', False, False),
        ("text:stor", True, False),
        ("text = Ranks*", True, False),
        ('text = "*k* *t*s"', True, False),
        ('text = "*kk*"', False, False),
        ('text != "Ranks Stories"', False, True),
        ("NOT text:*", False, True),
        ('text = ""', False, True),
        ('text != ""', True, False),
        ("team = feed", True, False),
        ("team = teams/feed", True, False),
        ("team = f*", True, False),
        ("tier = TIER1", True, False),
        ("tier <= TIER1", True, False),
        ("tier < TIER1", False, False),
        ("tier:TIER1", True, False),
        ("tier != TIER0", True, True),
        ("size > 4 AND size <= 4.5", True, False),
        ("size = 4.50", True, False),
        ("on = false", True, False),
        ("on != true", True, True),
        ("since >= 2026-01-01", True, False),
        ("since < 2026-01-01T01:00:00+01:00", False, False),
        ('since <= "2026-01-01T01:00:00+01:00"', True, False),
        ("parts:like", True, False),
        ("parts:lik", False, False),
        ("parts:*omm*", True, False),
        ("parts:*", True, False),
        ("labels:owner", True, False),
        ("labels:site", False, False),
        ("labels:*", True, False),
        ("labels.owner:*", True, False),
        ("labels.owner = alice", True, False),
        ("labels.owner != bob", True, True),
        ("labels.site = paris", False, False),
        ('labels.empty = ""', True, False),
        ('labels."empty" != ""', False, True),
    ],
)
def test_what_is_written_means_what_is_documented(text: str, of_entry: bool, of_nothing: bool) -> None:
    assert (fits(text, ENTRY), fits(text, NOTHING)) == (of_entry, of_nothing)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "colour = red",
            "at character 1: this list cannot be filtered by 'colour', but by labels.KEY, name, on",
        ),
        ("name.id = x", "cannot be filtered by 'name.id'"),
        ("tier = 1", "at character 8: tier is one of TIER0, TIER1, TIER2"),
        ("tier = TIER_UNSPECIFIED", "NOT tier:* finds those without"),
        ("size > large", "size is a number, such as"),
        ("size > nan", "size is a number"),
        ("on = yes", "on is true or false"),
        ("on < true", "on has no order; it takes = and !="),
        ("text > a", "text has no order; it takes =, != and :"),
        ("since > yesterday", "since is a time, such as 2026-01-31"),
        ("since > 2026-01-31T08:00:00", "say in which zone"),
        ("parts = like", "parts has several values; write parts:VALUE"),
        ("labels = x", "labels is a map; write labels.KEY = VALUE"),
        (" ".join(["text:a"] * (MAX_SEARCHES + 1)), f"at most {MAX_SEARCHES} times"),
    ],
)
def test_a_comparison_that_a_field_does_not_take_is_told_what_it_takes(text: str, said: str) -> None:
    with pytest.raises(InvalidFields) as raised:
        read(text, FIELDS)
    assert said in raised.value.violations[0].description


def test_all_wrong_comparisons_are_named_at_once() -> None:
    with pytest.raises(InvalidFields) as raised:
        read("colour = red OR (tier = 9 AND NOT on > 1)", FIELDS)
    assert [each.description.partition(":")[0] for each in raised.value.violations] == [
        f"at character {at}" for at in (1, 25, 35)
    ]
    assert all(each.path == "filter" for each in raised.value.violations)


@given(st.text(alphabet="ab*", max_size=12), st.text(alphabet="ab", max_size=12))
def test_wildcards_fit_as_they_do_in_a_shell(pattern: str, text: str) -> None:
    test = Restriction(Field("text"), "", Operator.LIKE, pattern + "*").test()
    assert test(text) == fnmatch.fnmatchcase(text, pattern + "*")


def test_no_pattern_makes_a_search_slow() -> None:
    test = Restriction(Field("text"), "", Operator.LIKE, "a*" * 500 + "b").test()
    began = time.perf_counter()
    assert not test("a" * 2000)
    assert time.perf_counter() - began < 0.5


RESTRICTIONS = st.sampled_from(
    ["text:s", "text = x", "team = feed", "tier <= TIER1", "size > 1", "labels:owner", "parts:like", "on = true"]
)


@given(trees(RESTRICTIONS.map(parse)), st.sampled_from([ENTRY, NOTHING]))
def test_a_whole_expression_is_what_its_parts_make_it(tree: Any, entry: Mapping[str, Any]) -> None:
    def said(node: Node) -> bool:
        if isinstance(node, And):
            return min(map(said, node.parts))
        if isinstance(node, Or):
            return max(map(said, node.parts))
        return not said(node.part) if isinstance(node, Not) else fits(str(node), entry)

    text = str(tree)
    if text.count("text") <= MAX_SEARCHES:
        assert fits(text, entry) == said(tree)


# --- orders -----------------------------------------------------------------------------------------------------------


def test_an_order_is_one_field_and_may_be_turned_around() -> None:
    known = ("name", "tier")
    assert ordering.read("", known) == ordering.Order("name", descending=False)
    assert ordering.read(" tier  desc ", known) == ordering.Order("tier", descending=True)
    for wrong in ("team", "tier asc", "tier,name", "tier desc desc", "name DESC"):
        with pytest.raises(InvalidFields, match=r"must be one of name, tier, with ' desc' after it"):
            ordering.read(wrong, known)
