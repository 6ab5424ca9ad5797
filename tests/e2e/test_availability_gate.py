"""The availability gate on what really serves: replicas behind Envoy that are slow, that fail, or that do neither."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from modelfleet.cli import main
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2
from tests.support.chance import chosen
from tests.support.wait import until
from tests.support.whole import OLD, TYPE, Whole, whole

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
CANDIDATE = f"{TYPE}/models/candidate"


@dataclass(frozen=True)
class Case:
    """A candidate: how its servers behave, and what becomes of its launch.

    Args:
        name: of the case.
        flags: of its servers (`tests/support/oip_server.py`).
        rate: of the route, requests a second. Latencies are compared from 1,000 requests on each side on.
        bake: seconds of each step.
        shown: what `launch describe` says of the verdict that decides, its figures among it.
    """

    name: str
    flags: tuple[str, ...]
    rate: float
    bake: float
    shown: tuple[str, ...]

    @property
    def state(self) -> launcher_pb2.Launch.State.ValueType:
        """How its launch ends."""
        return launcher_pb2.Launch.ROLLED_BACK if self.flags else launcher_pb2.Launch.SUCCEEDED


CASES = [
    Case("slow", ("--delay", "0.5"), 250.0, 20.0, ("FAIL", "where 50% more are allowed", "slow_looks 3")),
    Case(
        "failing",
        ("--error-rate", "0.3"),
        120.0,
        8.0,
        ("FAIL", "where at most 5 % may fail", "candidate.error_rate.low 0."),
    ),
    Case("good", (), 120.0, 4.0, ("PASS", "of the candidate 0 of", "candidate.error_rate 0,")),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in chosen(CASES, 1)])
async def test_a_candidate_is_judged_by_how_its_replicas_answer_beside_the_baselines(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    async with whole() as everything:
        await everything.register(old=2, spare=2)
        await everything.add_model(CANDIDATE, 2, *case.flags)
        first = await everything.ended(await everything.launch(OLD, "first"))
        assert first.state == launcher_pb2.Launch.SUCCEEDED, first.summary
        before = len(await everything.effects())
        async with everything.traffic(case.rate) as traffic:
            await until(lambda: traffic.answered[OLD] > 20)
            name = await everything.launch(CANDIDATE, "judged", max_step=5_000, bake=case.bake)
            launch = await everything.ended(name, timeout=200)
        assert launch.state == case.state, launch.summary
        assert await everything.broken_promises(launch, before) == []
        assert not traffic.failed or case.name == "failing", "whatever failed was the candidate's"

        shown = await _described(everything, name, capsys)
        assert all(figure in shown for figure in case.shown), shown
        # At the first step, where both sides have half of the traffic.
        decided = [verdict for verdict in launch.gate_verdicts if verdict.step == 1][-1]
        assert (decided.gate, decided.region) == ("availability", "regions/local")
        assert decided.figures["baseline.requests"] > 0 and decided.figures["baseline.errors"] == 0
        model_type = await everything.client.registry.get_model_type(name=TYPE)
        if case.flags:
            assert launch.abort.author == "gate/availability" and launch.current_step == 1
            assert decided.verdict == serving_pb2.FAIL
            assert model_type.baseline == OLD
        else:
            assert decided.verdict == serving_pb2.PASS
            assert model_type.baseline == CANDIDATE


async def _described(everything: Whole, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What people are shown of a launch, on one line."""
    capsys.readouterr()
    told = ["launch", "describe", name.removeprefix("launches/"), "--address", everything.system.address]
    assert await asyncio.to_thread(main, told) == 0
    return " ".join(capsys.readouterr().out.split())
