"""Webhooks: services of the organisation that are told of launches, or asked whether one may go on.

Each request is signed with the webhook's secret, and names a key that stays the same however often it is repeated.
Nothing that comes of a request names the URL or the secret: of some services the URL is a secret, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import os
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from modelfleetd.clock import Clock
from modelfleetd.kit.failpoint import passing
from modelfleetd.launcher.domain.notifications import ALERTMANAGER, Audience, Kind
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.ports import Judgement
from modelfleetd.names import ID_EXPECTATION, is_id

if TYPE_CHECKING:
    import httpx

SECONDS: Final = 10.0
# Webhooks of one file; bytes of the file, of an answer, and of what is shown of one.
_MOST: Final = 100
_FILE_BYTES: Final = 1 << 20
_ANSWER_BYTES: Final = 64 << 10
_MOST_SHOWN: Final = 1_000
# Whoever knows a shorter one may have guessed it.
_SECRET_BYTES: Final = 16
_FIELDS: Final = frozenset({"name", "url", "secret_file", "secret_env", "kinds", "gate"})
_VERDICTS: Final = {verdict.name: verdict for verdict in Verdict if verdict is not Verdict.ERROR}
_ACCEPTED: Final = (
    '{"verdict": "PASS", "FAIL" or "INCONCLUSIVE", "explanation": of 1 to ' + str(_MOST_SHOWN) + " characters}"
)


@dataclass(frozen=True, slots=True)
class Webhook:
    """One service as it is configured.

    Attributes:
        secret: reads the secret, so that one in a file can be replaced while the launcher runs; may raise OSError.
        kinds: that it is told.
        gate: whether launches may name it as a gate.
    """

    name: str
    url: str
    secret: Callable[[], bytes]
    kinds: frozenset[Kind] = frozenset(Kind)
    gate: bool = False


class NotTaken(Exception):
    """A webhook did not take over what it was sent; says in one line why not."""


class Webhooks:
    """The webhooks of one launcher."""

    def __init__(self, webhooks: Iterable[Webhook], clock: Clock, seconds: float = SECONDS) -> None:
        """Makes the client of all of them.

        Args:
            webhooks: as configured.
            clock: that requests are dated by.
            seconds: that one request may take in all.
        """
        self._webhooks = {webhook.name: webhook for webhook in webhooks}
        self._clock = clock
        self._seconds = seconds
        self._http = _client(seconds) if self._webhooks else None

    @property
    def audience(self) -> Audience:
        """Whom the launcher tells, and of what."""
        return {name: webhook.kinds for name, webhook in self._webhooks.items() if webhook.kinds}

    @property
    def gates(self) -> frozenset[str]:
        """The webhooks that launches may name as gates."""
        return frozenset(name for name, webhook in self._webhooks.items() if webhook.gate)

    async def close(self) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.aclose()

    async def tell(self, name: str, key: str, document: Mapping[str, Any]) -> None:
        """Sends a document; the same key says that it is the same one again.

        Raises:
            NotTaken: it did not take it over, as far as one can tell.
        """
        await self._post(name, key, document)

    async def ask(self, name: str, key: str, document: Mapping[str, Any]) -> Judgement:
        """Asks a webhook that is a gate. Whatever does not answer is an ERROR; nothing is inferred from silence.

        Args:
            name: of the webhook.
            key: of the question: the same however often it is asked, so that the webhook may answer the same.
            document: what it is asked about; sent as JSON.
        """
        if name not in self.gates:
            return Judgement(Verdict.ERROR, f"{name} is no webhook that may be asked, by the launcher's configuration")
        try:
            body = await self._post(name, key, {"type": "gate", **document})
        except NotTaken as error:
            return Judgement(Verdict.ERROR, str(error))
        return _understood(name, body)

    async def _post(self, name: str, key: str, document: Mapping[str, Any]) -> bytes:
        import httpx

        webhook = self._webhooks.get(name)
        if webhook is None:
            raise NotTaken(f"{name} is not configured any more")
        body = json.dumps({"key": key, **document}, separators=(",", ":"), sort_keys=True).encode()
        try:
            headers = signed(webhook.secret(), int(self._clock.now().timestamp()), key, body)
        except OSError as error:
            raise NotTaken(f"the secret of {name} cannot be read: {error.strerror}") from None
        try:
            with passing("launcher", "call", "webhook"):
                async with asyncio.timeout(self._seconds):
                    return await self._exchange(webhook, headers, body)
        except (TimeoutError, httpx.TimeoutException):
            raise NotTaken(f"{name} did not answer within {self._seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # Neither the error's words nor its cause: they may name the URL.
            raise NotTaken(f"{name} cannot be reached ({type(error).__name__})") from None

    async def _exchange(self, webhook: Webhook, headers: Mapping[str, str], body: bytes) -> bytes:
        assert self._http is not None, "made with the first webhook"
        async with self._http.stream("POST", webhook.url, content=body, headers=dict(headers)) as answer:
            if not answer.is_success:
                raise NotTaken(f"{webhook.name} answered with status {answer.status_code}")
            found = bytearray()
            async for part in answer.aiter_bytes():
                found += part
                if len(found) > _ANSWER_BYTES:
                    raise NotTaken(f"{webhook.name} answered with more than {_ANSWER_BYTES} bytes")
            return bytes(found)


def signed(secret: bytes, timestamp: int, key: str, body: bytes) -> dict[str, str]:
    """Returns the headers of a request: when it was sent, its key, and the signature over `timestamp.body`."""
    signature = hmac.new(secret, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "User-Agent": "modelfleet",
        "Modelfleet-Timestamp": str(timestamp),
        "Modelfleet-Key": key,
        "Modelfleet-Signature": f"sha256={signature}",
    }


def _understood(name: str, body: bytes) -> Judgement:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    said = found if isinstance(found, dict) else {}
    verdict, explanation = said.get("verdict"), said.get("explanation")
    is_known = isinstance(verdict, str) and verdict in _VERDICTS
    if not is_known or not isinstance(explanation, str) or not 0 < len(explanation) <= _MOST_SHOWN:
        return Judgement(Verdict.ERROR, f"{name} must answer with {_ACCEPTED}")
    return Judgement(_VERDICTS[str(verdict)], explanation.replace("\0", ""))


# Configuration


def read(path: str, environment: Mapping[str, str] = os.environ) -> list[Webhook]:
    """Reads the configuration of webhooks; see the README.

    Raises:
        ValueError: it is not as it must be; names everything that is wrong with it.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        content = file.read(_FILE_BYTES + 1)
    try:
        if len(content) > _FILE_BYTES:
            raise ValueError(f"{path}: must have at most {_FILE_BYTES} bytes")
        document = yaml.safe_load(content)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        # The parser's own words would show the line, and what is secret in it.
        raise ValueError(f"{path}: is no YAML{where}") from None
    listed = document.get("webhooks") if isinstance(document, dict) and set(document) == {"webhooks"} else None
    if not isinstance(listed, list) or not 0 < len(listed) <= _MOST:
        raise ValueError(f"{path}: must have one key, `webhooks`, with a list of 1 to {_MOST} webhooks")
    wrong = [f"webhooks[{at}].{said}" for at, given in enumerate(listed) for said in _violations(given, environment)]
    names = [given.get("name") if isinstance(given, dict) else None for given in listed]
    wrong += [f"webhooks[{at}].name: must be unique" for at, name in enumerate(names) if name and name in names[:at]]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    return [_webhook(given, environment) for given in listed]


def _violations(given: Any, environment: Mapping[str, str]) -> Iterator[str]:
    if not isinstance(given, dict):
        yield "name: must be there, with `url` and a secret"
        return
    for field in sorted(map(str, set(given) - _FIELDS)):
        yield f"{field}: there is no such field; there are {', '.join(sorted(_FIELDS))}"
    name = given.get("name")
    if not isinstance(name, str) or not is_id(name):
        yield f"name: {ID_EXPECTATION}"
    elif name == ALERTMANAGER:
        yield f"name: must not be {ALERTMANAGER}, which --alertmanager-url configures"
    if not _is_safe(given.get("url")):
        yield "url: must be https://…, or http:// to this machine; whoever reads plain HTTP could use what it says"
    kinds = given.get("kinds", [])
    known = {kind.name for kind in Kind}
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in known for kind in kinds):
        yield f"kinds: must be a list of {', '.join(kind.name for kind in Kind)}"
    if not isinstance(given.get("gate", False), bool):
        yield "gate: must be true or false"
    yield from _secret_violations(given, environment)


def _secret_violations(given: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    stated: Sequence[str] = [field for field in ("secret_file", "secret_env") if field in given]
    if len(stated) != 1 or not isinstance(given[stated[0]], str):
        yield "secret_file: must name a file with the secret; or else secret_env a variable of the environment"
        return
    try:
        secret = _secret_of(given, environment)()
    except OSError as error:
        yield f"{stated[0]}: cannot be read: {error.strerror}"
        return
    if len(secret) < _SECRET_BYTES:
        yield f"{stated[0]}: must lead to a secret of at least {_SECRET_BYTES} bytes; make one: openssl rand -hex 32"


def _webhook(given: Mapping[str, Any], environment: Mapping[str, str]) -> Webhook:
    kinds = frozenset(Kind[kind] for kind in given["kinds"]) if "kinds" in given else frozenset(Kind)
    return Webhook(given["name"], given["url"], _secret_of(given, environment), kinds, given.get("gate", False))


def _secret_of(given: Mapping[str, Any], environment: Mapping[str, str]) -> Callable[[], bytes]:
    """What reads a secret: of a file without white space around it, so that editors may end its line."""
    if "secret_env" in given:
        secret = environment.get(given["secret_env"], "").strip().encode()
        return lambda: secret
    path = Path(given["secret_file"])
    return lambda: path.read_bytes().strip()


def _client(seconds: float) -> httpx.AsyncClient:
    # Brings a command line of its own: only who has a webhook waits for its import.
    import httpx

    # Where they are, is the operator's word alone: neither answers nor the environment lead elsewhere.
    return httpx.AsyncClient(
        follow_redirects=False, trust_env=False, timeout=seconds, verify=ssl.create_default_context()
    )


def _is_safe(url: object) -> bool:
    if not isinstance(url, str):
        return False
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    if not parsed.host or parsed.fragment:
        return False
    return parsed.scheme == "https" or (parsed.scheme == "http" and _is_this_machine(parsed.host))


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
