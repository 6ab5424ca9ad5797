"""The fleet that stability watches: it follows the registry, and is always as of one revision as a whole."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Final, Self

from modelfleet import AsyncClient
from modelfleet.errors import ModelfleetError
from modelfleet.snapshot import AsyncSnapshot, Route
from modelfleetd.errors import PartUnavailable
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.stability.domain.fleet import HealthyRange, Metric, WatchedFleet, WatchedModel
from modelfleetd.stability.wire.fleet import healthy_ranges, watched_models

_log = logging.getLogger(__name__)
# Who is on call changes by people's hands.
TEAMS_SECONDS: Final = 15.0


class Fleet:
    """Follows while it is entered; `view` answers from memory, also while the registry is away."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._snapshot = AsyncSnapshot(client=client)
        self._on_call: dict[str, str] = {}
        # Routes never change: one that is another object is another state.
        self._known: dict[str, tuple[Route, str, dict[str, WatchedModel]]] = {}
        self._view: WatchedFleet | None = None
        self._seen: tuple[int, int] = (0, 0)
        self._teams_read = 0

    async def __aenter__(self) -> Self:
        await self._snapshot.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._snapshot.close()

    async def wait_ready(self, timeout: float, *, revision: int = 0) -> None:
        """Returns once there is a view, of this revision or a later one.

        Raises:
            PartUnavailable: the registry did not answer in time.
        """
        try:
            await self._snapshot.wait_ready(timeout, revision=revision)
        except TimeoutError as late:
            raise PartUnavailable("registry") from late

    @property
    def age(self) -> float:
        """Seconds since the view was last known to be current."""
        return self._snapshot.age

    def view(self) -> WatchedFleet:
        """Returns all models that serve, as of the newest revision that is known.

        Raises:
            PartUnavailable: the registry has never answered yet.
        """
        if not self._snapshot.is_ready:
            raise PartUnavailable("registry")
        # Read first: a revision that comes while routes are read is seen by the next call.
        seen = (self._snapshot.revision, self._teams_read)
        if self._view is None or self._seen != seen:
            self._view = WatchedFleet(seen[0], self._models())
            self._seen = seen
        return self._view

    def healthy_ranges(self, model: str) -> dict[tuple[str, Metric], HealthyRange]:
        """Returns the healthy ranges of any model: its own, else its type's. Candidates have them before they serve.

        Raises:
            PartUnavailable: the registry has never answered yet.
        """
        if not self._snapshot.is_ready:
            raise PartUnavailable("registry")
        route = self._snapshot.route(MODEL_TYPE.format(MODEL.parse(model)[0]))
        return {} if route is None else healthy_ranges(route, model)

    async def read_teams(self) -> None:
        """Reads who is on call. What was known stays where the registry does not answer."""
        try:
            teams = [team async for team in self._client.registry.list_teams_all(page_size=1000)]
        except ModelfleetError as error:
            _log.warning("the registry does not answer (%s); going by the on-calls that are known", error.reason)
            return
        found = {team.name: team.on_call for team in teams}
        if found != self._on_call:
            self._on_call = found
            self._teams_read += 1

    def _models(self) -> dict[str, WatchedModel]:
        known: dict[str, tuple[Route, str, dict[str, WatchedModel]]] = {}
        for route in self._snapshot:
            on_call = self._on_call.get(route.model_type.team, "")
            before = self._known.get(route.name)
            if before is not None and before[0] is route and before[1] == on_call:
                known[route.name] = before
            else:
                known[route.name] = (route, on_call, watched_models(route, on_call))
        self._known = known
        return {name: model for _, _, models in known.values() for name, model in models.items()}
