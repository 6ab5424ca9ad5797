"""What Alertmanager is told. It knows an alert by its labels: under other labels it is another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import quote

from modelfleetd.stability.domain.alert import Alert, Kind, Resolution, Severity, State

_NAMES: Final[Mapping[Kind, str]] = {
    Kind.UNSTABLE: "ModelUnstable",
    Kind.UNAVAILABLE: "ModelUnavailable",
    Kind.NOT_OBSERVED: "ModelNotObserved",
}
_ENDINGS: Final[Mapping[Resolution, str]] = {
    Resolution.RECOVERED: "It has recovered.",
    Resolution.HANDED_OVER: "The model does not have its role any more.",
}


@dataclass(frozen=True, slots=True)
class Announcement:
    """An alert under one set of labels."""

    alert: str
    labels: Mapping[str, str]
    start_time: datetime
    end_time: datetime | None = None
    ending: str = ""  # why it ended


def labels_of(alert: Alert) -> dict[str, str]:
    """Returns the labels of an alert; those that are empty are left out."""
    found = {
        "alertname": _NAMES[alert.kind],
        "model_type": _short(alert.model_type),
        "model": _short(alert.model),
        "prediction": alert.prediction,
        "role": alert.role.name,
        "tier": alert.tier.name if alert.tier.value else "",
        "team": _short(alert.team),
        "on_call": alert.on_call,
        "severity": alert.severity.name.lower(),
    }
    return {name: value for name, value in found.items() if value}


def notes(alert: Alert, ending: str, dashboard_url: str) -> dict[str, str]:
    """Returns what people are told of an alert.

    Args:
        alert: as it is now.
        ending: why it is over, where it is.
        dashboard_url: of the dashboard; empty: there is none.
    """
    typed = f"{_short(alert.model_type)}/{_short(alert.model)}"
    found = {
        "summary": f"{ending} {alert.summary}".strip(),
        "response": alert.response,
        "investigate": f"modelfleet investigate {typed}",
        "alert": f"modelfleet stability alert get {_short(alert.name)}",
        "dashboard": dashboard(alert, dashboard_url),
    }
    return {name: value for name, value in found.items() if value}


def dashboard(alert: Alert, url: str) -> str:
    """Returns the link to the dashboard of the alert's model; empty where there is no dashboard."""
    if not url:
        return ""
    variables = f"var-type={quote(_short(alert.model_type))}&var-model={quote(_short(alert.model))}"
    return f"{url}{'&' if '?' in url else '?'}{variables}"


def settle(
    alerts: Iterable[Alert], open_announcements: Iterable[Announcement], now: datetime
) -> tuple[list[Announcement], list[Announcement]]:
    """Returns the announcements that end, and those that begin.

    Args:
        alerts: that fire, or that have open announcements; each with the silence that keeps it quiet.
        open_announcements: those that have not ended; at most one an alert.
        now: the time.
    """
    known = {announcement.alert: announcement for announcement in open_announcements}
    ended, begun = [], []
    for alert in alerts:
        wanted = labels_of(alert) if alert.state is State.FIRING and not alert.silence else None
        told = known.get(alert.name)
        if told is not None and told.labels != wanted:
            ended.append(
                Announcement(alert.name, told.labels, told.start_time, max(now, told.start_time), _why(alert, told))
            )
        if wanted is not None and (told is None or told.labels != wanted):
            begun.append(Announcement(alert.name, wanted, alert.start_time))
    return ended, begun


def _why(alert: Alert, told: Announcement) -> str:
    """Returns why an announcement ends."""
    if alert.resolution is not None:
        return _ENDINGS[alert.resolution]
    if alert.silence:
        return f"Kept quiet by {alert.silence}; it goes on."
    if told.labels["severity"] != alert.severity.name.lower():
        more = "is a page now" if alert.severity is Severity.PAGE else "is a ticket now: it burns more slowly"
        return f"It {more}."
    return "It goes on under other labels: tier, team or on-call have changed."


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1]
