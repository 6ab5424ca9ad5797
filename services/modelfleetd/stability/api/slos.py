"""Service level objectives: they follow from the registry and from what minutes counted as; no table holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Final

from modelfleet.stability.v1 import slos_pb2 as pb
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit import ordering, paging
from modelfleetd.kit.fields import readings
from modelfleetd.kit.filter import Node, matches
from modelfleetd.kit.filter import read as read_filter
from modelfleetd.stability.api.base import Base, Context
from modelfleetd.stability.domain.budget import Budgets
from modelfleetd.stability.domain.fleet import WatchedModel
from modelfleetd.stability.wire import slos as wire

_READINGS: Final = readings(pb.Slo, ("role", "tier", "team", "model_type"))
_FIELDS: Final = {path: reading.field for path, reading in _READINGS.items()}
_BY_BUDGET: Final = "budget_left"
# Page tokens hold integers: budgets in billionths, and behind all others what has none yet.
_PARTS, _NOT_COUNTED = 1e9, 2**62


class Slos(Base):
    """Answers from the budgets that are kept in memory."""

    async def GetSlo(self, request: pb.GetSloRequest, context: Context) -> pb.Slo:
        listing = await self._listing()
        model = listing.models.get(request.name)
        if model is None:
            raise ResourceNotFound(request.name)
        return listing.slo(model)

    async def ListSlos(self, request: pb.ListSlosRequest, context: Context) -> pb.ListSlosResponse:
        where = read_filter(request.filter, _FIELDS)
        order = ordering.read(request.order_by, (ordering.BY_NAME, _BY_BUDGET))
        page = paging.read(request, *order.position)
        listing = await self._listing()
        key = listing.by_name if order.field == ordering.BY_NAME else listing.by_budget
        rows = sorted(listing.fitting(where), key=key, reverse=order.descending)
        position = page.position
        if position is not None:
            rows = [row for row in rows if (key(row) < position if order.descending else key(row) > position)]
        shown, token = page.answer(rows[: page.size + 1], key, listing.slo)
        return pb.ListSlosResponse(slos=shown, next_page_token=token)

    async def _listing(self) -> _Listing:
        return _listing(await self._budgets.current())


class _Listing:
    """All objectives as of one evaluation. What is made of them is kept: callers ask again within the minute."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._messages: dict[str, pb.Slo] = {}
        self.models = {model.slo: model for model in budgets.fleet.models.values()}

    def slo(self, model: WatchedModel) -> pb.Slo:
        """Returns the objectives of a model."""
        found = self._messages.get(model.slo)
        if found is None:
            found = self._messages[model.slo] = wire.slo(model, self._budgets)
        return found

    def fitting(self, where: Node | None) -> Iterable[WatchedModel]:
        """Gives the models that fit a filter."""
        if where is None:
            return self.models.values()
        return (
            model
            for model, head in self._heads
            if matches(where, lambda asked, head=head: _READINGS[asked.field.path].of(head, asked.key))  # type: ignore[misc]
        )

    def by_name(self, model: WatchedModel) -> paging.Position:
        return (model.slo,)

    def by_budget(self, model: WatchedModel) -> paging.Position:
        left = self._left[model.name]
        return (_NOT_COUNTED if math.isinf(left) else round(left * _PARTS), model.slo)

    @cached_property
    def _left(self) -> dict[str, float]:
        return self._budgets.left()

    @cached_property
    def _heads(self) -> list[tuple[WatchedModel, pb.Slo]]:
        return [(model, wire.head(model)) for model in self.models.values()]


@lru_cache(maxsize=1)
def _listing(budgets: Budgets) -> _Listing:
    # The same budgets are the same object.
    return _Listing(budgets)
