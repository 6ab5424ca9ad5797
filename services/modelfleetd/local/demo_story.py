"""The demo from its beginning to its end, part by part."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

from modelfleet import AsyncClient
from modelfleet.launcher.v1 import launcher_pb2
from modelfleetd.local import demo_fleet as fleet
from modelfleetd.local.demo_crash import Crashes, crash
from modelfleetd.local.demo_data import Impressions, read_logs
from modelfleetd.local.demo_evidence import Evidence
from modelfleetd.local.demo_screen import DemoScreen
from modelfleetd.local.demo_summary import Summary, deviations, summarize
from modelfleetd.local.demo_system import System, running_system
from modelfleetd.local.demo_traffic import BATCH, LABEL_DELAY_SECONDS, Traffic
from modelfleetd.local.demo_training import (
    BASELINE_FEATURES,
    CANDIDATE_FEATURES,
    TRAINING_DAYS,
    Quality,
    evaluate,
    train,
    train_miscalibrated,
)
from modelfleetd.local.demo_watch import Picture, Watch
from modelfleetd.local.refusals import CannotRun

# A day of the log in ten seconds.
COMPRESSION = 8_640.0
_TICK = 0.5
_WARM_UP_REQUESTS = 150
# After the end, to see that what was left serves.
_CALM_REQUESTS = 100


async def play(scenario: str, data_dir: Path | None, screen: DemoScreen) -> Summary:
    """Plays a scenario and returns how it ended.

    Raises:
        CannotRun: it could not begin.
    """
    screen.headline("1. Bringing everything up, and training two models meanwhile")
    with tempfile.TemporaryDirectory(prefix="modelfleet-demo-models-") as models:
        artifacts = fleet.Artifacts(Path(models) / "baseline.npz", Path(models) / "candidate.npz")
        training = asyncio.create_task(asyncio.to_thread(_train, artifacts, scenario, screen))
        try:
            async with running_system(data_dir) as system:
                screen.say(
                    f"PostgreSQL, Envoy, registry, capacity, launcher, stability and a node agent run; "
                    f"ready after {system.ready_seconds:.1f} s at {system.address}."
                )
                impressions = await training
                async with AsyncClient(system.address) as client:
                    summary = await _launch(scenario, system, client, impressions, artifacts, screen)
                screen.say("Stopping everything …")
        finally:
            await asyncio.wait({training})
    screen.say("Nothing is left running.")
    _conclude(summary, screen)
    return summary


def _train(artifacts: fleet.Artifacts, scenario: str, screen: DemoScreen) -> Impressions:
    """Trains and writes both models; returns the impressions that they were not trained on."""
    log = read_logs()
    past, future = log.split(TRAINING_DAYS)
    screen.say(
        f"Log: {len(log):,} impressions with {log.clicks} clicks. Training on the first {TRAINING_DAYS} days "
        f"({len(past):,} with {past.clicks} clicks); the other {len(future):,} will be the traffic."
    )
    baseline = train(past, BASELINE_FEATURES)
    wrong = scenario == "miscalibrated"
    candidate = train_miscalibrated(past) if wrong else train(past, CANDIDATE_FEATURES)
    baseline.save(artifacts.baseline)
    candidate.save(artifacts.candidate)
    screen.say(f"Baseline on the days to come:  {_quality(evaluate(baseline, future))}")
    screen.say(f"Candidate on the days to come: {_quality(evaluate(candidate, future))}")
    if wrong:
        screen.say(
            "The candidate was trained without three in four of the impressions that nobody clicked, uncorrected."
        )
    else:
        screen.say("So few clicks teach neither much: both are calibrated, and neither beats the base rate.")
    return future


def _quality(quality: Quality) -> str:
    return f"calibration {quality.calibration:.2f}, NE {quality.ne:.3f}, AUC {quality.auc:.3f}"


async def _launch(
    scenario: str,
    system: System,
    client: AsyncClient,
    impressions: Impressions,
    artifacts: fleet.Artifacts,
    screen: DemoScreen,
) -> Summary:
    traffic = Traffic(system.address, fleet.TYPE, impressions, COMPRESSION)
    picture = Picture(traffic, Evidence(client, fleet.TYPE, fleet.PREDICTION))
    watch = Watch(client, picture, screen.event)

    screen.headline("2. Registering the route, and bringing the baseline into service by a first launch")
    await fleet.register(client, artifacts, traffic.peak_rate)
    screen.say(
        f"{fleet.TYPE}: owned by {fleet.TEAM}, TIER2, predicts `{fleet.PREDICTION}`; "
        f"planned for {traffic.peak_rate:.0f} requests/s."
    )
    await fleet.launch_first(client)
    with screen.live(picture):
        first = await watch.until_ended(fleet.FIRST_LAUNCH, evidence=False)
    if first.state != launcher_pb2.Launch.SUCCEEDED:
        raise CannotRun(f"The baseline could not be brought into service: {first.summary}")
    picture.launch = None

    screen.headline("3. Traffic: the log's next four days")
    screen.say(
        f"{traffic.compression:,.0f} times as fast, so four days take {traffic.duration:.0f} s and then begin anew; "
        f"{traffic.mean_rate:.0f} requests/s on average, {traffic.peak_rate:.0f} at the peak, {BATCH} impressions each."
    )
    screen.say(f"Clicks follow as late labels. The log does not say how late: here {LABEL_DELAY_SECONDS} s on average.")
    crashes = Crashes()
    async with _background(traffic.run(picture.evidence), picture.evidence.run(), _ticking(screen, traffic)):
        with screen.live(picture):
            await _further(traffic, _WARM_UP_REQUESTS)
            screen.headline("4. Launching the candidate in a pool with two spare replicas")
            if scenario == "crash":
                screen.say("Registry and capacity are slowed down now and then, so that short phases can be hit.")
            async with _background(*_disturbances(scenario, client, system, crashes, screen)):
                bake = fleet.BAKE_WITH_CRASHES if scenario == "crash" else fleet.BAKE
                await fleet.launch_candidate(client, bake)
                launch = await watch.until_ended(fleet.LAUNCH)
            await _further(traffic, _CALM_REQUESTS)
    await picture.evidence.flush()
    await watch.look()
    summary = await summarize(client, system.address, scenario, launch, picture)
    summary.kills, summary.missed_kills = crashes.hit, crashes.missed if scenario == "crash" else []
    summary.deviations = deviations(summary)
    return summary


def _disturbances(
    scenario: str, client: AsyncClient, system: System, crashes: Crashes, screen: DemoScreen
) -> list[Coroutine[object, object, None]]:
    return [crash(client, system, fleet.LAUNCH, crashes, screen.event)] if scenario == "crash" else []


async def _further(traffic: Traffic, requests: int) -> None:
    """Waits until so many more requests have ended."""
    end = traffic.counts.requests + requests
    while traffic.counts.requests < end:  # noqa: ASYNC110 - a count is watched
        await asyncio.sleep(_TICK)


async def _ticking(screen: DemoScreen, traffic: Traffic) -> None:
    passes = traffic.counts.passes
    while True:
        if traffic.counts.passes != passes:
            passes = traffic.counts.passes
            screen.event(f"the log has come to its end and begins anew: replay number {passes}")
        screen.tick()
        await asyncio.sleep(_TICK)


@contextlib.asynccontextmanager
async def _background(*work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Runs work beside the block; what fails in it fails the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        yield
        for task in tasks:
            task.cancel()


def _conclude(summary: Summary, screen: DemoScreen) -> None:
    screen.headline("5. What happened")
    for line in summary_lines(summary):
        screen.say(line)
    screen.console.print()
    if summary.deviations:
        for sentence in summary.deviations:
            screen.say(f"NOT AS PROMISED: {sentence}")
        screen.say("With --data-dir the demo keeps its data and logs.")
    elif summary.scenario == "miscalibrated":
        screen.say("The gate saw it, traffic went back, nobody was harmed: the baseline is what it was.")
    else:
        screen.say("The candidate is the baseline now, and no request failed.")


def summary_lines(summary: Summary) -> list[str]:
    """Returns the summary, a line each."""
    lines = [f"{summary.state}: {summary.summary}"]
    lines += summary.steps
    lines.append("time      " + ", ".join(f"{state} {seconds:.1f} s" for state, seconds in summary.phases.items()))
    for model, ledger in summary.replicas.items():
        told = ", ".join(f"{number} {what}" for what, number in ledger.items() if number or what == "running")
        lines.append(f"replicas  {model.rpartition('/')[2]}: {told} when the launch ended")
    lines.append(f"peak      {summary.peak_units} units in use at most; {summary.hold_units} were held")
    served = ", ".join(f"{number:,} by {model}" for model, number in summary.requests.items())
    lines.append(f"requests  {served}; {summary.failed_requests} failed")
    begun = f", the log begun {summary.passes} times" if summary.passes > 1 else ""
    lines += [f"judged    {model}: {found}" for model, found in summary.evidence.items()]
    lines.append(f"evidence  {summary.impressions:,} impressions, {summary.clicks} clicks{begun}")
    if summary.rejected_rows:
        lines.append(f"rejected  {summary.rejected_rows}")
    if summary.kills:
        lines.append(f"killed    {len(summary.kills)} times: {'; '.join(summary.kills)}")
    if summary.missed_kills:
        lines.append(f"not seen  too fast to be hit: {'; '.join(summary.missed_kills)}")
    lines += [f"revision  {summary.revision}: {change}" for change in summary.changes]
    if not summary.changes:
        lines.append("registry  unchanged")
    lines.append(f"trace     {summary.trace_id}")
    return lines
