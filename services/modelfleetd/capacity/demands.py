"""The demand of routes: stated peaks as they are stated, the others as Prometheus measures them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from modelfleetd.capacity.domain.demand import Demand, MeasuredDemand, Query, measured, minutes, stated
from modelfleetd.capacity.prometheus import Prometheus, QueryRefused
from modelfleetd.capacity.registry import Route
from modelfleetd.clock import Clock
from modelfleetd.errors import DemandUnmeasurable, NotConfigured, PartUnavailable
from modelfleetd.kit import deadline

# Regions that are asked about at a time.
_AT_ONCE = 4
_MAX_SECONDS = 60.0
# A launch asks several times in a row, and windows are weeks.
_REMEMBERED_SECONDS = 60.0
_MOST_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class _Remembered:
    until: float
    demand: MeasuredDemand


class Demands:
    """What routes must carry. What was measured is remembered for a minute."""

    def __init__(self, prometheus: Prometheus | None, clock: Clock) -> None:
        self._prometheus = prometheus
        self._clock = clock
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._remembered: dict[tuple[str, Query], _Remembered] = {}

    async def of(self, route: Route) -> Demand:
        """Returns what a route must carry, region by region.

        Raises:
            NotConfigured: neither is a peak stated for a region nor said how it is measured, or there is no Prometheus.
            DemandUnmeasurable: the query gives no rates, or too many series.
            PartUnavailable: Prometheus does not answer.
        """
        peaks = {each.region: each for each in route.stated}
        if route.query is None and (lacking := [region for region in route.regions if region not in peaks]):
            raise NotConfigured(route.model_type, f"demand_source.stated for {lacking[0]}")
        now = self._clock.now()
        found = {region: stated(peaks[region], now) for region in route.regions if region in peaks}
        if route.query is not None:
            found |= await self._measure(
                route, route.query, [region for region in route.regions if region not in peaks]
            )
        return Demand(
            model_type=route.model_type,
            measured=tuple(found[region] for region in route.regions),
            growth_basis_points=route.growth_basis_points,
            fanout_basis_points=route.fanout_basis_points,
            failover=route.failover,
        )

    async def _measure(self, route: Route, query: Query, regions: list[str]) -> dict[str, MeasuredDemand]:
        if not regions:
            return {}
        if self._prometheus is None:
            raise NotConfigured("the capacity service", "--prometheus-url")
        left = deadline.remaining()
        try:
            async with (
                asyncio.timeout(_MAX_SECONDS if left is None else min(_MAX_SECONDS, left * 0.9)),
                asyncio.TaskGroup() as group,
            ):
                asked = [group.create_task(self._region(self._prometheus, route, query, each)) for each in regions]
        except TimeoutError as error:
            raise PartUnavailable("Prometheus") from error
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {task.result().region: task.result() for task in asked}

    async def _region(self, prometheus: Prometheus, route: Route, query: Query, region: str) -> MeasuredDemand:
        text = query.text(route.model_type, region)
        key = (text, query)
        known = self._remembered.get(key)
        if known is not None and known.until > self._clock.monotonic():
            return known.demand
        start, end = minutes(query, self._clock.now())
        async with self._slots:
            try:
                rates = await prometheus.rates(text, start, end)
            except QueryRefused as refused:
                raise DemandUnmeasurable(route.model_type, region, str(refused)) from refused
        if not rates.values:
            dropped = f" but {rates.dropped:,} that are no rates" if rates.dropped else ""
            raise DemandUnmeasurable(
                route.model_type,
                region,
                f"Prometheus has no points{dropped} since {start:%Y-%m-%d %H:%M} UTC for {text}",
            )
        found = measured(region, query, text, rates, start, end)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[key] = _Remembered(self._clock.monotonic() + _REMEMBERED_SECONDS, found)
        return found
