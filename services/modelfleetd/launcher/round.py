"""One round of one launch: observe, settle what is unsettled, decide, record the intent, act, record the outcome.

A round lives on a lease. It stops itself at half of it, whatever it does: past the lease somebody else may act. No
transaction is open while anybody is called, and nothing that it writes counts once version or epoch have moved on.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.clock import Clock
from modelfleetd.errors import FleetError, StaleEpoch
from modelfleetd.kit import deadline
from modelfleetd.kit.failpoint import passing
from modelfleetd.kit.telemetry import within_trace
from modelfleetd.launcher import spans
from modelfleetd.launcher.domain import availability, frozen, gates, outcomes, preemption, waits, waves
from modelfleetd.launcher.domain.actions import Advance, Apply, Call, Judge, Wait
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.decide import SOON, awaits_hold, next_action
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.hold import Hold, HoldState
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.observed import Seen
from modelfleetd.launcher.domain.record import ON_PLATFORM, Act, GateVerdict, Intent
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.words import listed
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.intents import intent_of
from modelfleetd.launcher.judges import Judges
from modelfleetd.launcher.looking import Look, look
from modelfleetd.launcher.progress import with_progress
from modelfleetd.launcher.remote import is_undecided
from modelfleetd.launcher.serving import desired_from_document, desired_of, is_same, observed_of, seen_of, split_of
from modelfleetd.launcher.store import Change, Claim, Settled, Store
from modelfleetd.launcher.windows import Windows
from modelfleetd.platform.model import ServingObservation

_log = logging.getLogger(__name__)

# Acts and records of one round; what is left then is done in the next one.
_MOST: Final = 16
_BREATH: Final = 0.05
_EVENTS: Final = {
    Act.ESTIMATE: "Estimated",
    Act.RESERVE: "CapacityReserved",
    Act.ACTIVATE: "ReservationActivated",
    Act.CANCEL_RESERVATION: "ReservationCancelled",
    Act.START: "ReplicasStarted",
    Act.SHIFT: "WeightShifted",
    Act.REDUCE: "OldReduced",
    Act.SHED: "CandidateReduced",
    Act.GROW: "BaselineGrown",
    Act.RETURN: "WeightReturned",
    Act.RESTORE: "BaselineRestored",
    Act.FINALIZE: "Finalized",
    Act.FORGO: "Forgone",
    Act.SETTLE: "CapacitySettled",
    Act.RELEASE: "CapacityReleased",
}


class LostClaim(Exception):
    """Somebody else has changed or claimed the launch, or may do so soon: this round is over."""


class Round:
    """One claim, from its first look until its lease is given back."""

    def __init__(
        self,
        claim: Claim,
        *,
        store: Store,
        executor: Executor,
        judges: Judges,
        clock: Clock,
        traced: bool,
        started: float,
        windows: Windows | None = None,
    ) -> None:
        """Prepares a round.

        Args:
            claim: the launch and its lease.
            store: where it was claimed.
            executor: acts.
            judges: asks the gates.
            clock: of the machine.
            traced: whether spans are kept.
            started: when the claim was asked for, by the monotonic clock: the lease began no earlier.
            windows: freeze windows; None: there are none.
        """
        self.launch = claim.launch
        self._before = claim.launch
        self._lease = claim.lease
        self._store = store
        self._executor = executor
        self._judges = judges
        self._clock = clock
        self._traced = traced
        self._database_time = claim.now
        self._started = started
        self._claimed = clock.monotonic()
        self._windows = windows
        self._looked = False
        # Regions that could not be observed; they are not asked again in this round.
        self._blind: dict[str, FleetError] = {}
        # Seconds until the launch is due again; None where it has ended or is somebody else's.
        self.due: float | None = None

    @property
    def now(self) -> datetime:
        """The time by the database's clock."""
        return self._database_time + timedelta(seconds=self._clock.monotonic() - self._started)

    @property
    def left(self) -> float:
        """Seconds until half of the lease is over."""
        return self._lease / 2 - (self._clock.monotonic() - self._started)

    async def run(self) -> None:
        """Goes on until the launch has to wait, has ended, or the time is over."""
        try:
            with deadline.limit(max(0.0, self.left)):
                for _ in range(_MOST):
                    if not await self._go_on():
                        break
                else:
                    await self._release(_BREATH)
        except LostClaim:
            # Outside of the limit: it has passed where half of the lease has.
            _log.debug("%s: changed by somebody else, or half of its lease is over", self.launch.name)
            await self._store.yield_lease(self._before)
            self.due = 0.0

    async def _go_on(self) -> bool:
        """Does one thing; says whether there may be more to do now."""
        if self.left <= 0:
            raise LostClaim
        launch = self.launch
        if launch.intent is not None and launch.intent.act not in ON_PLATFORM:
            return await self._settle_call(launch.intent)
        if launch.queued and launch.abort is None:
            if await self._store.leave_queue(launch):
                self.due = 0.0
                return False
            launch = self.launch = replace(launch, behind=await self._store.ahead_of(launch))
        if launch.preempted_by:
            return await self._hold_still(launch)
        try:
            found = await self._look()
        except StaleEpoch as error:
            await self._overtaken(error)
            return False
        if launch.intent is not None and launch.intent.region in self._blind:
            return await self._cannot_settle(launch.intent)
        if launch.intent is None and awaits_hold(launch):
            if not await self._read_hold():
                return False
            launch = self.launch
        if not self._looked and not self._blind:
            self._looked = True
            launch = self.launch = outcomes.looked(launch, self.now)
        seen = [seen_of(observation, launch.rising, launch.falling) for observation in found.seen.values()]
        if self._windows is not None:
            launch = await self._look_at_windows(self._windows)
        if launch.intent is not None:
            return await self._settle_apply(launch.intent, seen, found.seen[launch.intent.region])
        for region in seen:
            launch = with_progress(launch, region, split_of(found.seen[region.region].desired))
        self.launch = launch
        return await self._decide(launch, seen, found)

    async def _look(self) -> Look:
        """Observes every region that the launch decides on; first that in which something is unsettled."""
        intent = self.launch.intent
        regions = dict.fromkeys((*((intent.region,) if intent else ()), *waves.to_observe(self.launch)))
        found = await look(self._executor, self.launch, [region for region in regions if region not in self._blind])
        self._blind.update(found.blind)
        return found

    async def _look_at_windows(self, windows: Windows) -> Launch:
        """Finds out whether a freeze window holds the launch back; that one has opened or closed is history."""
        lead = timedelta(seconds=self._lease / 2)
        after, said = frozen.looked_at(self.launch, await windows.near(self.now), self.now, lead)
        if after.frozen is not None:
            # It may be gone, and the next look be a while away.
            near = await windows.near(self.now, since=self._claimed)
            after, said = frozen.looked_at(self.launch, near, self.now, lead)
        if said is None:
            self.launch = after
        else:
            await self._record(after, [self._event(*said)])
        return self.launch

    async def _hold_still(self, launch: Launch) -> bool:
        """A mitigation has precedence: nothing is done on the platform, not even settled, until it has ended."""
        mitigation = await self._store.get(launch.preempted_by)
        if mitigation.ended:
            return await self._come_back(launch, mitigation)
        return await self._decide(launch, (), Look())

    async def _come_back(self, launch: Launch, mitigation: Launch) -> bool:
        """The mitigation has ended: goes on from what is there, once every older epoch is refused everywhere."""
        held = launch.plan.regions if launch.plan is not None and launch.activated else ()
        try:
            found = await look(self._executor, launch, [plan.region for plan in held])
        except StaleEpoch as error:
            await self._overtaken(error)
            return False
        if found.blind:
            self._blind.update(found.blind)
            await self._cannot_look()
            return False
        seen, splits = {}, dict(launch.splits)
        for plan in held:
            there = found.seen[plan.region]
            pair = [side.model for side in (plan.candidate, plan.baseline) if side is not None]
            seen[plan.region] = {model: observed_of(there, model) for model in pair}
            if plan.region in splits:
                splits[plan.region] = split_of(there.desired)
        after, said = preemption.lifted(replace(launch, splits=splits), mitigation, seen, self.now)
        void = "void: a mitigation came first; what was done of it is there to be seen"
        settled = Settled(launch.intent.number, void) if launch.intent is not None else None
        await self._record(_on_the_move(after), [self._event("PreemptionEnded", said)], settled=settled)
        return True

    async def _is_first(self, launch: Launch) -> bool:
        """Reads what a mitigation has to know of the launch that holds for it; False while that is not quiet yet."""
        other = await self._store.held_for(launch)
        if other is not None and not preemption.is_quiet(other):
            message = f"waits a moment for {other.name} to give back what it has not used"
            await self._wait(Wait("Preempting", message, SOON), ())
            return False
        self.launch = replace(launch, beside=preemption.beside_of(other))
        return True

    async def _read_hold(self) -> bool:
        """Asks capacity what has become of the reservation; says whether it has answered."""
        before = self.launch.hold
        try:
            hold = await self._executor.hold(self.launch)
        except FleetError as error:
            await self._hold(f"cannot read its reservation: {error.message}")
            return False
        after = outcomes.told(self.launch, hold)
        said = _news(before, hold, self.now) if before is not None else None
        if said is None:
            self.launch = after
        else:
            await self._record(after, [self._event(*said)])
        return True

    async def _decide(self, launch: Launch, seen: Sequence[Seen], found: Look) -> bool:
        action = next_action(launch, seen, self.now)
        if launch.mitigates and isinstance(action, Call) and action.act is Act.ESTIMATE:
            if not await self._is_first(launch):
                return False
            launch = self.launch
        match action:
            case Wait() if self._blind:
                await self._cannot_look()
                return False
            case Wait():
                await self._wait(action, seen)
                return False
            case Advance():
                await self._record(_on_the_move(action.launch), [self._event(action.event, action.message)])
                return not self.launch.ended
            case Judge():
                await self._judge(seen, final=action.final)
                return True
            case Call(act=Act.ESTIMATE) if launch.state is State.AWAITING_APPROVAL:
                return await self._ask_policy_again(launch)
            case Call(act=Act.ESTIMATE) if launch.retries > 0:
                return await self._estimate_again(launch, action)
            case Apply():
                return await self._intend(launch, action, found.seen[action.region])
            case Call():
                return await self._intend(launch, action, None)

    # Acting

    async def _intend(self, launch: Launch, action: Apply | Call, observation: ServingObservation | None) -> bool:
        """Records what is about to be done, and does it."""
        intent = intent_of(action, launch, observation, self.now)
        await self._record(_on_the_move(outcomes.intended(launch, intent)), intent=intent)
        return await self._act(intent, action.message)

    async def _ask_policy_again(self, launch: Launch) -> bool:
        """Asks whether evidence has come that the launch policy lacked: then the plan is made anew, and decided on."""
        try:
            decision = await self._executor.decide(launch)
        except FleetError as error:
            if is_undecided(error):
                await self._hold(f"cannot ask whether the evidence has come: {error.message}")
                return False
            # It lacks something else by now; what it lacked before is as good an answer until that is mended.
            decision = launch.decision
        after = outcomes.evidence_found(launch, decision, self.now)
        if after is not None:
            said = "the evidence has come that its launch policy lacked; plans again"
            await self._record(_on_the_move(after), [self._event("EvidenceFound", said)])
            return True
        self.launch = outcomes.evidence_asked(launch, self.now)
        waits = next_action(self.launch, (), self.now)
        if isinstance(waits, Wait):
            kept = outcomes.conditions(self.launch, waits, (), self.now)
            watched = self.now + timedelta(seconds=waits.seconds)
            await self._record(replace(self.launch, conditions=kept, watched_until=watched), due=waits.seconds)
            return False
        return True

    async def _estimate_again(self, launch: Launch, action: Call) -> bool:
        """Estimates for good only where there is a plan by now: each attempt would leave an intent behind."""
        try:
            refusal = await self._executor.why_not(launch, self.now)
        except FleetError as error:
            await self._hold(f"cannot find out what it needs: {error.message}")
            return False
        if refusal is None:
            return await self._intend(launch, action, None)
        await self._refused(*refusal, action.message)
        return False

    async def _act(self, intent: Intent, message: str) -> bool:
        """Does what is intended, and records the outcome."""
        try:
            with within_trace(int(self.launch.trace_id, 16), spans.call_id(self.launch, intent)):
                after, outcome = await self._executor.perform(self.launch, intent, self.now)
        except StaleEpoch as error:
            await self._overtaken(error)
            return False
        except FleetError as error:
            await self._undecided(intent, error)
            return False
        span = spans.of_call(self.launch, intent, outcome, self.now)
        settled = Settled(intent.number, outcome)
        if outcome == "done":
            kind = _EVENTS[intent.act]
            if intent.act is Act.RESERVE and after.hold is not None and after.hold.state is HoldState.PENDING:
                kind, message = "CapacityPromised", after.hold.waits(self.now)
            event = self._event(kind, message)
            await self._record(after, [event], settled=settled, more_spans=[span])
            return not self.launch.ended
        await self._refused(after, outcome, message, settled, [span])
        return False

    async def _refused(
        self,
        after: Launch,
        outcome: str,
        message: str,
        settled: Settled | None = None,
        more_spans: Sequence[spans.Span] = (),
    ) -> None:
        """Records a refusal, and waits before the next attempt. What is said already is not said again."""
        wait = outcomes.backoff(after.retries)
        why = outcome.removeprefix("refused: ").rstrip(".")
        waiting = Wait("Refused", f"tries again, because it was refused: {why}", wait, alarming=after.retries > 3)
        waits = replace(after, conditions=outcomes.conditions(after, waiting, (), self.now))
        waits = replace(waits, watched_until=self.now + timedelta(seconds=wait))
        turned = after.abort is not None and self.launch.abort is None
        said = any(known.message == waiting.message for known in self.launch.conditions)
        events = [] if said else [self._event("Refused", f"{message}: {outcome}")]
        await self._record(waits, events, settled=settled, more_spans=more_spans, due=0.0 if turned else wait)

    async def _settle_call(self, intent: Intent) -> bool:
        """Repeats a call that nobody knows the outcome of, with its own key. No agent's fence stands before it."""
        launch = self.launch
        if not await self._store.is_held(launch):
            raise LostClaim
        if launch.abort is not None and intent.act in (Act.FINALIZE, Act.ESTIMATE):
            # Whether it was finalised the registry says when it is told that the launch goes back.
            return await self._void(intent, "an abort came first")
        if launch.preempted_by and intent.act is Act.ESTIMATE:
            # It would raise the floor over the mitigation's epoch.
            return await self._void(intent, "a mitigation came first")
        return await self._act(intent, f"repeats {intent.act.value}")

    async def _settle_apply(self, intent: Intent, seen: Sequence[Seen], observation: ServingObservation) -> bool:
        """Settles an act on a platform. The agent refuses older epochs by now, so what it shows is final.

        Where it did not happen it is repeated with its own key, so long as it still is what would be decided: replicas
        may have died since, or an abort have come. Else it is void, and by the fence it never happens any more.
        """
        launch, desired = self.launch, desired_from_document(intent.content["desired"])
        if is_same(desired, observation.desired):
            return await self._void(intent, "done")
        action = next_action(replace(launch, intent=None), seen, self.now)
        if (
            isinstance(action, Apply)
            and (action.act, action.region) == (intent.act, intent.region)
            and is_same(desired, desired_of(action, launch, observation))
        ):
            return await self._act(intent, action.message)
        return await self._void(intent, "void: it had not happened, and is not right any more")

    async def _void(self, intent: Intent, outcome: str) -> bool:
        span = spans.of_call(self.launch, intent, outcome, self.now)
        after = outcomes.confirmed(self.launch)
        await self._record(after, settled=Settled(intent.number, outcome), more_spans=[span])
        return True

    async def _judge(self, seen: Sequence[Seen], *, final: bool) -> None:
        """Asks all gates of this point together, and hears them together."""
        launch, started = self.launch, self.now
        asked = gates.asked(launch, final=final)
        questions: list[tuple[gates.Gate, Seen | None]] = []
        for gate in asked:
            if gate.name == gates.AVAILABILITY:
                # Region by region; the worst of them counts.
                questions += [(gate, region) for region in seen]
                launch = functools.reduce(availability.looked, seen, launch)
            else:
                questions.append((gate, None))
        # What is found without asking anybody is not worth a task.
        answers = [await self._ask(launch, gate, region, started, final=final) for gate, region in questions if region]
        asks = [self._ask(launch, gate, None, started, final=final) for gate, region in questions if region is None]
        answers += [await asks[0]] if len(asks) == 1 else await asyncio.gather(*asks)
        verdicts = [verdict for verdict, _ in answers]
        after = gates.judged(launch, verdicts, final=final, now=self.now)
        events = [
            self._event("GateJudged", f"{said.gate}: {said.verdict.name}: {said.explanation}") for said in verdicts
        ]
        await self._record(after, events, verdicts=verdicts, more_spans=[span for _, span in answers])

    async def _ask(
        self, launch: Launch, gate: gates.Gate, seen: Seen | None, started: datetime, *, final: bool
    ) -> tuple[GateVerdict, spans.Span]:
        leads = launch.region_plan.region if launch.state is State.SHIFTING else ""
        region = seen.region if seen is not None else leads
        with within_trace(int(launch.trace_id, 16), spans.gate_id(launch, gate.name, region, started)):
            found = await self._judges.ask(launch, gate.name, seen, final=final)
        verdict = GateVerdict(
            gate=gate.name,
            region=region,
            step=launch.step.number,
            verdict=found.verdict,
            explanation=found.explanation,
            time=self.now,
            figures=found.figures,
            dry_run=gate.dry_run,
        )
        return verdict, spans.of_gate(launch, verdict, started, self.now)

    # Waiting

    async def _wait(self, wait: Wait, seen: Sequence[Seen]) -> None:
        launch = self.launch
        conditions = outcomes.conditions(launch, wait, seen, self.now)
        # Numbers in a message may change with every look; that alone is no new version.
        same = [(c.type, c.reason) for c in conditions] == [(c.type, c.reason) for c in launch.conditions]
        after = replace(launch, conditions=conditions, watched_until=self.now + timedelta(seconds=wait.seconds))
        stands = launch.step == self._before.step and launch.hold == self._before.hold
        if same and stands and launch.retries == self._before.retries:
            self.launch = replace(after, version=self._before.version, epoch=self._before.epoch)
            if self.left <= 0 or not await self._store.watched(self.launch, wait.seconds):
                raise LostClaim
            self.due = wait.seconds
            return
        await self._record(replace(after, retries=0), due=wait.seconds)

    async def _undecided(self, intent: Intent, error: FleetError) -> None:
        """Nobody knows whether it happened: it stays intended, and is repeated."""
        await self._hold(f"nobody knows yet whether {intent.act.value} was done ({error.message}); asks again")

    async def _cannot_look(self) -> None:
        """A launch never goes on blind."""
        first = next(iter(self._blind.values()))
        await self._hold(f"holds, because {listed(list(self._blind))} cannot be observed: {first.message}")

    async def _cannot_settle(self, intent: Intent) -> bool:
        """Nobody knows whether it happened. On the way back that keeps no other region: whatever is there is looked at
        before anything else is done there, and from then on the agent refuses it.
        """
        if self.launch.abort is None or len(waves.to_observe(self.launch)) < 2:
            await self._cannot_look()
            return False
        return await self._void(intent, f"nobody knows, because {intent.region} cannot be observed")

    async def _hold(self, message: str) -> None:
        launch = outcomes.unsettled(self.launch)
        wait = Wait("PartUnavailable", message, outcomes.backoff(launch.retries), alarming=launch.retries > 5)
        # Conditions of the region stay as they were last seen; time in which nobody can look counts against nothing.
        kept = replace(launch, watched_until=launch.watched_until or self.now)
        after = replace(kept, conditions=outcomes.conditions(kept, wait, (), self.now))
        await self._record(after, due=wait.seconds)

    async def _overtaken(self, error: StaleEpoch) -> None:
        """An agent knows a newer epoch. Mostly somebody else has claimed the launch, and this round is simply over."""
        _log.info("%s: %s", self.launch.name, error.message)
        floor = int(error.metadata.get("floor", 0))
        await self._store.raise_fence(floor)
        await self._store.yield_lease(self._before)
        self.due = 0.5

    # Recording

    async def _release(self, due: float) -> None:
        await self._record(self.launch, due=due)

    async def _record(
        self,
        after: Launch,
        events: Sequence[Event] = (),
        *,
        due: float | None = None,
        verdicts: Sequence[GateVerdict] = (),
        intent: Intent | None = None,
        settled: Settled | None = None,
        more_spans: Sequence[spans.Span] = (),
    ) -> None:
        """Writes a change; raises LostClaim where the launch is not as it was claimed any more."""
        if self.left <= 0:
            raise LostClaim
        if after.ended:
            due = 0.0
        after = waits.kept(after, verdicts, self.now)
        ended = spans.ended_between(self._before, after, self.now) if self._traced else []
        change = Change(
            before=self._before,
            after=after,
            due=due,
            events=events,
            verdicts=verdicts,
            intent=intent,
            settled=settled,
            spans=[*more_spans, *ended] if self._traced else [],
            time=self.now,
        )
        what = f"intent_{intent.act.value}" if intent else "outcome" if settled else "change"
        with passing("launcher", "record", what):
            written = await self._store.record(change)
        if written is None:
            raise LostClaim
        self.launch = self._before = written
        self.due = None if after.ended else due

    def _event(self, kind: str, message: str) -> Event:
        launch = self.launch
        region = launch.region_plan.region if launch.state is State.SHIFTING else ""
        return Event(kind, message, self.now, launch.step.number, region, launch.epoch)


def _news(before: Hold, hold: Hold, now: datetime) -> tuple[str, str] | None:
    """What the history says of a reservation that is waited for; times alone change too often for it."""
    if hold.state is HoldState.HELD:
        units = sum(place.units for place in hold.places)
        return "CapacityReserved", f"its turn has come: {units} units are held"
    if hold.state is HoldState.PENDING and (hold.launches, hold.position) != (before.launches, before.position):
        return "CapacityPromised", hold.waits(now)
    return None


def _on_the_move(launch: Launch) -> Launch:
    """The launch does something: whatever it waited for is over."""
    kept = tuple(c for c in launch.conditions if c.type not in ("Waiting", "NeedsAttention"))
    return replace(launch, conditions=kept)
