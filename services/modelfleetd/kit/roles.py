"""Role bindings and teams as services other than the registry know them: read from it, and kept for a moment."""

from __future__ import annotations

import asyncio
import logging
import time

from modelfleet.errors import ModelfleetError, NotFound
from modelfleet.registry.v1 import registry_pb2
from modelfleet.services import AsyncRegistry
from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.auth import NO_ROLES, Principal, Role
from modelfleetd.names import MODEL, MODEL_TYPE, TEAM

_log = logging.getLogger(__name__)
# Bindings are read again when they are older than this and somebody asks; nothing is read while nobody does.
_FRESH = 5.0
# A denial rests on bindings no older than this, so that a role that was just given counts at once.
_FRESH_FOR_DENIAL = 0.25
# Without the registry, known bindings go on to count for so long.
_USABLE = 300.0


class RegistryRoles:
    """The role source of a service that asks the registry. Also says which team a model type belongs to."""

    def __init__(self, registry: AsyncRegistry) -> None:
        self._registry = registry
        self._bindings: dict[str, dict[str, frozenset[Role]]] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._teams: dict[str, tuple[float, str]] = {}

    async def roles(self, principal: Principal, team: str | None) -> frozenset[Role]:
        if team is None:
            return NO_ROLES
        await self._refresh(_FRESH)
        found = self._of(principal, self._bindings.get(team, {}))
        if not found and self._age() > _FRESH_FOR_DENIAL:
            await self._refresh(_FRESH_FOR_DENIAL)
            found = self._of(principal, self._bindings.get(team, {}))
        return found

    async def roles_anywhere(self, principal: Principal) -> frozenset[Role]:
        await self._refresh(_FRESH)
        return NO_ROLES.union(*(self._of(principal, bound) for bound in self._bindings.values()))

    async def team_of(self, name: str) -> str | None:
        """Returns the team of a team, model type or model; None where it does not exist or is something else."""
        if TEAM.match(name):
            return name
        ids = MODEL_TYPE.match(name) or MODEL.match(name)
        return None if ids is None else await self._team_of_type(MODEL_TYPE.format(ids[0]))

    async def _team_of_type(self, model_type: str) -> str | None:
        known = self._teams.get(model_type)
        if known is not None and time.monotonic() - known[0] < _FRESH:
            return known[1]
        try:
            team = (await self._registry.get_model_type(name=model_type)).team
        except NotFound:
            return None
        if len(self._teams) > 10_000:
            self._teams.clear()
        self._teams[model_type] = (time.monotonic(), team)
        return team

    def _age(self) -> float:
        return time.monotonic() - self._read_at

    @staticmethod
    def _of(principal: Principal, bound: dict[str, frozenset[Role]]) -> frozenset[Role]:
        return NO_ROLES.union(*(bound.get(member, NO_ROLES) for member in principal.members))

    async def _refresh(self, fresh: float) -> None:
        if self._age() < fresh:
            return
        async with self._reading:
            if self._age() < fresh:
                return
            try:
                teams = [team async for team in self._registry.list_teams_all(page_size=1000)]
            except ModelfleetError as error:
                if self._age() > _USABLE:
                    raise PartUnavailable("registry") from error
                _log.warning("the registry does not answer; going by role bindings %.0f s old", self._age())
                return
            self._bindings = {team.name: _bindings(team) for team in teams}
            self._read_at = time.monotonic()


def _bindings(team: registry_pb2.Team) -> dict[str, frozenset[Role]]:
    bound: dict[str, frozenset[Role]] = {}
    for binding in team.role_bindings:
        for member in binding.members:
            bound[member] = bound.get(member, NO_ROLES) | {Role(binding.role)}
    return bound
