"""Who calls, and what they may do."""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from modelfleetd.kit.call import current_call


class Role(enum.IntEnum):
    """What a principal may do; mirrors modelfleet.common.v1.Role, where each is described."""

    VIEWER = 1
    ENGINEER = 2
    OWNER = 3
    ONCALL = 4
    APPROVER = 5
    CAPACITY_OWNER = 6
    ADMIN = 7
    SERVICE = 8


class PrincipalKind(enum.Enum):
    """What sort of caller it is."""

    # Whoever sits at the machine: loopback without configured identity.
    LOCAL = "local"
    # A person or a program with a token or a certificate, or one that was asserted on loopback.
    PERSON = "person"
    # Another service of the installation.
    SERVICE = "service"


NO_ROLES: frozenset[Role] = frozenset()
# What a name may look like: it travels in metadata, so printable ASCII without spaces.
PRINCIPAL_NAME = re.compile(r"[!-~]{1,200}")


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. `name` is what bindings, revisions and approvals refer to."""

    name: str
    kind: PrincipalKind
    groups: frozenset[str] = frozenset()
    # From the configuration of the installation; bindings on teams come from the RoleSource.
    roles_everywhere: frozenset[Role] = NO_ROLES
    # Only claimed, not proven: local use without configured identity.
    asserted: bool = False
    # The person for whom a service acts.
    on_behalf_of: str | None = None
    # Names that role bindings may hold for it: itself, and each of its groups as group:<name>.
    members: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", frozenset({self.name, *(f"group:{group}" for group in self.groups)}))


class RoleSource(Protocol):
    """Where role bindings come from: the registry's own store, or its teams as another service follows them."""

    async def roles(self, principal: Principal, team: str | None) -> frozenset[Role]:
        """Returns the roles bound to a principal on `teams/{team}`; with None, the ones bound everywhere."""

    async def roles_anywhere(self, principal: Principal) -> frozenset[Role]:
        """Returns the roles bound to a principal on at least one team, or everywhere."""


# Maps a resource name to the name of the team that it belongs to, `teams/{team}`; None where it does not exist or
# belongs to no team.
TeamOf: TypeAlias = Callable[[str], Awaitable[str | None]]


class NoBindings:
    """The role source of a server without teams: only the configuration grants roles."""

    async def roles(self, principal: Principal, team: str | None) -> frozenset[Role]:
        return NO_ROLES

    async def roles_anywhere(self, principal: Principal) -> frozenset[Role]:
        return NO_ROLES


async def no_team(name: str) -> str | None:  # noqa: ARG001
    """The TeamOf of a server whose resources belong to no team."""
    return None


def current_principal() -> Principal:
    """Returns the caller of the call at hand.

    Raises:
        LookupError: outside of a call.
    """
    principal = current_call().principal
    if principal is None:
        raise LookupError("the call has no principal yet")
    return principal


async def expect_role_on_destination(team: str, mask: Collection[str]) -> None:
    """Expects that the caller may do with another team's resources what it does here: for updates that move one there.

    The permission interceptor has looked at the team that the resource belongs to now. This looks at the one that the
    request names, by the same rule.

    Args:
        team: as the request has it; empty: none is named.
        mask: of the update. Where it leaves the team out, the resource stays where it is.

    Raises:
        RoleMissing: the caller has no sufficient role there.
    """
    if not team or (mask and not {"team", "*"}.intersection(mask)):
        return
    expect = current_call().expect_role_on
    if expect is None:
        raise LookupError("the call's permission was not checked")
    await expect(team)
