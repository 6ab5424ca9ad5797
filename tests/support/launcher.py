"""The launcher with real registry, capacity and stability behind it, on one database, and a simulated platform."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import permission_pb2, serving_pb2
from modelfleet.errors import ModelfleetError, PermissionDenied
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.app import build as build_capacity
from modelfleetd.clock import SystemClock
from modelfleetd.kit.app import Service
from modelfleetd.kit.db import Database
from modelfleetd.launcher import app, migrations
from modelfleetd.launcher.clients import CapacityClient, RegistryClient, StabilityClient
from modelfleetd.launcher.domain.policy import StabilityGate
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.observer import Observer
from modelfleetd.launcher.ports import Judgement, World
from modelfleetd.launcher.store import Store
from modelfleetd.launcher.webhooks import Webhooks
from modelfleetd.platform.base import Platform
from modelfleetd.platform.ledger import Promise, Violation, peak, violations
from modelfleetd.platform.model import DesiredModel, DesiredServing, Fence, ModelShare, ServingSpec, TargetKind
from modelfleetd.platform.simulator import Behaviour, Simulator
from modelfleetd.registry.app import build as build_registry
from tests.support.servers import client_of, running
from tests.support.wait import until

CTR, TARGET, POOL, CPU = "modelTypes/ctr", "targets/ctr", "pools/feed", "flavors/cpu"
OLD, NEW = f"{CTR}/models/old", f"{CTR}/models/new"
EU, US = "regions/eu", "regions/us"
PEAK_QPS = 1_000.0
ENDED = {pb.Launch.SUCCEEDED, pb.Launch.ROLLED_BACK, pb.Launch.CANCELLED, pb.Launch.FAILED}
# Machines that do in milliseconds what real ones do in seconds.
QUICK = Behaviour(
    start_seconds=(0.01, 0.05),
    terminate_seconds=(0.01, 0.03),
    acknowledge_seconds=(0.01, 0.03),
    retry_seconds=0.05,
    requests_per_second=2_000,
)
SPEC = ServingSpec(command=("serve", "{port}"), flavor=CPU)


class WrongClock(SystemClock):
    """The machine's clock as it goes where somebody has set it wrong; its monotonic one began some other time."""

    def __init__(self, off: timedelta) -> None:
        self._off = off

    def now(self) -> datetime:
        return super().now() + self._off

    def monotonic(self) -> float:
        return super().monotonic() + 10 * self._off.total_seconds()


@dataclass
class Platforms:
    """The agents, by address; each is simulated."""

    agents: dict[str, Platform] = field(default_factory=dict)

    def at(self, address: str) -> Platform:
        return self.agents[address]


@dataclass
class Judge:
    """Says what the test wants: the real one needs traffic with labels. The last verdict is repeated."""

    verdicts: list[Verdict] = field(default_factory=lambda: [Verdict.PASS])
    asked: list[datetime] = field(default_factory=list)

    async def judge(self, model: str, baseline: str, since: datetime, gate: StabilityGate) -> Judgement:
        self.asked.append(since)
        verdict = self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]
        return Judgement(verdict, f"the test says {verdict.name}", {"click.calibration": 1.01})


@dataclass
class Fleet:
    """Everything that a test of the launcher speaks to."""

    client: AsyncClient
    launcher: Service
    simulator: Simulator
    judge: Judge
    platforms: Platforms
    services: dict[str, Service]
    database_url: str
    began: int = 0
    # Whom a launch may name as a gate.
    webhooks: Webhooks | None = None
    # Requests that nobody answered before there was anybody.
    unrouted: int = 0

    async def serve_old(self, replicas: int, route: str = CTR, pool: str = POOL) -> None:
        """Has the baseline serve everything, as before any launch, and books what it uses."""
        old, target = f"{route}/models/old", f"targets/{route.rpartition('/')[2]}"
        models = (DesiredModel(old, SPEC, replicas),)
        for agent in self.platforms.agents.values():
            await agent.apply(target, TargetKind.ROUTE, Fence(1, f"before {route}"), DesiredServing(models))

            async def up(agent: Platform = agent) -> bool:
                return (await agent.observe(target)).model(old).available_replicas == replicas

            await until(up)
            shares = (ModelShare(old, 10_000),)
            traffic = Fence(1, f"before {route}, traffic")
            await agent.apply(target, TargetKind.ROUTE, traffic, DesiredServing(models, shares))

            async def split(agent: Platform = agent) -> bool:
                return (await agent.observe(target)).model(old).acknowledged_basis_points == 10_000

            await until(split)
        regions = list((await self.client.registry.get_model_type(name=route)).regions)
        await self.client.registry.adopt_serving(
            model_type=route,
            role_changes=[registry_pb2.RoleChange(model=old, role=registry_pb2.Model.BASELINE)],
            splits=[
                serving_pb2.RegionSplit(
                    region=region, shares=[serving_pb2.ModelShare(model=old, share_basis_points=10_000)]
                )
                for region in regions
            ],
        )
        await self.client.capacity.book_usage(
            pool=pool,
            usages=[
                capacity_pb2.ModelUnits(model=old, flavor=CPU, region=region, units=replicas) for region in regions
            ],
        )
        self.began = len(self.simulator.ledger)
        self.unrouted = (await self.simulator.observe(TARGET)).unrouted_errors

    def request(self, *, bake: float = 0.2, gate: bool = False, **fields: Any) -> pb.Launch:
        """A launch of the new model."""
        policy = pb.LaunchPolicy(stability_gate=pb.StabilityGate(disabled=not gate))
        if gate:
            policy.stability_gate.criteria.add(prediction="click")
        policy.bake_duration.FromTimedelta(timedelta(seconds=bake))
        policy.MergeFrom(fields.pop("policy", pb.LaunchPolicy()))
        given: dict[str, Any] = {"model_type": CTR, "candidate": NEW, "pool": POOL}
        return pb.Launch(policy=policy, strategy=pb.Launch.REPLACE_BASELINE, **(given | fields))

    async def create(self, launch_id: str = "l1", *, queue: bool = False, **fields: Any) -> str:
        """Creates a launch and returns its name."""
        made = await self.client.launcher.create_launch(launch_id=launch_id, launch=self.request(**fields), queue=queue)
        return made.name

    async def get(self, name: str = "launches/l1") -> pb.Launch:
        return await self.client.launcher.get_launch(name=name)

    async def reaches(
        self, state: pb.Launch.State.ValueType, name: str = "launches/l1", timeout: float = 30.0
    ) -> pb.Launch:
        """Waits until a launch is in a state; fails when it ends in another one."""

        async def there() -> pb.Launch | None:
            found = await self.get(name)
            if found.state == state:
                return found
            assert found.state not in ENDED, found
            return None

        reached: pb.Launch = await until(there, timeout)
        return reached

    async def waits(self, reason: str, name: str = "launches/l1", timeout: float = 30.0) -> pb.Launch:
        """Waits until a launch says that it waits for that reason."""

        async def there() -> pb.Launch | None:
            found = await self.get(name)
            assert found.state not in ENDED, found
            return found if any(c.reason == reason for c in found.conditions) else None

        reached: pb.Launch = await until(there, timeout)
        return reached

    @property
    def registry(self) -> Service:
        return self.services["registry"]

    async def bind(self, principal: str, role: str) -> None:
        """Gives somebody a role on the route's team."""
        team = await self.client.registry.get_team(name="teams/feed")
        team.role_bindings.add(role=permission_pb2.Role.Value(role), members=[principal])
        await self.client.registry.update_team(team=team)

    async def approve(self, digest: str) -> pb.Launch:
        """Somebody other than the creator approves."""
        await self.bind("carol", "APPROVER")
        async with client_of(self.registry, self.launcher, principal="carol") as carol:

            async def approved() -> pb.Launch | None:
                # For a moment, the launcher may go by the roles that it has read just before.
                with contextlib.suppress(PermissionDenied):
                    return await carol.launcher.approve_launch(name="launches/l1", envelope_digest=digest)
                return None

            launch: pb.Launch = await until(approved)
            return launch

    async def observe(self) -> None:
        """One round of the fleet's observer, now."""
        service = self.launcher
        registry, capacity = RegistryClient(service.client.registry), CapacityClient(service.client.capacity)
        world = World(registry, capacity, self.judge, self.platforms)
        database = await Database.open(self.database_url, "launcher", max_size=1)
        try:
            await Observer(Store(database), world, "a test").report_all()
        finally:
            await database.close()

    async def usage(self, region: str = EU) -> capacity_pb2.Usage:
        found = await self.client.capacity.get_pool(name=POOL)
        return next(usage for usage in found.usages if usage.region == region)

    def broken_promises(self, launch: pb.Launch) -> list[Violation]:
        """What was done against properties 1 to 3 of LAUNCH.md, by the platform's own ledger."""
        (plan,) = launch.plan.regions
        full = {NEW: plan.new_replicas_full, OLD: plan.old_replicas_full}

        def required(model: str, share: int) -> int:
            return 0 if share == 0 else max(2, -(-full[model] * share // 10_000))

        promise = Promise(TARGET, required, {CPU: plan.hold_units}, after=self.began)
        return violations(self.simulator.ledger, [promise])

    def peak(self) -> int:
        return peak(self.simulator.ledger, TARGET)


def agent(seed: int = 0, behaviour: Behaviour = QUICK, region: str = EU) -> Simulator:
    """A simulated agent on the machine's clock."""
    return Simulator(SystemClock(), seed=seed, behaviour=behaviour, region=region)


@asynccontextmanager
async def another_launcher(fleet: Fleet, **config: Any) -> AsyncIterator[Service]:
    """Runs one more launcher on the same database. The test's judge judges, unless it says where stability is."""

    async def build(service: Service) -> None:
        receivers = app.receivers_of(service)
        store = Store(await service.database("launcher", migrations), receivers.audience)
        world = World(
            RegistryClient(service.client.registry),
            CapacityClient(service.client.capacity),
            StabilityClient(service.client.stability) if "stability_address" in config else fleet.judge,
            fleet.platforms,
            fleet.webhooks or receivers.webhooks,
        )
        await app.compose(service, store, world, receivers)

    addresses: dict[str, Any] = {f"{name}_address": service.address for name, service in fleet.services.items()}
    async with running("launcher", build, fleet.database_url, **(addresses | config)) as service:
        yield service


@asynccontextmanager
async def launcher_fleet(
    database_url: str,
    *,
    old: int = 50,
    new: int = 42,
    spare: int = 10,
    behaviour: Behaviour = QUICK,
    regions: tuple[str, ...] = ("eu",),
    serving: bool = True,
    certified: tuple[str, ...] = (OLD, NEW),
    launcher: bool = True,
    everywhere: dict[str, Any] | None = None,
    prediction: dict[str, Any] | None = None,
    webhooks_asked: Webhooks | None = None,
    **config: Any,
) -> AsyncIterator[Fleet]:
    """Runs everything; registers a route whose models need so many replicas, in a pool with so many spare units."""
    shared = everywhere or {}
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(running("registry", build_registry, database_url, **shared))
        capacity = await stack.enter_async_context(
            running("capacity", build_capacity, database_url, registry_address=registry.address, **shared)
        )
        simulators = {f"{region}:1": agent(at, behaviour, f"regions/{region}") for at, region in enumerate(regions)}
        first = simulators[f"{regions[0]}:1"]
        fleet = Fleet(
            client=AsyncClient(),
            launcher=registry,
            simulator=first,
            judge=Judge(),
            platforms=Platforms(dict(simulators)),
            services={"registry": registry, "capacity": capacity},
            database_url=database_url,
            webhooks=webhooks_asked,
        )
        if launcher:
            fleet.launcher = await stack.enter_async_context(another_launcher(fleet, **(shared | config)))
        fleet.client = await stack.enter_async_context(client_of(registry, capacity, fleet.launcher))
        await _register(fleet.client, {OLD: old, NEW: new}, old + spare, regions, certified, prediction)
        if serving:
            await fleet.serve_old(old)
        yield fleet


async def _register(
    client: AsyncClient,
    replicas: dict[str, int],
    units: int,
    regions: tuple[str, ...],
    certified: tuple[str, ...],
    prediction: dict[str, Any] | None = None,
) -> None:
    await client.registry.create_team(team_id="feed", team=registry_pb2.Team(on_call="pager"))
    for region in regions:
        await client.registry.create_region(region_id=region, region=registry_pb2.Region(agent_address=f"{region}:1"))
    places = [f"regions/{region}" for region in regions]
    await client.capacity.create_flavor(flavor_id="cpu", flavor=capacity_pb2.Flavor(unit_cost=1.0))
    quotas = [capacity_pb2.Quota(flavor=CPU, region=place, nominal_units=units) for place in places]
    await client.capacity.create_pool(pool_id="feed", pool=capacity_pb2.Pool(team="teams/feed", quotas=quotas))
    await register_route(client, CTR, replicas, places, certified, prediction)


async def register_route(
    client: AsyncClient,
    route: str,
    replicas: dict[str, int],
    places: list[str],
    certified: tuple[str, ...],
    prediction: dict[str, Any] | None = None,
) -> None:
    """Registers a model type with its models, and what a replica of each carries, so that it needs so many."""
    demand = [registry_pb2.RegionDemand(region=place, peak_qps=PEAK_QPS) for place in places]
    await client.registry.create_model_type(
        model_type_id=route.rpartition("/")[2],
        model_type=registry_pb2.ModelType(
            team="teams/feed",
            regions=places,
            demand_source=registry_pb2.DemandSource(stated=demand),
            predictions=[registry_pb2.Prediction(id="click", **(prediction or {}))],
        ),
    )
    spec = serving_pb2.ServingSpec(command=["serve", "{port}"], flavor=CPU)
    for model, needed in replicas.items():
        await client.registry.create_model(
            parent=route, model_id=model.rpartition("/")[2], model=registry_pb2.Model(serving_spec=spec)
        )
        if model in certified:
            await certify(client, model, needed)


async def certify(client: AsyncClient, model: str, replicas: int) -> None:
    """States what one replica carries, such that the whole route needs so many."""
    carries = PEAK_QPS / (0.7 * 0.98 * (replicas - 0.4))
    await client.capacity.create_certificate(
        certificate=capacity_pb2.Certificate(model=model, flavor=CPU, max_qps=carries, note="for a test")
    )


@contextlib.contextmanager
def refused(reason: str) -> Iterator[pytest.ExceptionInfo[ModelfleetError]]:
    """The call inside is refused for that reason."""
    with pytest.raises(ModelfleetError) as raised:
        yield raised
    assert raised.value.reason == reason, f"{raised.value.reason}: {raised.value.message}"
