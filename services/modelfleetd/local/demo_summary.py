"""How the demo ended: what the launch did and took, and whether it is what the scenario promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet import AsyncClient
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.platform.v1 import platform_pb2
from modelfleet.registry.v1 import registry_pb2
from modelfleet.services import AsyncPlatform
from modelfleetd.local import demo_fleet as fleet
from modelfleetd.local.demo_screen import metrics_of
from modelfleetd.local.demo_watch import Picture

_PHASES = ("ESTIMATING", "PREPARING", "SHIFTING", "FINALIZING")
_STARTED, _GONE = platform_pb2.Effect.REPLICA_STARTED, platform_pb2.Effect.REPLICA_TERMINATED
_FAILED, _LOST = platform_pb2.Effect.REPLICA_FAILED, platform_pb2.Effect.REPLICA_LOST


@dataclass(slots=True)
class Summary:
    """The end of a scenario, as numbers."""

    scenario: str
    state: str
    summary: str
    reason: str
    """Why it went back; empty where it did not."""
    steps: list[str]
    phases: dict[str, float]
    """Seconds in each state, in the order of entry."""
    hold_units: int
    peak_units: int
    """Most replicas that existed at one time during the launch, by the agent's ledger."""
    replicas: dict[str, dict[str, int]]
    """By model: replicas started, ended, and running at the end."""
    requests: dict[str, int]
    failed_requests: int
    failures: dict[str, int]
    impressions: int
    clicks: int
    passes: int
    evidence: dict[str, str]
    """Calibration and NE of each model over the whole time, with their 99 % intervals."""
    rejected_rows: dict[str, int]
    revision: int
    changes: list[str]
    """The registry's last revision, field by field."""
    baseline: str
    trace_id: str
    kills: list[str] = field(default_factory=list)
    missed_kills: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    """What is not as promised; empty: everything is."""

    def as_dict(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


async def summarize(
    client: AsyncClient, address: str, scenario: str, launch: launcher_pb2.Launch, picture: Picture
) -> Summary:
    """Reads what the ledgers say of a launch that has ended."""
    effects = await _effects(address)
    model_type = await client.registry.get_model_type(name=fleet.TYPE)
    changes = await _changes(client, launch.revision)
    counts = picture.traffic.counts
    plan = next(iter(launch.plan.regions), launcher_pb2.RegionPlan())
    return Summary(
        scenario=scenario,
        state=launcher_pb2.Launch.State.Name(launch.state),
        summary=launch.summary,
        reason=f"{launch.abort.author}: {launch.abort.reason}" if launch.HasField("abort") else "",
        steps=[_step(step) for step in plan.steps],
        phases=_phases(launch),
        hold_units=plan.hold_units,
        peak_units=peak(effects, launch.create_time),
        replicas=_replicas(effects),
        requests={model.rpartition("/")[2]: number for model, number in counts.served.items()},
        failed_requests=counts.failed,
        failures=dict(counts.failures),
        impressions=counts.impressions,
        clicks=counts.clicks,
        passes=counts.passes,
        evidence={model.rpartition("/")[2]: metrics_of(point) for model, point in picture.points.items()},
        rejected_rows=dict(picture.evidence.rejected),
        revision=launch.revision,
        changes=changes,
        baseline=model_type.baseline,
        trace_id=launch.trace_id,
    )


def deviations(summary: Summary) -> list[str]:
    """Returns what is not as the scenario promises, a sentence each."""
    good = summary.scenario != "miscalibrated"
    state, baseline = ("SUCCEEDED", fleet.CANDIDATE) if good else ("ROLLED_BACK", fleet.BASELINE)
    loser = fleet.BASELINE if good else fleet.CANDIDATE
    found = []
    if summary.state != state:
        found.append(f"The launch ended as {summary.state}, not as {state}: {summary.reason or summary.summary}")
    if summary.baseline != baseline:
        found.append(f"The registry's baseline is {summary.baseline}, not {baseline}.")
    if summary.failed_requests:
        found.append(f"{summary.failed_requests} requests failed: {summary.failures}.")
    if summary.peak_units > summary.hold_units:
        found.append(f"{summary.peak_units} replicas existed at one time; the launch held {summary.hold_units}.")
    if running := summary.replicas.get(loser, {}).get("running", 0):
        found.append(f"{running} replicas of {loser} are still there.")
    if not good and not summary.reason.startswith("gate/"):
        found.append(f"It was not the gate that sent it back, but: {summary.reason}")
    if not good and summary.revision:
        found.append(f"The registry was changed by revision {summary.revision}.")
    if summary.scenario == "crash":
        alive = [phase for phase in _PHASES if not any(kill.startswith(phase) for kill in summary.kills)]
        found += [f"{phase} passed too fast: the launcher was not killed in it." for phase in alive]
    return found


def peak(effects: Sequence[platform_pb2.Effect], since: Timestamp) -> int:
    """Returns the most replicas that existed at one time from a moment on; a replica exists until it has ended."""
    moment = since.ToDatetime(UTC)
    alive: set[str] = set()
    most = 0
    for effect in effects:
        if effect.kind == _STARTED:
            alive.add(effect.replica)
        elif effect.kind in {_GONE, _FAILED}:
            alive.discard(effect.replica)
        if effect.time.ToDatetime(UTC) >= moment:
            most = max(most, len(alive))
    return most


async def _effects(address: str) -> list[platform_pb2.Effect]:
    agent = AsyncPlatform(address)
    found: list[platform_pb2.Effect] = []
    try:
        while True:
            after = found[-1].sequence if found else 0
            page = await agent.list_effects(after_sequence=after, page_size=1000)
            found.extend(page.effects)
            if not page.more:
                return found
    finally:
        await agent.close()


async def _changes(client: AsyncClient, number: int) -> list[str]:
    if not number:
        return []
    revision = await client.registry.get_revision(name=f"revisions/{number}")
    return [_change(change.resource, field) for change in revision.changes for field in change.fields]


def _change(resource: str, field: registry_pb2.FieldChange) -> str:
    before, after = (_plain(MessageToDict(value)) for value in (field.before, field.after))
    return f"{resource.rpartition('/')[2]}.{field.path}: {before} → {after}"


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value.rpartition("/")[2]
    if isinstance(value, list):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _step(step: launcher_pb2.Step) -> str:
    return (
        f"step {step.number}: {step.share_basis_points / 100:.0f} % to {step.new_replicas} new replicas, "
        f"{step.old_replicas_before} → {step.old_replicas_after} old ones, peak {step.peak_units}"
    )


def _phases(launch: launcher_pb2.Launch) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for phase in launch.phase_times:
        if phase.HasField("end_time"):
            length = phase.end_time.ToDatetime() - phase.start_time.ToDatetime()
            state = launcher_pb2.Launch.State.Name(phase.state)
            seconds[state] = seconds.get(state, 0.0) + length.total_seconds()
    return {name: round(length, 1) for name, length in seconds.items()}


def _replicas(effects: Sequence[platform_pb2.Effect]) -> dict[str, dict[str, int]]:
    ledger: dict[str, dict[str, int]] = {}
    for effect in effects:
        if effect.kind in {_STARTED, _GONE, _FAILED, _LOST}:
            model = ledger.setdefault(effect.model, {"started": 0, "ended": 0, "lost": 0, "running": 0})
            model["started"] += effect.kind == _STARTED
            model["ended"] += effect.kind in {_GONE, _FAILED}
            model["lost"] += effect.kind == _LOST
            model["running"] = model["started"] - model["ended"]
    return ledger
