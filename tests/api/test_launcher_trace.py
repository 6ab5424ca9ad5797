"""One trace for each launch: its tree, also when the launcher was restarted in the middle of it."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.trace.v1 import trace_pb2

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.launcher.domain.record import Verdict
from tests.support.launcher import another_launcher, launcher_fleet
from tests.support.otlp import Collector, collector
from tests.support.servers import client_of
from tests.support.wait import until


def _parents(received: Collector, trace: bytes) -> dict[str, set[str]]:
    """The names of the parents of each span of the trace, by its name."""
    spans = [span for span in received.spans if span.trace_id == trace]
    names = {span.span_id: span.name for span in spans}
    found: dict[str, set[str]] = {}
    for span in spans:
        found.setdefault(span.name, set()).add(names.get(span.parent_span_id, "?" if span.parent_span_id else ""))
    return found


async def test_a_launch_is_one_tree_across_services_and_restarts(database_url: str) -> None:
    async with collector() as received:
        export = {"otlp_endpoint": received.endpoint, "trace_ratio": 0.0}
        async with launcher_fleet(database_url, old=10, new=8, everywhere=export, launcher=False) as fleet:
            async with another_launcher(fleet, **export) as first, client_of(first) as client:
                request = fleet.request(bake=1.0, gate=True, policy=pb.LaunchPolicy(max_step_basis_points=5_000))
                await client.launcher.create_launch(launch_id="l1", launch=request)

                async def baking() -> bool:
                    launch = await client.launcher.get_launch(name="launches/l1")
                    return any(condition.reason == "Baking" for condition in launch.conditions)

                await until(baking, 20)
            async with another_launcher(fleet, **export) as second, client_of(second) as client:
                fleet.launcher, fleet.client.launcher = second, client.launcher
                launch = await fleet.reaches(pb.Launch.SUCCEEDED)
                trace = bytes.fromhex(launch.trace_id)
                await until(lambda: "launch" in _parents(received, trace), 20)
        parents = _parents(received, trace)
    assert parents["launch"] == {""}
    for phase in ("PENDING", "ESTIMATING", "PREPARING", "SHIFTING", "FINALIZING"):
        assert parents[f"phase {phase}"] == {"launch"}
    assert parents["step 1"] == parents["step 2"] == {"phase SHIFTING"}
    assert parents["gate stability"] == {"step 1", "step 2"}
    assert parents["wait Baking"] == {"step 1", "step 2"}
    assert parents["call shift"] == {"step 1", "step 2"}
    assert parents["call finalize"] == {"phase FINALIZING"}
    # What the other services did hangs below the call that asked for it.
    assert parents["modelfleet.registry.v1.RegistryService/FinalizeLaunch"] == {"call finalize"}
    assert parents["modelfleet.capacity.v1.CapacityService/CreateReservation"] == {"call reserve"}
    assert parents["modelfleet.capacity.v1.CapacityService/CreateEstimate"] == {"call estimate"}
    spans = [span for span in received.spans if span.trace_id == trace]
    assert len({span.span_id for span in spans}) == len(spans)
    (root,) = received.named("launch")
    own = [span for span in spans if not span.name.startswith("modelfleet.")]
    assert all(span.start_time_unix_nano >= root.start_time_unix_nano for span in own)
    assert all(span.end_time_unix_nano <= root.end_time_unix_nano for span in own)


async def test_approvals_gates_and_the_way_back_are_told_with_links_to_those_who_asked(database_url: str) -> None:
    async with collector() as received:
        export: dict[str, Any] = {"otlp_endpoint": received.endpoint, "trace_ratio": 1.0}
        async with launcher_fleet(database_url, old=10, new=8, everywhere=export, **export) as fleet:
            approval = pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED, max_step_basis_points=5_000)
            fleet.judge.verdicts = [Verdict.PASS, Verdict.FAIL]
            await fleet.create(bake=0.3, gate=True, policy=approval)
            waiting = await fleet.reaches(pb.Launch.AWAITING_APPROVAL)
            await fleet.approve(waiting.envelope.digest)
            launch = await fleet.reaches(pb.Launch.ROLLED_BACK)
            trace = bytes.fromhex(launch.trace_id)
            await until(lambda: "launch" in _parents(received, trace), 20)
            asked = "modelfleet.launcher.v1.LauncherService/ApproveLaunch"
            await until(lambda: any(span.status.code != 2 for span in received.named(asked)), 20)
        parents = _parents(received, trace)
    assert parents["verb Created"] == {"phase PENDING"}
    assert parents["verb Approved"] == {"phase AWAITING_APPROVAL"}
    assert parents["wait AwaitingApproval"] == {"phase AWAITING_APPROVAL"}
    # The approver's request is a trace of its own.
    (approved,) = received.named("verb Approved")
    (link,) = approved.links
    requests = {(span.trace_id, span.span_id) for span in received.named(asked)}
    assert (link.trace_id, link.span_id) in requests and link.trace_id != trace
    assert _attributes(approved)["modelfleet.actor"] == "carol"

    (back,) = received.named("phase ROLLING_BACK")
    assert _attributes(back)["modelfleet.author"] == "gate/stability"
    told = [event.name for event in back.events]
    assert told[0] == "StateChanged" and "WeightReturned" in told and told[-1] == "CapacityReleased"
    steps = [*received.named("step 1"), *received.named("step 2")]
    told = [event.name for step in steps for event in step.events]
    assert {"ReplicasStarted", "WeightShifted", "BakeBegan", "GateJudged"} <= set(told)
    verdicts = {_attributes(span)["modelfleet.verdict"] for span in received.named("gate stability")}
    assert verdicts == {"PASS", "FAIL"}
    for span in (back, *steps):
        assert all(
            span.start_time_unix_nano <= event.time_unix_nano <= span.end_time_unix_nano for event in span.events
        )


def _attributes(span: trace_pb2.Span) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in span.attributes}
