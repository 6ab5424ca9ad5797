"""Others that accept a call and never answer it: the launch says so, and its deadlines go on."""

from __future__ import annotations

import asyncio
from argparse import Namespace

from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import StaleEpoch
from modelfleetd.launcher.clients import AgentClients
from modelfleetd.platform.model import Applied, DesiredServing, Fence, ServingObservation, TargetKind
from modelfleetd.platform.simulator import Simulator
from tests.support.black_hole import black_hole
from tests.support.launcher import NEW, OLD, TARGET, launcher_fleet
from tests.support.wait import until

# Half of it is a second: no call may use that up.
_SHORT_LEASE = Namespace(lease_seconds=2.0)


async def test_a_judge_that_hangs_gives_an_error_that_is_written_down(database_url: str) -> None:
    async with (
        black_hole() as stability,
        launcher_fleet(database_url, stability_address=stability, options=_SHORT_LEASE) as fleet,
    ):
        await fleet.create(gate=True)

        async def judged() -> list[pb.GateVerdict]:
            verdicts = [verdict for verdict in (await fleet.get()).gate_verdicts if verdict.gate == "stability"]
            return verdicts if len(verdicts) >= 2 else []

        verdicts = await until(judged, 20)
        assert {verdict.verdict for verdict in verdicts} == {serving_pb2.ERROR}
        assert "could not be asked" in verdicts[0].explanation
        await fleet.waits("GateErrored")


async def test_an_agent_that_hangs_is_a_condition_and_the_launch_goes_on_when_it_answers(database_url: str) -> None:
    async with black_hole() as address, launcher_fleet(database_url, options=_SHORT_LEASE) as fleet:
        await fleet.create(bake=2)
        await fleet.waits("Baking")
        (known,) = fleet.platforms.agents
        fleet.platforms.agents[known] = AgentClients(fleet.launcher.outbound.platform).at(address)
        launch = await fleet.waits("PartUnavailable")
        assert any("cannot be observed" in condition.message for condition in launch.conditions)
        fleet.platforms.agents[known] = fleet.simulator
        await fleet.reaches(pb.Launch.SUCCEEDED)


class Stalling(Simulator):
    """An agent that gives the candidate no weight before the test lets it: so the launcher stalls before acting."""

    def __init__(self, agent: Simulator) -> None:
        self._agent = agent
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self.outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def observe(self, target: str, epoch: int = 0) -> ServingObservation:
        return await self._agent.observe(target, epoch)

    async def apply(self, target: str, kind: TargetKind, fence: Fence, desired: DesiredServing) -> Applied:
        if desired.share_of(NEW) == 0 or self.reached.is_set():
            return await self._agent.apply(target, kind, fence, desired)
        self.reached.set()
        await self.go_on.wait()
        try:
            applied = await self._agent.apply(target, kind, fence, desired)
        except StaleEpoch as error:
            self.outcome.set_result(error)
            raise
        self.outcome.set_result(applied)
        return applied


async def test_after_an_abort_a_holder_that_had_stalled_gives_the_candidate_no_weight(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10, options=Namespace(lease_seconds=60.0)) as fleet:
        (known,) = fleet.platforms.agents
        agent = fleet.platforms.agents[known] = Stalling(fleet.simulator)
        await fleet.create(bake=60)
        await asyncio.wait_for(agent.reached.wait(), 20)
        await fleet.client.launcher.abort_launch(name="launches/l1", reason="it looks bad")
        agent.go_on.set()
        assert isinstance(await asyncio.wait_for(agent.outcome, 10), StaleEpoch)
        assert (await fleet.simulator.observe(TARGET)).model(NEW).acknowledged_basis_points == 0
        await fleet.reaches(pb.Launch.ROLLED_BACK)


async def test_an_abort_waits_for_no_lease_of_a_holder_that_has_stalled(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10, options=Namespace(lease_seconds=60.0)) as fleet:
        (known,) = fleet.platforms.agents
        agent = fleet.platforms.agents[known] = Stalling(fleet.simulator)
        await fleet.create(bake=60)
        await asyncio.wait_for(agent.reached.wait(), 20)
        await fleet.client.launcher.abort_launch(name="launches/l1", reason="it looks bad")
        await fleet.reaches(pb.Launch.ROLLED_BACK, timeout=20)
        seen = await fleet.simulator.observe(TARGET)
        assert {m.model: m.existing_replicas for m in seen.models if m.existing_replicas} == {OLD: 10}
        agent.go_on.set()
        assert isinstance(await asyncio.wait_for(agent.outcome, 10), StaleEpoch)
