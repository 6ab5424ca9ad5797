"""Takes what people are told from the outbox to the receivers: webhooks and Alertmanager. Any replica does.

Each receiver has a worker of its own, so that one that hangs holds up no other. A webhook is told once, and again until
it has taken it; Alertmanager is told again and again of all that lasts, since it forgets by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from modelfleetd.clock import Clock
from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.alertmanager import HOLDS, MOST_POSTED, RESEND, RESOLVED_KEPT, Alertmanager, Posted
from modelfleetd.kit.failpoint import passing
from modelfleetd.launcher.domain.notifications import ALERTMANAGER, ENDINGS, LASTS, Audience, Kind, pause
from modelfleetd.launcher.store import Store
from modelfleetd.launcher.store.notifications import Backlog, Due, Lasting
from modelfleetd.launcher.webhooks import NotTaken, Webhooks

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_log = logging.getLogger(__name__)
# How often each receiver's worker looks for what is due.
LOOK_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 300.0
COUNT_SECONDS: Final = 15.0
# Requests to one webhook at a time.
_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Receivers:
    """Whom the launcher tells, as it is configured."""

    webhooks: Webhooks | None = None
    alertmanagers: Sequence[Alertmanager] = ()

    @property
    def audience(self) -> Audience:
        """Each receiver, and of what it is told."""
        found = dict(self.webhooks.audience) if self.webhooks else {}
        return found | ({ALERTMANAGER: frozenset(Kind)} if self.alertmanagers else {})


class WebhookDelivery:
    """Tells one webhook."""

    def __init__(self, name: str, webhooks: Webhooks, store: Store, lease: float) -> None:
        """Makes the worker's act.

        Args:
            name: of the webhook.
            webhooks: speak to it.
            store: with the outbox.
            lease: seconds until somebody else tells it what this process has claimed; longer than a request takes.
        """
        self._name = name
        self._webhooks = webhooks
        self._store = store
        self._lease = lease

    async def round(self) -> None:
        """Tells all that is due."""
        while due := await self._store.due_notifications(self._name, self._lease, _AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for each in due:
                    group.create_task(self._tell(each))

    async def _tell(self, due: Due) -> None:
        try:
            await self._webhooks.tell(self._name, due.key, due.body)
        except NotTaken as error:
            wait = pause(due.attempts)
            _log.warning("%s: attempt %d: %s; again in %.0f s", due.key, due.attempts, error, wait)
            await self._store.not_delivered(due.number, due.attempts, str(error), wait)
            return
        await self._store.delivered([due.number])


class AlertDelivery:
    """Tells one Alertmanager: what has changed soon, and everything that lasts each minute."""

    def __init__(self, alertmanager: Alertmanager, store: Store, clock: Clock) -> None:
        self._alertmanager = alertmanager
        self._store = store
        self._clock = clock
        self._seen: datetime | None = None
        self._again = 0.0
        self._failures = 0

    async def round(self) -> None:
        """Tells it where there is something new, or it is time to tell everything again."""
        changed, now = await self._store.alerts_changed(), self._clock.monotonic()
        # While it does not answer, what is new does not make it answer either.
        if now < self._again and (changed == self._seen or self._failures):
            return
        try:
            await self._tell()
        except PartUnavailable as error:
            self._failures += 1
            wait = min(pause(self._failures), RESEND.total_seconds())
            self._again = now + wait
            _log.warning("%s: %s Again in %.0f s", self._alertmanager.host, error.message, wait)
            await self._store.alerts_not_taken(f"{self._alertmanager.host} does not take it over")
            return
        self._seen, self._failures, self._again = changed, 0, now + RESEND.total_seconds()

    async def _tell(self) -> None:
        lasting = await self._store.lasting_alerts(RESOLVED_KEPT)
        now = await self._store.now()
        for begin in range(0, len(lasting), MOST_POSTED):
            part = lasting[begin : begin + MOST_POSTED]
            with passing("launcher", "call", "alertmanager"):
                await self._alertmanager.post([_posted(each, now) for each in part])
            await self._store.alerts_taken([each.number for each in part if each.is_pending])


def _posted(alert: Lasting, now: datetime) -> Posted:
    end = alert.end_time if alert.end_time is not None else now + HOLDS * RESEND
    if alert.is_pending and alert.kind in ENDINGS:
        # It was told late, and lasts long enough to be seen all the same.
        end = max(end, now + LASTS)
    notes = {"summary": alert.message, "describe": str(alert.body["describe"])}
    return Posted(alert.labels, notes, alert.create_time, end)


class OutboxMetrics:
    """What Prometheus is told of the outbox: whoever relies on being told must learn when nothing arrives."""

    def __init__(self, store: Store, clock: Clock, receivers: Iterable[str]) -> None:
        self._store = store
        self._clock = clock
        self._receivers = tuple(receivers)
        self._backlog: Mapping[str, Backlog] = {}
        # When that was counted, by the monotonic clock.
        self._counted = 0.0

    async def count(self) -> None:
        """Counts what waits."""
        self._counted, self._backlog = self._clock.monotonic(), await self._store.backlog()

    def publish(self) -> Callable[[], None]:
        """Has Prometheus told with everything else that this process tells it; returns how to end that."""
        from prometheus_client import REGISTRY

        collector: Any = self
        REGISTRY.register(collector)
        return lambda: REGISTRY.unregister(collector)

    def collect(self) -> Iterator[Metric]:
        """Gives Prometheus the figures, in its terms."""
        from prometheus_client.core import GaugeMetricFamily

        pending = GaugeMetricFamily(
            "modelfleet_launcher_notifications_pending", "Notifications that wait for a receiver", labels=("receiver",)
        )
        oldest = GaugeMetricFamily(
            "modelfleet_launcher_notifications_oldest_seconds",
            "How long the oldest notification has been waiting for a receiver",
            labels=("receiver",),
        )
        since, backlog = self._clock.monotonic() - self._counted, self._backlog
        for receiver in {*self._receivers, *backlog}:
            waits = backlog.get(receiver)
            pending.add_metric((receiver,), waits.pending if waits else 0)
            oldest.add_metric((receiver,), max(0.0, waits.oldest) + since if waits else 0.0)
        yield from (pending, oldest)
