"""The keys that sign tokens (JWKS): of a file, read again when it changes, or of a URL, read every few minutes."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from modelfleetd.errors import PartUnavailable

if TYPE_CHECKING:
    from jwt import PyJWK

_log = logging.getLogger(__name__)
ALGORITHMS = frozenset({"RS256", "ES256"})
# Keys of a URL are read again when they are older than this: one that was withdrawn goes on to count for so long.
_REFRESH_SECONDS = 300.0
# A key that is not known yet makes them be read at once, but not more often than this: anybody can name such a key.
_UNKNOWN_SECONDS = 30.0
# After a failed attempt the next one waits, twice as long each time.
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 2.0, 60.0
_FETCH_SECONDS = 5
_MOST_BYTES = 1 << 20

_State: TypeAlias = tuple[int, int]


class SigningKeys:
    """Keys by their ids. Whoever knows its key never waits for others to be read."""

    def __init__(self, place: str) -> None:
        """Reads nothing yet.

        Args:
            place: path of a file, or an http(s) URL.
        """
        self._place = place
        self._is_url = place.startswith(("http://", "https://"))
        self._keys: dict[str | None, PyJWK] = {}
        # Of the file, as it was when it was last read.
        self._state: _State | None = None
        self._read_at = self._tried_at = float("-inf")
        self._failures = 0
        self._reading: asyncio.Task[None] | None = None
        # Grows with every change: what was concluded from older keys is void.
        self.version = 0

    async def refresh(self) -> None:
        """Reads the keys again where they may have changed: a file before it returns, a URL in the background.

        Raises:
            PartUnavailable: there are none, and none can be read.
        """
        if not self._is_stale() or not self._may_try():
            return
        reading = self._start_reading()
        if not (self._is_url and self._keys):
            await asyncio.shield(reading)

    async def find(self, key_id: str | None) -> PyJWK | None:
        """Returns a key, or None; without an id the only one.

        Raises:
            PartUnavailable: there are none, and none can be read.
        """
        found = self._of(key_id)
        if found is None and self._is_url and time.monotonic() - self._tried_at > self._pause(_UNKNOWN_SECONDS):
            await asyncio.shield(self._start_reading())
        elif found is None and self._reading is not None:
            await asyncio.shield(self._reading)
        if not self._keys:
            raise PartUnavailable("the issuer of tokens")
        return self._of(key_id)

    def _of(self, key_id: str | None) -> PyJWK | None:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def _is_stale(self) -> bool:
        if self._is_url:
            return time.monotonic() - self._read_at > _REFRESH_SECONDS
        state = self._look()
        return not self._keys or state not in {None, self._state}

    def _may_try(self) -> bool:
        return time.monotonic() - self._tried_at > self._pause(0.0)

    def _pause(self, usual: float) -> float:
        """Returns how long after one attempt the next one may be."""
        if not self._failures:
            return usual
        return float(min(_RETRY_SECONDS * 2 ** min(self._failures - 1, 10), _LONGEST_RETRY_SECONDS))

    def _look(self) -> _State | None:
        try:
            found = Path(self._place).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _start_reading(self) -> asyncio.Task[None]:
        """Returns the task that reads the keys: one at a time, for all who wait."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="signing keys")
            self._reading.add_done_callback(self._finished)
        return self._reading

    def _finished(self, _task: asyncio.Task[None]) -> None:
        self._reading = None

    async def _read(self) -> None:
        import jwt

        self._tried_at = time.monotonic()
        state = None if self._is_url else self._look()
        try:
            text = await asyncio.to_thread(_fetch if self._is_url else _load, self._place)
            found = [key for key in jwt.PyJWKSet.from_dict(json.loads(text)).keys if key.algorithm_name in ALGORITHMS]
            if not found:
                raise ValueError(f"no key there is for any of {', '.join(sorted(ALGORITHMS))}")
        except Exception as error:  # noqa: BLE001  # whatever is there instead of keys, the ones in use stay
            self._failures += 1
            self._tried_at = time.monotonic()
            _log.error("cannot read the keys that sign tokens: %s; next attempt in %.0f s", error, self._pause(0.0))
            return
        self._failures = 0
        self._state = state
        self._read_at = time.monotonic()
        keys: dict[str | None, PyJWK] = {key.key_id: key for key in found}
        if {name: key._jwk_data for name, key in keys.items()} != {k: v._jwk_data for k, v in self._keys.items()}:
            self._keys = keys
            self.version += 1


def _load(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _fetch(url: str) -> str:
    from urllib.request import urlopen

    with urlopen(url, timeout=_FETCH_SECONDS) as response:
        text: str = response.read(_MOST_BYTES).decode()
        return text
