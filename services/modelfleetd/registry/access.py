"""What the permission interceptor asks of the registry: whose a resource is, and which roles its teams have bound."""

from __future__ import annotations

from modelfleet.registry.v1.assets_pb2 import Asset
from modelfleet.registry.v1.criticality_pb2 import CriticalityRequest
from modelfleetd.kit.auth import NO_ROLES, Principal, Role
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
