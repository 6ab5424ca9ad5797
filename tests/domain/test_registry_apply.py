"""Applying a set of changes is applying its parts in order, in one go: all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleetd.errors import EntriesRefused, FleetError, InvalidFields
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.apply import References, Step
from modelfleetd.registry.domain.apply import apply as steps_of
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.overlay import Overlay
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelType, Region, Team
from modelfleetd.registry.domain.revisions import Edit, Edits
from tests.support.registry import LedgerOf, fleet, model, model_type, references, region, team

TYPES = [f"t{number}" for number in range(4)]
TEAMS = ["feed", "ads"]
REGIONS = ["eu", "us"]


def step(name: str, decide: Callable[[Ledger], Edits], index: int = 0) -> Step:
    return Step(name, decide, lambda field: f"changes[{index}].{field}" if field else f"changes[{index}]")


def apply(ledger: Ledger, steps: Sequence[Step], references: References) -> Edits:
    *_, last = steps_of(ledger, steps, references)
    return last


def numbered(*decisions: tuple[str, Callable[[Ledger], Edits]]) -> list[Step]:
    return [step(name, decide, index) for index, (name, decide) in enumerate(decisions)]


@st.composite
def a_step(draw: st.DrawFn) -> Step:
    """Creating, changing or deleting anything; most combinations are refused somewhere."""
    verb = draw(st.sampled_from(["create", "create", "update", "delete"]))
    kind = draw(st.sampled_from(["team", "region", "model_type", "model_type", "model"]))
    key = draw(st.sampled_from({"team": TEAMS, "region": REGIONS}.get(kind, TYPES)))
    asked: AnyResource
    if kind == "team":
        asked = team(key, on_call=draw(st.sampled_from(["a", "b"])))
    elif kind == "region":
        asked = region(key, agent_address=draw(st.sampled_from(["h:1", "h:2"])))
    elif kind == "model":
        asked = model("m", key, description=draw(st.sampled_from(["a", "b"])))
    else:
        asked = model_type(
            key,
            team=f"teams/{draw(st.sampled_from(TEAMS))}",
            regions=tuple(f"regions/{each}" for each in draw(st.lists(st.sampled_from(REGIONS), unique=True))),
            tier=draw(st.none() | st.sampled_from(Tier)),
            upstream_types=tuple(
                f"modelTypes/{each}" for each in draw(st.lists(st.sampled_from(TYPES), unique=True, max_size=2))
            ),
        )
    return step(asked.name, _decision(verb, asked))


def _decision(verb: str, asked: AnyResource) -> Callable[[Ledger], Edits]:
    kind = {Team: "team", Region: "region", ModelType: "model_type", Model: "model"}[type(asked)]
    decide = getattr(entries, f"{verb}_{kind}")
    if verb == "create":
        return lambda ledger: decide(ledger, asked, f"uid of {asked.name}")
    if verb == "delete":
        return lambda ledger: decide(ledger, asked.name, "")
    if isinstance(asked, Team):
        return lambda ledger: entries.update_team(ledger, asked, (), "alice", is_admin=False)
    return lambda ledger: decide(ledger, asked, ("*",) if isinstance(asked, ModelType) else ())


def content(ledger: LedgerOf) -> dict[str, object]:
    """What a ledger says, without the numbers of its revisions."""
    fields = ("revision", "etag", "create_time", "update_time", "serving_revision")
    return {
        name: {key: getattr(each, key) for key in type(each).__dataclass_fields__ if key not in fields}
        for name, each in ledger.entries.items()
    }


START: Sequence[AnyResource] = (team(), region(), model_type("t0"))


@settings(max_examples=50)
@given(st.lists(a_step(), max_size=12))
def test_a_set_leaves_what_its_steps_leave_one_by_one_and_is_refused_where_one_of_them_is(steps: list[Step]) -> None:
    one_by_one, at_once = LedgerOf(*START), LedgerOf(*START)
    refused = False
    for each in steps:
        try:
            one_by_one.apply(each.decide(one_by_one))
        except FleetError:
            refused = True
            break
    try:
        edits = apply(at_once, steps, references)
    except FleetError:
        assert refused
        assert at_once.entries == LedgerOf(*START).entries
        return
    assert not refused
    assert len({edit.name for edit in edits}) == len(edits), "each resource has one change in the revision"
    assert all(edit.before == at_once.find(edit.name) for edit in edits), "from what is stored to what will be"
    at_once.apply(edits)
    assert content(at_once) == content(one_by_one)


@settings(max_examples=50)
@given(st.lists(a_step(), max_size=12))
def test_what_is_thought_of_answers_like_what_is_written(steps: list[Step]) -> None:
    written = LedgerOf(*START)
    overlay = Overlay(LedgerOf(*START), references)
    for each in steps:
        try:
            edits = each.decide(overlay)
        except FleetError:
            continue
        overlay.apply(edits)
        # Without stamps, which only a revision gives.
        for edit in edits:
            if edit.after is None:
                del written.entries[edit.name]
            else:
                written.entries[edit.name] = edit.after
        for key in TYPES:
            name = f"modelTypes/{key}"
            assert overlay.models_of(name) == written.models_of(name)
        for name in [*(f"teams/{key}" for key in TEAMS), *(f"regions/{key}" for key in REGIONS), *written.entries]:
            assert overlay.find(name) == written.find(name)
            assert overlay.referrers(name) == written.referrers(name)
        for kind in (Team, Region, ModelType, Model):
            assert overlay.every(kind) == written.every(kind)


def test_entries_come_in_the_order_of_the_request_and_what_follows_from_them_at_the_end() -> None:
    ledger = LedgerOf(team(), region(), model_type("source"))
    user = model_type("ranker", tier=Tier.TIER2, upstream_types=("modelTypes/source",))
    edits = apply(
        ledger,
        numbered(
            (user.name, lambda at: entries.create_model_type(at, user, "u")),
            ("teams/ads", lambda at: entries.create_team(at, team("ads"), "u")),
        ),
        references,
    )
    assert [edit.name for edit in edits] == ["modelTypes/ranker", "teams/ads", "modelTypes/source"]
    assert isinstance(edits[2].after, ModelType) and edits[2].after.required_tier is Tier.TIER2


def test_what_is_created_and_deleted_again_is_no_change() -> None:
    ledger = LedgerOf()
    edits = apply(
        ledger,
        numbered(
            ("teams/ads", lambda at: entries.create_team(at, team("ads"), "u")),
            ("teams/ads", lambda at: entries.delete_team(at, "teams/ads", "")),
        ),
        references,
    )
    assert edits == ()


def test_a_change_that_another_one_undoes_is_none() -> None:
    ledger = LedgerOf(team(on_call="a"))

    def to(on_call: str) -> Callable[[Ledger], Edits]:
        return lambda at: entries.update_team(at, team(on_call=on_call), (), "alice", is_admin=False)

    assert apply(ledger, numbered(("teams/feed", to("b")), ("teams/feed", to("a"))), references) == ()
    twice = apply(ledger, numbered(("teams/feed", to("b")), ("teams/feed", to("c"))), references)
    assert twice == (Edit(team(on_call="a"), team(on_call="c")),)


def test_everything_that_is_wrong_is_said_at_once_with_its_place() -> None:
    bad_region, bad_type = region("us", agent_address="nowhere"), model_type("x", team="teams/none")
    with pytest.raises(EntriesRefused) as raised:
        apply(
            fleet(),
            numbered(
                ("regions/us", lambda at: entries.create_region(at, bad_region, "u")),
                ("teams/fine", lambda at: entries.create_team(at, team("fine"), "u")),
                ("modelTypes/x", lambda at: entries.create_model_type(at, bad_type, "u")),
                ("teams/feed", lambda at: entries.delete_team(at, "teams/feed", "")),
            ),
            references,
        )
    assert [violation.path for violation in raised.value.violations] == [
        "changes[0].region.agent_address",
        "changes[2].model_type.team",
        "changes[3]",
    ]
    assert raised.value.reason == "INVALID_FIELDS"


def test_what_is_wrong_only_because_something_else_is_refused_is_left_out() -> None:
    bad = team("ads", on_call="x" * 1000)
    with pytest.raises(InvalidFields) as raised:
        apply(
            fleet(),
            numbered(
                ("teams/ads", lambda at: entries.create_team(at, bad, "u")),
                ("modelTypes/x", lambda at: entries.create_model_type(at, model_type("x", team="teams/ads"), "u")),
                ("modelTypes/x/models/v1", lambda at: entries.create_model(at, model("v1", "x"), "u")),
            ),
            references,
        )
    assert [violation.path for violation in raised.value.violations] == ["changes[0].team.on_call"]
