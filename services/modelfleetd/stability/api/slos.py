"""Service level objectives: they follow from the registry and from what minutes counted as; no table holds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from modelfleet.stability.v1 import slos_pb2 as pb
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit import ordering, paging
from modelfleetd.kit.fields import readings
from modelfleetd.kit.filter import matches
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
        budgets = await self._budgets.current()
        for model in budgets.fleet.models.values():
            if model.slo == request.name:
                return wire.slo(model, budgets)
        raise ResourceNotFound(request.name)

    async def ListSlos(self, request: pb.ListSlosRequest, context: Context) -> pb.ListSlosResponse:
        fits = _fits(request.filter)
        order = ordering.read(request.order_by, (ordering.BY_NAME, _BY_BUDGET))
        page = paging.read(request, *order.position)
        budgets = await self._budgets.current()
        key = _key(budgets, order)
        rows = sorted(filter(fits, budgets.fleet.models.values()), key=key, reverse=order.descending)
        if page.position is not None:
            position = page.position
            rows = [row for row in rows if (key(row) < position if order.descending else key(row) > position)]
        shown, token = page.answer(rows[: page.size + 1], key, lambda model: wire.slo(model, budgets))
        return pb.ListSlosResponse(slos=shown, next_page_token=token)


def _fits(text: str) -> Callable[[WatchedModel], bool]:
    """Returns whether a model's objectives are asked for.

    Raises:
        InvalidFields: the filter is none, or over another field.
    """
    where = read_filter(text, _FIELDS)
    if where is None:
        return lambda _: True

    def fits(model: WatchedModel) -> bool:
        found = wire.head(model)
        return matches(where, lambda asked: _READINGS[asked.field.path].of(found, asked.key))

    return fits


def _key(budgets: Budgets, order: ordering.Order) -> Callable[[WatchedModel], paging.Position]:
    if order.field == ordering.BY_NAME:
        return lambda model: (model.slo,)
    left = budgets.left()

    def by_budget(model: WatchedModel) -> paging.Position:
        found = left[model.name]
        return (_NOT_COUNTED if math.isinf(found) else round(found * _PARTS), model.slo)

    return by_budget
