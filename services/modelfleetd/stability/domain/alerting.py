"""Which alerts there are: derived minute by minute from what is watched, what burns, and which alerts fire already.

Severity, where the pairs of windows that page fire:

| tier | baseline | holdout, experiment |
| --- | --- | --- |
| TIER0, TIER1 | page | page |
| TIER2, none stated | page | ticket |
| TIER3, TIER4 | ticket | ticket |

What the other pairs fire for is a ticket, and so is every lack of evidence. An alert becomes a page at once; it becomes
a ticket, or ends, once what fired has been over for HOLD. What is not known any more is not over.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.stability.domain import responses
from modelfleetd.stability.domain.alert import Alert, Kind, Resolution, Severity, State
from modelfleetd.stability.domain.fleet import Metric, Role, Tier, WatchedModel
from modelfleetd.stability.domain.slo import MIN_BAD, BurnRate, Response

HOLD: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Culprit:
    """A metric of a prediction that is outside of its healthy range."""

    prediction: str
    metric: Metric
    explanation: str  # one sentence with value and range


@dataclass(frozen=True, slots=True)
class Known:
    """What the newest evaluation says of one model."""

    culprits: tuple[Culprit, ...] = ()  # all that are outside of their ranges now, the one that decided first
    since: datetime | None = None  # when its stability became what it is
    explanations: Mapping[Kind, str] = field(default_factory=dict)  # one sentence, of other kinds than UNSTABLE


@dataclass(frozen=True, slots=True)
class Observed:
    """One model that serves."""

    model: WatchedModel
    burning: Mapping[Kind, tuple[BurnRate, ...]]  # of the kinds that are watched
    known: Known = Known()


class Signal(enum.Enum):
    """What pairs of windows say together."""

    FIRES = "fires"
    CALM = "calm"
    BLIND = "blind"  # nothing fires, and at least one pair cannot say that it is over


def signal(rates: Iterable[BurnRate]) -> Signal:
    """Returns what pairs say together."""
    rates = tuple(rates)
    if any(rate.firing for rate in rates):
        return Signal.FIRES
    return Signal.BLIND if any(map(_is_blind, rates)) else Signal.CALM


def _is_blind(rate: BurnRate) -> bool:
    """Says whether a pair's long window is bad enough, and no window has the evidence to say that it is over.

    It lasts as long as the long window at most: by then its bad minutes are gone.
    """
    burns = (rate.long_burn_rate, rate.short_burn_rate)
    is_over = any(burn is not None and burn <= rate.factor for burn in burns)
    return rate.bad >= MIN_BAD and not is_over


def pages(tier: Tier, role: Role) -> bool:
    """Says whether anybody is woken for such a model."""
    if tier in (Tier.TIER0, Tier.TIER1):
        return True
    # As everywhere, a model whose tier nobody states counts as TIER2.
    return tier in (Tier.TIER2, Tier.UNSTATED) and role is Role.BASELINE


@dataclass(frozen=True, slots=True)
class Burn:
    """How urgently something burns."""

    page: Signal
    ticket: Signal
    fastest: BurnRate | None  # the pair with the highest factor that fires; None: none does

    @property
    def severity(self) -> Severity | None:
        """The severity that is called for; None: none is."""
        if self.page is Signal.FIRES:
            return Severity.PAGE
        return Severity.TICKET if self.ticket is Signal.FIRES else None

    def of(self, severity: Severity) -> Signal:
        """What fires at a severity, or does not any more."""
        return self.page if severity is Severity.PAGE else self.ticket


def burn(kind: Kind, model: WatchedModel, rates: Sequence[BurnRate]) -> Burn:
    """Returns how urgently a kind burns for a model."""
    may_page = kind is not Kind.NOT_OBSERVED and pages(model.tier, model.role)
    urgent = [rate for rate in rates if may_page and rate.response is Response.PAGE]
    fastest = max((rate for rate in rates if rate.firing), key=lambda rate: rate.factor, default=None)
    return Burn(signal(urgent), signal(rate for rate in rates if rate not in urgent), fastest)


def derive(
    firing: Iterable[Alert],
    fleet: Mapping[str, Observed],
    now: datetime,
    revision: int,
    new_name: Callable[[], str],
) -> list[Alert]:
    """Returns the alerts that begin, change or end.

    Args:
        firing: all that fire.
        fleet: all models that serve, by name, as the registry's revision says.
        now: the time.
        revision: of the registry; not before that of any of the alerts.
        new_name: names an alert that begins.
    """
    of_model: dict[tuple[str, Kind], list[Alert]] = {}
    found: list[Alert] = []
    for alert in firing:
        observed = fleet.get(alert.model)
        if observed is None or observed.model.role is not alert.role or alert.kind not in observed.burning:
            found.append(_ended(alert, Resolution.HANDED_OVER, now, revision))
        else:
            of_model.setdefault((alert.model, alert.kind), []).append(alert)
    for name, observed in fleet.items():
        for kind, rates in observed.burning.items():
            alerts = of_model.get((name, kind), [])
            burns = burn(kind, observed.model, rates)
            if alerts or burns.severity is not None:
                found += _of_kind(kind, alerts, burns, observed, now, revision, new_name)
    return found


def _of_kind(
    kind: Kind,
    alerts: Sequence[Alert],
    burns: Burn,
    observed: Observed,
    now: datetime,
    revision: int,
    new_name: Callable[[], str],
) -> list[Alert]:
    """Returns what changes about one kind of a model."""
    culprits = {one.prediction: one for one in reversed(observed.known.culprits)} if kind is Kind.UNSTABLE else {}
    found = []
    # Alerts keep their culprit: they are about another one only once theirs has been well for a while.
    kept = False
    for alert in alerts:
        is_its = not culprits or not alert.prediction or alert.prediction in culprits
        changed = _next(alert, burns if is_its else _OVER, observed, culprits, now, revision)
        kept |= is_its and changed.state is State.FIRING
        if changed != alert:
            found.append(changed)
    if not kept and burns.severity is not None:
        found.append(_begun(kind, burns, burns.severity, observed, now, revision, new_name()))
    return found


_OVER: Final = Burn(Signal.CALM, Signal.CALM, None)


def _next(
    alert: Alert, burns: Burn, observed: Observed, culprits: Mapping[str, Culprit], now: datetime, revision: int
) -> Alert:
    """Returns what an alert that fires has become."""
    alert = _of_duty(alert, observed.model, revision)
    wanted = burns.severity
    if wanted is Severity.PAGE or (wanted is not None and wanted is alert.severity):
        return replace(_told(alert, burns, observed, culprits), severity=wanted, calm_since=None)
    if burns.of(alert.severity) is Signal.BLIND:
        return replace(alert, calm_since=None)
    calm_since = alert.calm_since or now
    if now - calm_since < HOLD:
        return replace(alert, calm_since=calm_since)
    if alert.severity is Severity.PAGE and burns.ticket is not Signal.CALM:
        return replace(alert, severity=Severity.TICKET, calm_since=None)
    return _ended(alert, Resolution.RECOVERED, now, alert.revision)


def _of_duty(alert: Alert, model: WatchedModel, revision: int) -> Alert:
    """Returns an alert with who must act and what to do, as the registry has it now."""
    if (alert.tier, alert.team, alert.on_call) == (model.tier, model.team, model.on_call):
        return alert
    told = responses.response(alert.kind, model)
    return replace(alert, tier=model.tier, team=model.team, on_call=model.on_call, response=told, revision=revision)


def _told(alert: Alert, burns: Burn, observed: Observed, culprits: Mapping[str, Culprit]) -> Alert:
    """Returns an alert with what happens now. While its culprit is well again, what was said of it stays."""
    culprit = culprits.get(alert.prediction)
    if culprit is None and alert.prediction:
        return alert
    metric = culprit.metric if culprit is not None else None
    return replace(alert, summary=_summary(alert.kind, burns, observed, culprit), metric=metric)


def _begun(
    kind: Kind, burns: Burn, severity: Severity, observed: Observed, now: datetime, revision: int, name: str
) -> Alert:
    model = observed.model
    culprit = observed.known.culprits[0] if kind is Kind.UNSTABLE and observed.known.culprits else None
    return Alert(
        name=name,
        kind=kind,
        severity=severity,
        model_type=model.model_type,
        model=model.name,
        prediction=culprit.prediction if culprit is not None else "",
        metric=culprit.metric if culprit is not None else None,
        role=model.role,
        tier=model.tier,
        team=model.team,
        on_call=model.on_call,
        summary=_summary(kind, burns, observed, culprit),
        response=responses.response(kind, model),
        start_time=now,
        revision=revision,
    )


def _ended(alert: Alert, resolution: Resolution, now: datetime, revision: int) -> Alert:
    return replace(
        alert,
        state=State.RESOLVED,
        resolution=resolution,
        end_time=max(now, alert.start_time),
        calm_since=None,
        revision=revision,
    )


def _summary(kind: Kind, burns: Burn, observed: Observed, culprit: Culprit | None) -> str:
    what = culprit.explanation if culprit is not None else observed.known.explanations.get(kind, "")
    since = observed.known.since if kind is Kind.UNSTABLE and culprit is not None else None
    assert burns.fastest is not None
    return responses.summary(kind, observed.model, what, since, burns.fastest)
