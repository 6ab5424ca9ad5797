"""What Envoy shall do, as a pure function of targets and replicas; `envoy_config.py` puts it into Envoy's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from modelfleetd import names
from modelfleetd.node.domain import Phase, Replica, Target, available, by_target, model_names
from modelfleetd.platform.model import ModelShare, TargetKind
from modelfleetd.platform.rules import effective_shares

_ROUTED = (Phase.READY, Phase.AVAILABLE, Phase.DRAINING)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One replica's port on this machine. A draining one keeps its running requests and gets no new ones."""

    port: int
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """The replicas of one model of a target."""

    target: str
    model: str
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def id(self) -> str:
        """Names the backend in Envoy: target, type and model, in the characters of ids and slashes."""
        (target,) = names.TARGET.parse(self.target)
        return "/".join((target, *names.MODEL.parse(self.model)))

    @property
    def split_cluster(self) -> str:
        """The cluster for the route's own traffic."""
        return f"split/{self.id}"

    @property
    def direct_cluster(self) -> str:
        """The cluster for requests that name the model."""
        return f"direct/{self.id}"

    @property
    def endpoints_file(self) -> str:
        """The file of its endpoints; ids hold no dots, so names cannot collide."""
        return f"endpoints.{self.id.replace('/', '.')}.json"


@dataclass(frozen=True, slots=True)
class Split:
    """The traffic of one target: effective shares, in order; empty where nothing can be served.

    Of so many of 100 requests a copy goes to the agent, which records them.
    """

    target: str
    shares: tuple[ModelShare, ...] = ()
    tap_percent: int = 0

    @property
    def id(self) -> str:
        """The target's id: what callers put into the model type header."""
        return names.TARGET.parse(self.target)[0]

    @property
    def unrouted_cluster(self) -> str:
        """A cluster without endpoints: counts and refuses the requests that no model can answer."""
        return f"unrouted/{self.id}"


@dataclass(frozen=True, slots=True)
class Routing:
    """Everything that Envoy shall do."""

    backends: tuple[Backend, ...] = ()
    splits: tuple[Split, ...] = ()


def routing_of(
    targets: Iterable[Target], replicas: Sequence[Replica], taps: Mapping[str, int] = MappingProxyType({})
) -> Routing:
    """What Envoy shall do now: every model that is desired or has replicas, and the effective shares of routes.

    Of the targets in `taps` requests are copied to the agent, so many of 100.
    """
    backends: list[Backend] = []
    splits: list[Split] = []
    of_target = by_target(replicas)
    for target in sorted(targets, key=lambda target: target.name):
        if target.kind is None:
            continue
        own = of_target.get(target.name, [])
        for model in model_names(target, own):
            endpoints = tuple(
                Endpoint(replica.port, draining=replica.phase is Phase.DRAINING)
                for replica in own
                if replica.model == model and replica.phase in _ROUTED
            )
            backends.append(Backend(target.name, model, endpoints))
        if target.kind is TargetKind.ROUTE:
            splits.append(Split(target.name, shares_of(target, own), taps.get(target.name, 0)))
    return Routing(tuple(backends), tuple(splits))


def shares_of(target: Target, replicas: Sequence[Replica]) -> tuple[ModelShare, ...]:
    """The shares that Envoy is really given."""
    return effective_shares(target.wanted.shares, lambda model: available(target.name, model, replicas))
