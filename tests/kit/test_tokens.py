"""Tokens that are forged or odd, and keys that are withdrawn, replaced, or cannot be read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleetd.errors import IdentityMissing, PartUnavailable
from modelfleetd.kit import signing_keys
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.tokens import TokenVerifier
from tests.support.tls import Issuer
from tests.support.wait import until


def _verifier(issuer: Issuer, place: str = "") -> TokenVerifier:
    return TokenVerifier(ServiceConfig(jwt_jwks=place or issuer.jwks, jwt_issuer=issuer.url))


def _signed(issuer: Issuer, claims: dict[str, Any]) -> str:
    """Returns a token that says anything at all, rightly signed."""
    said = {"iss": issuer.url, "aud": "modelfleet", "exp": time.time() + 60, **claims}
    return jwt.api_jws.encode(json.dumps(said).encode(), issuer._key, "RS256", headers={"kid": issuer._key_id})


class Published:
    """Serves an issuer's keys over HTTP: as they are, with an error, or not before the gate opens."""

    def __init__(self, issuer: Issuer) -> None:
        self.fails = False
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0
        published = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                published.asked += 1
                published.gate.wait(10)
                self.send_response(500 if published.fails else 200)
                self.end_headers()
                self.wfile.write(Path(issuer.jwks).read_bytes())

            def log_message(self, *_args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest.fixture
def published(issuer: Issuer) -> Iterator[Published]:
    server = Published(issuer)
    yield server
    server.close()


async def test_a_token_of_a_withdrawn_key_is_refused_though_it_was_accepted_before(issuer: Issuer) -> None:
    verifier, token = _verifier(issuer), issuer.token("olga")
    assert (await verifier.verify(token)).name == "olga"
    issuer.rotate()
    with pytest.raises(IdentityMissing, match="unknown key"):
        await verifier.verify(token)


async def test_keys_of_a_url_are_read_again_after_a_while_without_anybody_waiting(
    issuer: Issuer, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier, token = _verifier(issuer, published.url), issuer.token("olga")
    await verifier.verify(token)
    issuer.rotate()
    await verifier.verify(token)
    assert published.asked == 1
    monkeypatch.setattr(signing_keys, "_REFRESH_SECONDS", 0.0)
    published.gate.clear()
    await verifier.verify(token)  # while the keys are on their way
    published.gate.set()

    async def refused() -> bool:
        try:
            await verifier.verify(token)
        except IdentityMissing:
            return True
        return False

    await until(refused)


async def test_a_key_that_is_new_at_a_url_counts_at_once(
    issuer: Issuer, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "_UNKNOWN_SECONDS", 0.0)
    verifier = _verifier(issuer, published.url)
    await verifier.verify(issuer.token("olga"))
    issuer.rotate()
    assert (await verifier.verify(issuer.token("emil"))).name == "emil"


async def test_unknown_keys_cost_at_most_one_attempt_and_keep_nobody_waiting(
    issuer: Issuer, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    other = Issuer(tmp_path / "other")
    verifier = _verifier(issuer, published.url)
    good = issuer.token("olga")
    await verifier.verify(good)
    monkeypatch.setattr(signing_keys, "_UNKNOWN_SECONDS", 0.0)
    published.fails = True
    published.gate.clear()

    async def forged(number: int) -> None:
        with pytest.raises(IdentityMissing, match="unknown key"):
            await verifier.verify(other.token(f"p{number}"))

    forgeries = [asyncio.create_task(forged(number)) for number in range(20)]
    await until(lambda: published.asked == 2)
    began = time.monotonic()
    await verifier.verify(issuer.token("emil"))
    assert time.monotonic() - began < 1
    published.gate.set()
    await asyncio.gather(*forgeries)
    # Failed: the next attempt waits, whoever asks.
    await forged(20)
    assert published.asked == 2


async def test_without_any_key_nobody_waits_for_each_attempt(issuer: Issuer, published: Published) -> None:
    published.fails = True
    verifier = _verifier(issuer, published.url)
    for _ in range(5):
        with pytest.raises(PartUnavailable):
            await verifier.verify(issuer.token("olga"))
    assert published.asked == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": 5}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'])
async def test_a_file_without_usable_keys_lets_nobody_in_and_is_read_again(
    issuer: Issuer, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "_RETRY_SECONDS", 0.0)
    keys = Path(issuer.jwks).read_text()
    Path(issuer.jwks).write_text(content)
    verifier = _verifier(issuer)
    with pytest.raises(PartUnavailable):
        await verifier.verify(issuer.token("olga"))
    Path(issuer.jwks).write_text(keys)
    await verifier.verify(issuer.token("olga"))
    Path(issuer.jwks).write_text(content)
    await verifier.verify(issuer.token("emil"))


async def test_the_algorithm_is_the_keys_whatever_a_token_says(issuer: Issuer) -> None:
    (key,) = json.loads(Path(issuer.jwks).read_text())["keys"]
    claims = {"sub": "olga", "iss": issuer.url, "aud": "modelfleet", "exp": time.time() + 60}
    forged = [
        jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256", headers={"kid": key["kid"]}),
        jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"kid": key["kid"]}),
        jwt.encode(claims, "", algorithm="none", headers={"kid": key["kid"]}),
    ]
    for token in forged:
        with pytest.raises(IdentityMissing):
            await _verifier(issuer).verify(token)


@pytest.mark.parametrize("groups", [5, True, {"a": 1}, [5], ["a", None], [["a"]], ["g"] * 2000, 1.5])
async def test_groups_that_are_no_texts_are_no_identity(issuer: Issuer, groups: Any) -> None:
    with pytest.raises(IdentityMissing, match="groups"):
        await _verifier(issuer).verify(_signed(issuer, {"sub": "olga", "groups": groups}))


@pytest.mark.parametrize(("groups", "found"), [(None, set()), ("sre", {"sre"}), ([], set()), (["a", "b"], {"a", "b"})])
async def test_groups_are_a_text_or_a_list(issuer: Issuer, groups: Any, found: set[str]) -> None:
    assert (await _verifier(issuer).verify(_signed(issuer, {"sub": "olga", "groups": groups}))).groups == found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(claim=st.sampled_from(["sub", "groups", "exp", "iss", "aud", "nbf", "iat", "jti"]), value=JSON)
def test_whatever_a_signed_token_holds_it_is_accepted_or_no_identity(issuer: Issuer, claim: str, value: Any) -> None:
    with contextlib.suppress(IdentityMissing):
        asyncio.run(_verifier(issuer).verify(_signed(issuer, {"sub": "o", claim: value})))
