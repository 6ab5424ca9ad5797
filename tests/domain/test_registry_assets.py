"""What may be registered as an asset, what becomes of it, and how entries are found by what somebody knows of them."""

from __future__ import annotations

import time
from collections import ChainMap
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleet.common.v1.serving_pb2 import RegionSplit, ServingSpec
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.assets_pb2 import Asset as Message
from modelfleet.registry.v1.assets_pb2 import EntryMatch
from modelfleetd.errors import (
    InvalidFields,
    ReferenceNotFound,
    ResourceExists,
    ResourceInUse,
    ResourceNotFound,
    UriTaken,
)
from modelfleetd.registry.domain import asset_entries, entries
from modelfleetd.registry.domain.assets import Asset, AssetKind
from modelfleetd.registry.domain.overlay import Overlay
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.lookup import find_entries
from modelfleetd.registry.snapshot import Snapshot
from tests.support.registry import fleet, model_type

CTR = "modelTypes/ctr"
OLD, NEW = f"{CTR}/models/old", f"{CTR}/models/new"


def asset(key: str = "dash", **fields: Any) -> Asset:
    defaults: dict[str, Any] = {"kind": AssetKind.DASHBOARD, "uri": f"https://{key}", "team": "teams/feed"}
    return Asset(name=f"assets/{key}", **(defaults | fields))


def left(edits: Edits) -> dict[str, Asset]:
    return {edit.name: edit.after for edit in edits if isinstance(edit.after, Asset)}


def test_an_asset_is_created_changed_and_deleted() -> None:
    ledger = fleet()
    ledger.apply(asset_entries.create_asset(ledger, asset(model_types=(CTR,), models=(OLD,)), "u"))
    assert asset_entries.update_asset(ledger, asset(model_types=(CTR,)), ["model_types"]) == ()
    ledger.apply(asset_entries.update_asset(ledger, asset(display_name="CTR"), ["display_name"]))
    found = ledger.find("assets/dash")
    assert isinstance(found, Asset) and (found.display_name, found.models, found.uid) == ("CTR", (OLD,), "u")
    with pytest.raises(ResourceExists):
        asset_entries.create_asset(ledger, asset(), "u")
    ledger.apply(asset_entries.delete_asset(ledger, "assets/dash", found.etag))
    with pytest.raises(ResourceNotFound):
        asset_entries.update_asset(ledger, asset(), ())
    with pytest.raises(ResourceNotFound):
        asset_entries.delete_asset(ledger, "assets/dash", "")


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        (asset(kind=None), "asset.kind"),
        (asset(uri=""), "asset.uri"),
        (asset(uri="x" * 2001), "asset.uri"),
        (asset(uri="a b"), "asset.uri"),
        (asset(uri="a\n"), "asset.uri"),
        (asset(display_name="x" * 201), "asset.display_name"),
        (asset(team="feed"), "asset.team"),
        (asset(model_types=("ctr",)), "asset.model_types[0]"),
        (asset(model_types=(CTR, CTR)), "asset.model_types[1]"),
        (asset(models=(CTR,)), "asset.models[0]"),
        (asset(models=tuple(f"{CTR}/models/m{n}" for n in range(101))), "asset.models"),
        (asset(labels={"A": ""}), "asset.labels.A"),
    ],
)
def test_fields_that_are_wrong_are_named(wrong: Asset, path: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        asset_entries.create_asset(fleet(), wrong, "u")
    assert path in {violation.path for violation in refused.value.violations}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"team": "teams/nope"}, "asset.team"),
        ({"model_types": (CTR, "modelTypes/nope")}, "asset.model_types[1]"),
        ({"models": (f"{CTR}/models/nope",)}, "asset.models[0]"),
    ],
)
def test_an_asset_belongs_to_what_exists(fields: dict[str, Any], path: str) -> None:
    ledger = fleet(asset())
    with pytest.raises(ReferenceNotFound) as refused:
        asset_entries.create_asset(ledger, asset("x", **fields), "u")
    assert refused.value.metadata["field"] == path
    with pytest.raises(ReferenceNotFound) as refused:
        asset_entries.update_asset(ledger, asset(**fields), list(fields))
    assert refused.value.metadata["field"] == path


def test_no_two_assets_have_one_uri() -> None:
    ledger = fleet(asset(), asset("other"))
    for uri in ("https://dash", "https://dash/"):
        with pytest.raises(UriTaken) as refused:
            asset_entries.create_asset(ledger, asset("x", uri=uri), "u")
        assert refused.value.metadata["asset"] == "assets/dash"
        with pytest.raises(UriTaken):
            asset_entries.update_asset(ledger, asset("other", uri=uri), ["uri"])
    assert asset_entries.update_asset(ledger, asset(uri="https://dash/"), ["uri"])


def test_an_asset_keeps_nothing_from_being_deleted_and_names_it_no_more() -> None:
    ledger = fleet(asset(model_types=(CTR,), models=(NEW, OLD)), asset("own", models=(NEW,)), asset("none"))
    edits = entries.delete_model(ledger, NEW, "")
    assert edits[0].name == NEW and edits[0].after is None
    assert {name: found.models for name, found in left(edits).items()} == {"assets/dash": (OLD,), "assets/own": ()}
    ledger = fleet(model_type("x"), asset(model_types=(CTR, "modelTypes/x")))
    assert left(entries.delete_model_type(ledger, "modelTypes/x", ""))["assets/dash"].model_types == (CTR,)
    with pytest.raises(ResourceInUse):
        entries.delete_model_type(ledger, CTR, "")
    many = fleet(*(asset(f"a{n}", models=(NEW,)) for n in range(101)))
    with pytest.raises(ResourceInUse):
        entries.delete_model(many, NEW, "")


def test_uris_are_taken_also_by_what_is_not_written_yet() -> None:
    below = fleet(asset("kept"), asset("moved"), asset("gone"))
    overlay = Overlay(below, lambda _: ())
    assert overlay.pending() == ()
    overlay.apply(asset_entries.create_asset(overlay, asset("new"), "u"))
    overlay.apply(asset_entries.update_asset(overlay, asset("moved", uri="https://elsewhere/"), ["uri"]))
    overlay.apply(asset_entries.delete_asset(overlay, "assets/gone", ""))
    at = {uri: overlay.asset_at(f"https://{uri}") for uri in ("kept", "moved", "gone", "new", "elsewhere")}
    assert at == {
        "kept": "assets/kept",
        "moved": None,
        "gone": None,
        "new": "assets/new",
        "elsewhere": "assets/moved",
    }
    with pytest.raises(UriTaken):
        asset_entries.create_asset(overlay, asset("other", uri="https://new"), "u")
    upper = Overlay(overlay, lambda _: ())
    upper.apply(asset_entries.delete_asset(upper, "assets/new", ""))
    assert upper.asset_at("https://new") is None and upper.asset_at("https://elsewhere") == "assets/moved"
    assert {edit.name for edit in upper.pending()} == {"assets/moved", "assets/gone", "assets/new"}


# --- look-up ----------------------------------------------------------------------------------------------------------


def type_message(key: str, *, serves: bool = False) -> pb.ModelType:
    splits = [RegionSplit(region="regions/eu")] if serves else []
    return pb.ModelType(name=f"modelTypes/{key}", splits=splits)


def model_message(of: str, key: str, role: pb.Model.Role.ValueType = pb.Model.CANDIDATE, **fields: Any) -> pb.Model:
    return pb.Model(name=f"modelTypes/{of}/models/{key}", role=role, **fields)


def asset_message(key: str, uri: str, kind: Message.Kind.ValueType = Message.CHECKPOINT, **fields: Any) -> Message:
    return Message(name=f"assets/{key}", uri=uri, kind=kind, **fields)


def snapshot(*messages: Any) -> Snapshot:
    return Snapshot.of(messages, 1, b"")


def matches(of: Snapshot, query: str, limit: int = 50) -> list[EntryMatch]:
    every = ChainMap(cast(dict[str, Any], of.models), cast(dict[str, Any], of.model_types))
    return find_entries(query, limit, of.lookup, every, of.table(Message))


def shown(of: Snapshot, query: str, limit: int = 50) -> list[str]:
    return [
        f"{match.resource.removeprefix('modelTypes/').replace('/models/', '/')} {EntryMatch.Basis.Name(match.basis)}"
        for match in matches(of, query, limit)
    ]


FLEET = (
    type_message("feed_ctr", serves=True),
    type_message("feed"),
    type_message("stories_feed"),
    model_message("feed_ctr", "v1", pb.Model.RETIRED, training_flow="flow://a"),
    model_message("feed_ctr", "v2", pb.Model.BASELINE, training_flow="flow://a", checkpoint="s3://c/2"),
    model_message("feed", "feed_x", serving_spec=ServingSpec(artifact="s3://c/2/")),
    model_message("stories_feed", "v1", pb.Model.HOLDOUT),
    asset_message("flow", "flow://a", Message.TRAINING_FLOW, model_types=["modelTypes/feed"]),
    asset_message(
        "serve", "grpc://Ranker.eu:8500/v2", Message.INFERENCE_SERVICE, models=["modelTypes/feed_ctr/models/v2"]
    ),
    asset_message("serve2", "ranker.eu:8500", Message.INFERENCE_SERVICE, model_types=["modelTypes/feed_ctr"]),
    asset_message("free", "s3://free"),
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("modelTypes/feed_ctr/models/v2", ["feed_ctr/v2 NAME"]),
        ("feed_ctr/v2", ["feed_ctr/v2 NAME"]),
        ("Feed_CTR", ["feed_ctr NAME"]),
        # Exact before part; what serves before what does not; then by name.
        ("feed", ["feed NAME", "feed_ctr PART_OF_NAME", "feed/feed_x PART_OF_NAME", "stories_feed PART_OF_NAME"]),
        ("v1", ["stories_feed/v1 NAME", "feed_ctr/v1 NAME"]),
        ("v", ["feed_ctr/v2 PART_OF_NAME", "stories_feed/v1 PART_OF_NAME", "feed_ctr/v1 PART_OF_NAME"]),
        ("flow://a", ["feed_ctr/v2 TRAINING_FLOW", "feed ASSET_URI", "feed_ctr/v1 TRAINING_FLOW"]),
        ("s3://c/2", ["feed_ctr/v2 CHECKPOINT", "feed/feed_x ARTIFACT"]),
        ("s3://c/2/", ["feed_ctr/v2 CHECKPOINT", "feed/feed_x ARTIFACT"]),
        ("ranker.eu:8500", ["feed_ctr SERVING_ENDPOINT", "feed_ctr/v2 SERVING_ENDPOINT"]),
        ("https://RANKER.eu:8500/anything", ["feed_ctr SERVING_ENDPOINT", "feed_ctr/v2 SERVING_ENDPOINT"]),
        ("s3://free", []),
        ("nothing", []),
        ("a\nb", []),
    ],
)
def test_entries_are_found_by_what_is_known_of_them(query: str, expected: list[str]) -> None:
    assert shown(snapshot(*FLEET), query) == expected


def test_a_match_says_what_fits_and_which_asset_led_there() -> None:
    (first, *_) = matches(snapshot(*FLEET), "ranker.eu:8500")
    assert (first.matched, first.asset) == ("ranker.eu:8500", "assets/serve2")
    (second, *_) = matches(snapshot(*FLEET), "s3://c/2")
    assert (second.matched, second.asset) == ("s3://c/2", "")
    assert len(matches(snapshot(*FLEET), "v", 2)) == 2


_IDS = st.sampled_from(["a", "b", "ab", "ba", "abc", "c1"])
_ROLES = st.sampled_from([pb.Model.CANDIDATE, pb.Model.BASELINE, pb.Model.RETIRED])
_URIS = st.sampled_from(["", "s3://x", "s3://x/", "s3://y"])
_CHANGE = st.tuples(_IDS, _IDS, st.booleans(), _ROLES, _URIS, _URIS)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(_CHANGE, max_size=20), query=st.sampled_from(["a", "b", "ab", "c1", "s3://x", "a/b", "zz"]))
def test_whatever_changes_entries_are_found_as_if_they_had_been_there_from_the_start(
    changes: list[tuple[str, str, bool, Any, str, str]], query: str
) -> None:
    kept = Snapshot()
    for number, (of, key, gone, role, flow, uri) in enumerate(changes, 1):
        model = model_message(of, key, role, training_flow=flow)
        shared = asset_message(key, uri, Message.DATASET, model_types=[f"modelTypes/{of}"])
        revision = pb.Revision(number=number, previous_hash=kept.hash.hex(), hash=number.to_bytes(2, "big").hex())
        revision.changes.add(resource=f"modelTypes/{of}").model_type.CopyFrom(type_message(of, serves=number % 2 == 0))
        for name, message in ((model.name, model), (shared.name, shared)):
            if gone and kept.find(name) is not None:
                revision.changes.add(resource=name)
            elif not gone:
                change = revision.changes.add(resource=name)
                (change.asset if isinstance(message, Message) else change.model).CopyFrom(message)  # type: ignore[arg-type]
        kept.apply(revision)
    anew = snapshot(*kept.model_types.values(), *kept.models.values(), *kept.table(Message).values())
    assert matches(kept, query) == matches(anew, query)
    part = query.lower()
    names = {*kept.model_types, *kept.models}
    assert {each.resource for each in matches(kept, query, 1000)} >= {
        name for name in names if part in name.rsplit("/", 1)[-1]
    }


def test_a_part_of_a_name_is_found_quickly_among_a_hundred_thousand() -> None:
    large = snapshot(
        *(type_message(f"type{number:03}") for number in range(100)),
        *(model_message(f"type{n % 100:03}", f"model-{n:06}", training_flow="flow://all") for n in range(100_000)),
    )
    slowest = 0.0
    for query in ("99999", "model", "e", "nothing-at-all", "type099"):
        matches(large, query)
        began = time.process_time()
        found = matches(large, query)
        slowest = max(slowest, time.process_time() - began)
        assert len(found) == {"99999": 1, "nothing-at-all": 0, "type099": 1}.get(query, 50)
    assert slowest < 0.1
