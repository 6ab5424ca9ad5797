"""Mitigations in virtual time: an experiment ends at any moment of a launch on the same route, which then goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.clock import ManualClock
from modelfleetd.launcher.documents import to_document
from modelfleetd.launcher.domain import preemption
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.replicas import replicas_for
from modelfleetd.launcher.domain.states import State
from modelfleetd.platform.ledger import Promise, Violation, violations
from modelfleetd.platform.model import EffectKind
from tests.support.memory_pool import MemoryPool
from tests.support.rehearsal import CPU, NEW, OLD, OTHER, TARGET, MemoryStore, Rehearsal

# One step, and no bake: what a mitigation has where nothing else is asked for.
AT_ONCE = Policy(bake_duration=timedelta(0), max_step_basis_points=10_000, stability_gate=StabilityGate(disabled=True))


class Incident:
    """A launch from `old` to `new`, and an experiment beside it that has to end at some moment."""

    def __init__(self, *, old: int = 50, new: int = 42, experiment: int = 60, free: int = 16, **given: Any) -> None:
        self.share = given.pop("share", 2_000)
        self.full = {OLD: old, NEW: new, OTHER: experiment}
        serving = replicas_for(experiment, self.share, 2)
        clock = ManualClock()
        running = replicas_for(old, 10_000 - self.share, 2)
        self.pool = MemoryPool(clock, running + serving + free)
        self.launch = Rehearsal(
            old=old,
            new=new,
            running=running,
            clock=clock,
            pool=self.pool,
            other_share=self.share,
            others=serving,
            **given,
        )
        self.pool.booked[self.launch.name, OTHER] = serving
        self.mitigation = Rehearsal(old=old, new=experiment, name="launches/m", clock=clock, policy=AT_ONCE)
        self.mitigation.simulator = self.mitigation.books.platform.simulator = self.launch.simulator
        self.mitigation.pool = self.mitigation.books.pool_in_memory = self.pool
        self.mitigation.books.role = "EXPERIMENT"
        self.pool.routes["launches/m"] = self.launch.name
        self.preempted_at: int | None = None
        self.ended_at: int | None = None
        self.refused = False

    async def prepare(self) -> None:
        await self.launch.prepare()

    def mitigate(self) -> None:
        """What the store does in one transaction, where the launch can hold."""
        launch, made = self.launch, self.mitigation
        now = launch.clock.now()
        if self.preempted_at is not None or not preemption.can_hold(launch.launch):
            self.refused = self.preempted_at is None
            return
        asked = replace(
            Launch(
                **{
                    field: getattr(launch.launch, field)
                    for field in ("model_type", "pool", "regions", "actor", "trace_id", "baseline")
                },
                name="launches/m",
                uid="m",
                candidate=OTHER,
                strategy=Strategy.END_EXPERIMENT,
                policy=made.policy,
                create_time=now,
                update_time=now,
                phase_times=(replace(launch.launch.phase_times[0], start_time=now, end_time=None),),
            )
        )
        made.store = MemoryStore(to_document(asked), made.crashes)
        made.crashes.rate = launch.crash_rate
        made.store.others, launch.store.others = [launch.store], [made.store]
        launch.store.save(preemption.preempted(launch.launch, asked, now))
        # Whoever acts for it is overtaken.
        launch.store.epoch += 1
        self.preempted_at = len(launch.simulator.ledger)

    async def run(self, seconds: float = 4_000, between: Callable[[], None] = lambda: None) -> None:
        """Lets rounds of both follow each other, as they are due, until both have ended."""
        clock = self.launch.clock
        end, due = clock.monotonic() + seconds, {self.launch: 0.0, self.mitigation: 0.0}
        while clock.monotonic() < end:
            begun = [self.launch, *([self.mitigation] if self.preempted_at is not None else [])]
            at_work = [rehearsal for rehearsal in begun if not rehearsal.launch.ended]
            if not at_work:
                break
            for rehearsal in at_work:
                if due[rehearsal] <= clock.monotonic():
                    await rehearsal.round()
                    due[rehearsal] = clock.monotonic() + max(0.05, rehearsal.store.due)
            if self.ended_at is None and self.preempted_at is not None and self.mitigation.launch.ended:
                self.ended_at = len(self.launch.simulator.ledger)
                due[self.launch] = clock.monotonic()
            between()
            await clock.advance(max(0.05, min(due[rehearsal] for rehearsal in at_work) - clock.monotonic()))
        self.launch.simulator.catch_up()

    def broken_promises(self) -> list[Violation]:
        """What was done against properties 1 to 3 by both together, at any event."""
        holds = {held.request.launch: held.units for held in self.pool.reservations.values() if held.activated}
        beside = self.launch.others if "launches/m" not in holds else 0
        held = sum(holds.values()) + beside if self.launch.name in holds else self.pool.quota

        def needs(model: str, share: int) -> int:
            return replicas_for(self.full[model], share, 2)

        return violations(self.launch.simulator.ledger, [Promise(TARGET, needs, {CPU: held}, after=self.launch.began)])

    def assert_the_launch_held(self) -> None:
        """While the mitigation was there, nobody else acted, and the candidate had what it had."""
        if self.preempted_at is None:
            return
        ledger = self.launch.simulator.ledger
        accepted = [effect for effect in ledger if effect.kind is EffectKind.ACCEPTED and effect.desired is not None]
        before = [effect for effect in accepted if effect.sequence <= self.preempted_at]
        share = before[-1].desired.share_of(NEW) if before[-1].desired is not None else 0
        for effect in accepted:
            if self.preempted_at < effect.sequence <= (self.ended_at or len(ledger)):
                assert effect.key.startswith("m/"), effect
                assert effect.desired is not None and effect.desired.share_of(NEW) == share, effect

    async def serves(self, wanted: dict[str, int]) -> None:
        seen = await self.launch.simulator.observe(TARGET)
        assert seen.desired is not None
        assert {m.model: m.replicas for m in seen.desired.models} == wanted
        assert sum(share.share_basis_points for share in seen.desired.shares) == 10_000

    def booked(self) -> dict[str, int]:
        return {model: units for (_, model), units in self.pool.booked.items() if units}

    def said(self) -> str:
        mitigation = self.mitigation.store.events if self.preempted_at is not None else []
        return "\n".join([*self.launch.store.events, "--", *mitigation])


@pytest.mark.parametrize(("seconds", "free"), [(0.3, 16), (3, 16), (16, 40), (25, 16)])
async def test_an_experiment_ends_at_any_moment_of_a_launch_which_goes_on_and_succeeds(
    seconds: float, free: int
) -> None:
    incident = Incident(free=free)
    await incident.prepare()
    await incident.run(seconds)
    incident.mitigate()
    await incident.run()
    assert incident.mitigation.launch.state is State.SUCCEEDED, incident.said()
    assert incident.launch.launch.state is State.SUCCEEDED, incident.said()
    assert incident.broken_promises() == [], incident.said()
    incident.assert_the_launch_held()
    await incident.serves({NEW: 42})
    assert incident.booked() == {NEW: 42}
    # The mitigation has not recorded what the launch had not brought to its end.
    (shares,) = incident.mitigation.books.splits.values()
    assert [(share.model, share.share) for share in shares] == [(OLD, 10_000)]
    assert incident.launch.launch.preempted_by == ""


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    old=st.integers(6, 24),
    ratio=st.floats(0.6, 1.4),
    experiment=st.integers(6, 60),
    share=st.sampled_from([500, 2_000, 4_000]),
    free=st.integers(6, 40),
    at=st.floats(0, 60),
    crash_rate=st.sampled_from([0.0, 0.03, 0.1]),
    lost=st.sampled_from([0.0, 0.1]),
    abort_after=st.none() | st.floats(0, 30),
    give_up_after=st.none() | st.floats(0, 10),
)
def test_whatever_goes_wrong_with_both_the_promises_hold_and_both_end(
    seed: int,
    old: int,
    ratio: float,
    experiment: int,
    share: int,
    free: int,
    at: float,
    crash_rate: float,
    lost: float,
    abort_after: float | None,
    give_up_after: float | None,
) -> None:
    async def story() -> None:
        incident = Incident(
            old=old,
            new=max(2, round(old * ratio)),
            experiment=experiment,
            share=share,
            free=free,
            seed=seed,
            crash_rate=crash_rate,
            lost_call_rate=lost / 2,
            lost_answer_rate=lost,
        )
        await incident.prepare()
        await incident.run(at)
        incident.mitigate()
        begun = incident.launch.clock.monotonic()

        def between() -> None:
            since = incident.launch.clock.monotonic() - begun
            if abort_after is not None and since >= abort_after:
                incident.launch.abort()
            if give_up_after is not None and since >= give_up_after and incident.preempted_at is not None:
                incident.mitigation.abort()

        await incident.run(120, between)
        incident.launch.simulator.behaviour = type(incident.launch.behaviour)()
        incident.launch.crashes.rate = incident.mitigation.crashes.rate = 0.0
        if incident.launch.launch.plan is None or incident.launch.launch.state is State.PREPARING:
            # It does not fit, or waits for what the mitigation keeps for a rollback.
            incident.launch.abort()
        await incident.run(1_500, between)
        if incident.preempted_at is not None and incident.mitigation.launch.plan is None:
            incident.mitigation.abort()
            await incident.run(1_500, between)
        assert incident.launch.launch.ended, incident.said()
        assert incident.preempted_at is None or incident.mitigation.launch.ended, incident.said()
        assert incident.broken_promises() == [], incident.said()
        incident.assert_the_launch_held()
        seen = await incident.launch.simulator.observe(TARGET)
        assert seen.desired is not None
        # Capacity has booked what really runs.
        assert incident.booked() == {m.model: m.replicas for m in seen.desired.models}, incident.said()

    asyncio.run(story())
