"""What the permission interceptor asks of the registry: whose a resource is, and which roles its teams have bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modelfleet.registry.v1.assets_pb2 import Asset
from modelfleet.registry.v1.criticality_pb2 import CriticalityRequest
from modelfleetd.errors import RoleMissing
from modelfleetd.kit.auth import NO_ROLES, Principal, Role
from modelfleetd.kit.method import Method
from modelfleetd.registry.follower import Follower


class SnapshotRoles:
    """Role bindings of teams, from the snapshot (`kit.auth.RoleSource`)."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    async def roles(self, principal: Principal, team: str | None) -> frozenset[Role]:
        """Returns the roles bound to a principal on a team. No team binds roles everywhere."""
        if team is None:
            return NO_ROLES
        bindings = self._follower.snapshot.bindings
        return NO_ROLES.union(*(bindings.get(member, {}).get(team, NO_ROLES) for member in principal.members))

    async def roles_anywhere(self, principal: Principal) -> frozenset[Role]:
        """Returns the roles bound to a principal on any team."""
        bindings = self._follower.snapshot.bindings
        return NO_ROLES.union(*(roles for member in principal.members for roles in bindings.get(member, {}).values()))

    async def team_of(self, name: str) -> str | None:
        """Returns the team of a team, an asset, a request for a tier, a model type, or whatever is below one.

        None where it does not exist.
        """
        snapshot = self._follower.snapshot
        if name in snapshot.teams:
            return name
        asset = snapshot.table(Asset).get(name)
        if asset is not None:
            return asset.team
        request = snapshot.table(CriticalityRequest).get(name)
        if request is not None:
            name = request.resource
        # modelTypes/{type}, and modelTypes/{type}/…
        model_type = snapshot.model_types.get("/".join(name.split("/", 2)[:2]))
        return None if model_type is None else model_type.team


class Grants:
    """What a caller may do by the rules of single methods, for a call that does what several of them do.

    It is asked while a write is decided, so it never waits; what the call itself changes of teams does not count.
    """

    def __init__(self, principal: Principal, follower: Follower) -> None:
        self._principal = principal
        self._follower = follower

    def expect(self, method: Method, request: Any, team_of: Callable[[str], str | None]) -> None:
        """Raises RoleMissing where the caller may not call a method with a request.

        Args:
            method: with the rule.
            request: of that method.
            team_of: maps a resource to its team, as the ledger is at this point of the call.
        """
        resource = "" if method.permission is None else method.permission.resource_in(request)
        team = team_of(resource) if resource else None
        if team is not None:
            self.expect_on(method, team)
        else:
            # Whoever could act on such a resource is told that this one does not exist; others learn nothing.
            self._expect(method, self._bound(None) if resource else NO_ROLES, None)

    def expect_on(self, method: Method, team: str) -> None:
        """Raises RoleMissing where the caller may not call a method on a team's resources."""
        self._expect(method, self._bound(team), team)

    def _expect(self, method: Method, bound: frozenset[Role], team: str | None) -> None:
        rule = method.permission
        if rule is None or rule.sufficient.isdisjoint(self._principal.roles_everywhere | bound):
            needed = [] if rule is None else sorted(role.name for role in rule.any_of)
            raise RoleMissing(self._principal.name, method.name, needed, team)

    def _bound(self, team: str | None) -> frozenset[Role]:
        """Returns the roles bound to the caller on a team, or on any."""
        bindings = self._follower.snapshot.bindings
        found = [bindings.get(member, {}) for member in self._principal.members]
        if team is not None:
            return NO_ROLES.union(*(teams.get(team, NO_ROLES) for teams in found))
        return NO_ROLES.union(*(roles for teams in found for roles in teams.values()))
