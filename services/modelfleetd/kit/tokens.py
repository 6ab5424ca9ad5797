"""Checks the tokens that people carry: signed JWTs of one issuer (OIDC)."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfleetd.errors import IdentityMissing, PartUnavailable
from modelfleetd.kit.auth import PRINCIPAL_NAME
from modelfleetd.kit.config import ServiceConfig

_log = logging.getLogger(__name__)
_ALGORITHMS = ("RS256", "ES256")
_LEEWAY = 30.0
# An unknown key id makes the keys be read again, at most this often.
_REFRESH = 30.0
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says."""

    name: str
    groups: frozenset[str]
    # Seconds since 1970.
    expires: float


class TokenVerifier:
    """Verifies signature, issuer, audience and times; remembers tokens until they expire."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._keys: dict[str | None, Any] = {}
        self._read_at = float("-inf")
        self._modified = 0.0
        self._known: OrderedDict[str, Claims] = OrderedDict()
        self._reading = asyncio.Lock()

    async def verify(self, token: str) -> Claims:
        """Returns the claims of a token.

        Raises:
            IdentityMissing: it is malformed, expired, or of another issuer, audience or key.
            PartUnavailable: the keys cannot be read.
        """
        known = self._known.get(token)
        if known is not None and known.expires + _LEEWAY > time.time():
            return known
        claims = await self._verify(token)
        self._known[token] = claims
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return claims

    async def _verify(self, token: str) -> Claims:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(header.get("kid"))
            if key is None:
                raise IdentityMissing("the token is signed with an unknown key")
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._config.jwt_audience,
                issuer=self._config.jwt_issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise IdentityMissing("the token has expired") from error
        except jwt.InvalidIssuerError as error:
            raise IdentityMissing("the token is of another issuer") from error
        except jwt.InvalidAudienceError as error:
            raise IdentityMissing("the token is for another audience") from error
        except jwt.PyJWTError as error:
            raise IdentityMissing("the token cannot be verified") from error
        name = claims.get(self._config.jwt_principal_claim)
        # A person must not be able to pass for a service by the name in a token.
        if not isinstance(name, str) or not PRINCIPAL_NAME.fullmatch(name) or name.startswith(("service/", "group:")):
            raise IdentityMissing(f"the token has no usable claim '{self._config.jwt_principal_claim}'")
        groups = claims.get(self._config.jwt_groups_claim) or ()
        if isinstance(groups, str):
            groups = (groups,)
        return Claims(name, frozenset(map(str, groups)), float(claims["exp"]))

    async def _key(self, key_id: str | None) -> Any:
        async with self._reading:
            if self._is_stale(key_id):
                await self._read()
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def _is_stale(self, key_id: str | None) -> bool:
        if not self._is_url:
            return self._file_time() != self._modified
        return key_id not in self._keys and time.monotonic() - self._read_at > _REFRESH

    @property
    def _is_url(self) -> bool:
        return self._config.jwt_jwks.startswith(("http://", "https://"))

    def _file_time(self) -> float:
        try:
            return Path(self._config.jwt_jwks).stat().st_mtime
        except OSError:
            return self._modified

    async def _read(self) -> None:
        import jwt

        try:
            text = await asyncio.to_thread(_fetch if self._is_url else _load, self._config.jwt_jwks)
            keys = jwt.PyJWKSet.from_dict(json.loads(text)).keys
        except (OSError, ValueError, jwt.PyJWTError) as error:
            _log.error("cannot read the keys that sign tokens: %s", error)
            if not self._keys:
                raise PartUnavailable("the issuer of tokens") from error
            return
        self._keys = {key.key_id: key.key for key in keys}
        self._read_at = time.monotonic()
        self._modified = 0.0 if self._is_url else self._file_time()
        # Tokens of a key that was withdrawn must not stay good.
        self._known.clear()


def _load(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _fetch(url: str) -> str:
    from urllib.request import urlopen

    with urlopen(url, timeout=5) as response:
        text: str = response.read(1 << 20).decode()
        return text
