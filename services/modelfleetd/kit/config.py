"""What a service is told from outside: flags, and the environment where a flag is not given."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from modelfleetd.kit.database_url import check_database_url

# Ports of a machine where every service runs beside the others.
REGISTRY_PORT, CAPACITY_PORT, LAUNCHER_PORT, STABILITY_PORT = 8461, 8462, 8463, 8464


def _option(default: Any, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Configuration that all services have. Each field is the flag `--its-name` and `MODELFLEET_ITS_NAME`."""

    listen: str = _option("127.0.0.1:0", "address to serve gRPC on, host:port; port 0 takes a free one")
    database_url: str = _option(
        "", "PostgreSQL, postgresql://user:password@host:port/database; as a flag, all users see it"
    )
    registry_address: str = _option(f"127.0.0.1:{REGISTRY_PORT}", "where the registry answers")
    capacity_address: str = _option(f"127.0.0.1:{CAPACITY_PORT}", "where capacity answers")
    launcher_address: str = _option(f"127.0.0.1:{LAUNCHER_PORT}", "where the launcher answers")
    stability_address: str = _option(f"127.0.0.1:{STABILITY_PORT}", "where stability answers")

    prometheus_url: str = _option("", "Prometheus that demand is read from, http://host:port; empty: none")
    alertmanager_url: tuple[str, ...] = _option(
        (), "Alertmanagers that are told of alerts, http://host:port; of a cluster all, comma-separated; empty: none"
    )
    dashboard_url: str = _option(
        "", "Grafana dashboard of models that alerts link to; var-type and var-model are added; empty: no link"
    )
    recordings_uri: str = _option(
        "",
        "root of recordings, the same for capacity and its agents: a local folder, or a URI (s3://bucket/folder, gs://…)",
    )

    tls_cert: str = _option("", "certificate chain of this service (PEM); reloaded when it changes")
    tls_key: str = _option("", "its private key (PEM)")
    tls_ca: str = _option("", "authorities that sign the certificates of callers and services (PEM)")
    trust_domain: str = _option("cluster.local", "of SPIFFE ids: spiffe://<trust-domain>/modelfleet/<service>")
    jwt_issuer: str = _option("", "issuer that tokens must name (OIDC)")
    jwt_audience: str = _option("modelfleet", "audience that tokens must name")
    jwt_jwks: str = _option("", "keys that sign tokens: a JWKS file, or its URL")
    jwt_principal_claim: str = _option("sub", "claim that names the principal")
    jwt_groups_claim: str = _option("groups", "claim that lists the principal's groups")
    jwt_service_prefix: str = _option(
        "", "principals in tokens that begin with this are services, named by the rest; empty: none are"
    )
    service_token_file: str = _option(
        "", "token that this service shows to the others, where no certificate tells who it is; read again on change"
    )
    tls_terminated_upstream: bool = _option(
        False, "something before this service, and on its way to the others, encrypts: tokens may pass here in plain"
    )
    admins: tuple[str, ...] = _option(
        (), "who may do everything: principals, or groups as group:<name>; comma-separated"
    )

    metrics_listen: str = _option("", "address to serve Prometheus metrics on, host:port; empty: nowhere")
    otlp_endpoint: str = _option("", "OpenTelemetry collector (OTLP over gRPC), http://host:port; empty: no export")
    trace_ratio: float = _option(0.01, "share of calls without a sampled parent that are traced, 0 to 1")
    log_level: str = _option("info", "debug, info, warning or error")
    log_format: str = _option("json", "json or console")

    drain_seconds: float = _option(10.0, "how long calls under way may go on after SIGTERM")
    max_calls: int = _option(200, "calls at a time; more are refused with OVERLOADED")
    max_expensive_calls: int = _option(8, "expensive calls at a time")
    max_streams: int = _option(1000, "open streams at a time")

    @property
    def has_certificate(self) -> bool:
        """Whether certificates say who calls whom: of this service, and of its callers."""
        return bool(self.tls_cert and self.tls_ca)

    @property
    def has_identity(self) -> bool:
        """Whether callers are told apart by certificate or token."""
        return bool(self.jwt_jwks) or self.has_certificate

    @classmethod
    def from_args(cls, options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Self:
        """Returns the configuration: flags win over the environment, the environment over defaults.

        Raises:
            ValueError: a value of the environment is malformed, or the configuration contradicts itself.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            given = getattr(options, field.name, None)
            variable = f"MODELFLEET_{field.name.upper()}"
            if given is not None:
                values[field.name] = given
            elif environment.get(variable):
                try:
                    values[field.name] = _parser(field.default)(environment[variable])
                except ValueError as error:
                    raise ValueError(f"{variable}: {error}") from error
        config = cls(**values)
        config.check()
        return config

    def check(self) -> None:
        """Raises ValueError where the configuration is unsafe or contradicts itself."""
        if self.database_url:
            check_database_url(self.database_url)
        if self.prometheus_url and not self.prometheus_url.startswith(("http://", "https://")):
            raise ValueError("--prometheus-url must be http://host:port or https://host:port")
        for flag, urls in (("alertmanager", self.alertmanager_url), ("dashboard", (self.dashboard_url,))):
            if any(url and not url.startswith(("http://", "https://")) for url in urls):
                raise ValueError(f"--{flag}-url must be http://host:port or https://host:port")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("--tls-cert and --tls-key go together")
        if self.jwt_jwks and not self.jwt_issuer:
            raise ValueError("--jwt-jwks needs --jwt-issuer")
        if self.jwt_jwks and self.service_token_file and not self.jwt_service_prefix:
            raise ValueError("--service-token-file needs --jwt-service-prefix, which tells services from people")
        if not 0 <= self.trace_ratio <= 1:
            raise ValueError("--trace-ratio must be between 0 and 1")
        if not self.has_identity and not is_loopback(self.listen):
            raise ValueError(
                f"refusing to listen on {self.listen} without identity: anybody there could do everything. "
                "Give --tls-cert, --tls-key and --tls-ca, or --jwt-jwks and --jwt-issuer; or listen on 127.0.0.1"
            )
        if not (self.tls_cert or self.tls_terminated_upstream or is_loopback(self.listen)):
            raise ValueError(
                f"refusing to take tokens on {self.listen} without encryption: whoever reads one there can use it. "
                "Give --tls-cert and --tls-key, or --tls-terminated-upstream where something before it encrypts"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each field; what is not given stays None, so that the environment can say it."""
    for field in dataclasses.fields(ServiceConfig):
        shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        default = f" (default {shown})" if shown not in ("", None, False) else ""
        flag, variable = f"--{field.name.replace('_', '-')}", f"MODELFLEET_{field.name.upper()}"
        meaning = f"{field.metadata['help']}{default}; ${variable}".replace("%", "%%")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=meaning)
        else:
            metavar = field.name.rpartition("_")[2].upper()
            parser.add_argument(flag, type=_parser(field.default), metavar=metavar, help=meaning)


def is_loopback(address: str) -> bool:
    """Says whether only this machine can reach an address."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parser(default: Any) -> Any:
    if isinstance(default, bool):
        return _parse_bool
    return _parse_list if isinstance(default, tuple) else type(default)


def _parse_bool(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in known:
        raise ValueError("must be true or false")
    return known[text.lower()]


def _parse_list(text: str) -> Sequence[str]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
