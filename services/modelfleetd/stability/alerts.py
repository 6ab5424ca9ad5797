"""The duties of alerts: derive them once a minute, keep announcements up to date, tell Alertmanager.

Any replica derives: whichever locks the row first does it in one transaction, so that each transition happens once.
Every replica tells every Alertmanager, as a pair of Prometheus does: same labels are the same alert to them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from modelfleetd.clock import Clock
from modelfleetd.errors import PartUnavailable
from modelfleetd.kit.alertmanager import HOLDS, MOST_POSTED, RESEND, RESOLVED_KEPT, Alertmanager, Posted
from modelfleetd.kit.db import Connection, Database
from modelfleetd.kit.failpoint import failpoint, passing
from modelfleetd.names import ALERT
from modelfleetd.stability.delivery_metrics import DeliveryMetrics
from modelfleetd.stability.domain import announcement as announced
from modelfleetd.stability.domain.alert import Alert, Kind, State
from modelfleetd.stability.domain.alerting import Known, Observed, derive
from modelfleetd.stability.domain.fleet import WatchedFleet, WatchedModel
from modelfleetd.stability.domain.slices import Objective, Slices
from modelfleetd.stability.domain.slo import LONGEST_WINDOW, Burning, burning, coverage_slices, target_of
from modelfleetd.stability.domain.tenure import Tenure, own_minutes, pass_on
from modelfleetd.stability.store import alerts as store
from modelfleetd.stability.store import announcements
from modelfleetd.stability.store import slices as slices_store

_log = logging.getLogger(__name__)
# A minute is looked at soon after it was evaluated, and silences are seen to begin and end.
DERIVE_SECONDS: Final = 5.0
_FIRST_RETRY_SECONDS: Final = 1.0
KEPT: Final = timedelta(days=90)
_REQUESTS_KEPT: Final = timedelta(days=7)

_OBJECTIVES: Final = {
    Kind.UNSTABLE: Objective.STABILITY,
    Kind.UNAVAILABLE: Objective.AVAILABILITY,
    Kind.NOT_OBSERVED: Objective.COVERAGE,
}


class RecentSlices:
    """The slices of the longest window. They are never revised, so that only new minutes are read."""

    def __init__(self, database: Database, objective: Objective) -> None:
        self._database = database
        self._objective = objective
        self._end_minute = 0
        self._kept: dict[str, Slices] = {}

    async def until(self, end_minute: int, slos: Iterable[str]) -> Mapping[str, Slices]:
        """Returns the slices of SLOs that end before a minute; no minute before the newest evaluated one changes."""
        wanted, passed = set(slos), end_minute - self._end_minute
        known = wanted & self._kept.keys() if 0 <= passed < LONGEST_WINDOW else set()
        found: dict[str, Slices] = {}
        if known and passed:
            newest = await self._read(known, end_minute - passed, end_minute)
            found = {slo: np.concatenate([self._kept[slo][passed:], newest[slo]]) for slo in known}
        elif known:
            found = {slo: self._kept[slo] for slo in known}
        if wanted - known:
            found |= await self._read(wanted - known, end_minute - LONGEST_WINDOW, end_minute)
        self._kept, self._end_minute = found, end_minute
        return found

    async def _read(self, slos: Iterable[str], first: int, end: int) -> dict[str, Slices]:
        return await slices_store.read(self._database, sorted(slos), self._objective, first, end)


class Deriving:
    """Derives alerts, and keeps announcements up to date with them and with silences."""

    def __init__(
        self,
        database: Database,
        view: Callable[[], WatchedFleet],
        known: Callable[[int, Sequence[WatchedModel]], Mapping[str, Known] | None],
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        """Makes the worker's act.

        Args:
            database: of stability.
            view: returns the models that serve; may raise PartUnavailable.
            known: returns what the evaluation of a minute, or a later one, says of models; None: it is not known yet.
            clock: that alerts begin and end by.
            changed: called when there is something to tell.
        """
        self._database = database
        self._view = view
        self._known = known
        self._clock = clock
        self._changed = changed
        self._recent = {each: RecentSlices(database, each) for each in (Objective.STABILITY, Objective.AVAILABILITY)}

    async def round(self) -> None:
        """Derives what the newest minute says, unless that was done, and lets silences begin and end."""
        async with self._database.transaction() as conn:
            progress = await store.progress(conn)
            if progress is None:
                return
            transitions = await self._derive(conn, *progress)
            is_changed = await announcements.bring_up_to_date(conn, self._clock.now())
            if is_changed:
                failpoint("stability.before_record.alerts")
        if is_changed:
            failpoint("stability.after_record.alerts")
        for alert in transitions:
            _tell_log(alert)
        if is_changed:
            self._changed()

    async def _derive(self, conn: Connection, seen_minute: int, seen_revision: int) -> list[Alert]:
        """Writes what follows from the newest minute; returns the alerts that have begun, risen, fallen or ended."""
        evaluated = await store.evaluated(conn)
        try:
            fleet = self._view()
        except PartUnavailable:
            return []
        # A replica that is behind another one leaves it to that one.
        if evaluated is None or evaluated.minute < seen_minute or fleet.revision < seen_revision:
            return []
        if (evaluated.minute, fleet.revision) == (seen_minute, seen_revision):
            return []
        now = self._clock.now()
        end_minute = evaluated.minute + 1
        tenures = await store.tenures(conn, end_minute - LONGEST_WINDOW)
        changed = pass_on(
            {tenure.model: tenure for tenure in tenures if tenure.end_minute is None},
            {name: model.slo for name, model in fleet.models.items()},
            fleet.revision,
            evaluated,
            seen_minute,
        )
        if changed:
            await store.write_tenures(conn, changed)
            tenures = await store.tenures(conn, end_minute - LONGEST_WINDOW)
        firing = await store.firing(conn, now)
        observed = await self._observed(fleet, tenures, end_minute, {alert.model for alert in firing})
        if observed is None:
            return []
        written = derive(firing, observed, now, fleet.revision, _new_name)
        await store.write(conn, written)
        await store.progressed(conn, evaluated.minute, fleet.revision)
        before = {alert.name: alert for alert in firing}
        return [alert for alert in written if _is_transition(before.get(alert.name), alert)]

    async def _observed(
        self, fleet: WatchedFleet, tenures: Sequence[Tenure], end_minute: int, alerted: set[str]
    ) -> dict[str, Observed] | None:
        """Returns what there is about each model, in detail of those that burn or have alerts; None: not known yet."""
        of_model: dict[str, list[Tenure]] = {}
        for tenure in tenures:
            of_model.setdefault(tenure.model, []).append(tenure)
        models = list(fleet.models.values())
        if not models:
            return {}
        burns = await self._burning(models, of_model, end_minute)
        found = {}
        for index, model in enumerate(models):
            kinds: Iterable[Kind] = Kind if model.predictions else (Kind.UNAVAILABLE,)
            rates = {
                kind: burns[kind].of(index) if model.name in alerted or burns[kind].firing[index].any() else ()
                for kind in kinds
            }
            found[model.name] = Observed(model, rates)
        known = self._known(end_minute - 1, [one.model for one in found.values() if any(one.burning.values())])
        if known is None:
            return None
        return {name: replace(one, known=known.get(name, one.known)) for name, one in found.items()}

    async def _burning(
        self, models: Sequence[WatchedModel], tenures: Mapping[str, Sequence[Tenure]], end_minute: int
    ) -> dict[Kind, Burning]:
        slos = {tenure.slo for each in tenures.values() for tenure in each}
        slices = {objective: await recent.until(end_minute, slos) for objective, recent in self._recent.items()}

        def compute() -> dict[Kind, Burning]:
            own = {
                objective: np.stack([own_minutes(tenures[model.name], of_slo, end_minute) for model in models])
                for objective, of_slo in slices.items()
            }
            own[Objective.COVERAGE] = coverage_slices(own[Objective.STABILITY])
            return {
                kind: burning(own[each], np.array([target_of(model.service_level, each) for model in models]))
                for kind, each in _OBJECTIVES.items()
            }

        # Beside the calls of others, which wait for no derivation.
        return await asyncio.to_thread(compute)

    async def forget(self) -> None:
        """Forgets what is older than is promised."""
        now = self._clock.now()
        await announcements.forget(self._database, now - 2 * RESOLVED_KEPT)
        await store.forget(self._database, now - KEPT)
        await store.forget_requests(self._database, _REQUESTS_KEPT)


class Delivery:
    """Tells one Alertmanager, again and again: a worker. An Alertmanager that is away holds up no other one."""

    def __init__(
        self,
        alertmanager: Alertmanager,
        database: Database,
        clock: Clock,
        metrics: DeliveryMetrics,
        dashboard_url: str = "",
        resend: timedelta = RESEND,
    ) -> None:
        self.name = f"alerts to {alertmanager.host}"
        self._alertmanager = alertmanager
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._dashboard_url = dashboard_url
        self._resend = resend
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Begins the next round now."""
        self._woken.set()

    async def run(self) -> None:
        retry = _FIRST_RETRY_SECONDS
        while True:
            self._woken.clear()
            try:
                await self.round()
                self._metrics.taken(self._alertmanager.host, self._clock.now().timestamp())
                pause = self._resend.total_seconds()
                retry = _FIRST_RETRY_SECONDS
            except PartUnavailable as error:
                self._metrics.failed(self._alertmanager.host)
                # What is to be told is in the database: nothing is lost meanwhile.
                _log.warning("%s: %s Again in %.0f s", self.name, error, retry)
                pause, retry = retry, min(2 * retry, self._resend.total_seconds())
            await self._pause(pause)

    async def round(self) -> None:
        """Tells all that goes on, and what has ended lately.

        Raises:
            PartUnavailable: Alertmanager or the database did not answer.
        """
        now = self._clock.now()
        due = await announcements.due(self._database, now - RESOLVED_KEPT, now)
        for begin in range(0, len(due), MOST_POSTED):
            part = due[begin : begin + MOST_POSTED]
            with passing("stability", "call", "alertmanager"):
                await self._alertmanager.post([self._posted(each, now) for each in part])
            await store.delivered(self._database, [each.alert.name for each in part], now)

    def _posted(self, due: announcements.Due, now: datetime) -> Posted:
        told = due.announcement
        return Posted(
            told.labels,
            announced.notes(due.alert, told.ending, self._dashboard_url),
            told.start_time,
            now + HOLDS * self._resend if told.end_time is None else told.end_time,
            announced.dashboard(due.alert, self._dashboard_url),
        )

    async def _pause(self, seconds: float) -> None:
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._woken.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _new_name() -> str:
    return ALERT.format(f"a{secrets.token_hex(8)}")


def _is_transition(before: Alert | None, alert: Alert) -> bool:
    return before is None or (before.severity, before.state) != (alert.severity, alert.state)


def _tell_log(alert: Alert) -> None:
    """Says in the log what Alertmanager is told: where there is none, it is there that it is said."""
    ended = "" if alert.resolution is None else f", {alert.resolution.name}"
    level = logging.WARNING if alert.state is State.FIRING else logging.INFO
    about = (alert.name, alert.state.name, ended, alert.severity.name, alert.kind.name, alert.model, alert.summary)
    _log.log(level, "%s %s%s: %s %s of %s: %s", *about)
