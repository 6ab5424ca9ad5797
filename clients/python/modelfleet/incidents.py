"""What is wrong with the routes of a fleet now, and what comes first: pure functions over the services' answers.

A problem is a fact that somebody observed. An incident is everything that is wrong with one model, or with a route as a
whole, which is its baseline's. Incidents are ranked by the worst that they can do now: what the tier says the route can
cause (TIER0 a SEV0), less what the problem is short of a full outage, less where it is not the baseline that suffers.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import alerts_pb2, stability_pb2
from modelfleet.wording import count, percent, seconds, short

# The launcher reports every route once a minute; the registry calls a report stale after as long.
STALE_AFTER: Final = timedelta(minutes=10)
# A share of failed requests from which on a model counts as failing, and how many requests that takes.
FAILING_SHARE: Final = 0.01
FAILING_REQUESTS: Final = 100
# Where no tier is stated, neither own nor required. It is what a model type falls to whose tier has run out.
ASSUMED_TIER: Final = "TIER2"

LAUNCHES_ENDED: Final = frozenset(
    {
        launcher_pb2.Launch.SUCCEEDED,
        launcher_pb2.Launch.ROLLED_BACK,
        launcher_pb2.Launch.CANCELLED,
        launcher_pb2.Launch.FAILED,
    }
)


class Kind(enum.Enum):
    """What is wrong, the worst first: no answer before a wrong one, what is known before what is not."""

    # Traffic goes where no replica is available.
    UNAVAILABLE = "UNAVAILABLE"
    # Requests fail.
    FAILING = "FAILING"
    # A launch could not even go back; the route stands in between.
    LAUNCH_FAILED = "LAUNCH_FAILED"
    # It answers, and its predictions are outside of their healthy range.
    IRRELEVANT = "IRRELEVANT"
    # More than a tenth of its replicas are missing.
    DEGRADED = "DEGRADED"
    # The platform splits traffic in another way than the ledger says, and no launch is the reason.
    SHARE_CONFLICT = "SHARE_CONFLICT"
    # A launch takes everything back.
    LAUNCH_ROLLING_BACK = "LAUNCH_ROLLING_BACK"
    # A launch stands still until somebody acts.
    LAUNCH_PAUSED = "LAUNCH_PAUSED"
    # Nobody knows how it is: the agent's last report is old, or there never was one.
    NOT_REPORTED = "NOT_REPORTED"
    # TIER0 or TIER1 has expired and was not renewed.
    CRITICALITY_OVERDUE = "CRITICALITY_OVERDUE"


_ORDER: Final = {kind: place for place, kind in enumerate(Kind)}
# By how many levels a problem is less than the worst that its route can cause.
_LESS: Final[Mapping[Kind, int]] = {
    Kind.UNAVAILABLE: 0,
    Kind.FAILING: 1,
    Kind.LAUNCH_FAILED: 1,
    Kind.IRRELEVANT: 1,
    Kind.DEGRADED: 2,
    Kind.SHARE_CONFLICT: 2,
    Kind.LAUNCH_ROLLING_BACK: 2,
    Kind.LAUNCH_PAUSED: 3,
    Kind.NOT_REPORTED: 3,
    Kind.CRITICALITY_OVERDUE: 4,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        model: whose it is; empty where it is the route's as a whole.
        region: where; empty where it concerns all.
        share_basis_points: of the route's traffic that it concerns.
        since: since when; None where nobody knows.
    """

    kind: Kind
    message: str
    model: str = ""
    region: str = ""
    share_basis_points: int = 0
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """What the services say of one route.

    Attributes:
        statuses: what its agents reported, region by region; None where that is not known.
        launches: those in flight.
        last_launch: the newest one, whether it has ended or not.
        standings: what the newest evaluation said of models that serve; at least of those that are not well.
        judgements: of stability, by model, of those that do not serve yet.
        alerts: that fire.
    """

    model_type: registry_pb2.ModelType
    statuses: Sequence[registry_pb2.ServingStatus] | None = None
    launches: Sequence[launcher_pb2.Launch] = ()
    last_launch: launcher_pb2.Launch | None = None
    standings: Sequence[stability_pb2.ModelStability] = ()
    judgements: Mapping[str, Sequence[stability_pb2.Judgement]] = field(default_factory=dict)
    alerts: Sequence[alerts_pb2.Alert] = ()


@dataclass(frozen=True, slots=True)
class Criticality:
    """How critical a model is, and why.

    Attributes:
        own: its own tier, or its type's; empty where none is stated.
        overridden: whether `own` is the model's and not its type's.
        required: what the types that consume its output ask for; empty where none does.
        path: from the type that asks for it to this one.
        overdue: whether its TIER0 or TIER1 has expired.
    """

    own: str = ""
    overridden: bool = False
    required: str = ""
    path: tuple[str, ...] = ()
    overdue: bool = False

    @property
    def counted(self) -> str:
        """The more critical of both; TIER2 where neither is stated."""
        return min((tier for tier in (self.own, self.required) if tier), default=ASSUMED_TIER)

    @property
    def why(self) -> str:
        """Why it counts as it does, for people."""
        if not self.own and not self.required:
            return f"no tier is stated; taken as {ASSUMED_TIER}"
        if self.counted == self.own:
            return f"{self.own}{', its own' if self.overridden else ''}"
        return f"{self.required}, since {short(self.path[0]) if self.path else 'another type'} depends on it"


@dataclass(frozen=True, slots=True)
class Incident:
    """Everything that is wrong with one model, the worst first.

    Attributes:
        model: its name; empty for a route without a baseline.
        role: its role as in the ledger; empty for such a route.
        share_basis_points: most that it answers of the route's traffic in any region.
        downstream: how many model types consume the route's output; None where that is not known.
    """

    model_type: str
    model: str
    role: str
    team: str
    criticality: Criticality
    problems: tuple[Problem, ...]
    share_basis_points: int = 0
    downstream: int | None = None

    @property
    def worst(self) -> Problem:
        """What it is ranked by."""
        return self.problems[0]

    @property
    def level(self) -> int:
        """0 where it can be a SEV0 now, and so on; beyond 4 it is less than a SEV4."""
        return _level(self, self.worst)

    @property
    def reason(self) -> str:
        """Why it stands where it stands, for people."""
        parts = [self.criticality.why]
        if self.role:
            parts.append(f"{_SAID[self.role]} with {percent(self.share_basis_points)} of the traffic")
        if self.downstream:
            parts.append(f"{count(self.downstream, 'model type')} downstream")
        return f"can be a SEV{self.level}" + f" ({'; '.join(parts)})" if self.level <= 4 else "; ".join(parts)


_SAID: Final = {
    "BASELINE": "the baseline",
    "HOLDOUT": "a holdout",
    "EXPERIMENT": "an experiment",
    "CANDIDATE": "a candidate",
    "RETIRED": "retired",
}


def _level(incident: Incident, problem: Problem) -> int:
    # Half of the traffic is the route's health, whatever the model is called.
    is_the_route = incident.role in ("", "BASELINE") or incident.share_basis_points >= 5_000
    return int(incident.criticality.counted[-1]) + _LESS[problem.kind] + (0 if is_the_route else 1)


def rank(incidents: Iterable[Incident], now: datetime) -> list[Incident]:
    """Returns incidents by importance. The order is total: whatever order they come in, they leave in the same one.

    By level, then by what is wrong, share of the traffic, model types downstream, and age, the oldest first.
    """

    def key(incident: Incident) -> tuple[object, ...]:
        problem = incident.worst
        age = (now - problem.since).total_seconds() if problem.since else 0.0
        return (
            incident.level,
            _ORDER[problem.kind],
            -problem.share_basis_points,
            -(incident.downstream or 0),
            -age,
            incident.model or incident.model_type,
        )

    return sorted(incidents, key=key)


def criticality_of(model_type: registry_pb2.ModelType, model: registry_pb2.Model | None = None) -> Criticality:
    """Returns how critical a model, or the baseline of a type, is."""
    overridden = model is not None and bool(model.tier_override)
    grant = model.tier_grant if model is not None and overridden else model_type.tier_grant
    return Criticality(
        own=tier_name(model.tier_override if model is not None and overridden else model_type.tier),
        overridden=overridden,
        required=tier_name(model_type.required_tier),
        path=tuple(model_type.required_tier_path),
        overdue=grant.overdue,
    )


def tier_name(tier: serving_pb2.Tier.ValueType) -> str:
    """Returns `TIER1` and the like; empty where none is stated."""
    return serving_pb2.Tier.Name(tier) if tier else ""


def role_of(model_type: registry_pb2.ModelType, model: str, launches: Iterable[launcher_pb2.Launch] = ()) -> str:
    """Returns a model's role as far as its type tells: who has a share and no other role is an experiment."""
    if model == model_type.baseline:
        return "BASELINE"
    if model in model_type.holdouts:
        return "HOLDOUT"
    if ledger_share(model_type, model):
        return "EXPERIMENT"
    return "CANDIDATE" if any(launch.candidate == model for launch in launches) else "RETIRED"


def ledger_share(model_type: registry_pb2.ModelType, model: str) -> int:
    """Returns a model's largest share in any region by the ledger, in basis points."""
    shares = (share for split in model_type.splits for share in split.shares if share.model == model)
    return max((share.share_basis_points for share in shares), default=0)


def observed_share(statuses: Iterable[registry_pb2.ServingStatus], model: str) -> int:
    """Returns a model's largest share in any region as reported, in basis points."""
    shares = (serving for status in statuses for serving in status.models if serving.model == model)
    return max((serving.share_basis_points for serving in shares), default=0)


def is_watched(model_type: registry_pb2.ModelType, model: str) -> bool:
    """Returns whether stability evaluates a model each minute: a baseline, holdout or experiment of the ledger."""
    return role_of(model_type, model) in ("BASELINE", "HOLDOUT", "EXPERIMENT")


def serving_models(route: Route) -> list[str]:
    """Returns the models that have a share of the route, by the ledger or as reported, the largest first."""
    ledger = {share.model for split in route.model_type.splits for share in split.shares if share.share_basis_points}
    seen = {one.model for status in route.statuses or () for one in status.models if one.share_basis_points}
    return sorted(ledger | seen, key=lambda model: (-largest_share(route, model), model))


def largest_share(route: Route, model: str) -> int:
    """Returns a model's largest share in any region, by the ledger or as reported, in basis points."""
    return max(ledger_share(route.model_type, model), observed_share(route.statuses or (), model))


def problems_of(route: Route, now: datetime) -> list[Problem]:
    """Returns all that is wrong with a route, the worst first."""
    found = [
        *_launch_problems(route),
        *_serving_problems(route, now),
        *_stability_problems(route),
        *_criticality_problems(route),
    ]
    # A region's report tells more than the sum over regions, and what was seen just now more than an alert about it.
    for others in (_availability_problems(route), _alert_problems(route)):
        seen = {(problem.kind, problem.model) for problem in found}
        found += [problem for problem in others if (problem.kind, problem.model) not in seen]
    return sorted(found, key=lambda each: (_ORDER[each.kind], -each.share_basis_points, each.model, each.region))


def incidents_of(
    route: Route,
    now: datetime,
    *,
    downstream: int | None = None,
    models: Mapping[str, registry_pb2.Model] | None = None,
) -> list[Incident]:
    """Returns the incidents of a route, model by model.

    Args:
        route: what is known of it.
        now: the time.
        downstream: how many model types consume its output; None where that is not known.
        models: its models as in the ledger, as far as they are known, by name: for roles and own tiers.
    """
    model_type, models = route.model_type, models or {}
    grouped: dict[str, list[Problem]] = {}
    for problem in problems_of(route, now):
        # What concerns the route as a whole is its baseline's.
        grouped.setdefault(problem.model or model_type.baseline, []).append(problem)
    return [
        Incident(
            model_type=model_type.name,
            model=model,
            role=_role(model_type, model, models.get(model), route.launches),
            team=model_type.team,
            criticality=criticality_of(model_type, models.get(model)),
            problems=tuple(problems),
            share_basis_points=largest_share(route, model) if model else 0,
            downstream=downstream,
        )
        for model, problems in grouped.items()
    ]


def _role(
    model_type: registry_pb2.ModelType,
    name: str,
    model: registry_pb2.Model | None,
    launches: Iterable[launcher_pb2.Launch],
) -> str:
    if not name:
        return ""
    if model is not None and model.role:
        return registry_pb2.Model.Role.Name(model.role)
    return role_of(model_type, name, launches)


def _launch_problems(route: Route) -> Iterable[Problem]:
    last = route.last_launch
    if last is not None and last.state == launcher_pb2.Launch.FAILED:
        said = last.abort.reason or last.summary
        yield Problem(Kind.LAUNCH_FAILED, f"{last.name} could not go back: {said}", since=_time(last.end_time))
    for launch in route.launches:
        share = max((region.candidate.intended_basis_points for region in launch.progress), default=0)
        if launch.state == launcher_pb2.Launch.ROLLING_BACK:
            message = f"{launch.name} goes back: {launch.abort.author} says {launch.abort.reason}"
            since = _time(launch.abort.time)
            yield Problem(Kind.LAUNCH_ROLLING_BACK, message, launch.candidate, "", share, since)
        elif launch.pause_reasons:
            first = min(launch.pause_reasons, key=lambda each: each.time.ToNanoseconds())
            message = f"{launch.name} is paused by {first.author}: {first.reason}"
            if launch.preempted_by:
                message = f"{launch.name} holds until {launch.preempted_by} has ended, and goes on then by itself"
            yield Problem(Kind.LAUNCH_PAUSED, message, launch.candidate, "", share, _time(first.time))


def _serving_problems(route: Route, now: datetime) -> Iterable[Problem]:
    if route.statuses is None:
        return
    by_region = {status.region: status for status in route.statuses}
    for split in route.model_type.splits:
        wanted = {share.model: share.share_basis_points for share in split.shares if share.share_basis_points}
        if not wanted:
            continue
        status = by_region.get(split.region)
        if status is None:
            yield Problem(Kind.NOT_REPORTED, "no agent has ever reported this route", "", split.region, 10_000)
            continue
        observed = _time(status.observe_time)
        if observed is not None and now - observed > STALE_AFTER:
            message = f"the agent's last report is {seconds((now - observed).total_seconds())} old"
            yield Problem(Kind.NOT_REPORTED, message, "", split.region, 10_000, observed)
            continue
        yield from _reported(route, status, wanted)


def _reported(route: Route, status: registry_pb2.ServingStatus, wanted: Mapping[str, int]) -> Iterable[Problem]:
    """What a fresh report of one region shows."""
    in_motion = {name for launch in route.launches for name in (launch.candidate, launch.baseline)}
    if not any(serving.share_basis_points for serving in status.models):
        yield Problem(Kind.UNAVAILABLE, "nothing serves this route", "", status.region, 10_000)
        return
    for serving in status.models:
        share, model = serving.share_basis_points, serving.model
        where = (model, status.region, share)
        if share and not serving.available_replicas:
            message = f"no replica of {serving.total_replicas} is available for {percent(share)} of the traffic"
            yield Problem(Kind.UNAVAILABLE, message, *where)
        elif share and 10 * serving.available_replicas < 9 * serving.total_replicas and model not in in_motion:
            message = f"{serving.available_replicas} of {serving.total_replicas} replicas are available"
            yield Problem(Kind.DEGRADED, message, *where)
        if serving.requests >= FAILING_REQUESTS and serving.errors >= FAILING_SHARE * serving.requests:
            failed = 100 * serving.errors / serving.requests
            message = f"{failed:.3g}% of its requests failed ({serving.errors} of {serving.requests})"
            yield Problem(Kind.FAILING, message, *where)
    # Launches move shares before the ledger says so, and a report from before its last change says nothing of it.
    if route.launches or status.observe_time.ToNanoseconds() < route.model_type.update_time.ToNanoseconds():
        return
    seen = {serving.model: serving.share_basis_points for serving in status.models}
    for model in sorted(wanted.keys() | {model for model, share in seen.items() if share}):
        ledger, observed = wanted.get(model, 0), seen.get(model, 0)
        if ledger != observed:
            message = f"{percent(observed)} of the traffic, where the ledger says {percent(ledger)}"
            yield Problem(Kind.SHARE_CONFLICT, message, model, status.region, abs(ledger - observed))


def _stability_problems(route: Route) -> Iterable[Problem]:
    for standing in route.standings:
        if standing.state == stability_pb2.ModelStability.UNSTABLE:
            share = largest_share(route, standing.model)
            said = _decisive(standing).rstrip(".")
            yield Problem(Kind.IRRELEVANT, said, standing.model, "", share, _time(standing.since))
    for model, judgements in route.judgements.items():
        share = largest_share(route, model)
        for judgement in judgements:
            for finding in judgement.findings:
                if finding.verdict == serving_pb2.FAIL:
                    yield Problem(Kind.IRRELEVANT, finding.explanation.rstrip("."), model, "", share)


def _decisive(standing: stability_pb2.ModelStability) -> str:
    """What is wrong, without since when, which stands beside it."""
    key = (standing.culprit_prediction, standing.culprit_metric)
    found = (metric.explanation for metric in standing.metrics if (metric.prediction, metric.metric) == key)
    return next(found, standing.explanation)


def _availability_problems(route: Route) -> Iterable[Problem]:
    for standing in route.standings:
        seen = standing.availability
        if seen.state == stability_pb2.Availability.UNAVAILABLE:
            # Never rounded up to all.
            succeeding = math.floor(seen.success_share * 10_000 + 1e-6) / 100
            latency = f", p99 {seen.latency_p99_ms:.3g} ms" if seen.HasField("latency_p99_ms") else ""
            message = f"{succeeding:g}% of the newest {count(seen.requests, 'request')} succeed{latency}"
            share = largest_share(route, standing.model)
            yield Problem(Kind.FAILING, f"{message}: less than its service level", standing.model, "", share)


_ALERTED: Final = {
    alerts_pb2.Alert.UNSTABLE: Kind.IRRELEVANT,
    alerts_pb2.Alert.UNAVAILABLE: Kind.FAILING,
    alerts_pb2.Alert.NOT_OBSERVED: Kind.NOT_REPORTED,
}


def _alert_problems(route: Route) -> Iterable[Problem]:
    for alert in route.alerts:
        quiet = f", silenced by {alert.silence}" if alert.silence else ""
        message = f"{alert.summary.rstrip('.')} ({alert.name}{quiet})"
        share = largest_share(route, alert.model)
        yield Problem(_ALERTED[alert.kind], message, alert.model, "", share, _time(alert.start_time))


def _criticality_problems(route: Route) -> Iterable[Problem]:
    grant = route.model_type.tier_grant
    if grant.overdue:
        tier = tier_name(route.model_type.tier)
        message = f"{tier} has expired and is not renewed; it falls to {tier_name(grant.falls_to) or ASSUMED_TIER}"
        yield Problem(Kind.CRITICALITY_OVERDUE, message, since=_time(grant.expire_time))


def _time(stamp: Timestamp) -> datetime | None:
    return stamp.ToDatetime(tzinfo=UTC) if stamp.seconds else None
