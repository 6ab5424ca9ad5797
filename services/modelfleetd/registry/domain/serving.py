"""How a model is served: the immutable spec with its digest, and splits of traffic."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

WHOLE: Final = 10_000
"""All traffic of a route, in basis points."""

DEFAULT_STARTUP_TIMEOUT: Final = timedelta(seconds=60)
DEFAULT_DRAIN_TIMEOUT: Final = timedelta(seconds=10)


class Protocol(enum.Enum):
    """How replicas are spoken to."""

    OPEN_INFERENCE_V2_GRPC = "OPEN_INFERENCE_V2_GRPC"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSpec:
    """How to run one replica of a model."""

    artifact: str = ""
    command: tuple[str, ...] = ()
    image: str = ""
    protocol: Protocol | None = None
    flavor: str = ""
    units_per_replica: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    startup_timeout: timedelta | None = None
    drain_timeout: timedelta | None = None
    digest: str = ""

    def complete(self) -> ServingSpec:
        """Returns the spec with its defaults written out and its digest."""
        filled = replace(
            self,
            protocol=self.protocol or Protocol.OPEN_INFERENCE_V2_GRPC,
            units_per_replica=self.units_per_replica or 1,
            startup_timeout=DEFAULT_STARTUP_TIMEOUT if self.startup_timeout is None else self.startup_timeout,
            drain_timeout=DEFAULT_DRAIN_TIMEOUT if self.drain_timeout is None else self.drain_timeout,
        )
        return replace(filled, digest=digest(filled))


def digest(spec: ServingSpec) -> str:
    """Returns what approvals are bound to: SHA-256 over a spec whose defaults are written out, as "sha256:<hex>".

    The canonical form is JSON with sorted keys and without spaces. A field that is added to the spec later must be left
    out of it while unset, so that the digests of older models stay what they are.
    """
    if spec.protocol is None or spec.startup_timeout is None or spec.drain_timeout is None:
        raise ValueError("the digest is over a complete spec")
    canonical = {
        "artifact": spec.artifact,
        "command": list(spec.command),
        "image": spec.image,
        "protocol": spec.protocol.name,
        "flavor": spec.flavor,
        "units_per_replica": spec.units_per_replica,
        "environment": dict(spec.environment),
        "startup_timeout_us": spec.startup_timeout // timedelta(microseconds=1),
        "drain_timeout_us": spec.drain_timeout // timedelta(microseconds=1),
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShare:
    """One model's share of a route's traffic."""

    model: str
    share_basis_points: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSplit:
    """The split of one route's traffic. The order of the shares is the order of the split key's ranges."""

    region: str
    shares: tuple[ModelShare, ...] = ()
