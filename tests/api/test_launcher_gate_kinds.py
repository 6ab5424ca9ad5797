"""Every kind of gate from end to end: real evidence, a simulated platform's errors and latency, a webhook, people."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import gates_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.registry.v1 import evidence_pb2, registry_pb2
from modelfleetd.clock import SystemClock
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.webhooks import Webhooks, read
from tests.support.launcher import CTR, NEW, TARGET, launcher_fleet, refused
from tests.support.wait import until

SECRET = "a secret of more than sixteen bytes"


def report(value: float) -> evidence_pb2.EvaluationReport:
    result = evidence_pb2.EvaluationResult(
        metric="f1", value=value, direction=evidence_pb2.EvaluationResult.HIGHER_IS_BETTER
    )
    made = evidence_pb2.EvaluationReport(
        suite="eval", evaluator=evidence_pb2.Evaluator(kind=evidence_pb2.Evaluator.INTERNAL), results=[result]
    )
    made.evaluate_time.GetCurrentTime()
    return made


async def test_a_launch_waits_for_its_evidence_before_it_reserves_anything(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        registry = fleet.client.registry
        rules = [evidence_pb2.EvidenceRule(id="good", metric="f1", minimum=0.7)]
        await registry.update_model_type(model_type=registry_pb2.ModelType(name=CTR, evidence_rules=rules))
        planned = await fleet.client.launcher.create_launch(launch=fleet.request(), validate_only=True)
        assert any(gate.startswith("evidence: the model type's 1 evidence rule") for gate in planned.plan.gates)
        name = await fleet.create()

        async def paused(verdict: serving_pb2.Verdict.ValueType) -> pb.Launch:
            async def there() -> pb.Launch | None:
                found = await fleet.get(name)
                said = [v for v in found.gate_verdicts if v.gate == "evidence"]
                by_gate = [why.author for why in found.pause_reasons] == ["gate/evidence"]
                return found if said and said[-1].verdict == verdict and by_gate else None

            found: pb.Launch = await until(there, 30)
            return found

        lacks = await paused(serving_pb2.INCONCLUSIVE)
        assert not lacks.reservation and lacks.state == pb.Launch.PREPARING
        await registry.create_evaluation_report(parent=NEW, report_id="a", evaluation_report=report(0.6))
        # It asks again each minute; whoever resumes it need not wait so long.
        await fleet.client.launcher.resume_launch(name=name, any_author=True)
        worse = await paused(serving_pb2.FAIL)
        assert not worse.reservation
        assert worse.gate_verdicts[-1].figures["good.judged"] == pytest.approx(0.6)
        await registry.create_evaluation_report(parent=NEW, report_id="b", evaluation_report=report(0.9))
        await fleet.client.launcher.resume_launch(name=name, any_author=True)
        done = await fleet.reaches(pb.Launch.SUCCEEDED)
        assert [v.verdict for v in done.gate_verdicts if v.gate == "evidence"][-1] == serving_pb2.PASS


@pytest.mark.parametrize("fault", ["errors", "latency"])
async def test_a_candidate_that_answers_worse_than_its_baseline_goes_back(database_url: str, fault: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        if fault == "errors":
            fleet.simulator.error_rates[NEW] = 0.2
        else:
            fleet.simulator.latencies[NEW] = 50.0
            # Enough on both sides in the shortest of intervals: latencies of few requests are not compared.
            fleet.simulator.traffic(TARGET, 50_000)
        policy = pb.LaunchPolicy(stability_gate=pb.StabilityGate(max_extensions=20))
        await fleet.create(bake=1, policy=policy)
        launch = await fleet.reaches(pb.Launch.ROLLED_BACK, timeout=60)
        assert launch.abort.author == "gate/availability"
        verdict = next(v for v in launch.gate_verdicts if v.verdict == serving_pb2.FAIL)
        if fault == "errors":
            assert verdict.figures["error_rate_increase.low"] > 0.005
        else:
            assert verdict.figures["slow_looks"] == 3 and "50% more are allowed" in verdict.explanation
        assert fleet.broken_promises(launch) == []


@dataclass
class Service:
    """A service of the organisation that is asked: what it was asked, and what it says, one answer after another."""

    answers: list[tuple[int, dict[str, str]]]
    asked: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    address: str = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
        signed = hmac.new(
            SECRET.encode(), headers["modelfleet-timestamp"].encode() + b"." + body, hashlib.sha256
        ).hexdigest()
        assert headers["modelfleet-signature"] == f"sha256={signed}"
        self.asked.append((headers["modelfleet-key"], json.loads(body)))
        status, said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        content = json.dumps(said).encode()
        writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode())
        writer.write(content)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[Service]:
    server = await asyncio.start_server(service.answer, "127.0.0.1", 0)
    service.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server:
        yield service


async def test_a_webhook_is_asked_with_one_key_until_it_answers_and_its_fail_is_a_fail(
    database_url: str, tmp_path: Path
) -> None:
    answers = [(500, {}), (200, {"verdict": "PASS", "explanation": "the board agrees"})]
    async with serving(Service(answers)) as service:
        (tmp_path / "secret").write_text(SECRET)
        (tmp_path / "hooks.yaml").write_text(
            f"webhooks: [{{name: board, url: '{service.address}', secret_file: {tmp_path}/secret, "
            "gate: true, kinds: []}]"
        )
        webhooks = Webhooks(read(str(tmp_path / "hooks.yaml")), SystemClock(), 2.0)
        async with launcher_fleet(database_url, old=10, new=10, webhooks_asked=webhooks) as fleet:
            gates = [
                gates_pb2.WebhookGate(webhook="board"),
                gates_pb2.WebhookGate(webhook="board", when=gates_pb2.WebhookGate.BEFORE_FINALIZE),
            ]
            with refused("INVALID_FIELDS") as raised:
                await fleet.create("l0", policy=pb.LaunchPolicy(webhook_gates=[gates_pb2.WebhookGate(webhook="other")]))
            assert "must be one of the launcher's: board" in raised.value.message
            name = await fleet.create(policy=pb.LaunchPolicy(webhook_gates=gates))
            await fleet.reaches(pb.Launch.SHIFTING)
            service.answers = [(200, {"verdict": "FAIL", "explanation": "the audit found something"})]
            launch = await fleet.reaches(pb.Launch.ROLLED_BACK, timeout=60)
            assert launch.abort.author == "gate/webhook/board"
            assert launch.abort.reason == "the audit found something"
            keys = [key for key, _ in service.asked]
            assert len(keys) == 3 and keys[0] == keys[1] != keys[2]
            assert [document["asked"] for _, document in service.asked] == ["START", "START", "FINALIZE"]
            assert {document["launch"] for _, document in service.asked} == {name}
            said = [(v.gate, v.verdict) for v in launch.gate_verdicts if v.gate.startswith("webhook")]
            assert [verdict for _, verdict in said] == [serving_pb2.ERROR, serving_pb2.PASS, serving_pb2.FAIL]
        await webhooks.close()


async def test_a_launch_stands_until_somebody_else_has_looked_also_while_the_judge_is_away(database_url: str) -> None:
    async with launcher_fleet(database_url, old=10, new=10) as fleet:
        fleet.judge.verdicts = [Verdict.ERROR, Verdict.ERROR, Verdict.PASS]
        gate = gates_pb2.PeopleGate(after_share_basis_points=4_000, reason="the dashboards")
        await fleet.create(gate=True, policy=pb.LaunchPolicy(people_gates=[gate]))
        waits = await fleet.waits("AwaitingPeople")
        assert waits.current_step == 2 and "modelfleet launch approve l1" in waits.summary
        assert any(verb.startswith("ApproveLaunch") for verb in waits.allowed_verbs)
        with refused("SELF_APPROVAL"):
            await fleet.client.launcher.approve_launch(name=waits.name, envelope_digest=waits.envelope.digest)
        await fleet.approve(waits.envelope.digest)
        done = await fleet.reaches(pb.Launch.SUCCEEDED)
        (passed,) = done.policy.people_gates
        assert passed.approved_by == "carol" and passed.HasField("approve_time")
        assert [v.verdict for v in done.gate_verdicts if v.gate == "stability"][:3] == [
            serving_pb2.ERROR,
            serving_pb2.ERROR,
            serving_pb2.PASS,
        ]
