"""What a revision says: the difference, the stamp, the chain."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from modelfleetd.registry.domain.documents import diff, document
from modelfleetd.registry.domain.paths import split as split_path
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import ModelRole, ModelType
from modelfleetd.registry.domain.revisions import Action, Edit, Stamp, chain, revise
from tests.domain.test_registry_masks import model_types
from tests.support.registry import START, model_type, serving, team


@given(model_types, model_types)
def test_a_difference_applied_to_what_was_gives_what_is(before: ModelType, after: ModelType) -> None:
    changed = copy.deepcopy(document(before))
    for change in diff(before, after):
        path = split_path(change.path)
        assert path is not None
        at: Any = changed
        for segment in path[:-1]:
            at = at.setdefault(segment, {})
        assert at.get(path[-1]) == change.before
        at[path[-1]] = change.after

    def without_unset(value: Any) -> Any:
        # A difference tells nothing of an empty message, nor of a key whose value is null.
        if isinstance(value, dict):
            return {key: kept for key, item in value.items() if (kept := without_unset(item)) not in (None, {})}
        return value

    assert without_unset(changed) == without_unset(document(after))


def test_paths_lead_to_the_smallest_part_that_differs_and_lists_are_whole() -> None:
    before = model_type(labels={"a": "1", "b": "2"}, attributes={"x y": {"z": 1}}, tier=Tier.TIER0)
    after = model_type(labels={"a": "1", "b": "3"}, attributes={"x y": {"z": True}}, regions=("regions/us",))
    assert [(change.path, change.before, change.after) for change in diff(before, after)] == [
        ("attributes.`x y`.z", 1, True),
        ("labels.b", "2", "3"),
        ("regions", ["regions/eu"], ["regions/us"]),
        ("tier", "TIER0", None),
    ]


def test_identity_and_times_are_no_difference() -> None:
    assert diff(model_type(), model_type(uid="u", etag="r1", revision=1, serving_revision=1, create_time=START)) == ()


def test_a_revision_stamps_what_it_leaves() -> None:
    old = team("a", create_time=START, revision=3, etag="r3", uid="u")
    gone = serving(ModelRole.RETIRED)
    new = model_type("b", uid="v")
    stamp = Stamp(9, START.replace(year=2026))
    updated, deleted, created = revise(
        (Edit(old, team("a", on_call="x", uid="u")), Edit(gone, None), Edit(None, new)), stamp
    )
    assert (updated.action, deleted.action, created.action) == (Action.UPDATED, Action.DELETED, Action.CREATED)
    assert (updated.previous_revision, created.previous_revision) == (3, 0)
    assert updated.after is not None
    assert (updated.after.etag, updated.after.revision, updated.after.uid) == ("r9", 9, "u")
    assert (updated.after.create_time, updated.after.update_time) == (START, stamp.time)
    assert deleted.after is None
    assert ("role", "RETIRED", None) in [(each.path, each.before, each.after) for each in deleted.fields]
    assert isinstance(created.after, ModelType)
    assert (created.after.create_time, created.after.serving_revision) == (stamp.time, 9)


histories = st.tuples(st.binary(max_size=8), st.binary(max_size=8), st.lists(st.binary(max_size=8), max_size=3))
History = tuple[bytes, bytes, list[bytes]]


@given(histories, histories)
def test_no_two_histories_have_one_hash(one: History, other: History) -> None:
    assume(one != other)
    assert chain(*one) != chain(*other)


def test_bytes_cannot_move_from_one_part_to_the_next() -> None:
    same_bytes: list[History] = [(b"", b"ab", [b"c"]), (b"", b"a", [b"bc"]), (b"a", b"b", [b"c"]), (b"", b"abc", [])]
    assert len({chain(*history) for history in same_bytes}) == 4
