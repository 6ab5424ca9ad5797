"""One team: its routes, its pool, its launches, and what its people do to them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from modelfleetd.capacity.domain.pool import Place
from modelfleetd.clock import ManualClock
from modelfleetd.errors import FleetError
from modelfleetd.launcher.domain import verbs
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.freeze import FreezeWindow
from modelfleetd.launcher.domain.launch import Launch, Strategy
from modelfleetd.launcher.domain.policy import Policy, StabilityGate
from modelfleetd.launcher.domain.record import PhaseTime, Share
from modelfleetd.launcher.domain.states import State
from modelfleetd.platform.simulator import Simulator
from modelfleetd.rehearsal.chance import NO_TROUBLE, Chance, Trouble
from modelfleetd.rehearsal.parts import IN_MEMORY, Parts
from modelfleetd.rehearsal.routes import REGION, Route, Routes, Served

TEAM: Final = "teams/rehearsal"
POOL: Final = "pools/rehearsal"


class Team:
    """Routes of one team on one pool; nothing happens by itself here (`fleet.Fleet` has that).

    Attributes:
        clock: of everything.
        chance: draws what goes wrong.
        registry: that everybody asks.
        capacity: that everybody asks.
        stability: that everybody asks.
        launches: the launcher's store.
        routes: what the launches change.
        world: what the launcher asks.
        answers: what gates say that are asked elsewhere.
    """

    def __init__(
        self,
        *,
        seed: int | str = 0,
        spare: Mapping[str, int] | int = 0,
        clock: ManualClock | None = None,
        future_reservations: bool = True,
        history: int | None = None,
        pool: str = POOL,
        team: str = TEAM,
        parts: Parts = IN_MEMORY,
    ) -> None:
        """Makes a team without routes.

        Args:
            seed: of everything that is drawn.
            spare: units in each region beyond what serves at first.
            clock: to be shared with others.
            future_reservations: whether what does not fit may wait for what others will free.
            history: events that are kept of each launch; None: all.
            pool: its name.
            team: whose it is.
            parts: that it is made of.
        """
        self.clock = clock or parts.clock()
        self.chance = Chance(f"{seed} accidents")
        self.registry = parts.registry(self.clock)
        self.capacity = parts.capacity(pool, {}, self.clock, future_reservations=future_reservations)
        self.launches = parts.launches(self.clock, self.chance, history)
        self.pool, self.team = pool, team
        self.stability = parts.stability(seed, self.clock.now, self._requests)
        self.world = parts.world(self.registry, self.capacity, self.stability, self.chance, team)
        self.routes = Routes(seed, self.clock, self.world, self.chance)
        # What gates say that are asked elsewhere.
        self.answers = self.world.answers
        self._seed = seed
        self._spare = spare
        self._roles: dict[str, Mapping[str, str]] = {}

    # What there is

    def add_type(self, route: Route) -> None:
        """Registers a model type. To be called before `start`."""
        self.registry.create_type(route.model_type, self.team, route.tier, tuple(route.needs))
        self.routes.add(route)
        self.add_model(route.model_type, route.baseline, route.needs)

    def add_model(
        self, model_type: str, model_id: str, needs: Mapping[str, int], *, flavor: str = "", units: int = 0
    ) -> str:
        """Registers a model that needs so many replicas for its whole route, by region. Returns its name.

        Args:
            model_type: its route.
            model_id: its id.
            needs: replicas by region.
            flavor: that it runs on; empty: that of the route.
            units: that a replica takes; 0: as many as the route's.
        """
        name = self.routes.add_model(model_type, model_id, needs, flavor=flavor, units=units)
        self.registry.create_model(model_type, name)
        return name

    def measure(self, model: str, needs: Mapping[str, int]) -> None:
        """Has capacity find anew how many replicas a model needs for its whole route, by region."""
        self.routes.measure(model, needs)

    def serves(
        self, model_type: str, region: str, served: Mapping[str, Served], roles: Mapping[str, str] | None = None
    ) -> None:
        """Says what serves a route in a region before the first launch; without it, its baseline does, alone.

        Args:
            model_type: the route.
            region: where.
            served: by the name of the model; the shares add up to the whole.
            roles: of models that are no candidates, by their names; None: only the route's baseline has one; none:
                nothing serves the route yet.
        """
        self.routes.serves(model_type, region, served)
        if roles is not None:
            self._roles[model_type] = roles

    async def start(self) -> None:
        """Has what serves before the first launch serve, and books what that takes."""
        await self.routes.start()
        quota: dict[Place, int] = {}
        for route in self.routes.all.values():
            roles = self._roles.get(route.model_type, {route.model(route.baseline): "BASELINE"})
            splits = {
                region: [
                    Share(model, one.share) for model, one in self.routes.served_by(route, region).items() if one.share
                ]
                for region in route.needs
            }
            if roles:
                self.registry.adopt(route.model_type, roles, splits)
            for region in route.needs:
                quota.setdefault(Place(route.flavor, region), self._spare_in(region))
                for place, units in self.routes.serving(route, region).values():
                    quota[place] = quota.get(place, 0) + units
        self.capacity.quota.update(quota)
        for route in self.routes.all.values():
            for region in route.needs:
                for model, (place, units) in self.routes.serving(route, region).items():
                    self.capacity.book(model, place, units)

    def _requests(self, model: str) -> int:
        return self.routes.requests(model)

    def _spare_in(self, region: str) -> int:
        return self._spare if isinstance(self._spare, int) else self._spare.get(region, 0)

    def simulator(self, model_type: str, region: str = REGION) -> Simulator:
        """The machines that a route runs on."""
        return self.routes.simulators[model_type, region]

    def freeze(self, *windows: FreezeWindow) -> None:
        """Sets the freeze windows that there are."""
        self.launches.windows = list(windows)

    def cut_off(self, model_type: str, region: str, seconds: float) -> None:
        """The agent of a region does not answer for a route from now on."""
        self.routes.cut_off(model_type, region, seconds)

    def kill(self, model: str, count: int = 1) -> None:
        """So many replicas of a model die, in every region."""
        self.routes.kill(model, count)

    # What people do

    def create(
        self,
        launch_id: str,
        model_type: str,
        candidate: str,
        *,
        strategy: Strategy = Strategy.REPLACE_BASELINE,
        policy: Policy | None = None,
        target_share: int = 0,
        holdout_share: int = 0,
        regions: Sequence[str] = (),
        trouble: Trouble = NO_TROUBLE,
        actor: str = "alice",
        known_full: Mapping[str, int] | None = None,
        takes_over: str = "",
        rolls_back: str = "",
    ) -> str:
        """Creates a launch, queued where another one is active on the route. Returns its name.

        Args:
            launch_id: its id.
            model_type: the route.
            candidate: the name of the model.
            strategy: what it is to bring about.
            policy: with every default filled in; without one, no gate but availability.
            target_share: in basis points, where the strategy has a target.
            holdout_share: in basis points, that the old baseline keeps.
            regions: where; none: everywhere.
            trouble: what goes wrong with it.
            actor: who creates it.
            known_full: of a rollback: what its candidate needs by region.
            takes_over: of a rollback: the reservation that keeps what it needs.
            rolls_back: the launch that it takes back.
        """
        now, route = self.clock.now(), self.registry.type_of(model_type)
        launch = Launch(
            name=f"launches/{launch_id}",
            uid=str(uuid.UUID(hashlib.sha256(f"{self._seed} {launch_id}".encode()).hexdigest()[:32], version=4)),
            model_type=model_type,
            candidate=candidate,
            strategy=strategy,
            pool=self.pool,
            regions=tuple(regions) or self._regions(model_type, candidate, strategy),
            policy=policy or Policy(stability_gate=StabilityGate(disabled=True)),
            actor=actor,
            trace_id=hashlib.sha256(launch_id.encode()).hexdigest()[:32],
            create_time=now,
            update_time=now,
            target_share=target_share,
            holdout_share=holdout_share,
            known_full=known_full or {},
            takes_over=takes_over,
            rolls_back=rolls_back,
            baseline=route.baseline,
            tier=route.tier.name if route.tier is not None else "",
            team=self.team,
            phase_times=(PhaseTime(State.PENDING, now),),
        )
        busy = self.launches.open_on(model_type)
        if launch.mitigates:
            launch = self._ahead(launch)
        elif busy:
            launch = replace(launch, queued=True, baseline="")
        if not launch.policy.stability_gate.disabled:
            delay = timedelta(seconds=trouble.label_delay_seconds)
            self.stability.model(candidate, trouble.calibration, trouble.labels, delay)
        self.launches.insert(launch, trouble)
        return launch.name

    def _ahead(self, launch: Launch) -> Launch:
        launch = self.launches.precedence(launch)
        if launch.queued:
            return replace(launch, baseline="")
        active = self.launches.active_on(launch.model_type)
        return launch if active is None else replace(launch, beside=None)

    def _regions(self, model_type: str, candidate: str, strategy: Strategy) -> tuple[str, ...]:
        found = self.registry.type_of(model_type)
        serves = {split.region for split in found.splits for one in split.shares if one.model == candidate}
        there = tuple(region for region in found.regions if region in serves)
        return there if strategy.rule.where_it_serves and there else found.regions

    def verb(self, name: str, act: Callable[[Launch], Launch], said: str, *, fence: bool = False) -> str:
        """Does what a person does to a launch, `fence` where whoever holds it is overtaken by that. Returns why it was
        refused; empty where it was done.
        """
        try:
            after = act(self.launches.rows[name].launch)
        except FleetError as error:
            return error.message
        self.launches.put(after, said, fence=fence)
        return ""

    def pause(self, name: str, author: str = "bob", reason: str = "a look") -> str:
        """Somebody pauses a launch."""
        now = self.clock.now()
        return self.verb(name, lambda launch: verbs.pause(launch, author, reason, now), f"{author} pauses it: {reason}")

    def resume(self, name: str, author: str = "bob", *, any_author: bool = False) -> str:
        """Somebody takes a reason to pause away, or everybody's."""
        now = self.clock.now()
        said = f"{author} resumes it"
        return self.verb(name, lambda launch: verbs.resume(launch, author, now, any_author=any_author), said)

    def skip_step(self, name: str, author: str = "bob") -> str:
        """Somebody ends the bake of the step that it is at."""
        step = self.launches.rows[name].launch.step.number
        return self.verb(name, lambda launch: verbs.skip_step(launch, author, step), f"{author} skips step {step}")

    def promote(self, name: str, author: str = "bob", reason: str = "it is good") -> str:
        """Somebody skips the bakes that remain."""
        now = self.clock.now()
        said = f"{author} promotes it: {reason}"
        return self.verb(name, lambda launch: verbs.promote(launch, author, reason, now), said)

    def abort(self, name: str, author: str = "oncall", reason: str = "it looks bad") -> str:
        """Somebody aborts a launch."""
        now, said = self.clock.now(), f"{author} aborts it: {reason}"
        return self.verb(name, lambda launch: verbs.abort(launch, author, reason, now), said, fence=True)

    def approve(self, name: str, author: str = "carol") -> str:
        """Somebody approves what the launch asks for."""
        envelope, now = self.launches.rows[name].launch.envelope, self.clock.now()
        digest = envelope.digest if envelope is not None else ""
        return self.verb(name, lambda launch: verbs.approve(launch, author, digest, now), f"{author} approves it")

    def reject(self, name: str, author: str = "carol", reason: str = "not now") -> str:
        """Somebody rejects what the launch asks for."""
        now = self.clock.now()
        said = f"{author} rejects it: {reason}"
        return self.verb(name, lambda launch: verbs.reject(launch, author, reason, now), said)

    def retry(self, name: str, author: str = "alice") -> str:
        """Somebody begins a launch that went back once more."""
        launch, now = self.launches.rows[name].launch, self.clock.now()
        try:
            again = verbs.retry(launch, author, now)
        except FleetError as error:
            return error.message
        busy = bool(self.launches.open_on(launch.model_type))
        baseline = "" if busy else self.registry.type_of(launch.model_type).baseline
        self.launches.put(replace(again, queued=busy, baseline=baseline), f"{author} tries it again", anew=True)
        return ""

    def roll_back(self, name: str, launch_id: str, *, trouble: Trouble = NO_TROUBLE, actor: str = "oncall") -> str:
        """Somebody takes a launch back that has succeeded. Returns the name of the launch that does it, or raises.

        Raises:
            WrongState: it cannot be taken back.
        """
        finished = self.launches.rows[name].launch
        verbs.check_taken_back(finished, self.registry.type_of(finished.model_type).baseline, "")
        assert finished.plan is not None
        full = {plan.region: plan.baseline.full for plan in finished.plan.regions if plan.baseline is not None}
        policy = Policy(
            max_step_basis_points=10_000, bake_duration=timedelta(0), rollback_window=timedelta(0),
            stability_gate=StabilityGate(disabled=True),
        )  # fmt: skip
        return self.create(
            launch_id,
            finished.model_type,
            finished.baseline,
            strategy=Strategy.ROLL_BACK,
            policy=policy,
            trouble=trouble,
            actor=actor,
            known_full=full,
            takes_over=finished.reservation,
            rolls_back=finished.name,
        )
