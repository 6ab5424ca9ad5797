"""What is wrong in a fleet now, the most important first, and what was not looked at.

for incident in (await triage(client)).incidents:
    print(incident.level, incident.model, incident.worst.message, incident.reason)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from modelfleet.asking import Answer, Asking, Unknown
from modelfleet.client import AsyncClient
from modelfleet.incidents import (
    Incident,
    Route,
    criticality_of,
    incidents_of,
    is_watched,
    largest_share,
    rank,
    serving_models,
)
from modelfleet.investigate import judgement_request, plain
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.lookup import Entry, find_entry
from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import stability_pb2
from modelfleet.wording import count

# What all of it may take, in seconds.
WITHIN: Final = 10.0
# How many models that launches bring in are judged, unless told otherwise: each costs stability a question.
JUDGED: Final = 50
_AT_A_TIME: Final = 16
_PAGE: Final = 1000
_MOST_TYPES, _MOST_STATUSES, _MOST_LAUNCHES, _RECENT_LAUNCHES = 20_000, 50_000, 5_000, 200
_MOST_ALERTS, _MOST_STANDINGS = 5_000, 20_000
# Of models that serve. All others are stable and available, or have nothing to be checked.
_NOT_WELL: Final = "state = UNSTABLE OR state = UNKNOWN OR availability.state = UNAVAILABLE"
# Incidents whose models and teams are read for their own tiers and for whom to page.
_MOST_READ: Final = 200


@dataclass(frozen=True, slots=True)
class Triage:
    """Incidents by importance.

    Attributes:
        teams: of the incidents, as far as they are known, by name.
        routes: how many model types were looked at.
        judged: of how many models it is known whether they are stable.
        not_seen: what was not looked at or not answered, and why; empty where everything was seen.
        elapsed: seconds that it took.
    """

    time: datetime
    incidents: tuple[Incident, ...]
    teams: Mapping[str, registry_pb2.Team]
    routes: int
    judged: int
    not_seen: tuple[str, ...]
    elapsed: float

    def as_data(self) -> dict[str, Any]:
        """Returns all of it as plain data."""
        return {
            "time": self.time.isoformat(),
            "incidents": [
                {
                    "level": incident.level,
                    "reason": incident.reason,
                    "on_call": team.on_call if (team := self.teams.get(incident.team)) is not None else "",
                    **plain(incident),
                }
                for incident in self.incidents
            ],
            "routes": self.routes,
            "judged": self.judged,
            "not_seen": list(self.not_seen),
            "elapsed": self.elapsed,
        }


async def triage(
    client: AsyncClient,
    queries: Sequence[str] = (),
    *,
    judged: int = JUDGED,
    within: float = WITHIN,
    progress: Callable[[str], None] = lambda _: None,
) -> Triage:
    """Looks at every route of the fleet, or at some, and ranks what is wrong.

    Args:
        client: of the fleet. One that tries each call once sees at once that a service is away.
        queries: models or model types, as `investigate` takes them; empty: the whole fleet.
        judged: how many models that launches bring in are judged, the most critical first. Those that serve are
            evaluated each minute, and all of them are listed.
        within: seconds that all of it may take.
        progress: told what is being done.

    Raises:
        NothingFound: nothing in the registry fits one of the queries.
        Ambiguous: several entries do.
    """
    asking = Asking(within)
    entries = [await find_entry(client, asking, query) for query in queries]
    return await _Triage(client, asking, judged, progress, entries).run()


@dataclass
class _Triage:
    """The calls of one triage, and what they could not tell."""

    client: AsyncClient
    asking: Asking
    most_judged: int
    progress: Callable[[str], None]
    entries: Sequence[Entry]
    not_seen: list[str] = field(default_factory=list)
    # Of how many models that serve it is known whether they are stable.
    evaluated: int = 0

    async def run(self) -> Triage:
        self.progress("reading the registry, the launches, what is unstable and the alerts")
        types, routes = await self._routes()
        now = datetime.now(UTC)
        self.progress("asking stability about the models that launches bring in")
        routes = await self._judged(routes, now)
        # Only the whole fleet shows who depends on whom.
        downstream = None if self.entries else _downstream(types)
        found = _incidents(routes, now, downstream)
        self.progress("reading the models and teams of what is wrong")
        models, teams = await self._models_and_teams(rank(found, now)[:_MOST_READ])
        if len(found) > _MOST_READ:
            self.not_seen.append(f"own tiers and teams of {len(found) - _MOST_READ} more models")
        ranked = rank(_incidents(routes, now, downstream, models), now)
        return Triage(
            time=now,
            incidents=tuple(incident for incident in ranked if self._is_wanted(incident)),
            teams=teams,
            routes=len(routes),
            judged=self.evaluated + sum(len(route.judgements) for route in routes),
            # Asked for side by side, so that they come in any order.
            not_seen=tuple(sorted(self.not_seen)),
            elapsed=self.asking.elapsed,
        )

    def _is_wanted(self, incident: Incident) -> bool:
        return not self.entries or any(
            incident.model_type == entry.model_type and entry.model in ("", incident.model) for entry in self.entries
        )

    async def _routes(self) -> tuple[Sequence[registry_pb2.ModelType], Sequence[Route]]:
        """Reads types, reports and launches; of the whole fleet page by page."""
        registry, launcher = self.client.registry, self.client.launcher
        names = sorted({entry.model_type for entry in self.entries})
        async with asyncio.TaskGroup() as calls:
            start = calls.create_task
            types = [start(self._type(name)) for name in names] or [
                start(self._pages("model types", registry.list_model_types, "model_types", _MOST_TYPES))
            ]
            statuses, active, recent, firing, unwell = [], [], [], [], []
            for of in names or [""]:
                reports = registry.list_serving_statuses
                statuses.append(start(self._pages("reports", reports, "statuses", _MOST_STATUSES, model_type=of)))
                launches = partial(launcher.list_launches, model_type=of)
                in_flight = partial(launches, active_only=True)
                active.append(start(self._pages("launches in flight", in_flight, "launches", _MOST_LAUNCHES)))
                fires = "state = FIRING" + (f' AND model_type = "{of}"' if of else "")
                alerts = partial(self.client.stability.list_alerts, filter=fires)
                firing.append(start(self._pages("alerts", alerts, "alerts", _MOST_ALERTS)))
                stands = f'({_NOT_WELL}) AND model_type = "{of}"' if of else _NOT_WELL
                listing = partial(self.client.stability.list_model_stabilities, filter=stands)
                unwell.append(start(self._pages("stability", listing, "models", _MOST_STANDINGS)))
                recent.append(start(self.asking.ask(launches, page_size=1 if of else _RECENT_LAUNCHES)))
        found = [each for call in types for each in call.result() or ()]
        reported = [call.result() for call in statuses]
        by_type = _grouped(status for page in reported for status in page or ())
        in_flight_of = _grouped(launch for call in active for launch in call.result() or ())
        firing_of = _grouped(alert for call in firing for alert in call.result() or ())
        standings = [call.result() for call in unwell]
        if all(page is not None for page in standings):
            self._count(found, [one for page in standings for one in page or ()])
        standing_of = _grouped(one for page in standings for one in page or ())
        answers = [call.result() for call in recent]
        newest: dict[str, launcher_pb2.Launch] = {}
        for launch in (one for page in answers if not isinstance(page, Unknown) for one in page.launches):
            newest.setdefault(launch.model_type, launch)
        is_known = all(page is not None for page in reported)
        return found, [
            Route(
                model_type,
                by_type.get(model_type.name, []) if is_known else None,
                in_flight_of.get(model_type.name, []),
                newest.get(model_type.name),
                standings=standing_of.get(model_type.name, ()),
                alerts=firing_of.get(model_type.name, ()),
            )
            for model_type in found
        ]

    def _count(self, types: Sequence[registry_pb2.ModelType], unwell: Sequence[stability_pb2.ModelStability]) -> None:
        """Counts the models of which it is known whether they are stable, and says of how many it is not."""
        unknown = sum(one.state == stability_pb2.ModelStability.UNKNOWN for one in unwell)
        watched = sum(
            is_watched(model_type, model)
            for model_type in types
            if model_type.predictions
            for model in serving_models(Route(model_type))
        )
        self.evaluated = max(watched - unknown, 0)
        if unknown:
            self.not_seen.append(
                f"stability of {count(unknown, 'model')}: the evidence does not suffice; "
                "modelfleet stability list --filter 'state = UNKNOWN'"
            )

    async def _type(self, name: str) -> list[registry_pb2.ModelType] | None:
        found = await self.asking.ask(self.client.registry.get_model_type, name=name)
        if isinstance(found, Unknown):
            self._miss(name, found)
            return None
        return [found]

    async def _pages(
        self, what: str, listing: Callable[..., Awaitable[Any]], items: str, most: int, **fields: Any
    ) -> list[Any] | None:
        """All that a method lists, up to a limit; None where it is not known."""
        found: list[Any] = []
        token = ""
        while len(found) < most:
            answer = await self.asking.ask(listing, page_size=_PAGE, page_token=token, **fields)
            if isinstance(answer, Unknown):
                self._miss(what, answer)
                return None
            found += getattr(answer, items)
            token = answer.next_page_token
            if not token:
                return found
        self.not_seen.append(f"{what} beyond the first {most}")
        return found

    async def _judged(self, routes: Sequence[Route], now: datetime) -> Sequence[Route]:
        """Asks stability about models that take traffic and are not evaluated each minute, the most critical first."""
        candidates = [
            (criticality_of(route.model_type).counted, -largest_share(route, model), model, route.model_type)
            for route in routes
            if route.model_type.predictions
            for model in serving_models(route)
            if not is_watched(route.model_type, model)
        ]
        candidates.sort(key=lambda each: each[:3])
        left_out = len(candidates) - self.most_judged
        if left_out > 0:
            self.not_seen.append(f"stability of {left_out} of {len(candidates)} models, the least critical ones")
        room = asyncio.Semaphore(_AT_A_TIME)
        async with asyncio.TaskGroup() as calls:
            asked = [
                (
                    model_type.name,
                    model,
                    calls.create_task(self._judgement(room, judgement_request(model, model_type, now))),
                )
                for _, _, model, model_type in candidates[: self.most_judged]
            ]
        told: dict[str, dict[str, list[stability_pb2.Judgement]]] = {}
        reasons: Counter[str] = Counter()
        for model_type_name, model, call in asked:
            answer = call.result()
            if isinstance(answer, Unknown):
                reasons[answer.reason] += 1
            else:
                told.setdefault(model_type_name, {}).setdefault(model, []).append(answer)
        for reason, times in reasons.most_common(3):
            self._miss(f"stability of {count(times, 'model')}", Unknown(reason))
        return [replace(route, judgements=told.get(route.model_type.name, {})) for route in routes]

    async def _judgement(
        self, room: asyncio.Semaphore, request: stability_pb2.JudgeModelRequest
    ) -> Answer[stability_pb2.Judgement]:
        async with room:
            return await self.asking.ask(partial(self.client.stability.judge_model, request))

    async def _models_and_teams(
        self, incidents: Sequence[Incident]
    ) -> tuple[dict[str, registry_pb2.Model], dict[str, registry_pb2.Team]]:
        """Reads the models of incidents, which may have tiers of their own, and the teams to page."""
        room = asyncio.Semaphore(_AT_A_TIME)
        registry = self.client.registry

        async def read(method: Callable[..., Awaitable[Any]], name: str) -> Any:
            async with room:
                return await self.asking.ask(method, name=name)

        async with asyncio.TaskGroup() as calls:
            models = [
                calls.create_task(read(registry.get_model, name)) for name in {each.model for each in incidents} if name
            ]
            teams = [calls.create_task(read(registry.get_team, name)) for name in {each.team for each in incidents}]
        # A model that an agent reports need not be registered, so what is not there is no surprise.
        known = [call.result() for call in (*models, *teams) if not isinstance(call.result(), Unknown)]
        return (
            {each.name: each for each in known if isinstance(each, registry_pb2.Model)},
            {each.name: each for each in known if isinstance(each, registry_pb2.Team)},
        )

    def _miss(self, what: str, answer: Unknown) -> None:
        self.not_seen.append(f"{what}: {answer.reason}")


def _incidents(
    routes: Iterable[Route],
    now: datetime,
    downstream: Mapping[str, int] | None,
    models: Mapping[str, registry_pb2.Model] | None = None,
) -> list[Incident]:
    return [
        incident
        for route in routes
        for incident in incidents_of(
            route,
            now,
            downstream=None if downstream is None else downstream.get(route.model_type.name, 0),
            models=models,
        )
    ]


def _downstream(types: Iterable[registry_pb2.ModelType]) -> Mapping[str, int]:
    """How many model types consume each one's output."""
    return Counter(upstream for model_type in types for upstream in set(model_type.upstream_types))


def _grouped(messages: Iterable[Any]) -> dict[str, list[Any]]:
    """Messages by their model type."""
    found: dict[str, list[Any]] = {}
    for message in messages:
        found.setdefault(message.model_type, []).append(message)
    return found
