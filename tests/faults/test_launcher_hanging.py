"""Others that accept a call and never answer it: the launch says so, and its deadlines go on."""

from __future__ import annotations

from argparse import Namespace

from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.launcher.clients import AgentClients
from tests.support.black_hole import black_hole
from tests.support.launcher import launcher_fleet
from tests.support.wait import until

# Half of it is a second: no call may use that up.
_SHORT_LEASE = Namespace(lease_seconds=2.0)


async def test_a_judge_that_hangs_gives_an_error_that_is_written_down(database_url: str) -> None:
    async with (
        black_hole() as stability,
        launcher_fleet(database_url, stability_address=stability, options=_SHORT_LEASE) as fleet,
    ):
        await fleet.create(gate=True)

        async def judged() -> pb.Launch | None:
            launch = await fleet.get()
            return launch if len(launch.gate_verdicts) >= 2 else None

        launch = await until(judged, 20)
        assert {verdict.verdict for verdict in launch.gate_verdicts} == {serving_pb2.ERROR}
        assert "could not be asked" in launch.gate_verdicts[0].explanation
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
