"""Gates: which a launch has, when they are asked, and what their verdicts mean. Pure.

All gates of a point are asked together, and heard together: the order of their answers does not matter.

| verdict | during and after a bake | where nothing bakes (before the start, before the registry is told) |
| --- | --- | --- |
| PASS | the step may end once the bake is over and all have passed | the launch goes on once all have passed |
| FAIL | the launch goes back | it goes back; for want of evidence it pauses |
| INCONCLUSIVE | three bakes more, then it pauses | asked again each minute, after three times it pauses |
| ERROR, or no answer | asked again with growing pauses; the launch holds | the same |

A gate that is a dry run is asked and recorded, and what it says or fails to say changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.launcher.domain.actions import Action, Judge, Wait
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.deadlines import accounted, ask_again, postponed
from modelfleetd.launcher.domain.launch import Launch, going_back
from modelfleetd.launcher.domain.outcomes import backoff
from modelfleetd.launcher.domain.policy import When
from modelfleetd.launcher.domain.record import STABILITY, Asked, GateVerdict, PauseReason, Point, Verdict
from modelfleetd.launcher.domain.states import State

AVAILABILITY: Final = "availability"
EVIDENCE: Final = "evidence"
WEBHOOK: Final = "webhook/"
# Where nothing bakes an undecided gate is asked again so much later.
AGAIN: Final = timedelta(seconds=60)
# The worse, the further to the left: where a gate has said several things, the worst of them counts.
_WORST_FIRST: Final = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.PASS)
_POINTS: Final[Mapping[When, Point]] = {
    When.BEFORE_START: Point.START,
    When.EVERY_STEP: Point.BAKE,
    When.BEFORE_FINALIZE: Point.FINALIZE,
}


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate of a launch.

    Attributes:
        name: `stability`, `availability`, `evidence`, `webhook/NAME`.
        point: where it is asked.
        dry_run: recorded, not enforced.
        at_end: asked only once the bake is over, and not where somebody has spared the step its bake.
        unspared: has to be heard also where somebody has spared the step its bake.
        waits: what it lacks may come: a FAIL pauses instead of leading back, and a later PASS lets the launch go on.
    """

    name: str
    point: Point
    dry_run: bool = False
    at_end: bool = False
    unspared: bool = False
    waits: bool = False


def of(launch: Launch) -> tuple[Gate, ...]:
    """Every gate of a launch but the people's, in the order in which they are shown."""
    if not launch.is_judged:
        return ()
    policy = launch.policy
    found: list[Gate] = []
    if launch.evidence_rules and not policy.evidence_gate.disabled:
        waits = not policy.evidence_gate.reject
        found.append(Gate(EVIDENCE, Point.START, policy.evidence_gate.dry_run, waits=waits))
    if not policy.availability_gate.disabled:
        found.append(Gate(AVAILABILITY, Point.BAKE, policy.availability_gate.dry_run, unspared=True))
    if launch.gated:
        found.append(Gate(STABILITY, Point.BAKE, policy.stability_gate.dry_run))
    for webhook in policy.webhook_gates:
        point = _POINTS[webhook.when]
        found.append(Gate(f"{WEBHOOK}{webhook.webhook}", point, webhook.dry_run, at_end=point is Point.BAKE))
    return tuple(found)


def point_of(launch: Launch) -> Point:
    """Where gates are asked in the state that a launch is in."""
    match launch.state:
        case State.SHIFTING:
            return Point.BAKE
        case State.FINALIZING:
            return Point.FINALIZE
        case _:
            return Point.START


def spared(launch: Launch) -> str:
    """Who has spared the step its bake; empty where nobody has."""
    return launch.step.skipped_by or (launch.promoted.author if launch.promoted is not None else "")


def asked(launch: Launch, *, final: bool) -> tuple[Gate, ...]:
    """The gates that are asked now.

    Args:
        launch: in a state in which gates are asked.
        final: whether the bake is over; without a meaning elsewhere.
    """
    at_end = final and not spared(launch)
    return tuple(gate for gate in of(launch) if gate.point is point_of(launch) and (at_end or not gate.at_end))


def is_held(launch: Launch) -> bool:
    """Whether it holds because a gate could not be asked, in a way that counts against no deadline."""
    return launch.asked.held_since is not None or launch.step.held_since is not None


def key_of(launch: Launch, gate: str) -> str:
    """What one question to a gate is known by: repeated, it is the same; asked anew, it is another one."""
    region = launch.region_plan.region if launch.state is State.SHIFTING else ""
    times = launch.step.extensions if launch.state is State.SHIFTING else _at(launch, point_of(launch)).undecided
    return f"{launch.uid}/{launch.attempt}/{point_of(launch).name}/{region}/{launch.step.number}/{gate}/{times}"


# What they have said


def judged(launch: Launch, verdicts: Sequence[GateVerdict], *, final: bool, now: datetime) -> Launch:
    """The gates have answered, or could not. Nothing is ever inferred from silence.

    Args:
        launch: as it was when they were asked.
        verdicts: what was heard, in any order.
        final: whether they were asked at the bake's end: before it only a FAIL counts.
        now: when they have answered.
    """
    heard = [(gate, _worst(gate.name, verdicts)) for gate in asked(launch, final=final) if not gate.dry_run]
    failed = next((said for gate, said in heard if said and said.verdict is Verdict.FAIL and not gate.waits), None)
    erring = tuple(
        gate.name
        for gate, said in heard
        if (said is None or said.verdict is Verdict.ERROR) and (gate.unspared or not spared(launch))
    )
    undecided = [said for _, said in heard if said and said.verdict in (Verdict.INCONCLUSIVE, Verdict.FAIL)]
    if failed is not None:
        return going_back(accounted(launch, now), f"gate/{failed.gate}", failed.explanation, now)
    if launch.state is State.SHIFTING:
        return _of_bake(launch, erring, undecided, final=final, now=now)
    return _beside_bakes(launch, erring, undecided, {gate.name for gate, _ in heard if gate.waits}, now)


def _worst(gate: str, verdicts: Sequence[GateVerdict]) -> GateVerdict | None:
    said = [verdict for verdict in verdicts if verdict.gate == gate]
    return min(said, key=lambda verdict: _WORST_FIRST.index(verdict.verdict), default=None)


def _of_bake(
    launch: Launch, erring: tuple[str, ...], undecided: Sequence[GateVerdict], *, final: bool, now: datetime
) -> Launch:
    step = launch.step
    if erring:
        errors = step.gate_errors + 1
        again = now + timedelta(seconds=backoff(errors))
        since = step.held_since or now
        return replace(
            launch, step=replace(step, gate_errors=errors, next_judge=again, held_since=since, erring=erring)
        )
    launch = accounted(launch, now)
    launch = replace(launch, step=replace(launch.step, gate_errors=0, held_since=None, erring=()))
    if not launch.step.passed and launch.step.bake_start is not None:
        # Where it was held for a while, the rest of the bake is still to come.
        over = launch.bake_end is None or now >= launch.bake_end
        if spared(launch) or (final and over and not undecided):
            launch = replace(launch, step=replace(launch.step, passed=True))
        elif final and over:
            launch = _extended(launch, undecided, now)
    return ask_again(launch, now)


def _extended(launch: Launch, undecided: Sequence[GateVerdict], now: datetime) -> Launch:
    """The evidence does not suffice: it bakes longer, and in the end waits for people."""
    step, bake = launch.step, launch.policy.bake_duration
    if step.extensions < launch.policy.stability_gate.extensions:
        deadline = None if step.deadline is None else step.deadline + bake
        return replace(launch, step=replace(step, extensions=step.extensions + 1, deadline=deadline))
    return _paused_by(launch, undecided, now)


def _paused_by(launch: Launch, undecided: Iterable[GateVerdict], now: datetime) -> Launch:
    """Each gate that cannot decide has a reason to pause of its own; one that it has already stays."""
    known = {pause.author for pause in launch.pause_reasons}
    new = [
        PauseReason(f"gate/{said.gate}", said.explanation, now)
        for said in undecided
        if f"gate/{said.gate}" not in known
    ]
    if not new:
        return launch
    return replace(
        accounted(launch, now),
        pause_reasons=(*launch.pause_reasons, *new),
        paused_since=launch.paused_since or now,
    )


def _beside_bakes(
    launch: Launch, erring: tuple[str, ...], undecided: Sequence[GateVerdict], waiting: set[str], now: datetime
) -> Launch:
    at = _at(launch, point_of(launch))
    if erring:
        again = now + timedelta(seconds=backoff(at.errors + 1))
        held = replace(at, errors=at.errors + 1, held_since=at.held_since or now, erring=erring, next_time=again)
        return replace(launch, asked=held)
    launch = accounted(replace(launch, asked=at), now)
    count = at.undecided + 1 if undecided else 0
    after = Asked(at.point, passed=not undecided, undecided=count, next_time=now + AGAIN)
    launch = _unpaused(replace(launch, asked=after), {f"gate/{said.gate}" for said in undecided}, now)
    # Evidence does not come by waiting a little: people are told at once.
    patient = count <= launch.policy.stability_gate.extensions
    return _paused_by(launch, [said for said in undecided if said.gate in waiting or not patient], now)


def _unpaused(launch: Launch, still: set[str], now: datetime) -> Launch:
    """Gates that lack nothing any more take their own reasons to pause back; those of people stay."""
    own = {f"gate/{gate.name}" for gate in of(launch) if gate.point is point_of(launch)} - still
    left = tuple(pause for pause in launch.pause_reasons if pause.author not in own)
    if len(left) == len(launch.pause_reasons):
        return launch
    if left or launch.paused_since is None:
        return replace(launch, pause_reasons=left)
    return replace(postponed(launch, now - launch.paused_since), pause_reasons=(), paused_since=None)


# When they are asked


def beside_bakes(launch: Launch, now: datetime) -> Action | None:
    """What the gates before the start, or before the registry is told, want done; None once all have passed."""
    at = _at(launch, point_of(launch))
    if at.passed or not asked(launch, final=True):
        return None
    if at.next_time is None or now >= at.next_time:
        return Judge(final=True)
    seconds = (at.next_time - now).total_seconds()
    if at.errors:
        return Wait("GateErrored", errored(at.erring, at.errors), seconds, alarming=True)
    undecided = "holds: its gates cannot decide yet; asks again"
    return Wait("GateInconclusive", undecided, seconds, alarming=at.undecided > 1)


def errored(erring: Sequence[str], times: int) -> str:
    """Says that gates could not be asked."""
    names = " and ".join(erring) or "a gate"
    return f"holds: {names} could not judge, {times} times in a row; asks again"


def _at(launch: Launch, point: Point) -> Asked:
    """How far the gates of a point have got; those of an earlier point are past."""
    return launch.asked if launch.asked.point is point else Asked(point)


# In words


def words(launch: Launch) -> list[str]:
    """The gates that a launch has to pass, for people, in the order in which they come."""
    found: dict[Point, list[str]] = {point: [] for point in Point}
    for gate in of(launch):
        dry = " (recorded, not enforced)" if gate.dry_run else ""
        found[gate.point].append(f"{gate.name}: {_demands(launch, gate)}{dry}")
    if launch.is_judged:
        for people in launch.policy.people_gates:
            share = people.after_share_basis_points
            when = f"after {share / 100:g} %" if share else "before anything is started"
            found[Point.BAKE if share else Point.START].append(
                f"people: {when} somebody other than {launch.actor} looks: {people.reason}"
            )
    return [line for lines in found.values() for line in lines]


def _demands(launch: Launch, gate: Gate) -> str:
    policy = launch.policy
    if gate.name == EVIDENCE:
        count = launch.evidence_rules
        ends = "a failure ends the launch" if policy.evidence_gate.reject else "else it pauses"
        return f"the model type's {count} evidence rule{'s' if count > 1 else ''}, before anything is started; {ends}"
    if gate.name == AVAILABILITY:
        return _availability(launch)
    if gate.name == STABILITY:
        return _stability(launch)
    return {
        Point.START: "asked before anything is started",
        Point.BAKE: "asked at the end of every bake",
        Point.FINALIZE: "asked before the registry is told",
    }[gate.point]


def _availability(launch: Launch) -> str:
    gate = launch.policy.availability_gate
    latency = f"; 99th percentile of latency at most {gate.max_latency_p99_increase * 100:g} % above the baseline's"
    limit = f" and at most {gate.max_latency_p99_ms:g} ms" if gate.max_latency_p99_ms else ""
    return (
        f"error rate at most {gate.max_error_rate_increase_basis_points / 100:g} points above the baseline's and at "
        f"most {gate.max_error_rate_basis_points / 100:g} %{latency}{limit}"
    )


def _stability(launch: Launch) -> str:
    gate = launch.policy.stability_gate
    criteria = [
        f"{wanted.prediction} within {wanted.calibration_low:g} to {wanted.calibration_high:g} by at least "
        f"{wanted.min_positives} positives"
        for wanted in gate.criteria
        if wanted.calibration_low is not None and wanted.calibration_high is not None
    ]
    demanded = "; ".join(criteria) or "every prediction within its healthy range of then"
    return f"calibration of {demanded}; where that cannot be told, {gate.extensions} bakes more, then it pauses"
