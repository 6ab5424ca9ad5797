"""Rates from Prometheus: range queries with 1-minute steps, piece by piece, each answer bounded."""

from __future__ import annotations

import json
import logging
import math
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from modelfleetd.capacity.domain.demand import STEP, Rates, pieces
from modelfleetd.errors import PartUnavailable
from modelfleetd.kit import deadline
from modelfleetd.kit.failpoint import passing

_log = logging.getLogger(__name__)
# A series of 10,000 points takes some 0.4 MB: a query that gives many of them is refused before it fills the memory.
_MAX_BYTES = 8 << 20
_MAX_SECONDS = 30.0
_MAX_WHY = 300


class QueryRefused(Exception):
    """The query itself is at fault; the message says why, in words that end a sentence."""


class Prometheus:
    """A Prometheus server, or whatever speaks its HTTP API."""

    def __init__(self, url: str) -> None:
        # Brings a command line of its own: only who has a Prometheus waits for its import.
        import httpx

        # Where it is, is the operator's word alone: neither answers nor the environment lead elsewhere.
        self._http = httpx.AsyncClient(
            base_url=url, follow_redirects=False, trust_env=False, verify=ssl.create_default_context()
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def rates(self, query: str, start: datetime, end: datetime) -> Rates:
        """Returns the values of the only series of a query, minute by minute, both ends included.

        Raises:
            QueryRefused: the query is malformed, or gives several series.
            PartUnavailable: Prometheus does not answer.
        """
        values: list[float] = []
        newest, dropped, known = None, 0, None
        for first, last in pieces(start, end):
            for series in await self._series(query, first, last):
                labels = series["metric"]
                if known not in (None, labels):
                    both = f"{_told(known)} and {_told(labels)}"
                    raise QueryRefused(f"the query gives several series, such as {both}; put sum(…) around it")
                known = labels
                for time, text in series["values"]:
                    value = float(text)
                    if math.isfinite(value) and value >= 0:
                        values.append(value)
                        newest = time
                    else:
                        dropped += 1
        return Rates(values, None if newest is None else datetime.fromtimestamp(newest, UTC), dropped)

    async def _series(self, query: str, first: datetime, last: datetime) -> list[Mapping[str, Any]]:
        import httpx

        left = deadline.remaining()
        timeout = _MAX_SECONDS if left is None else max(0.1, min(_MAX_SECONDS, left * 0.8))
        form = {
            "query": query,
            "start": str(first.timestamp()),
            "end": str(last.timestamp()),
            "step": str(int(STEP.total_seconds())),
            "timeout": f"{timeout:.1f}",
        }
        try:
            with passing("capacity", "call", "prometheus"):
                status, body = await self._post("/api/v1/query_range", form, timeout)
            answer = json.loads(body) if status in (200, 400, 422) else {}
            if answer.get("status") == "error" and answer.get("errorType") in ("bad_data", "execution"):
                raise QueryRefused(f"Prometheus refuses the query: {_short(answer.get('error', ''))}")
            if status != 200 or answer.get("status") != "success":
                _log.error("Prometheus answered a range query with status %d", status)
                raise PartUnavailable("Prometheus")
            series: list[Mapping[str, Any]] = answer["data"]["result"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("Prometheus did not answer as it should: %r", error)
            raise PartUnavailable("Prometheus") from error
        return series

    async def _post(self, path: str, form: Mapping[str, str], timeout: float) -> tuple[int, bytes]:
        body = bytearray()
        async with self._http.stream("POST", path, data=form, timeout=timeout) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise QueryRefused("the query gives more series than can be read; put sum(…) around it")
        return response.status_code, bytes(body)


def _told(labels: Mapping[str, str] | None) -> str:
    return _short("{" + ", ".join(f'{name}="{value}"' for name, value in sorted((labels or {}).items())) + "}")


def _short(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _MAX_WHY else line[:_MAX_WHY] + "…"
