"""Alertmanager, by its API v2. It is told of all alerts that go on, again and again, and of those that ended lately.

What it was told it forgets by itself: an alert that nobody repeats until its `endsAt` has passed. As Prometheus does
it, that is four intervals from now.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from modelfleetd.errors import PartUnavailable

_log = logging.getLogger(__name__)
# How often it is told the same again; what it is told holds for so many times as long.
RESEND: Final = timedelta(minutes=1)
HOLDS: Final = 4
# For how long it is told that something is over; and alerts of one request.
RESOLVED_KEPT: Final = timedelta(minutes=15)
MOST_POSTED: Final = 200
_SECONDS: Final = 10.0
# Of an answer: Alertmanager gives none to what it takes, and a line to what it refuses.
_MOST_SHOWN: Final = 500


@dataclass(frozen=True, slots=True)
class Posted:
    """An alert as Alertmanager takes it."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: datetime
    ends_at: datetime
    generator_url: str = ""

    def as_data(self) -> dict[str, Any]:
        return {
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
            "startsAt": self.starts_at.isoformat(),
            "endsAt": self.ends_at.isoformat(),
            "generatorURL": self.generator_url,
        }


class Alertmanager:
    """One Alertmanager. Of a cluster each is told: they agree among themselves on who notifies."""

    def __init__(self, url: str) -> None:
        # Brings a command line of its own: only who has an Alertmanager waits for its import.
        import httpx

        parsed = httpx.URL(url)
        # For people and figures: a password in its URL is told to nobody.
        self.host = parsed.host if parsed.port is None else f"{parsed.host}:{parsed.port}"
        # Where it is, is the operator's word alone: neither answers nor the environment lead elsewhere.
        self._http = httpx.AsyncClient(
            base_url=url, follow_redirects=False, trust_env=False, verify=ssl.create_default_context()
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def post(self, alerts: Sequence[Posted]) -> None:
        """Tells it of some alerts.

        Raises:
            PartUnavailable: it did not take them over.
        """
        import httpx

        try:
            answer = await self._http.post(
                "/api/v2/alerts", json=[alert.as_data() for alert in alerts], timeout=_SECONDS
            )
        except httpx.HTTPError as error:
            raise PartUnavailable("Alertmanager") from error
        if answer.status_code == httpx.codes.BAD_REQUEST:
            # It takes those that it understands, and would refuse the others again.
            _log.error("Alertmanager refuses alerts: %s", " ".join(answer.text.split())[:_MOST_SHOWN])
        elif answer.status_code != httpx.codes.OK:
            _log.error("Alertmanager answered with status %d", answer.status_code)
            raise PartUnavailable("Alertmanager")
