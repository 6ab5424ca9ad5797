"""Finds out who calls: by token, by certificate, or, on loopback without either, by what the caller says."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from modelfleetd.errors import DelegationDenied, IdentityMissing
from modelfleetd.kit.auth import PRINCIPAL_NAME, Principal, PrincipalKind, Role
from modelfleetd.kit.call import Call, current_call
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.interceptors.base import Context, Stream, Unary
from modelfleetd.kit.method import Method
from modelfleetd.kit.tokens import Claims, TokenVerifier

PRINCIPAL_KEY = "x-modelfleet-principal"
ON_BEHALF_OF_KEY = "x-modelfleet-on-behalf-of"

_SERVICE_ROLES = frozenset({Role.SERVICE, Role.VIEWER})
_LOCAL = Principal("local", PrincipalKind.LOCAL, roles_everywhere=frozenset({Role.ADMIN, Role.VIEWER}))


class IdentityInterceptor:
    """Puts the principal into the call."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._admins = frozenset(config.admins)
        self._verifier = TokenVerifier(config) if config.jwt_jwks else None
        self._by_certificate = config.has_certificate
        self._spiffe_prefix = f"spiffe://{config.trust_domain}/"

    def unary(self, method: Method, inner: Unary) -> Unary:
        async def identified(request: Any, context: Context) -> Any:
            await self._identify(context)
            return await inner(request, context)

        return identified

    def stream(self, method: Method, inner: Stream) -> Stream:
        async def identified(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._identify(context)
            async with aclosing(inner(request, context)) as answers:  # type: ignore[type-var]
                async for answer in answers:
                    yield answer

        return identified

    async def _identify(self, context: Context) -> None:
        call = current_call()
        principal = await self._proven(call, context) if self._config.has_identity else self._claimed(call)
        call.principal = principal if ON_BEHALF_OF_KEY not in call.metadata else _delegated(call, principal)

    def _claimed(self, call: Call) -> Principal:
        name = call.metadata.get(PRINCIPAL_KEY)
        return _LOCAL if name is None else _asserted(name, self._admins)

    async def _proven(self, call: Call, context: Context) -> Principal:
        authorization = call.metadata.get("authorization")
        if self._verifier is not None and isinstance(authorization, str):
            kind, _, token = authorization.partition(" ")
            if kind.lower() != "bearer" or not token:
                raise IdentityMissing("authorization must be 'Bearer <token>'")
            return self._bearer(await self._verifier.verify(token))
        if self._by_certificate:
            uris = context.auth_context().get("x509_subject_alternative_name", ())
            for uri in uris:
                if uri.startswith(self._spiffe_prefix.encode()):
                    return self._certified(uri.decode().removeprefix(self._spiffe_prefix))
        raise IdentityMissing

    def _bearer(self, claims: Claims) -> Principal:
        if claims.is_service:
            return Principal(claims.name, PrincipalKind.SERVICE, claims.groups, _SERVICE_ROLES)
        roles = frozenset({Role.ADMIN}) if self._is_admin(claims.name, claims.groups) else frozenset()
        return Principal(claims.name, PrincipalKind.PERSON, claims.groups, roles)

    def _certified(self, path: str) -> Principal:
        """Returns the principal of a SPIFFE path: `modelfleet/<service>` is a service, anything else a name."""
        prefix, _, service = path.partition("/")
        if prefix == "modelfleet" and service:
            return Principal(f"service/{service}", PrincipalKind.SERVICE, roles_everywhere=_SERVICE_ROLES)
        roles = frozenset({Role.ADMIN}) if self._is_admin(path, frozenset()) else frozenset()
        return Principal(path, PrincipalKind.PERSON, roles_everywhere=roles)

    def _is_admin(self, name: str, groups: frozenset[str]) -> bool:
        return name in self._admins or any(f"group:{group}" in self._admins for group in groups)


@functools.lru_cache(maxsize=1024)
def _asserted(name: object, admins: frozenset[str]) -> Principal:
    if not isinstance(name, str) or PRINCIPAL_NAME.fullmatch(name) is None:
        raise IdentityMissing(f"{PRINCIPAL_KEY} must match ^{PRINCIPAL_NAME.pattern}$")
    if name.startswith("service/"):
        return Principal(name, PrincipalKind.SERVICE, roles_everywhere=_SERVICE_ROLES, asserted=True)
    roles = {Role.VIEWER, Role.ADMIN} if name in admins else {Role.VIEWER}
    return Principal(name, PrincipalKind.PERSON, roles_everywhere=frozenset(roles), asserted=True)


def _delegated(call: Call, principal: Principal) -> Principal:
    """Returns the principal, acting for somebody. Only a service is trusted to say for whom."""
    person = call.metadata[ON_BEHALF_OF_KEY]
    if principal.kind is not PrincipalKind.SERVICE:
        raise DelegationDenied(principal.name)
    if not isinstance(person, str) or PRINCIPAL_NAME.fullmatch(person) is None:
        raise IdentityMissing(f"{ON_BEHALF_OF_KEY} must match ^{PRINCIPAL_NAME.pattern}$")
    return Principal(
        principal.name, principal.kind, principal.groups, principal.roles_everywhere, principal.asserted, person
    )
