"""Envoy's configuration as a pure function of what shall be routed where.

Four kinds of resources, each in a file that Envoy watches: listener, routes, clusters, and the endpoints of each model
of a target. A model of a target has two clusters over the same endpoints: `split/…` carries the traffic of the route,
and `direct/…` what addresses the model by name, so that load tests and shadow traffic are never counted in a share.

Where a route is recorded, Envoy sends copies of a sample of its requests to the agent's own socket. Nobody waits for
them, their failures are nobody's, and no statistic that anybody reads counts them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelfleetd.node.routing import Backend, Routing, Split

TYPE_HEADER = "x-modelfleet-model-type"
MODEL_HEADER = "x-modelfleet-model"
SPLIT_KEY_HEADER = "x-modelfleet-split-key"
# What is recorded: the one call of the protocol that load tests replay.
RECORDED_METHOD = "/inference.GRPCInferenceService/ModelInfer"

LISTENER = "traffic"
ROUTES = "routes"
TAP_CLUSTER = "tap"
# Copies that may be under way at a time; more are dropped by Envoy, so that a slow or dead agent costs no memory.
_TAP_REQUESTS = 256
# Envoy asks a replica's port this often whether it still listens: a dead one leaves rotation without any agent.
HEALTH_INTERVAL = "2s"
# Answers are held back until this much is known, so that one slow model cannot take the proxy's memory.
_BUFFER_BYTES = 1 << 20

_STATISTICS = (
    r"cluster\.(split|direct|unrouted)/[^.]+\."
    r"(grpc\.(success|failure)|upstream_rq_time|version_text|update_rejected|upstream_rq_retry(_success)?)"
    r"|cluster\.tap\.upstream_rq_5xx|(cluster_manager\.cds|listener_manager\.lds|http\.traffic\.rds\.routes)\..*"
)
_EXTENSIONS = "type.googleapis.com/envoy.extensions"

Resource = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where Envoy listens and where its files are."""

    traffic_host: str
    traffic_port: int
    admin_socket: str
    folder: str
    tap_socket: str = ""


def bootstrap(addresses: Addresses) -> Resource:
    """What Envoy is started with; everything else it reads from files that change."""
    return {
        "node": {"id": "modelfleet-node", "cluster": "modelfleet-node"},
        "admin": {"address": {"pipe": {"path": addresses.admin_socket, "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": _file(addresses, "listeners.json"),
            "cds_config": _file(addresses, "clusters.json"),
        },
        # Of hundreds of statistics a cluster only what somebody reads: it is most of a proxy's memory.
        "stats_config": {
            "stats_matcher": {"inclusion_list": {"patterns": [{"safe_regex": {"regex": _STATISTICS}}]}},
        },
        "stats_flush_interval": "5s",
    }


def files(routing: Routing, addresses: Addresses) -> dict[str, str]:
    """Every file by its name. The version inside is a digest of the content: equal content is never a change."""
    clusters = [cluster for backend in routing.backends for cluster in _backend_clusters(backend, addresses)]
    clusters += [_unrouted_cluster(split) for split in routing.splits]
    if any(split.tap_percent for split in routing.splits):
        clusters.append(_tap_cluster(addresses))
    found = {
        "clusters.json": _discovery(clusters, "envoy.config.cluster.v3.Cluster"),
        "listeners.json": _discovery([_listener(addresses)], "envoy.config.listener.v3.Listener"),
        "routes.json": _discovery([_routes(routing)], "envoy.config.route.v3.RouteConfiguration"),
    }
    for backend in routing.backends:
        found[backend.endpoints_file] = _discovery(
            [_endpoints(backend)], "envoy.config.endpoint.v3.ClusterLoadAssignment"
        )
    return found


def _discovery(resources: list[Resource], kind: str) -> str:
    return _versioned([{"@type": f"type.googleapis.com/{kind}", **resource} for resource in resources])


def _versioned(resources: list[Resource]) -> str:
    digest = hashlib.sha256(json.dumps(resources, sort_keys=True).encode()).hexdigest()[:16]
    return json.dumps({"version_info": digest, "resources": resources}, indent=1)


def _file(addresses: Addresses, name: str) -> Resource:
    # Without `watched_directory` Envoy reads the file whenever something is renamed onto it: what atomic writes do.
    return {"resource_api_version": "V3", "path_config_source": {"path": f"{addresses.folder}/{name}"}}


def _listener(addresses: Addresses) -> Resource:
    router = {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"}
    stats = {
        "@type": f"{_EXTENSIONS}.filters.http.grpc_stats.v3.FilterConfig",
        "stats_for_all_methods": False,
        "enable_upstream_stats": True,
    }
    connection = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": LISTENER,
        "codec_type": "AUTO",
        "http2_protocol_options": _http2(),
        "stream_idle_timeout": "0s",
        "rds": {"route_config_name": ROUTES, "config_source": _file(addresses, "routes.json")},
        "http_filters": [
            {"name": "envoy.filters.http.grpc_stats", "typed_config": stats},
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
    }
    return {
        "name": LISTENER,
        "address": {
            "socket_address": {"address": addresses.traffic_host, "port_value": addresses.traffic_port},
        },
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        # Two agents on one port would each get a part of the requests and nobody would notice.
        "enable_reuse_port": False,
        "filter_chains": [
            {
                "filters": [
                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": connection},
                ]
            }
        ],
    }


def _http2() -> Resource:
    return {
        "max_concurrent_streams": 1000,
        "initial_stream_window_size": _BUFFER_BYTES,
        "initial_connection_window_size": 16 * _BUFFER_BYTES,
    }


def _routes(routing: Routing) -> Resource:
    routes: list[Resource] = [
        {
            "match": _match(_exactly(TYPE_HEADER, backend.id.split("/")[0]), _exactly(MODEL_HEADER, backend.model)),
            "route": {"cluster": backend.direct_cluster, **_behaviour()},
            "response_headers_to_add": [_marks(backend.model)],
        }
        for backend in routing.backends
    ]
    for split in routing.splits:
        routes.append(_named_but_absent(split))
        if split.tap_percent and split.shares:
            routes.append(_tapped(split))
        routes.append(_split_route(split))
    routes.append(
        {
            "match": _match(),
            "direct_response": {
                "status": 404,
                "body": {"inline_string": f"No such model type here; send its id as {TYPE_HEADER}."},
            },
        }
    )
    virtual_host = {"name": "models", "domains": ["*"], "routes": routes}
    # A route may name a cluster that arrives a moment later.
    return {"name": ROUTES, "virtual_hosts": [virtual_host], "validate_clusters": False}


def _split_route(split: Split) -> Resource:
    match = _match(_exactly(TYPE_HEADER, split.id))
    if not split.shares:
        return {"match": match, "route": {"cluster": split.unrouted_cluster, **_behaviour()}}
    weighted = {
        "clusters": [
            {
                "name": Backend(split.target, share.model).split_cluster,
                "weight": share.share_basis_points,
                "response_headers_to_add": [_marks(share.model)],
            }
            for share in split.shares
        ],
        # The key's hash chooses the cluster, in the order of the list; without the header there is no hash, and Envoy
        # draws.
        "use_hash_policy": True,
    }
    hashed = [{"header": {"header_name": SPLIT_KEY_HEADER}}]
    return {"match": match, "route": {"weighted_clusters": weighted, "hash_policy": hashed, **_behaviour()}}


def _tapped(split: Split) -> Resource:
    """The same route for the calls that are recorded, before the one for all calls."""
    route = _split_route(split)
    # Envoy draws the sample and the model from one number, modulo a million and modulo the 10,000 of the weights: whole
    # percents of a million are independent of the model, anything else would prefer the first ones.
    sample = {"numerator": split.tap_percent * 10_000, "denominator": "MILLION"}
    mirror = {"cluster": TAP_CLUSTER, "runtime_fraction": {"default_value": sample}}
    return {
        **route,
        "match": {**route["match"], "prefix": RECORDED_METHOD},
        "route": {**route["route"], "request_mirror_policies": [mirror]},
    }


def _named_but_absent(split: Split) -> Resource:
    """A request that names a model which is not here must not fall back to the split."""
    named = {"name": MODEL_HEADER, "present_match": True}
    return {
        "match": _match(_exactly(TYPE_HEADER, split.id), named),
        "direct_response": {
            "status": 404,
            "body": {"inline_string": f"The model named by {MODEL_HEADER} has no replicas here."},
        },
    }


def _behaviour() -> Resource:
    """Deadlines are the callers'; retries only where the replica cannot have begun to work on the request."""
    return {
        "timeout": "0s",
        "max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": 4,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.1s"},
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{_EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
            "host_selection_retry_max_attempts": 8,
        },
    }


def _match(*headers: Resource) -> Resource:
    return {"prefix": "/", "headers": list(headers)}


def _exactly(name: str, value: str) -> Resource:
    return {"name": name, "string_match": {"exact": value}}


def _marks(model: str) -> Resource:
    return {"header": {"key": MODEL_HEADER, "value": model}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _backend_clusters(backend: Backend, addresses: Addresses) -> list[Resource]:
    return [
        _cluster(backend.split_cluster, backend, addresses),
        _cluster(backend.direct_cluster, backend, addresses),
    ]


def _cluster(name: str, backend: Backend, addresses: Addresses) -> Resource:
    http2 = {
        "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": _http2()},
    }
    many = 1_000_000
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {
            "service_name": backend.id,
            "eds_config": _file(addresses, backend.endpoints_file),
        },
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "common_lb_config": {
            # Never requests to a replica without health, not even where all are so.
            "healthy_panic_threshold": {"value": 0},
            # Envoy would otherwise gather changes of health and draining for a second before its workers see them,
            # while its admin already tells the new state.
            "update_merge_window": "0s",
        },
        "ignore_health_on_host_removal": True,
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        # Limits are set at the front door, by tier; here they would only turn a burst into failures.
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": many,
                    "max_pending_requests": many,
                    "max_requests": many,
                    "max_retries": many,
                }
            ]
        },
        # Servers of the protocol need not have gRPC's health service, but all of them listen.
        "health_checks": [
            {
                "timeout": "1s",
                "interval": HEALTH_INTERVAL,
                "no_traffic_interval": HEALTH_INTERVAL,
                "unhealthy_interval": "0.5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "tcp_health_check": {},
            }
        ],
        # A connection that is refused takes the replica out at once; a model's own errors never do.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "base_ejection_time": "1s",
            "max_ejection_time": "5s",
            "interval": "1s",
            "max_ejection_percent": 100,
        },
    }


def _unrouted_cluster(split: Split) -> Resource:
    return {
        "name": split.unrouted_cluster,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": split.unrouted_cluster},
    }


def _tap_cluster(addresses: Addresses) -> Resource:
    http2 = {
        "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": _http2()},
    }
    endpoint = {"endpoint": {"address": {"pipe": {"path": addresses.tap_socket}}}}
    return {
        "name": TAP_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": TAP_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
        # A copy whose rest does not fit is given up, and the request that it copies goes on.
        "per_connection_buffer_limit_bytes": 16 * _BUFFER_BYTES,
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 1,
                    "max_pending_requests": _TAP_REQUESTS,
                    "max_requests": _TAP_REQUESTS,
                    "max_retries": 0,
                }
            ]
        },
    }


def _endpoints(backend: Backend) -> Resource:
    endpoints = [
        {
            "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": endpoint.port}}},
            "health_status": "DRAINING" if endpoint.draining else "UNKNOWN",
        }
        for endpoint in backend.endpoints
    ]
    return {"cluster_name": backend.id, "endpoints": [{"lb_endpoints": endpoints}]}


def cluster_names(content: str) -> frozenset[str]:
    """The names of the clusters in a file of clusters."""
    return frozenset(cluster["name"] for cluster in json.loads(content)["resources"])


def with_clusters_of(content: str, previous: str | None) -> str:
    """A file of clusters that still has those of the file before it, which routes may refer to for a moment."""
    resources = json.loads(content)["resources"]
    names = {cluster["name"] for cluster in resources}
    kept = [c for c in json.loads(previous)["resources"] if c["name"] not in names] if previous else []
    return _versioned(resources + kept) if kept else content


def acknowledgements(contents: Mapping[str, str]) -> dict[str, str]:
    """The statistics that tell that Envoy has taken these files, and the values that they will have."""
    expected: dict[str, str] = {}
    for name, content in contents.items():
        parsed = json.loads(content)
        if name in _VERSION_STATISTICS:
            expected[_VERSION_STATISTICS[name]] = parsed["version_info"]
        else:
            backend = parsed["resources"][0]["cluster_name"]
            for cluster in ("split", "direct"):
                expected[f"cluster.{cluster}/{backend}.version_text"] = parsed["version_info"]
    return expected


_VERSION_STATISTICS = {
    "clusters.json": "cluster_manager.cds.version_text",
    "listeners.json": "listener_manager.lds.version_text",
    "routes.json": f"http.{LISTENER}.rds.{ROUTES}.version_text",
}
