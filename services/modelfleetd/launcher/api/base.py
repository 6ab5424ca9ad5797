"""What all parts of the servicer share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeAlias

import grpc

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.launcher.v1 import launcher_pb2_grpc
from modelfleetd.clock import Clock
from modelfleetd.errors import FleetError, ModelOnHold, RoleMissing
from modelfleetd.kit import deadline
from modelfleetd.kit.auth import Principal, Role, RoleSource, current_principal
from modelfleetd.kit.db import Connection
from modelfleetd.kit.trace import current_ids
from modelfleetd.launcher import spans
from modelfleetd.launcher.domain import frozen, waves
from modelfleetd.launcher.domain.events import Event
from modelfleetd.launcher.domain.holds_on_models import forbids
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.release import expected_release
from modelfleetd.launcher.domain.states import UNCHANGED, State
from modelfleetd.launcher.executor import Executor
from modelfleetd.launcher.looking import look
from modelfleetd.launcher.ports import World
from modelfleetd.launcher.store import Store
from modelfleetd.launcher.watch import Notifier
from modelfleetd.launcher.windows import Windows
from modelfleetd.launcher.wire import launches as wire

_log = logging.getLogger(__name__)

# How long whoever aborts waits for the agents to refuse whoever acted until then.
_FENCE_SECONDS: Final = 1.0
# While nothing is decided yet, or weight may still have to rise.
_PLANNED: Final = UNCHANGED | {State.SHIFTING}

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


def caller() -> str:
    """Who acts: the person for whom a service calls, else the caller."""
    principal: Principal = current_principal()
    return principal.on_behalf_of or principal.name


class Base(launcher_pb2_grpc.LauncherServiceServicer):
    """What the methods work with."""

    def __init__(
        self,
        store: Store,
        world: World,
        wake: Callable[[], None],
        notifier: Notifier,
        clock: Clock,
        roles: RoleSource,
        *,
        traced: bool = False,
    ) -> None:
        """Makes the servicer.

        Args:
            store: with the launches. What time it is, it says: launchers whose clocks differ write, decide and show
                the same.
            world: what launches act on.
            wake: has due launches looked for now.
            notifier: tells watchers.
            clock: of the machine, for how long something was kept.
            roles: of callers.
            traced: whether spans are kept.
        """
        self._store = store
        self._roles = roles
        self._traced = traced
        self._world = world
        self._wake = wake
        self._notifier = notifier
        self._executor = Executor(world, clock)
        self._windows = Windows(store, clock)

    async def _expect_no_hold(self, launch: Launch, conn: Connection | None = None) -> None:
        """Expects that nobody has put the candidate on hold; with a transaction, nobody does until that ends.

        Raises:
            ModelOnHold: somebody has, and the launch could bring it more traffic.
        """
        if not forbids(launch.strategy):
            return
        store, model = self._store, launch.candidate
        hold = await (store.hold_on(model) if conn is None else store.lock_hold_on(conn, model))
        if hold is not None:
            raise ModelOnHold(model, hold.name, hold.reason)

    async def _fence(self, launch: Launch) -> None:
        """Has the agents refuse the former holder. Where one does not answer soon, the next round does that."""
        if launch.preempted_by:
            # It does nothing before the mitigation has ended, and that one's epoch must stay the newest.
            return
        unsettled = (launch.intent.region,) if launch.intent and launch.intent.region else ()
        try:
            with deadline.limit(_FENCE_SECONDS):
                async with asyncio.timeout(_FENCE_SECONDS):
                    await look(self._executor, launch, dict.fromkeys((*unsettled, *waves.to_observe(launch))))
        except (FleetError, TimeoutError) as error:
            _log.info("%s: its agents are not fenced yet: %s", launch.name, error)

    async def _fence_whoever_goes_back(self, launch: Launch) -> None:
        """A mitigation may have had a launch that moves the same model go back first: as if people had aborted that."""
        if launch.mitigates:
            active = await self._store.active_on(launch.model_type)
            if active is not None and active.abort is not None:
                await self._fence(active)

    async def _trace(self, conn: Connection, launch: Launch, event: Event) -> None:
        """Keeps what the caller does to a launch as a span of its trace, linked to the caller's own."""
        if self._traced:
            await self._store.trace(conn, spans.of_verb(launch, event, current_ids()))

    async def _shown(self, launch: Launch) -> pb.Launch:
        verdicts, now = await self._store.verdicts([launch.name]), await self._store.now()
        made = wire.launch_to_proto(launch, verdicts.get(launch.name, ()), now)
        return await self._with_conflicts(made, launch, now)

    async def _with_conflicts(self, made: pb.Launch, launch: Launch, now: datetime) -> pb.Launch:
        """Adds to the plan the freeze windows that are open, or open before the launch is done."""
        if launch.plan is None or launch.state not in _PLANNED:
            return made
        end = expected_release(replace(launch, frozen=None), now)
        needs = launch.plan.expected_duration if end is None else end - now
        for conflict in frozen.conflicts(launch, await self._windows.all(), now, needs):
            made.plan.freeze_conflicts.append(wire.conflict_to_proto(conflict))
        return made

    async def _expect_role(self, needed: Collection[Role], team: str | None, method: str) -> None:
        """Expects that the caller has one of some roles, or ADMIN, on a team; with None, everywhere.

        Raises:
            RoleMissing: it has none of them.
        """
        principal = current_principal()
        bound = principal.roles_everywhere | await self._roles.roles(principal, None)
        if team is not None:
            bound |= await self._roles.roles(principal, team)
        if bound.isdisjoint({*needed, Role.ADMIN}):
            names = [role.name for role in needed] or [Role.ADMIN.name]
            raise RoleMissing(principal.name, method, names, team)
