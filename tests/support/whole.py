"""Everything at once, as users run it: `modelfleetd up` as a process, a route with two models, and traffic on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc.aio

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import serving_pb2
from modelfleet.errors import Cancelled, DeadlineExceeded, Unavailable
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.inference.v2 import open_inference_pb2_grpc as inference_rpc
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.registry.v1 import registry_pb2
from modelfleet.services import AsyncPlatform
from modelfleet.transport import Options
from modelfleetd.errors import PartUnavailable
from modelfleetd.local.demo_system import System, running_system
from modelfleetd.platform.client import PlatformClient
from modelfleetd.platform.ledger import Promise, Violation, peak, violations
from modelfleetd.platform.model import Effect
from tests.support.memory import memory
from tests.support.wait import until

TYPE = "modelTypes/ranker"
TARGET = "targets/ranker"
OLD, NEW = f"{TYPE}/models/old", f"{TYPE}/models/new"
REGION, FLAVOR, POOL = "regions/local", "flavors/cpu", "pools/ours"
_SERVER = Path(__file__).with_name("oip_server.py")
_ENDED = {
    launcher_pb2.Launch.SUCCEEDED,
    launcher_pb2.Launch.ROLLED_BACK,
    launcher_pb2.Launch.CANCELLED,
    launcher_pb2.Launch.FAILED,
}
# Of the estimate's defaults: highest utilisation, and machines that may be lost.
_UTILIZATION, _LOSS = 0.7, 0.02
_PEAK_QPS = 100.0


@dataclass
class Traffic:
    """What became of the requests."""

    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Whole:
    """A running system with a route on it."""

    system: System
    client: AsyncClient
    platform: PlatformClient
    # What was read of the node's ledger: it only grows.
    _ledger: list[Effect] = field(default_factory=list)

    async def register(self, *, old: int = 5, new: int = 4, spare: int = 2) -> None:
        """Registers a route whose models need so many replicas, in a pool with so many spare ones."""
        await self.client.registry.create_team(team_id="ours", team=registry_pb2.Team(on_call="pager"))
        await self.client.capacity.create_flavor(flavor_id="cpu", flavor=capacity_pb2.Flavor(unit_cost=1.0))
        quota = capacity_pb2.Quota(flavor=FLAVOR, region=REGION, nominal_units=old + spare)
        await self.client.capacity.create_pool(
            pool_id="ours", pool=capacity_pb2.Pool(team="teams/ours", quotas=[quota])
        )
        demand = registry_pb2.RegionDemand(region=REGION, peak_qps=_PEAK_QPS)
        await self.client.registry.create_model_type(
            model_type_id="ranker",
            model_type=registry_pb2.ModelType(
                team="teams/ours",
                regions=[REGION],
                demand_source=registry_pb2.DemandSource(stated=[demand]),
            ),
        )
        for model, replicas in ((OLD, old), (NEW, new)):
            await self.add_model(model, replicas)

    async def add_model(self, model: str, replicas: int, *flags: str) -> None:
        """Registers a model of which the whole route needs so many replicas."""
        command = [
            sys.executable,
            str(_SERVER),
            "--port",
            "{port}",
            "--model",
            "{model_type}",
            "--says",
            "{model}",
            *flags,
        ]
        spec = serving_pb2.ServingSpec(
            command=command, flavor=FLAVOR, environment={"PYTHONPATH": os.pathsep.join(sys.path)}
        )
        spec.drain_timeout.FromTimedelta(timedelta(seconds=3))
        spec.startup_timeout.FromTimedelta(timedelta(seconds=30))
        await self.client.registry.create_model(
            parent=TYPE, model_id=model.rsplit("/", 1)[1], model=registry_pb2.Model(serving_spec=spec)
        )
        await self.certify(model, replicas)

    async def certify(self, model: str, replicas: int) -> None:
        """Has it measured that the whole route needs so many replicas of a model."""
        carries = _PEAK_QPS / (_UTILIZATION * (1 - _LOSS) * (replicas - 0.4))
        await self.client.capacity.create_certificate(
            certificate=capacity_pb2.Certificate(model=model, flavor=FLAVOR, max_qps=carries, note="for a test")
        )

    async def launch(
        self,
        model: str,
        launch_id: str,
        *,
        strategy: launcher_pb2.Launch.Strategy.ValueType = launcher_pb2.Launch.REPLACE_BASELINE,
        target: int = 0,
        max_step: int = 10_000,
        bake: float = 0.0,
        window: float = 0.0,
    ) -> str:
        """Starts a launch without a stability gate; gives its name. Times in seconds, shares in basis points."""
        policy = launcher_pb2.LaunchPolicy(
            max_step_basis_points=max_step, stability_gate=launcher_pb2.StabilityGate(disabled=True)
        )
        policy.bake_duration.FromTimedelta(timedelta(seconds=bake))
        policy.rollback_window.FromTimedelta(timedelta(seconds=window))
        policy.step_deadline.FromTimedelta(timedelta(minutes=2))
        made = await self.client.launcher.create_launch(
            launch_id=launch_id,
            launch=launcher_pb2.Launch(
                model_type=TYPE,
                candidate=model,
                strategy=strategy,
                target_share_basis_points=target,
                pool=POOL,
                policy=policy,
            ),
        )
        return made.name

    async def ended(self, name: str, timeout: float = 90.0) -> launcher_pb2.Launch:
        """Waits for the end of a launch, whoever dies meanwhile."""
        found: launcher_pb2.Launch | None = None

        async def over() -> bool:
            nonlocal found
            with contextlib.suppress(Unavailable, DeadlineExceeded, Cancelled):
                found = await self.client.launcher.get_launch(name=name, timeout=2.0)
            return found is not None and found.state in _ENDED

        await until(over, timeout=timeout)
        assert found is not None
        return found

    def kill(self, part: str) -> bool:
        """Kills a part with SIGKILL; whether it was there to be killed."""
        process = self.system.process(part)
        if process is None:
            return False
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    async def _answers(self) -> bool:
        with contextlib.suppress(PartUnavailable):
            await self.platform.agent()
            return True
        return False

    async def effects(self) -> list[Effect]:
        """The node's whole ledger; a node that was just killed is waited for."""
        await until(self._answers, timeout=20)
        while True:
            page = await self.platform.effects(self._ledger[-1].sequence if self._ledger else 0)
            self._ledger.extend(page.effects)
            if not page.more:
                return list(self._ledger)

    async def broken_promises(
        self, launch: launcher_pb2.Launch, after: int, *next_ones: launcher_pb2.Launch, beside: int = 0
    ) -> list[Violation]:
        """What a launch, and those that followed it on the route, did against LAUNCH.md's properties 1 to 3, by the
        ledger from a position on; with units of what else was on the route.
        """
        full: dict[str, int] = {}
        hold_units = 0
        for each in (launch, *next_ones):
            (plan,) = each.plan.regions
            pair = (each.candidate, each.baseline)
            # Of an experiment that ends, the baseline is the side that grows.
            rising, falling = reversed(pair) if each.strategy == launcher_pb2.Launch.END_EXPERIMENT else pair
            full |= {rising: plan.new_replicas_full, falling: plan.old_replicas_full}
            hold_units = max(hold_units, plan.hold_units + beside)
        if launch.strategy == launcher_pb2.Launch.RESIZE:
            # One that is to grow is not charged for having been short.
            first = next(effect.desired for effect in reversed((await self.effects())[:after]) if effect.desired)
            running = {model.model: model.replicas for model in first.models}
            full = {model: min(full.get(model, replicas), replicas) for model, replicas in running.items()}

        def required(model: str, share: int) -> int:
            return 0 if share == 0 else max(2, -(-full[model] * share // 10_000))

        promise = Promise(TARGET, required, {FLAVOR: hold_units}, after=after)
        return violations(await self.effects(), [promise])

    async def most_units(self) -> int:
        """Most units that ever existed on the route at once."""
        return peak(await self.effects(), TARGET)

    @asynccontextmanager
    async def traffic(self, rate: float = 60.0) -> AsyncIterator[Traffic]:
        """Sends requests to the route, open loop, until the block ends."""
        agent = await self.platform.agent()
        counts = Traffic()
        async with grpc.aio.insecure_channel(agent.traffic_address) as channel, asyncio.TaskGroup() as tasks:
            stub = inference_rpc.GRPCInferenceServiceStub(channel)

            async def one() -> None:
                request = inference.ModelInferRequest(model_name="ranker")
                call = stub.ModelInfer(request, metadata=(("x-modelfleet-model-type", "ranker"),), timeout=10.0)
                try:
                    answer = await call
                    counts.answered[answer.outputs[0].contents.bytes_contents[0].decode()] += 1
                except grpc.aio.AioRpcError as error:
                    counts.failed[f"{error.code().name}: {error.details()}"] += 1

            async def send() -> None:
                loop = asyncio.get_running_loop()
                due = loop.time()
                while True:
                    tasks.create_task(one())
                    due += 1.0 / rate
                    await asyncio.sleep(max(0.0, due - loop.time()))

            sending = tasks.create_task(send())
            try:
                yield counts
            finally:
                sending.cancel()


@asynccontextmanager
async def whole() -> AsyncIterator[Whole]:
    """Starts everything in a folder of its own, and ends it."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="modelfleet-tests-", dir=memory()))
        system = await stack.enter_async_context(running_system(Path(folder)))
        client = await stack.enter_async_context(AsyncClient(system.address))
        region = await client.registry.get_region(name=REGION)
        agent = AsyncPlatform(region.agent_address, Options(timeout=10.0))
        stack.push_async_callback(agent.close)
        yield Whole(system, client, PlatformClient(agent))
