"""What the fleet report adds up: the figures of each model type, kept for as long as nothing that they rest on changes.

At 100,000 models a report would lint for seconds; here only the types that changed are linted again, a few models at a
time, so that nothing else waits. A worker keeps them current; who asks for a report finds little left to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1.standard_pb2 import GetFleetReportRequest as Request
from modelfleetd.clock import Clock
from modelfleetd.kit.codec import from_proto
from modelfleetd.kit.paging import Position
from modelfleetd.registry.domain.lint import ModelFacts, ModelView, lint, next_change
from modelfleetd.registry.domain.lint_rules import MODEL_RULES, TYPE_RULES
from modelfleetd.registry.domain.report import FleetRow, row_of
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.snapshot import MODEL_TYPES, REGIONS, TEAMS, models_of
from modelfleetd.registry.standard import Around, Inspector, is_quiet, surface_of

ROUND_SECONDS = 30.0
# What is done at a time: a few milliseconds.
_TYPES_AT_A_TIME = 100
_MODELS_AT_A_TIME = 100
# How long the worker rests after each of these: it takes a part of one core, and only while there is something to do.
_REST_SECONDS = 0.01

Breathe = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Basis:
    """What the figures of a model type rest on, beside time."""

    generation: int
    touched: int
    around: Around


@dataclass(frozen=True, slots=True)
class _Standing:
    """The figures of a model type with its models, and until when they hold if nothing changes."""

    basis: _Basis
    row: FleetRow
    until: datetime | None


@dataclass(frozen=True, slots=True)
class _TeamStanding:
    """The figures of a team itself."""

    team: pb.Team
    row: FleetRow


class Standings:
    """Figures by model type and team. Any number of callers may bring them up to date at the same time."""

    def __init__(self, follower: Follower, clock: Clock) -> None:
        self._follower = follower
        self._clock = clock
        self._types: dict[str, _Standing] = {}
        self._teams: dict[str, _TeamStanding] = {}

    async def keep_up(self) -> None:
        """Brings everything up to date without hurry."""
        await self._bring_up(lambda: self._clock.sleep(_REST_SECONDS))

    async def report(self, grouping: int, observed: Collection[str]) -> tuple[FleetRow, list[FleetRow]]:
        """Returns the figures of the whole fleet and of each group, the most errors first.

        Everything is of the revision that the snapshot has when this is called, or of a later one.

        Args:
            grouping: a value of GetFleetReportRequest.Grouping.
            observed: model types that agents have reported on lately.
        """
        await self._bring_up(_let_others)
        by_team = grouping != Request.SURFACE
        total, groups = FleetRow(), dict[str, FleetRow]()
        for name in self._all(TEAMS):
            (groups.setdefault(name, FleetRow(group=name)) if by_team else total).add(self._team(name))
        for index, name in enumerate(self._all(MODEL_TYPES)):
            if index % _TYPES_AT_A_TIME == 0:
                await _let_others()
            message, standing = self._follower.snapshot.model_types.get(name), self._types.get(name)
            if message is not None and standing is not None:
                group = message.team if by_team else surface_of(message)
                row = groups.get(group)
                if row is None:
                    row = groups[group] = FleetRow(group=group)
                row.add(standing.row)
                self._add_surroundings(row, message, standing.row, is_observed=name in observed)
        for row in groups.values():
            total.add(row)
        inspector = self._inspector()
        for name in self._all(REGIONS):
            total.count(inspector.findings(name))
        return total, sorted(groups.values(), key=lambda row: (-row.errors, -row.warnings, row.group))

    def _add_surroundings(self, row: FleetRow, message: pb.ModelType, own: FleetRow, *, is_observed: bool) -> None:
        """Adds to a row what the team and the agents of a model type say of it."""
        team = self._follower.snapshot.teams.get(message.team)
        row.with_on_call += int(team is not None and bool(team.on_call))
        row.observed += int(is_observed and bool(own.expected_to_serve))
        row.conforming += int(not own.errors and not self._team(message.team).errors)

    async def _bring_up(self, breathe: Breathe) -> None:
        names = self._all(MODEL_TYPES)
        for index, name in enumerate(names):
            if index % _TYPES_AT_A_TIME == 0:
                await breathe()
            if not self._is_current(name):
                await self._assess(name, breathe)
        for gone in self._types.keys() - set(names):
            del self._types[gone]

    def _is_current(self, name: str) -> bool:
        standing, message = self._types.get(name), self._follower.snapshot.model_types.get(name)
        if standing is None or message is None:
            return message is None
        if standing.until is not None and standing.until <= self._clock.now():
            return False
        return standing.basis == self._basis(message, self._inspector())

    def _basis(self, message: pb.ModelType, inspector: Inspector) -> _Basis:
        touched = self._follower.snapshot.touched(message.name)
        return _Basis(self._follower.generation, touched, inspector.around(message))

    async def _assess(self, name: str, breathe: Breathe) -> None:
        """Lints a model type and its models. What changes meanwhile changes its basis: it is done again then."""
        inspector, now = self._inspector(), self._clock.now()
        message = self._follower.snapshot.model_types[name]
        basis = self._basis(message, inspector)
        facts = inspector.type_facts(message, basis.around)
        tier = facts.entry.tier
        row, until = row_of(facts.entry), next_change(facts.entry, now)
        row.count(lint(TYPE_RULES, facts))
        after: Position | None = None
        while models := self._follower.snapshot.page(models_of(name), after, _MODELS_AT_A_TIME):
            for each in models:
                model = self._follower.snapshot.models[each]
                row.models += 1
                if is_quiet(model):
                    continue
                view = from_proto(model, ModelView)
                row.serving_models += int(view.role is not None and view.role.serves)
                row.count(lint(MODEL_RULES, ModelFacts(entry=view, now=now, tier=tier)))
                until = min(filter(None, (until, next_change(view, now))), default=None)
            after = (models[-1],)
            await breathe()
        self._types[name] = _Standing(basis, row, until)

    def _team(self, name: str) -> FleetRow:
        """Returns the figures of a team itself."""
        team = self._follower.snapshot.teams.get(name)
        if team is None:
            return FleetRow()
        known = self._teams.get(name)
        # Messages of the snapshot never change: another state is another message.
        if known is None or known.team is not team:
            row = FleetRow()
            row.count(self._inspector().findings(name))
            known = self._teams[name] = _TeamStanding(team, row)
        return known.row

    def _inspector(self) -> Inspector:
        return Inspector(self._follower.snapshot, self._clock.now())

    def _all(self, collection: str) -> list[str]:
        snapshot = self._follower.snapshot
        return list(snapshot.page(collection, None, len(snapshot.model_types) + len(snapshot.teams) + 1000))


async def _let_others() -> None:
    await asyncio.sleep(0)
