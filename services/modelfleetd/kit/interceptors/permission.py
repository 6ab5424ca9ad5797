"""Lets a call go on only where the caller has a role that the method's rule names. No rule: nobody may call it.

| the rule names | the caller needs one of its roles |
| --- | --- |
| a resource of a team | on that team, or everywhere |
| a resource that does not exist | everywhere; on any team suffices to be told NOT_FOUND |
| no resource | everywhere; for VIEWER any binding suffices |

ADMIN may do everything. Every binding of any role implies VIEWER.
"""

from __future__ import annotations

from typing import Any

from modelfleetd.errors import RoleMissing
from modelfleetd.kit.auth import Principal, Role, RoleSource, TeamOf, current_principal
from modelfleetd.kit.call import current_call
from modelfleetd.kit.interceptors.base import Check, CheckingInterceptor, Context
from modelfleetd.kit.method import Method, Permission

_NOBODY = Permission(frozenset(), "")


class PermissionInterceptor(CheckingInterceptor):
    """Enforces the rules that the protos declare."""

    def __init__(self, roles: RoleSource, team_of: TeamOf) -> None:
        self._roles = roles
        self._team_of = team_of

    def prepare(self, method: Method) -> Check:
        rule = method.permission or _NOBODY
        sufficient = rule.sufficient
        needed = sorted(role.name for role in rule.any_of)

        async def expect_on(team: str) -> None:
            principal = current_principal()
            if sufficient.isdisjoint(principal.roles_everywhere) and sufficient.isdisjoint(
                await self._bound(principal, rule, team, team)
            ):
                raise RoleMissing(principal.name, method.name, needed, team)

        async def check(request: Any, _context: Context) -> None:
            current_call().expect_role_on = expect_on
            principal = current_principal()
            # The usual case, without any look-up: the configuration says it all.
            if not sufficient.isdisjoint(principal.roles_everywhere):
                return
            team = None
            if sufficient:
                resource = rule.resource_in(request)
                team = await self._team_of(resource) if resource else None
                if not sufficient.isdisjoint(await self._bound(principal, rule, resource, team)):
                    return
            raise RoleMissing(principal.name, method.name, needed, team)

        return check

    async def _bound(self, principal: Principal, rule: Permission, resource: str, team: str | None) -> frozenset[Role]:
        """Returns the roles that count for the call."""
        if Role.VIEWER in rule.any_of:
            bound = await self._roles.roles_anywhere(principal)
            if bound:
                return bound | {Role.VIEWER}
        roles = await self._roles.roles(principal, team)
        if team is None and resource:
            # Whoever could act on such a resource is told that this one does not exist; others learn nothing.
            roles |= await self._roles.roles_anywhere(principal)
        if team is not None:
            roles |= await self._roles.roles(principal, None)
        return roles
