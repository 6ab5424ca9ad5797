"""Files of the fleet: what is written is what is read, what a person wrote stays, and every mistake has its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.code.documents import Side, differences, document_of
from modelfleet.code.fileset import read_files
from modelfleet.code.kinds import MODEL_TYPE, TEAM
from modelfleet.code.plan import Plan, Unknown, consumed_first, make_plan, name_of
from modelfleet.code.reading import Block, read_text
from modelfleet.code.writing import file_text, updated_text, with_revision
from modelfleet.registry.v1 import registry_pb2 as pb

TYPE = "modelTypes/feed_ctr"
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
ids = st.from_regex(r"[a-z][a-z0-9_-]{0,6}", fullmatch=True)
plain: Any = st.none() | st.booleans() | st.integers(-1000, 1000) | words
predictions = st.builds(
    lambda key, window, low: {"id": key, "attribution_window": f"{window}s", "calibration_range": {"low": low}},
    ids,
    st.integers(1, 9999),
    st.floats(0, 1, allow_nan=False),
)
types = st.fixed_dictionaries(
    {},
    optional={
        "purpose": words,
        "team": st.just("teams/feed"),
        "tier": st.sampled_from(["TIER1", "TIER4"]),
        "regions": st.lists(ids.map("regions/{}".format), max_size=3),
        "predictions": st.lists(predictions, max_size=2),
        "demand_source": st.fixed_dictionaries({}, optional={"growth_basis_points": st.integers(1, 9)}),
        "labels": st.dictionaries(ids, words, max_size=3),
        "attributes": st.dictionaries(words, plain | st.lists(plain, max_size=2), max_size=3),
        "baseline": ids.map(f"{TYPE}/models/{{}}".format),
    },
)
models = st.dictionaries(
    ids.map(f"{TYPE}/models/{{}}".format),
    st.fixed_dictionaries(
        {"serving_spec": st.just({"command": ["serve", "{port}"], "flavor": "flavors/cpu"})},
        optional={"description": words, "role": st.just("BASELINE"), "labels": st.dictionaries(ids, words, max_size=2)},
    ),
    max_size=3,
)


def typed(data: dict[str, Any]) -> dict[str, Any]:
    return document_of(ParseDict(data, pb.ModelType()))


def modelled(data: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: document_of(ParseDict(each, pb.Model())) for name, each in data.items()}


def read(text: str) -> Block:
    (block,), problems = read_text(text, "x.yaml")
    assert problems == []
    return block


def content(block: Block) -> tuple[Any, Any, int]:
    return block.entry.document, {entry.name: entry.document for entry in block.entries[1:]}, block.revision


@settings(max_examples=50)
@given(types, models, st.integers(1, 10**9))
def test_what_is_written_is_what_is_read(data: dict[str, Any], below: dict[str, dict[str, Any]], revision: int) -> None:
    document, documents = typed(data), modelled(below)
    assert content(read(file_text(MODEL_TYPE, TYPE, document, documents, revision))) == (document, documents, revision)


@settings(max_examples=50)
@given(types, models, types, models, st.sampled_from(["", "# a remark\n", "\n"]))
def test_a_file_that_is_brought_up_to_date_says_what_is_new_and_keeps_the_lines_of_what_stays(
    old: dict[str, Any],
    old_models: dict[str, dict[str, Any]],
    new: dict[str, Any],
    new_models: dict[str, dict[str, Any]],
    remark: str,
) -> None:
    text = file_text(MODEL_TYPE, TYPE, typed(old), modelled(old_models), 1)
    # A remark above each line that begins a field or a model, and one beside the name.
    lines = [
        f"{remark}{line}" if line[0].isalpha() or line.startswith("- id") else line for line in text.splitlines(True)
    ]
    text = "".join(lines).replace(f"name: {TYPE}\n", f"name: {TYPE}  # mine\n") + remark
    block = read(text)
    made = updated_text(text, block, typed(new), modelled(new_models), 2)
    document, documents, revision = content(read(made))
    assert (document, documents, revision) == (typed(new), modelled(new_models), 2)
    assert f"name: {TYPE}  # mine\n" in made
    for key in block.entry.document:
        if block.entry.document[key] == document.get(key) and key != "models":
            kept = [line for line in text.splitlines() if line.startswith(f"{key}:")]
            assert all(line in made.splitlines() for line in kept)
    # Once more changes nothing.
    assert updated_text(made, read(made), document, documents, 2) == made


def test_an_apply_touches_the_line_of_the_revision_and_not_a_byte_beside_it() -> None:
    text = "# Ours.\r\n\r\nname: teams/feed # the feed\r\non_call:   'pager'\r\nrevision:  7   # do not edit\r\n"
    assert with_revision(text, read(text), 12) == text.replace("7", "12")
    without = "kind: team\nname: teams/feed\non_call: pager"
    assert with_revision(without, read(without), 12) == "kind: team\nname: teams/feed\nrevision: 12\non_call: pager"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("name: teams/feed\npager: x", 2, "Team has no field 'pager'; there are: display_name, on_call"),
        ("name: teams/feed\non_cal: x", 2, "did you mean 'on_call'?"),
        (f"name: {TYPE}\ntier: TIER7", 2, "'tier: TIER7' is none of TIER0, TIER1"),
        (f"name: {TYPE}\ntier: 1", 2, "'tier: 1' is none of TIER0, TIER1"),
        (f"name: {TYPE}\nrequired_tier: TIER1", 2, "is set by the registry; leave it out"),
        (f"name: {TYPE}\npredictions:\n- id: like\n  min_positives: many", 4, "is not a whole number"),
        (f"name: {TYPE}\npredictions:\n- id: like\n  windw: 1s", 4, "Prediction has no field 'predictions[0].windw'"),
        (f"name: {TYPE}\npredictions: like", 2, "must be a list"),
        (f"name: {TYPE}\nlabels: [a]", 2, "must be a mapping"),
        (f"name: {TYPE}\nteam: team/feed", 2, "'team/feed' must be teams/ID"),
        (f"name: {TYPE}\nmodels:\n- description: x", 3, "is a model without 'id'"),
        (f"name: {TYPE}\nmodels:\n- id: V7", 3, "'V7' is no id of a model"),
        (f"name: {TYPE}\nmodels:\n- id: v1\n- id: v1", 4, "modelTypes/feed_ctr/models/v1 stands in"),
        (f"name: {TYPE}\npurpose: a\npurpose: b", 3, "'purpose' is there twice"),
        (f"name: {TYPE}\nupstream_types: [{TYPE}]", 2, f"make a circle: {TYPE} -> {TYPE}"),
        (f"kind: team\nname: {TYPE}", 1, "does not fit the name"),
        (f"name: {TYPE}\nrevision: soon", 2, "revision 'soon' is not a number"),
        ("name: Feed", 1, "'Feed' is not the name of an entry"),
        ("on_call: pager", 1, "has no 'name'"),
        ("- teams/feed", 1, "must be an entry"),
        ("name: teams/feed\n  on_call: x", 2, "is not YAML"),
        ("", 0, "holds no entry"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_would_be_right(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    problems = read_files([tmp_path]).problems
    assert [(problem.line, said in problem.text) for problem in problems] == [(line, True)], list(map(str, problems))


def test_texts_that_yaml_takes_for_something_else_stay_texts() -> None:
    block = read("name: teams/feed\non_call: 0123\nlabels: {site: no, since: 2026-01-01, release: 1.10}")
    assert block.entry.document == {
        "on_call": "0123",
        "labels": {"site": "no", "since": "2026-01-01", "release": "1.10"},
    }
    written = file_text(TEAM, "teams/feed", block.entry.document, {}, 1)
    assert yaml.safe_load(written)["labels"] == {"site": "no", "since": "2026-01-01", "release": "1.10"}


def test_aliases_that_unfold_without_end_and_nesting_without_end_are_told_and_not_followed() -> None:
    bomb = "name: modelTypes/x\nattributes:\n  a0: &a0 [x]\n" + "".join(
        f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    _, problems = read_text(bomb, "x.yaml")
    assert "unfolds to too much" in problems[0].text
    deep = (
        "[" * 100_000,
        "{a: " * 100_000,
        "\n  " + "- " * 100_000,
        "\n" + "".join(" " * n + "a:\n" for n in range(1, 600)),
    )
    for each in deep:
        _, problems = read_text(f"name: modelTypes/x\nattributes: {each}", "x.yaml")
        assert "is nested deeper than 100 levels" in problems[0].text


# What is to be done.


@settings(max_examples=50)
@given(types, types, types)
def test_who_changed_what_is_told_field_by_field(
    base: dict[str, Any], ledger: dict[str, Any], file: dict[str, Any]
) -> None:
    was, now, says = typed(base), typed(ledger), typed(file)
    found = {each.path: each for each in differences(MODEL_TYPE, was, now, says)}
    for each in found.values():
        assert each.ledger != each.file
        expected = {
            (True, False): Side.FILE,  # the ledger is as it was
            (False, True): Side.LEDGER,
            (False, False): Side.BOTH,
        }[(each.base == each.ledger, each.base == each.file)]
        assert each.side is expected
    assert not differences(MODEL_TYPE, was, now, now)
    assert all(each.side is Side.FILE for each in differences(MODEL_TYPE, now, now, says))
    assert all(each.side is Side.LEDGER for each in differences(MODEL_TYPE, says, now, says))
    assert all(each.side is Side.FILE for each in differences(MODEL_TYPE, None, now, says))


def planned(
    tmp_path: Path, text: str, ledger: dict[str, Any], was: dict[tuple[str, int], Any] | None = None, **options: bool
) -> Plan:
    (tmp_path / "x.yaml").write_text(text)
    files = read_files([tmp_path])
    assert not files.problems, files.problems

    def as_of(name: str, revision: int) -> Message | None:
        if was is None:
            raise Unknown("compacted")
        found: Message | None = was.get((name, revision))
        return found

    return make_plan(files, ledger, as_of, **options)


def test_a_field_that_both_changed_is_a_conflict_and_others_go_their_way(tmp_path: Path) -> None:
    was = pb.Team(name="teams/feed", on_call="a", display_name="Feed", labels={"x": "1", "y": "1"}, revision=3)
    now = pb.Team(
        name="teams/feed", on_call="b", display_name="The feed", labels={"x": "1", "y": "2"}, revision=5, etag="r5"
    )
    text = "name: teams/feed\nrevision: 4\non_call: c\ndisplay_name: Feed\nlabels: {x: '2', y: '1'}\ncontacts: [bob]\n"
    found = planned(tmp_path, text, {"teams/feed": now}, {("teams/feed", 4): was})
    (conflict,) = found.conflicts
    assert conflict.difference is not None
    assert (conflict.difference.base, conflict.difference.ledger, conflict.difference.file) == ("a", "b", "c")
    assert [each.difference.path for each in found.behind] == [("display_name",), ("labels", "y")]
    (change,) = found.changes
    assert (change.etag, sorted(change.update_mask.paths)) == ("r5", ["contacts", "labels.x"])
    assert found.in_step == [], "the file is not what the ledger says, applied or not"


def test_without_its_history_every_difference_is_a_conflict(tmp_path: Path) -> None:
    now = pb.Team(name="teams/feed", on_call="b", revision=5)
    found = planned(tmp_path, "name: teams/feed\nrevision: 4\non_call: c\n", {"teams/feed": now})
    assert len(found.conflicts) == 1 and not found.changes


def test_a_file_without_a_revision_says_what_will_be(tmp_path: Path) -> None:
    now = pb.Team(name="teams/feed", on_call="b", contacts=["bob"], revision=5, etag="r5")
    found = planned(tmp_path, "name: teams/feed\non_call: c\n", {"teams/feed": now})
    assert not found.conflicts
    assert sorted(found.changes[0].update_mask.paths) == ["contacts", "on_call"]
    assert found.in_step == ["teams/feed"]


def test_what_was_deleted_in_the_ledger_is_not_created_again_by_an_old_file(tmp_path: Path) -> None:
    found = planned(
        tmp_path, "name: teams/feed\nrevision: 4\n", {}, {("teams/feed", 4): pb.Team(name="teams/feed", revision=2)}
    )
    assert found.conflicts[0].difference is None and not found.changes
    assert planned(tmp_path, "name: teams/feed\nrevision: 4\n", {}, {}).counts == (1, 0, 0)


def test_what_launches_own_is_drift_with_the_command_that_changes_it(tmp_path: Path) -> None:
    name = f"{TYPE}/models/v1"
    now: dict[str, Any] = {
        TYPE: pb.ModelType(name=TYPE, baseline=f"{TYPE}/models/v0", revision=5),
        name: pb.Model(name=name, role=pb.Model.CANDIDATE, revision=5),
    }
    text = f"name: {TYPE}\nrevision: 5\nbaseline: {name}\nmodels:\n- id: v1\n  role: BASELINE\n"
    found = planned(tmp_path, text, now)
    assert {each.command for each in found.drifts} == {f"modelfleet launch create {name}"}
    assert not found.changes and not found.conflicts
    was: dict[tuple[str, int], Any] = {
        (TYPE, 3): pb.ModelType(name=TYPE, baseline=name, revision=2),
        (name, 3): pb.Model(name=name, role=pb.Model.BASELINE, revision=2),
    }
    moved = planned(tmp_path, text.replace("revision: 5", "revision: 3"), now, was)
    assert {each.command for each in moved.drifts} == {""}, "a launch went on; nobody edited the file"
    assert moved.in_step == []


def test_defaults_that_are_left_out_are_no_difference(tmp_path: Path) -> None:
    stored = ParseDict(
        {
            "name": TYPE,
            "revision": 5,
            "predictions": [
                {
                    "id": "like",
                    "attribution_window": "3600s",
                    "missing_label": "NEGATIVE",
                    "calibration_range": {"low": 0.5, "high": 2},
                    "min_positives": 10,
                }
            ],
            "demand_source": {"growth_basis_points": 5, "fanout_basis_points": 10000},
        },
        pb.ModelType(),
    )
    text = f"name: {TYPE}\npredictions: [{{id: like}}]\ndemand_source: {{growth_basis_points: 5}}\n"
    assert not planned(tmp_path, text, {TYPE: stored}).changes
    gone = planned(tmp_path, f"name: {TYPE}\npredictions: [{{id: like}}]\n", {TYPE: stored})
    assert list(gone.changes[0].update_mask.paths) == ["demand_source"], "as a whole, and not emptied field by field"


def test_what_the_files_lack_is_kept_without_prune_and_never_deleted_if_the_file_cannot_know_it(
    tmp_path: Path,
) -> None:
    old, new = f"{TYPE}/models/old", f"{TYPE}/models/new"
    other, asked = "modelTypes/other", "teams/feed"
    now: dict[str, Any] = {
        asked: pb.Team(name=asked, revision=1),
        TYPE: pb.ModelType(name=TYPE, team=asked, revision=2),
        old: pb.Model(name=old, revision=3, etag="r3"),
        new: pb.Model(name=new, revision=9, etag="r9"),
        other: pb.ModelType(name=other, team=asked, revision=4, etag="r4"),
        f"{other}/models/m": pb.Model(name=f"{other}/models/m", revision=4, etag="r4"),
        "modelTypes/theirs": pb.ModelType(name="modelTypes/theirs", team="teams/theirs", revision=4),
    }
    text = f"name: teams/feed\n---\nname: {TYPE}\nrevision: 5\nteam: teams/feed\n"
    kept = planned(tmp_path, text, now, {})
    assert kept.unlisted == [old, other, f"{other}/models/m"] and not kept.changes
    pruned = planned(tmp_path, text, now, {}, prune=True)
    assert [(name_of(each), each.etag) for each in pruned.changes] == [
        (old, "r3"),
        (f"{other}/models/m", "r4"),
        (other, "r4"),
    ], "models before their type; not the one that was registered after the file was written"


def test_changes_stand_in_an_order_in_which_references_hold(tmp_path: Path) -> None:
    text = """
name: modelTypes/a
team: teams/t
regions: [regions/eu]
upstream_types: [modelTypes/c]
models: [{id: m, serving_spec: {flavor: flavors/cpu, command: [x]}}]
---
name: modelTypes/c
team: teams/t
upstream_types: [modelTypes/b]
---
name: regions/eu
agent_address: h:1
failover_shares: [{region: regions/us, share_basis_points: 1}]
---
name: regions/us
agent_address: h:1
failover_shares: [{region: regions/eu, share_basis_points: 1}]
---
name: modelTypes/b
team: teams/t
---
name: teams/t
"""
    found = planned(tmp_path, text, {})
    assert list(map(name_of, found.changes)) == [
        "teams/t", "regions/eu", "regions/us", "regions/eu", "modelTypes/b", "modelTypes/c", "modelTypes/a",
        "modelTypes/a/models/m",
    ]  # fmt: skip
    assert not found.changes[1].region.failover_shares and found.changes[3].region.failover_shares


@given(st.permutations(range(6)), st.data())
def test_what_is_consumed_stands_first(order: list[int], data: st.DataObject) -> None:
    upstream = {
        str(name): [str(each) for each in data.draw(st.lists(st.sampled_from(order[:at]), unique=True, max_size=3))]
        if at
        else []
        for at, name in enumerate(order)
    }
    shuffled = {name: upstream[name] for name in data.draw(st.permutations(list(upstream)))}
    found = consumed_first(shuffled)
    assert sorted(found) == sorted(upstream)
    assert all(found.index(each) < found.index(name) for name in upstream for each in upstream[name])
