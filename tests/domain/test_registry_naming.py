"""How ids are taken apart, explained and refused, and what a change of a scheme makes of those that there are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.errors import InvalidFields, ResourceExists, ResourceNotFound
from modelfleetd.registry.domain import entries, type_names
from modelfleetd.registry.domain.naming import (
    NamingField,
    NamingScheme,
    NamingWord,
    closest,
    grammar,
    nearest,
    parsed,
    problems,
)
from modelfleetd.registry.domain.resources import ModelType
from modelfleetd.registry.domain.type_names import Tightening
from tests.support.registry import LedgerOf, model_type, region, team


def part(id_: str, *words: str, **fields: Any) -> NamingField:
    return NamingField(id=id_, words=tuple(NamingWord(word=word, meaning=word.upper()) for word in words), **fields)


def scheme(*fields: NamingField, key: str = "ig", **more: Any) -> NamingScheme:
    return NamingScheme(name=f"namingSchemes/{key}", separator="_", fields=fields, **more)


IG = scheme(
    part("app", "ig", "fb"),
    part("surface", "stories", "feed", "explore", "explore_home"),
    part("placement", "tray", "home"),
    part("architecture", "mtml", "two_tower"),
    part("variant", pattern="v[0-9]+", optional=True),
)


@pytest.mark.parametrize(
    ("id_", "words"),
    [
        ("ig_stories_tray_mtml", "ig stories tray mtml"),
        ("ig_stories_tray_mtml_v2", "ig stories tray mtml v2"),
        # The longest word that lets the rest fit.
        ("ig_explore_home_mtml", "ig explore home mtml"),
        ("ig_explore_home_home_mtml", "ig explore_home home mtml"),
        ("ig_explore_home_tray_two_tower", "ig explore_home tray two_tower"),
        ("ig_stories_tray_mtml_w2", None),
        ("ig_stories_tray", None),
        ("ig_stories_tray_mtml_v2_v3", None),
        ("ig__tray_mtml", None),
        ("stories", None),
        ("", None),
    ],
)
def test_ids_are_taken_apart(id_: str, words: str | None) -> None:
    found = grammar(IG).parse(id_)
    assert (None if found is None else " ".join(found.values())) == words


def test_words_of_another_separator_are_one_piece() -> None:
    dashed = NamingScheme(name="namingSchemes/d", separator="-", fields=(part("a", "x_y"), part("b", pattern=".*")))
    assert grammar(dashed).parse("x_y-z_z") == {"a": "x_y", "b": "z_z"}
    assert grammar(dashed).parse("x_y-") is None, "a word has at least one character"


def test_a_listed_word_goes_before_one_that_a_pattern_allows_and_a_word_before_none() -> None:
    either = scheme(part("a", "x_y", pattern="x", optional=True), part("b", optional=True), part("c", optional=True))
    assert grammar(either).parse("x_y") == {"a": "x_y"}
    assert grammar(either).parse("x_z") == {"a": "x", "b": "z"}
    assert grammar(either).parse("z") == {"b": "z"}


_WORD = st.sampled_from(["a", "b", "a_b", "b_a", "a_b_a", "c"])
_FIELD = st.builds(
    lambda words, pattern, optional: (words, pattern, optional),
    st.lists(_WORD, max_size=3, unique=True),
    st.sampled_from(["", "[ab]", "c+"]),
    st.booleans(),
)
_SCHEME = st.lists(_FIELD, min_size=1, max_size=4).map(
    lambda fields: scheme(*(part(f"f{n}", *words, pattern=p, optional=o) for n, (words, p, o) in enumerate(fields)))
)
_ID = st.lists(st.sampled_from(["a", "b", "c", "cc", "d", ""]), min_size=1, max_size=6).map("_".join)


def readings(of: NamingScheme, pieces: list[str]) -> Iterator[dict[str, str]]:
    """Every way to read an id, found by trying each number of pieces for each field."""
    for counts in product(range(len(pieces) + 1), repeat=len(of.fields)):
        if sum(counts) == len(pieces):
            words: dict[str, str] = {}
            at = 0
            for field, count in zip(of.fields, counts, strict=True):
                word = "_".join(pieces[at : at + count])
                listed = {each.word for each in field.words}
                allowed = {"": not listed, "[ab]": word in ("a", "b"), "c+": word.strip("c") == ""}[field.pattern]
                takes = word in listed or (count == 1 and word != "" and allowed)
                if not (takes if count else field.optional):
                    break
                words |= {field.id: word} if count else {}
                at += count
            else:
                yield words


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(of=_SCHEME, id_=_ID)
def test_an_id_fits_if_it_can_be_read_at_all_and_the_stated_rule_says_how(of: NamingScheme, id_: str) -> None:
    every = list(readings(of, id_.split("_")))
    found = grammar(of).parse(id_)
    assert (found is not None) == bool(every)
    if found is None:
        return

    def preference(words: dict[str, str]) -> list[tuple[int, int]]:
        """Field by field: listed words, the longest first; then others; then none."""
        order = []
        for field in of.fields:
            word = words.get(field.id)
            listed = word in {each.word for each in field.words}
            order.append((2, 0) if word is None else (0, -word.count("_")) if listed else (1, 0))
        return order

    assert found == min(every, key=preference)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(of=_SCHEME, data=st.data())
def test_an_id_that_is_made_of_words_fits_and_reads_as_the_same_id(of: NamingScheme, data: st.DataObject) -> None:
    words = []
    for field in of.fields:
        choices = [each.word for each in field.words]
        choices += {"": [] if choices else ["d"], "[ab]": ["a"], "c+": ["cc"]}[field.pattern]
        if not field.optional or data.draw(st.booleans()):
            words.append(data.draw(st.sampled_from(choices)))
    found = grammar(of).parse("_".join(words))
    if words:
        assert found is not None and "_".join(found.values()) == "_".join(words)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(of=_SCHEME, id_=_ID)
def test_an_explanation_covers_the_id_and_agrees_with_what_it_is_read_as(of: NamingScheme, id_: str) -> None:
    explanation, found = grammar(of).explain(id_), grammar(of).parse(id_)
    assert "_".join(each.word for each in explanation.parts) == id_
    assert explanation.valid == (found is not None)
    assert explanation.valid == (problems(explanation, of) == [])
    if found is not None:
        assert {each.field.id: each.word for each in explanation.parts if each.field is not None} == found


@pytest.mark.parametrize(
    ("id_", "expected"),
    [
        ("ig_strys_tray_mtml", ["'strys' is no surface; did you mean 'stories'?"]),
        ("ig_tray_mtml", ["surface is missing; accepted: stories, feed, explore, explore_home"]),
        ("ig_stories_tray_mtml_v2_x", ["'x' is one word too many: namingSchemes/ig has 5 fields"]),
        ("ig_stories_tray_mtml_x", ["'x' is no variant; accepted: what matches v[0-9]+"]),
        (
            "xx_feed_tray_two_towr",
            ["'xx' is no app; accepted: ig, fb", "'two_towr' is no architecture; did you mean 'two_tower'?"],
        ),
    ],
)
def test_what_is_wrong_with_an_id_is_said_word_by_word(id_: str, expected: list[str]) -> None:
    assert problems(grammar(IG).explain(id_), IG) == expected


def test_the_most_similar_words_come_first_and_no_more_than_ten() -> None:
    many = part("surface", *(f"other{n}" for n in range(50)), "stories", "story")
    assert nearest("stores", many)[0] == "stories"
    assert len(nearest("stores", many)) == 10


def test_where_several_schemes_fit_the_enforced_one_goes_first_then_the_name() -> None:
    a, b = scheme(part("one"), key="a"), scheme(part("two"), key="b")
    assert parsed("x", [b, a])[0] is a
    strict = scheme(part("three"), key="z", enforced=True)
    assert parsed("x", [a, strict]) == (strict, {"three": "x"})
    assert parsed("x_y", [a, b]) == (None, {})
    explained = closest("ig_x_tray_mtml", [a, IG])
    assert explained is not None and explained[0] is IG
    assert closest("x", []) is None


def test_no_id_takes_long_whatever_the_scheme() -> None:
    words = ["_".join("ab"[n % 2] for n in range(length)) for length in range(1, 31)]
    twenty = scheme(*(part(f"f{n}", *words, optional=True) for n in range(20)))
    began = time.process_time()
    for id_ in ("_".join("ab" * 15) + "_c", "_".join("a" * 100), "_" * 199):
        assert grammar(twenty).parse(id_) is None
        assert not grammar(twenty).explain(id_).valid
    evil = scheme(part("a", pattern="(x+x+)+y"))
    assert grammar(evil).parse("x" * 200) is None
    assert time.process_time() - began < 5


# --- schemes in the ledger --------------------------------------------------------------------------------------------


def test_the_separator_is_written_out() -> None:
    made = type_names.check_scheme(NamingScheme(name="namingSchemes/x", fields=(part("a", "x"),)))
    assert made.separator == "_"


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        (scheme(), "naming_scheme.fields"),
        (scheme(*(part(f"f{n}") for n in range(21))), "naming_scheme.fields"),
        (scheme(part("a"), part("a")), "naming_scheme.fields[1].id"),
        (scheme(part("A")), "naming_scheme.fields[0].id"),
        (scheme(part("a", "x", "x")), "naming_scheme.fields[0].words[1].word"),
        (scheme(part("a", "X")), "naming_scheme.fields[0].words[0].word"),
        (scheme(part("a", "x_")), "naming_scheme.fields[0].words[0].word"),
        (scheme(part("a", pattern="(")), "naming_scheme.fields[0].pattern"),
        (scheme(part("a", pattern="(?=x)")), "naming_scheme.fields[0].pattern"),
        (scheme(part("a", pattern="x" * 201)), "naming_scheme.fields[0].pattern"),
        (scheme(*(part(f"f{n}", *(f"w{m}" for m in range(1000))) for n in range(4))), "naming_scheme.fields"),
        (NamingScheme(name="namingSchemes/x", separator="/", fields=(part("a"),)), "naming_scheme.separator"),
    ],
)
def test_a_scheme_that_is_none_is_refused_at_its_place(wrong: NamingScheme, path: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        type_names.check_scheme(wrong)
    assert path in {violation.path for violation in refused.value.violations}


def enforced(*fields: NamingField, key: str = "ig") -> NamingScheme:
    return scheme(*fields, key=key, enforced=True)


def test_a_new_type_has_to_fit_an_enforced_scheme_and_gets_its_words() -> None:
    lenient = scheme(part("anything"), key="lenient")
    ledger = LedgerOf(team(), region(), lenient, enforced(part("app", "ig"), part("surface", "stories")))
    with pytest.raises(InvalidFields) as refused:
        entries.create_model_type(ledger, model_type("ig_strys"), "u")
    (violation,) = refused.value.violations
    assert violation.path == "model_type_id"
    assert "'strys' is no surface; did you mean 'stories'?" in violation.description
    assert violation.description.endswith("run: modelfleet registry name explain ig_strys")
    (edit, *_) = entries.create_model_type(ledger, model_type("ig_stories", naming={"app": "lie"}), "u")
    assert isinstance(edit.after, ModelType)
    assert edit.after.naming == {"app": "ig", "surface": "stories"}


def test_a_type_that_was_there_before_stays_and_can_be_changed() -> None:
    old = model_type("old", etag="r1")
    ledger = LedgerOf(team(), region(), old, enforced(part("app", "ig")))
    (edit, *_) = entries.update_model_type(ledger, model_type("old", purpose="x"), ())
    assert isinstance(edit.after, ModelType) and edit.after.naming == {}


def test_without_an_enforced_scheme_every_id_is_taken() -> None:
    ledger = LedgerOf(team(), region(), scheme(part("app", "ig")))
    assert entries.create_model_type(ledger, model_type("whatever"), "u")


def test_words_follow_the_schemes_and_only_where_they_differ() -> None:
    ledger = LedgerOf(model_type("ig"), model_type("fb", naming={"app": "fb"}), model_type("x", naming={"app": "x"}))
    ledger.apply(type_names.create_scheme(ledger, scheme(part("app", "ig", "fb")), "u"))
    edits = type_names.renamed(ledger, ["modelTypes/ig", "modelTypes/fb", "modelTypes/x", "modelTypes/gone"])
    assert {edit.name: edit.after.naming for edit in edits if isinstance(edit.after, ModelType)} == {
        "modelTypes/ig": {"app": "ig"},
        "modelTypes/x": {},
    }
    ledger.apply(edits)
    assert type_names.renamed(ledger, ["modelTypes/ig", "modelTypes/fb", "modelTypes/x"]) == ()


def test_a_change_asks_only_what_was_not_asked_before() -> None:
    ledger = LedgerOf()
    first = Tightening.of(ledger, type_names.create_scheme(ledger, enforced(part("app", "ig", "fb")), "u"))
    assert not first.is_none
    assert first.problem("modelTypes/ig") is None
    assert "'x' is no app" in (first.problem("modelTypes/x") or "")
    assert Tightening.of(ledger, type_names.create_scheme(ledger, scheme(part("app", "ig")), "u")).is_none

    ledger.apply(type_names.create_scheme(ledger, enforced(part("app", "ig", "fb")), "u"))
    narrower = NamingScheme(name="namingSchemes/ig", fields=(part("app", "ig"),))
    second = Tightening.of(ledger, type_names.update_scheme(ledger, narrower, ["fields"]))
    assert second.problem("modelTypes/fb") is not None
    assert second.problem("modelTypes/x") is None, "it fitted nothing before"
    described = NamingScheme(name="namingSchemes/ig", enforced=False)
    assert Tightening.of(ledger, type_names.update_scheme(ledger, described, ["enforced"])).is_none


def test_schemes_are_created_once_changed_and_deleted() -> None:
    ledger = LedgerOf()
    ledger.apply(type_names.create_scheme(ledger, IG, "u"))
    with pytest.raises(ResourceExists):
        type_names.create_scheme(ledger, IG, "u")
    assert type_names.update_scheme(ledger, IG, ()) == ()
    ledger.apply(type_names.delete_scheme(ledger, IG.name, ""))
    with pytest.raises(ResourceNotFound):
        type_names.delete_scheme(ledger, IG.name, "")
    with pytest.raises(ResourceNotFound):
        type_names.update_scheme(ledger, IG, ())
    full = LedgerOf(*(scheme(part("a"), key=f"s{n}") for n in range(50)))
    with pytest.raises(InvalidFields):
        type_names.create_scheme(full, IG, "u")
