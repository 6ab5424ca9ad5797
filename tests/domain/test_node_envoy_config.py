"""Envoy's files as a function of the routing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from modelfleetd.node import envoy_config
from modelfleetd.node.envoy_config import Addresses
from modelfleetd.node.routing import Backend, Endpoint, Routing, Split
from modelfleetd.platform.model import ModelShare
from tests.support.serving import NEW, OLD, TARGET

ADDRESSES = Addresses("127.0.0.1", 8080, "/tmp/admin.sock", "/tmp/envoy")
BOTH = (Backend(TARGET, NEW, (Endpoint(20_001),)), Backend(TARGET, OLD, (Endpoint(20_002, draining=True),)))
SPLIT = Split(TARGET, (ModelShare(NEW, 2_000), ModelShare(OLD, 8_000)))


def _routes(routing: Routing) -> list[dict[str, Any]]:
    files = envoy_config.files(routing, ADDRESSES)
    routes: list[dict[str, Any]] = json.loads(files["routes.json"])["resources"][0]["virtual_hosts"][0]["routes"]
    return routes


def test_equal_routing_gives_equal_files_and_versions() -> None:
    routing = Routing(BOTH, (SPLIT,))
    assert envoy_config.files(routing, ADDRESSES) == envoy_config.files(routing, ADDRESSES)


def test_the_order_of_clusters_is_the_order_of_shares() -> None:
    weighted = next(r["route"] for r in _routes(Routing(BOTH, (SPLIT,))) if "weighted_clusters" in r.get("route", {}))
    clusters = weighted["weighted_clusters"]["clusters"]
    assert [(c["name"], c["weight"]) for c in clusters] == [
        ("split/ranker/ranker/new", 2_000),
        ("split/ranker/ranker/old", 8_000),
    ]


def test_changed_shares_change_the_routes_and_nothing_else() -> None:
    other = Split(TARGET, (ModelShare(NEW, 3_000), ModelShare(OLD, 7_000)))
    before = envoy_config.files(Routing(BOTH, (SPLIT,)), ADDRESSES)
    after = envoy_config.files(Routing(BOTH, (other,)), ADDRESSES)
    assert {name for name in after if after[name] != before[name]} == {"routes.json"}


def test_a_draining_replica_changes_its_endpoints_and_nothing_else() -> None:
    drained = (Backend(TARGET, NEW, (Endpoint(20_001, draining=True),)), BOTH[1])
    before = envoy_config.files(Routing(BOTH, (SPLIT,)), ADDRESSES)
    after = envoy_config.files(Routing(drained, (SPLIT,)), ADDRESSES)
    assert {name for name in after if after[name] != before[name]} == {"endpoints.ranker.ranker.new.json"}


def test_clusters_that_routes_may_still_name_stay_for_a_moment() -> None:
    before = envoy_config.files(Routing(BOTH, (SPLIT,)), ADDRESSES)["clusters.json"]
    after = envoy_config.files(Routing(BOTH[:1], (Split(TARGET, (ModelShare(NEW, 10_000),)),)), ADDRESSES)
    merged = envoy_config.with_clusters_of(after["clusters.json"], before)
    assert envoy_config.cluster_names(merged) == envoy_config.cluster_names(before)
    assert "split/ranker/ranker/old" not in envoy_config.cluster_names(after["clusters.json"])
    assert envoy_config.with_clusters_of(before, before) == before


def test_each_file_has_the_statistic_that_tells_that_it_was_taken() -> None:
    files = envoy_config.files(Routing(BOTH, (SPLIT,)), ADDRESSES)
    told = envoy_config.acknowledgements(files)
    assert set(told) == {
        "cluster_manager.cds.version_text",
        "listener_manager.lds.version_text",
        "http.traffic.rds.routes.version_text",
        *(
            f"cluster.{kind}/ranker/ranker/{model}.version_text"
            for kind in ("split", "direct")
            for model in ("new", "old")
        ),
    }


def test_a_recorded_route_copies_its_calls_and_its_split_stays() -> None:
    tapped = replace(SPLIT, tap_percent=25)
    plain, recorded = _routes(Routing(BOTH, (SPLIT,))), _routes(Routing(BOTH, (tapped,)))
    (added,) = [route for route in recorded if route not in plain]
    assert [route for route in recorded if route in plain] == plain
    (mirror,) = added["route"].pop("request_mirror_policies")
    sample = mirror["runtime_fraction"]["default_value"]
    assert (mirror["cluster"], sample) == ("tap", {"numerator": 250_000, "denominator": "MILLION"})
    split = next(route for route in plain if "weighted_clusters" in route.get("route", {}))
    assert added["route"] == split["route"]
    assert added["match"]["headers"] == split["match"]["headers"]
    assert added["match"]["prefix"] == "/inference.GRPCInferenceService/ModelInfer"
    # What names a model is matched before it: that is no live traffic.
    named = [index for index, route in enumerate(recorded) if "x-modelfleet-model" in str(route["match"]["headers"])]
    assert recorded.index(added) > min(named)


def test_the_cluster_for_copies_is_there_while_something_is_recorded() -> None:
    tapped = replace(SPLIT, tap_percent=1)
    plain = envoy_config.files(Routing(BOTH, (SPLIT,)), ADDRESSES)["clusters.json"]
    recorded = envoy_config.files(Routing(BOTH, (tapped,)), ADDRESSES)["clusters.json"]
    assert envoy_config.cluster_names(recorded) - envoy_config.cluster_names(plain) == {"tap"}
