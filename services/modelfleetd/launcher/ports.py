"""What the launcher needs of the other services, in its own words. `clients.py` implements it over gRPC.

Every method may raise PartUnavailable and DeadlinePassed: the act may or may not have happened.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Protocol

from modelfleetd.launcher.domain.criteria import Declared
from modelfleetd.launcher.domain.decision import Decision
from modelfleetd.launcher.domain.hold import Hold
from modelfleetd.launcher.domain.planning import Room
from modelfleetd.launcher.domain.policy import StabilityGate
from modelfleetd.launcher.domain.record import ModelFacts, Share, Verdict
from modelfleetd.platform.base import Platform
from modelfleetd.platform.model import ServingObservation


def request_id(key: str) -> str:
    """The request_id of an act, a UUID version 4 by its form: made of its key, so a repetition sends the same."""
    return str(uuid.UUID(bytes=sha256(key.encode()).digest()[:16], version=4))


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """What the registry says of a route."""

    name: str
    team: str
    tier: str
    baseline: str
    revision: int
    regions: tuple[str, ...]
    predicts: bool
    predictions: tuple[Declared, ...] = ()
    # The regions in which a model has a share by the ledger, by model.
    shares: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # How many rules the evidence of its models is judged by.
    evidence_rules: int = 0
    # The part `surface` of its id by the naming scheme in force; empty where there is none.
    surface: str = ""


@dataclass(frozen=True, slots=True)
class SizedModel:
    """What the registry says of a model, and how a replica of it is run."""

    facts: ModelFacts
    flavor: str
    units: int
    startup: timedelta
    drain: timedelta
    role: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model needs for its whole route: by region, (replicas, fewest replicas), and peak requests a second."""

    name: str
    replicas: Mapping[str, tuple[int, int]]
    demand: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What capacity says of a pool: whose it is."""

    team: str
    # The team of the pool that it belongs to; empty where it stands alone.
    parent_team: str = ""


@dataclass(frozen=True, slots=True)
class HeldUnits:
    """Units of a flavor in a region."""

    flavor: str
    region: str
    units: int
    # What of them the launch's models use once it has succeeded; None: not said.
    end: int | None = None


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """What a launch asks capacity to hold for it.

    Attributes:
        replaced: models whose bookings move into the hold.
        takes_over: the reservation of the launch that this one takes back: what it kept for that is there for this one.
        tier: how important the route is.
        release: when the launch expects to end.
        retain: how long what a rollback needs is kept after a success.
    """

    pool: str
    launch: str
    items: Sequence[HeldUnits]
    replaced: Sequence[str]
    tier: str = ""
    release: datetime | None = None
    retain: timedelta = timedelta(0)
    attempt: int = 1
    takes_over: str = ""


@dataclass(frozen=True, slots=True)
class UsedUnits:
    """Units that one model uses of a flavor in a region."""

    model: str
    flavor: str
    region: str
    units: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judge found, with its figures by name."""

    verdict: Verdict
    explanation: str
    figures: Mapping[str, float] = field(default_factory=dict)


class Registry(Protocol):
    """The ledger."""

    async def model_type(self, name: str) -> TypeFacts:
        """Raises ReferenceNotFound."""
        ...

    async def model(self, name: str, path: str) -> SizedModel:
        """Raises ReferenceNotFound, naming the field of the request."""
        ...

    async def agent_address(self, region: str) -> str:
        """Raises ReferenceNotFound."""
        ...

    async def finalize(
        self,
        model_type: str,
        launch: str,
        key: str,
        *,
        succeeded: bool,
        expected_revision: int = 0,
        roles: Mapping[str, str] | None = None,
        splits: Mapping[str, Sequence[Share]] | None = None,
        reason: str = "",
        attempt: int = 1,
    ) -> int:
        """Ends an attempt of a launch in the ledger. Raises RevisionMismatch, LaunchEnded."""
        ...

    async def check_team(self, team: str, field: str) -> None:
        """Raises ReferenceNotFound where there is no such team."""
        ...

    async def regions(self) -> Mapping[str, str]:
        """Addresses of the agents by region."""
        ...

    async def report(self, observations: Sequence[ServingObservation]) -> None:
        """Writes what agents observe beside the ledger."""
        ...

    async def evaluate_evidence(self, model: str, baseline: str) -> Judgement:
        """Judges a model by its evidence, by the rules of its model type. Raises ResourceNotFound."""
        ...


class Capacity(Protocol):
    """Who has how much, and how much is needed."""

    async def estimate(self, model: str, key: str, *, keep: bool) -> Estimate:
        """Raises CertificateMissing, CertificateExpired, NotConfigured."""
        ...

    async def unit_cost(self, flavor: str) -> float: ...

    async def decide(self, launch: str, candidate: str, pool: str, share: int, key: str, *, keep: bool) -> Decision:
        """What the team's launch policy says of giving a candidate a share of its route.

        Raises CertificateMissing, CertificateExpired, NotConfigured, ReferenceNotFound.
        """
        ...

    async def pool(self, name: str) -> PoolFacts:
        """Raises ReferenceNotFound."""
        ...

    async def booked_elsewhere(self, model: str, pool: str, flavor: str, regions: Sequence[str]) -> str:
        """Another pool in which a model is booked where this one has nothing of it; empty where there is none."""
        ...

    async def room(
        self, pool: str, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str], *, takes_over: str = ""
    ) -> Mapping[tuple[str, str], Room]:
        """What a launch could have, by flavor and region. Raises ReferenceNotFound."""
        ...

    async def foresee(self, request: HoldRequest) -> Hold | None:
        """What a reservation would be answered, without making it; None where it would never be held."""
        ...

    async def reserve(self, request: HoldRequest, key: str) -> Hold:
        """Reserves, or gets into line. Raises QuotaExceeded where it would never be held, EndStateExceedsQuota."""
        ...

    async def hold(self, reservation: str) -> Hold:
        """What has become of a reservation. Raises ResourceNotFound."""
        ...

    async def renew(self, reservation: str, release: datetime | None, key: str) -> None:
        """Says that the holder is there, and when it expects to end; None: as it said before. Raises WrongState."""
        ...

    async def activate(self, reservation: str, key: str) -> None:
        """Raises WrongState where it has expired."""
        ...

    async def cancel(self, reservation: str, key: str) -> None: ...

    async def settle(
        self,
        reservation: str,
        usages: Iterable[UsedUnits],
        kept: Iterable[HeldUnits],
        retain: timedelta,
        key: str,
    ) -> None:
        """Books what is used from now on; of the rest `kept` stays for so long, and everything else is free at once."""
        ...

    async def release(self, reservation: str, key: str) -> None:
        """Settles as rolled back: what was moved in is booked again."""
        ...


class Stability(Protocol):
    """The judge."""

    async def judge(self, model: str, baseline: str, since: datetime, gate: StabilityGate) -> Judgement: ...


class Webhooks(Protocol):
    """Services of the organisation that are asked, by the names that the configuration gives them."""

    @property
    def gates(self) -> frozenset[str]:
        """The names of those that may be asked."""
        ...

    async def ask(self, name: str, key: str, document: Mapping[str, Any]) -> Judgement:
        """Asks one; with the same key the same question. Whatever is no clear answer is an ERROR."""
        ...


class Platforms(Protocol):
    """The agents."""

    def at(self, address: str) -> Platform: ...


@dataclass(frozen=True, slots=True)
class World:
    """Everything outside of the launcher."""

    registry: Registry
    capacity: Capacity
    stability: Stability
    platforms: Platforms
    # None: none is configured.
    webhooks: Webhooks | None = None
