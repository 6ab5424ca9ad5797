"""Checks the tokens that callers carry: signed JWTs of one issuer (OIDC)."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelfleetd.errors import IdentityMissing
from modelfleetd.kit.auth import PRINCIPAL_NAME
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.signing_keys import SigningKeys

_LEEWAY = 30.0
_KEPT = 4096
_MOST_GROUPS = 1000


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says."""

    name: str
    groups: frozenset[str]
    # Seconds since 1970.
    expires: float
    # `name` is that of a service: `service/<name>`.
    is_service: bool = False


class TokenVerifier:
    """Verifies signature, issuer, audience and times; remembers tokens until they expire or the keys change."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._keys = SigningKeys(config.jwt_jwks)
        self._known: OrderedDict[str, Claims] = OrderedDict()
        # Of the keys that the known tokens were checked with.
        self._version = 0

    async def verify(self, token: str) -> Claims:
        """Returns the claims of a token.

        Raises:
            IdentityMissing: it is malformed, expired, or of another issuer, audience or key.
            PartUnavailable: the keys cannot be read.
        """
        # First of all: a token of a key that was withdrawn must not stay good because it was seen before.
        await self._keys.refresh()
        if (known := self._remembered(token)) is not None:
            return known
        claims = await self._verify(token)
        self._remembered(token)
        self._known[token] = claims
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return claims

    def _remembered(self, token: str) -> Claims | None:
        if self._version != self._keys.version:
            self._known.clear()
            self._version = self._keys.version
        known = self._known.get(token)
        return known if known is not None and known.expires + _LEEWAY > time.time() else None

    async def _verify(self, token: str) -> Claims:
        import jwt

        try:
            key = await self._keys.find(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise IdentityMissing("the token is signed with an unknown key")
            claims = jwt.decode(
                token,
                key,
                # The key says how it signs, never the token.
                algorithms=[key.algorithm_name],
                audience=self._config.jwt_audience,
                issuer=self._config.jwt_issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
            return self._claims(claims)
        except jwt.ExpiredSignatureError as error:
            raise IdentityMissing("the token has expired") from error
        except jwt.InvalidIssuerError as error:
            raise IdentityMissing("the token is of another issuer") from error
        except jwt.InvalidAudienceError as error:
            raise IdentityMissing("the token is for another audience") from error
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
            # Whatever else a token can be made to hold.
            raise IdentityMissing("the token cannot be verified") from error

    def _claims(self, claims: Mapping[str, Any]) -> Claims:
        config = self._config
        name = claims.get(config.jwt_principal_claim)
        if not isinstance(name, str) or PRINCIPAL_NAME.fullmatch(name) is None:
            raise IdentityMissing(f"the token has no usable claim '{config.jwt_principal_claim}'")
        groups, expires = _groups(claims.get(config.jwt_groups_claim), config.jwt_groups_claim), float(claims["exp"])
        service = name.removeprefix(config.jwt_service_prefix) if config.jwt_service_prefix else name
        if service and service != name:
            return Claims(f"service/{service}", groups, expires, is_service=True)
        # A person must not be able to pass for a service or a group by the name in a token.
        if name.startswith(("service/", "group:")):
            raise IdentityMissing(f"the token has no usable claim '{config.jwt_principal_claim}'")
        return Claims(name, groups, expires)


def _groups(value: object, claim: str) -> frozenset[str]:
    """Returns the groups of a claim: absent, a text, or a list of texts."""
    if value is None:
        return frozenset()
    groups = [value] if isinstance(value, str) else value
    if not isinstance(groups, list) or len(groups) > _MOST_GROUPS:
        raise IdentityMissing(f"the token's claim '{claim}' must be a text or a list of at most {_MOST_GROUPS}")
    if not all(isinstance(group, str) for group in groups):
        raise IdentityMissing(f"the token's claim '{claim}' must hold texts")
    return frozenset(groups)
