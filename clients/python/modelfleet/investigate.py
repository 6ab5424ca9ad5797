"""Everything that somebody who was just paged asks about a model, from all services at once.

    found = await investigate(client, "feed_ctr/v7")
    print(found.response.steps)

The services are asked side by side. What one of them cannot answer until `within` has passed, for whatever reason, is
`Unknown` in its place, and the rest comes none the less.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.asking import Answer, Asking, Unknown
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.client import AsyncClient
from modelfleet.errors import ModelfleetError, NotFound
from modelfleet.healthy_ranges import USUAL_WINDOW, widest_window
from modelfleet.incidents import (
    LAUNCHES_ENDED,
    Criticality,
    Problem,
    Route,
    criticality_of,
    is_watched,
    observed_share,
    problems_of,
    role_of,
    tier_name,
)
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.lookup import Entry, NothingFound, find_entry
from modelfleet.mitigate import Case, Response, respond
from modelfleet.registry.v1 import registry_pb2, standard_pb2
from modelfleet.stability.v1 import alerts_pb2, stability_pb2

T = TypeVar("T")

# What all of it may take, in seconds.
WITHIN: Final = 0.25
# The part of it after which the type has to be there, for what can only be asked with it.
_TYPE_PART: Final = 0.7
# How much of everything that grows is looked at.
CHANGES: Final = 6
_MOST_NEIGHBOURS, _MOST_FINDINGS, _MOST_ALERTS = 30, 20, 50
# Types are looked through page by page only where the registry cannot find those that depend on one.
_MOST_PAGES: Final = 3
# Labels may be a little late.
_LABELS_SLACK: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A model type that this one consumes, or that consumes this one."""

    name: str
    # Of the more critical of what it is and what it must be; empty where neither is stated.
    tier: str


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Model types up or down the funnel, by name. `more`: whether there are others."""

    types: tuple[Neighbour, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Investigation:
    """What was found. Messages are the services' own; each part that could not be answered is Unknown.

    Attributes:
        model: name of the model; empty where the type has no baseline.
        entry: the model as the ledger has it; None where there is none.
        role: its role; empty where nobody knows.
        problems: what is wrong with the route now, the worst first, as far as it is known.
        statuses: what agents report, region by region.
        alerts: that fire on the route.
        stability: what the newest evaluation said; None where the model does not serve, so that none looks at it.
        judgements: of a model that does not serve, by the ranges in force: at most one; empty where there is nothing to
            be judged, and of one that serves.
        launches: in flight on the route.
        ended_launches: the newest ones that have ended.
        changes: the newest revisions of type and model.
        certificate: the newest one of the model; None where there is none.
        estimate: the newest one that was kept; None where there is none.
        elapsed: seconds that it took.
    """

    query: str
    time: datetime
    model_type: str
    model: str
    type: Answer[registry_pb2.ModelType]
    entry: Answer[registry_pb2.Model | None]
    role: str
    criticality: Answer[Criticality]
    team: Answer[registry_pb2.Team]
    response: Answer[Response]
    problems: tuple[Problem, ...]
    statuses: Answer[Sequence[registry_pb2.ServingStatus]]
    stability: Answer[stability_pb2.ModelStability | None]
    judgements: Answer[Sequence[stability_pb2.Judgement]]
    alerts: Answer[Sequence[alerts_pb2.Alert]]
    launches: Answer[Sequence[launcher_pb2.Launch]]
    ended_launches: Answer[Sequence[launcher_pb2.Launch]]
    changes: Answer[Sequence[registry_pb2.Revision]]
    upstream: Answer[Neighbours]
    downstream: Answer[Neighbours]
    certificate: Answer[capacity_pb2.Certificate | None]
    estimate: Answer[capacity_pb2.Estimate | None]
    findings: Answer[Sequence[standard_pb2.LintFinding]]
    elapsed: float

    def as_data(self) -> dict[str, Any]:
        """Returns all of it as plain data; a part that is not known is `{"unknown": why}`."""
        return {each.name: plain(getattr(self, each.name)) for each in fields(self)}


async def investigate(client: AsyncClient, query: str, *, within: float = WITHIN) -> Investigation:
    """Finds out everything about a model, or about the baseline of a model type.

    Args:
        client: of the fleet. One that tries each call once sees at once that a service is away.
        query: TYPE, TYPE/MODEL, a full name or a part of one, an asset's URI, or the address of an endpoint.
        within: seconds that all of it may take.

    Raises:
        NothingFound: nothing in the registry fits.
        Ambiguous: several entries do.
    """
    asking = Asking(within)
    entry = await find_entry(client, asking, query)
    return await _Investigator(client, asking, query, entry).investigate()


class _Investigator:
    """The calls of one investigation: those that need only the name begin at once, others when the type is there."""

    def __init__(self, client: AsyncClient, asking: Asking, query: str, entry: Entry) -> None:
        self._client = client
        self._asking = asking
        self._query = query
        self._type_name = entry.model_type
        self._model_name = entry.model
        # What the registry says is not there.
        self._missing = ""

    async def investigate(self) -> Investigation:
        ask, registry, launcher, name = self._asking.ask, self._client.registry, self._client.launcher, self._type_name
        async with asyncio.TaskGroup() as calls:
            start = calls.create_task
            statuses = start(ask(registry.list_serving_statuses, model_type=name, page_size=1000))
            active = start(ask(launcher.list_launches, model_type=name, active_only=True, page_size=10))
            recent = start(ask(launcher.list_launches, model_type=name, page_size=10))
            of_type = start(ask(registry.list_revisions, resource=name, page_size=CHANGES))
            warning = standard_pb2.Severity.WARNING
            lint = start(ask(registry.lint_entries, resource=name, min_severity=warning, page_size=_MOST_FINDINGS))
            fires = f'state = FIRING AND model_type = "{name}"'
            alerts = start(ask(self._client.stability.list_alerts, filter=fires, page_size=_MOST_ALERTS))
            downstream = start(self._downstream())
            model_type = await self._type()
            if not isinstance(model_type, Unknown):
                self._model_name = self._model_name or model_type.baseline
            entry = start(self._model())
            of_model = start(self._changes_of_model())
            team = start(self._team(model_type))
            upstream = start(self._upstream(model_type))
            stability = start(self._stability(model_type))
            judgements = start(self._judgements(model_type))
            certificate = start(self._newest(self._client.capacity.list_certificates, "certificates"))
            estimate = start(self._newest(self._client.capacity.list_estimates, "estimates"))
        if self._missing:
            raise NothingFound(self._missing)
        in_flight = _items(active.result(), "launches")
        firing = _items(alerts.result(), "alerts")
        reported = _items(statuses.result(), "statuses")
        now = datetime.now(UTC)
        problems: Sequence[Problem] = ()
        if not isinstance(model_type, Unknown):
            problems = problems_of(
                Route(
                    model_type,
                    None if isinstance(reported, Unknown) else reported,
                    () if isinstance(in_flight, Unknown) else in_flight,
                    _last(recent.result()),
                    _stood(stability.result()),
                    _judged(self._model_name, judgements.result()),
                    () if isinstance(firing, Unknown) else firing,
                ),
                now,
            )
        return Investigation(
            query=self._query,
            time=now,
            model_type=self._type_name,
            model=self._model_name,
            type=model_type,
            entry=entry.result(),
            role=_role(model_type, entry.result(), in_flight),
            criticality=_criticality(model_type, entry.result()),
            team=team.result(),
            response=_response(model_type, entry.result(), team.result(), in_flight, reported),
            problems=tuple(problems),
            statuses=reported,
            stability=stability.result(),
            judgements=judgements.result(),
            alerts=firing,
            launches=in_flight,
            ended_launches=_ended(recent.result()),
            changes=_merged(of_type.result(), of_model.result()),
            upstream=upstream.result(),
            downstream=downstream.result(),
            certificate=certificate.result(),
            estimate=estimate.result(),
            findings=_items(lint.result(), "findings"),
            elapsed=self._asking.elapsed,
        )

    async def _type(self) -> Answer[registry_pb2.ModelType]:
        return await self._existing(
            self._client.registry.get_model_type, self._type_name, "modelfleet registry type list", _TYPE_PART
        )

    async def _model(self) -> Answer[registry_pb2.Model | None]:
        if not self._model_name:
            return None
        listing = f"modelfleet registry model list {self._type_name.removeprefix('modelTypes/')}"
        return await self._existing(self._client.registry.get_model, self._model_name, listing)

    async def _existing(
        self, method: Callable[..., Awaitable[T]], name: str, listing: str, part: float = 1.0
    ) -> Answer[T]:
        """Reads an entry, and remembers it where there is none."""
        try:
            return await self._asking.expect(method, part=part, name=name)
        except NotFound:
            self._missing = f"{name} does not exist; list what there is: {listing}"
            return Unknown(self._missing)
        except ModelfleetError as error:
            return Unknown(self._asking.why(error))

    async def _team(self, model_type: Answer[registry_pb2.ModelType]) -> Answer[registry_pb2.Team]:
        if isinstance(model_type, Unknown):
            return model_type
        return await self._asking.ask(self._client.registry.get_team, name=model_type.team)

    async def _upstream(self, model_type: Answer[registry_pb2.ModelType]) -> Answer[Neighbours]:
        if isinstance(model_type, Unknown):
            return model_type
        names = model_type.upstream_types[:_MOST_NEIGHBOURS]
        get = self._client.registry.get_model_type
        async with asyncio.TaskGroup() as calls:
            asked = [calls.create_task(self._asking.ask(get, name=name)) for name in names]
        types = (
            Neighbour(name, "" if isinstance(found, Unknown) else _tier(found))
            for name, found in zip(names, (call.result() for call in asked), strict=True)
        )
        return Neighbours(tuple(types), more=len(model_type.upstream_types) > len(names))

    async def _downstream(self) -> Answer[Neighbours]:
        name, token, found = self._type_name, "", list[Neighbour]()
        for _ in range(_MOST_PAGES):
            answer = await self._asking.ask(
                self._client.registry.list_model_types,
                filter=f'upstream_types:"{name}"',
                page_size=1000,
                page_token=token,
            )
            if isinstance(answer, Unknown):
                return answer
            # A registry that is older than filters answers with every type.
            found += [Neighbour(each.name, _tier(each)) for each in answer.model_types if name in each.upstream_types]
            token = answer.next_page_token
            if not token:
                break
        found.sort(key=lambda each: (each.tier or "TIER9", each.name))
        return Neighbours(tuple(found[:_MOST_NEIGHBOURS]), more=bool(token) or len(found) > _MOST_NEIGHBOURS)

    async def _changes_of_model(self) -> Answer[registry_pb2.ListRevisionsResponse]:
        if not self._model_name:
            return registry_pb2.ListRevisionsResponse()
        listing = self._client.registry.list_revisions
        return await self._asking.ask(listing, resource=self._model_name, page_size=CHANGES)

    async def _stability(
        self, model_type: Answer[registry_pb2.ModelType]
    ) -> Answer[stability_pb2.ModelStability | None]:
        """Of a model that serves, or may, what the newest evaluation said."""
        name = self._model_name
        if not name or not (isinstance(model_type, Unknown) or is_watched(model_type, name)):
            return None
        found = await self._asking.ask(self._client.stability.get_model_stability, model=name)
        # Without a role it is not watched.
        return found if isinstance(found, Unknown) or found.role else None

    async def _judgements(
        self, model_type: Answer[registry_pb2.ModelType]
    ) -> Answer[Sequence[stability_pb2.Judgement]]:
        if not self._model_name:
            return ()
        if not isinstance(model_type, Unknown) and is_watched(model_type, self._model_name):
            return ()
        known = None if isinstance(model_type, Unknown) else model_type
        # Where nothing is predicted there is nothing to judge.
        if known is not None and not known.predictions:
            return ()
        request = judgement_request(self._model_name, known, datetime.now(UTC))
        answer = await self._asking.ask(partial(self._client.stability.judge_model, request))
        return answer if isinstance(answer, Unknown) else (answer,)

    async def _newest(self, listing: Callable[..., Awaitable[Any]], items: str) -> Answer[Any]:
        """The newest one of a model, of what a service lists by model."""
        if not self._model_name:
            return None
        answer = await self._asking.ask(listing, model=self._model_name, page_size=1)
        return answer if isinstance(answer, Unknown) else next(iter(getattr(answer, items)), None)


def judgement_request(
    model: str, model_type: registry_pb2.ModelType | None, now: datetime
) -> stability_pb2.JudgeModelRequest:
    """Returns what to ask stability about a model: the newest time whose labels have come, by the ranges in force.

    Args:
        model: its name.
        model_type: its type; None where that is not known: stability then goes by what it knows, over two hours.
        now: the time.
    """
    if model_type is None:
        return stability_pb2.JudgeModelRequest(model=model, start_time=_stamp(now - 2 * USUAL_WINDOW))
    # Events whose labels are still to come do not count, so that no end is needed.
    window = max((each.attribution_window.ToTimedelta() for each in model_type.predictions), default=timedelta())
    span = window + min(window / 10, _LABELS_SLACK) + widest_window(None, model_type)
    return stability_pb2.JudgeModelRequest(model=model, start_time=_stamp(now - span))


def plain(value: Any) -> Any:
    """Returns answers as plain data, with the field names of the protos."""
    if isinstance(value, Unknown):
        return {"unknown": value.reason}
    if isinstance(value, Message):
        return MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value


def _items(answer: Answer[Any], name: str) -> Answer[Any]:
    return answer if isinstance(answer, Unknown) else list(getattr(answer, name))


def _last(answer: Answer[launcher_pb2.ListLaunchesResponse]) -> launcher_pb2.Launch | None:
    return None if isinstance(answer, Unknown) else next(iter(answer.launches), None)


def _ended(answer: Answer[launcher_pb2.ListLaunchesResponse]) -> Answer[Sequence[launcher_pb2.Launch]]:
    if isinstance(answer, Unknown):
        return answer
    return [launch for launch in answer.launches if launch.state in LAUNCHES_ENDED][:3]


def _stood(answer: Answer[stability_pb2.ModelStability | None]) -> Sequence[stability_pb2.ModelStability]:
    return () if isinstance(answer, Unknown) or answer is None else (answer,)


def _judged(
    model: str, answer: Answer[Sequence[stability_pb2.Judgement]]
) -> dict[str, Sequence[stability_pb2.Judgement]]:
    return {} if isinstance(answer, Unknown) or not model else {model: answer}


def _merged(
    of_type: Answer[registry_pb2.ListRevisionsResponse], of_model: Answer[registry_pb2.ListRevisionsResponse]
) -> Answer[Sequence[registry_pb2.Revision]]:
    if isinstance(of_type, Unknown) or isinstance(of_model, Unknown):
        return of_type if isinstance(of_type, Unknown) else of_model  # type: ignore[return-value]
    # One revision may concern both.
    found = {revision.number: revision for revision in (*of_type.revisions, *of_model.revisions)}
    return [found[number] for number in sorted(found, reverse=True)][:CHANGES]


def _role(
    model_type: Answer[registry_pb2.ModelType],
    model: Answer[registry_pb2.Model | None],
    launches: Answer[Sequence[launcher_pb2.Launch]],
) -> str:
    if isinstance(model, Unknown) or isinstance(model_type, Unknown) or model is None:
        return ""
    if model.role:
        return registry_pb2.Model.Role.Name(model.role)
    return role_of(model_type, model.name, () if isinstance(launches, Unknown) else launches)


def _criticality(
    model_type: Answer[registry_pb2.ModelType], model: Answer[registry_pb2.Model | None]
) -> Answer[Criticality]:
    if isinstance(model_type, Unknown):
        return model_type
    return criticality_of(model_type, None if isinstance(model, Unknown) else model)


def _response(
    model_type: Answer[registry_pb2.ModelType],
    model: Answer[registry_pb2.Model | None],
    team: Answer[registry_pb2.Team],
    launches: Answer[Sequence[launcher_pb2.Launch]],
    statuses: Answer[Sequence[registry_pb2.ServingStatus]],
) -> Answer[Response]:
    if isinstance(model_type, Unknown):
        return model_type
    if isinstance(model, Unknown):
        return model
    return respond(
        Case(
            model_type,
            model,
            None if isinstance(team, Unknown) else team,
            None if isinstance(launches, Unknown) else launches,
            serves=model is not None and not isinstance(statuses, Unknown) and observed_share(statuses, model.name) > 0,
        )
    )


def _tier(model_type: registry_pb2.ModelType) -> str:
    stated = [tier_name(tier) for tier in (model_type.tier, model_type.required_tier) if tier]
    return min(stated, default="")


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
