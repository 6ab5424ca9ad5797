"""Channels to the services: addresses, TLS, deadlines, identity, and retries where repeating is harmless.

Retries are gRPC's own, declared by a service config, and only for methods that change nothing (NO_SIDE_EFFECTS in the
protos) or whose requests carry a request_id, which makes a repetition answer the same.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

Metadata: TypeAlias = tuple[tuple[str, str], ...]

DEFAULT_ADDRESS = "127.0.0.1:8460"
DEFAULT_TIMEOUT = 10.0
# A stream is begun again when it ends.
DEFAULT_STREAM_TIMEOUT = 3600.0

_MESSAGE_BYTES = 16 << 20
_RETRY = {
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# Stops repeating while most calls fail, so that repetitions do not keep down a server that comes back.
_THROTTLING = {"maxTokens": 20, "tokenRatio": 0.5}
DEFAULT_ATTEMPTS = 4
# Certificate files are looked at no more often than this.
_LOOK_EVERY = 10.0
_LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")
# What can be the value of a header.
_SENDABLE = re.compile(r"[ -~]+")
# What a replaced channel's calls may still take.
_GRACE = 60.0


@dataclass(frozen=True, slots=True)
class Tls:
    """Files (PEM) for an encrypted connection. Without `ca` the system's authorities are trusted."""

    ca: str | None = None
    # Certificate chain and private key to identify this caller with.
    cert: str | None = None
    key: str | None = None
    # Name in the server's certificate, where it differs from the address.
    server_name: str | None = None

    def __post_init__(self) -> None:
        # grpc aborts the whole process where only one of them is there.
        if (self.cert is None) != (self.key is None):
            missing = "private key" if self.key is None else "certificate"
            raise ValueError(f"a certificate and its private key go together: the {missing} is missing")

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns credentials with what the files hold now.

        Raises:
            ValueError: a file is not what it should be; grpc would only say that nobody answers.
            OSError: a file cannot be read.
        """
        self.check()
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    def check(self) -> None:
        """Raises ValueError where a file is not what it should be, OSError where one cannot be read."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for path in (self.ca, self.cert, self.key):
            _read(path)  # says which one is missing, which ssl does not
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except ssl.SSLError:
            raise ValueError(f"{self.ca} holds no certificates of authorities (PEM)") from None
        try:
            if self.cert is not None:
                # A password would be asked for on the terminal otherwise.
                context.load_cert_chain(self.cert, self.key, password="")
        except (ssl.SSLError, ValueError):
            raise ValueError(
                f"{self.cert} and {self.key} are no certificate with its private key (PEM, without a password)"
            ) from None

    def modified(self) -> tuple[float, ...]:
        """Returns when the files last changed."""
        return tuple(Path(path).stat().st_mtime for path in (self.ca, self.cert, self.key) if path)


def _nothing(path: str) -> AbstractContextManager[None]:  # noqa: ARG001
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Options:
    """How calls are made, whatever their method."""

    tls: Tls | None = None
    timeout: float = DEFAULT_TIMEOUT
    # Called for every call: identity, trace context.
    metadata: Callable[[], Metadata] = tuple
    # How often a call is made at most, the first time included.
    attempts: int = DEFAULT_ATTEMPTS
    # Seconds that are left for what the call is part of; None: nothing limits it.
    remaining: Callable[[], float | None] = lambda: None
    # Entered around every call that is no stream, with the method's path.
    around: Callable[[str], AbstractContextManager[None]] = _nothing

    def limit(self, timeout: float) -> float:
        """Returns how long a call may take: not longer than what it is part of."""
        left = self.remaining()
        return timeout if left is None else min(timeout, left)


def identity(principal: str | None, token: str | Callable[[], str] | None) -> Callable[[], Metadata]:
    """Returns what tells the server who calls.

    Args:
        principal: asserted, for servers on loopback without configured identity.
        token: a JWT, or a function that returns a fresh one.

    Raises:
        ValueError: one of them has characters that cannot be sent.
    """
    if principal is not None and _SENDABLE.fullmatch(principal) is None:
        raise ValueError(f"the principal {principal!r} must be printable ASCII")
    fixed: Metadata = () if principal is None else (("x-modelfleet-principal", principal),)
    if token is None:
        return lambda: fixed
    if callable(token):
        return lambda: (*fixed, _bearer(token()))
    bearer = _bearer(token)
    return lambda: (*fixed, bearer)


def _bearer(token: str) -> tuple[str, str]:
    if _SENDABLE.fullmatch(token) is None:
        raise ValueError("the token must be one line of printable ASCII")  # and is shown to nobody
    return "authorization", f"Bearer {token}"


def is_loopback(address: str) -> bool:
    """Says whether an address is on this machine."""
    return address.startswith(_LOOPBACK)


def expect_encryption(address: str, tls: Tls | None) -> None:
    """Raises ValueError where a token would travel in plain text beyond this machine."""
    if tls is None and not is_loopback(address):
        raise ValueError(f"refusing to send a token to {address} without encryption: give the authorities of its TLS")


def channel_options(
    address: str, methods: Iterable[Any], tls: Tls | None, attempts: int = DEFAULT_ATTEMPTS
) -> Sequence[tuple[str, Any]]:
    """Returns the options of a channel on which these methods, given by their descriptors, are called."""
    names = [
        {"service": method.containing_service.full_name, "method": method.name}
        for method in methods
        if is_repeatable(method)
    ]
    policy = {"name": names, "retryPolicy": {"maxAttempts": attempts, **_RETRY}}
    config = {"methodConfig": [policy], "retryThrottling": _THROTTLING} if names and attempts > 1 else {}
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Comes back fast after a server's restart.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if is_loopback(address):
        # What is on this machine is never behind a proxy, whatever the environment says.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def is_repeatable(method: Any) -> bool:
    """Says whether calling a method twice is the same as calling it once."""
    from google.protobuf.descriptor_pb2 import MethodOptions

    if method.client_streaming or method.server_streaming:
        return False
    no_side_effects: bool = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    return no_side_effects or has_request_id(method)


def has_request_id(method: Any) -> bool:
    """Says whether the request of a method carries a request_id: one for the call, not a column of a batch."""
    from google.protobuf.descriptor import FieldDescriptor

    field = method.input_type.fields_by_name.get("request_id")
    return field is not None and field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated


class _Channel:
    """One channel, made anew when the files of its certificates change: gRPC reads them only once."""

    def __init__(self, address: str, methods: Iterable[Any], options: Options) -> None:
        self.options = options
        self._address = address
        self._tls = options.tls
        self._channel_options = channel_options(address, methods, options.tls, options.attempts)
        self._modified: tuple[float, ...] = ()
        self._looked = 0.0
        self._callables: dict[str, Any] = {}
        self._channel: Any = None

    def callable(self, path: str, kind: str, request: Any, response: Any) -> Any:
        """Returns what calls a method: `kind` is unary_unary, unary_stream, stream_unary or stream_stream."""
        if self._tls is not None:
            self._replace_if_stale(self._tls)
        found = self._callables.get(path)
        if found is None:
            if self._channel is None:
                self._channel = self._open()
            make = getattr(self._channel, kind)
            found = self._callables[path] = make(
                path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
            )
        return found

    def _replace_if_stale(self, tls: Tls) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY and self._channel is not None:
            return
        self._looked = now
        try:
            modified = tls.modified()
        except OSError:
            return  # In the middle of a replacement; the next call looks again.
        if modified == self._modified:
            return
        old = self._channel
        if old is not None:
            try:
                fresh = self._open()
            except (OSError, ValueError):
                return  # The certificate is there, its key not yet.
            self._channel, self._callables = fresh, {}
            self._retire(old)
        self._modified = modified

    def _open(self) -> Any:
        raise NotImplementedError

    def _retire(self, channel: Any) -> None:
        raise NotImplementedError


class AsyncChannel(_Channel):
    """A channel of grpc.aio, opened at the first call."""

    def _open(self) -> Any:
        if self._tls is None:
            return grpc.aio.insecure_channel(self._address, self._channel_options)
        return grpc.aio.secure_channel(self._address, self._tls.credentials(), self._channel_options)

    def _retire(self, channel: Any) -> None:
        import asyncio

        # Held by the loop's own list of tasks until it is done.
        self._retiring = asyncio.ensure_future(channel.close(_GRACE))

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        if self._channel is not None:
            channel, self._channel, self._callables = self._channel, None, {}
            await channel.close()


class SyncChannel(_Channel):
    """A channel of grpc's blocking API, opened at the first call."""

    def _open(self) -> Any:
        if self._tls is None:
            return grpc.insecure_channel(self._address, self._channel_options)
        return grpc.secure_channel(self._address, self._tls.credentials(), self._channel_options)

    def _retire(self, channel: Any) -> None:
        import threading

        closing = threading.Timer(_GRACE, channel.close)
        closing.daemon = True
        closing.start()

    def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        if self._channel is not None:
            channel, self._channel, self._callables = self._channel, None, {}
            channel.close()


def _read(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
