"""Proposes healthy ranges: reads the history, and works on it beside the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final, TypeAlias

import numpy as np

from modelfleetd.clock import Clock
from modelfleetd.kit.db import Database
from modelfleetd.stability.domain.delays import Delays
from modelfleetd.stability.domain.fleet import HealthyRange, Metric, Role, ServiceLevel, Tier, WatchedModel, completed
from modelfleetd.stability.domain.history import History, of_minutes
from modelfleetd.stability.domain.maturity import mature_before
from modelfleetd.stability.domain.points import Span
from modelfleetd.stability.domain.ranges import Proposal, propose_model
from modelfleetd.stability.domain.wishes import Wish
from modelfleetd.stability.fleet import Fleet
from modelfleetd.stability.registry import DeclaredType
from modelfleetd.stability.store.history import read_histories, read_routes

# The delays of labels by (model, prediction), of which each comes with its attribution window.
DelaysOf: TypeAlias = Callable[[Mapping[tuple[str, str], timedelta]], Awaitable[Mapping[tuple[str, str], Delays]]]

# Where nothing is said of a model that does not serve.
_NOTHING_STATED: Final = ServiceLevel(0.0, 0.0, 0.0, 0.0, 0.0)


class Proposer:
    """Makes proposals; whoever accepts one writes it into the registry."""

    def __init__(self, database: Database, fleet: Fleet, clock: Clock, delays_of: DelaysOf) -> None:
        self._database = database
        self._fleet = fleet
        self._clock = clock
        self._delays_of = delays_of

    async def propose(self, declared: DeclaredType, model: str, wish: Wish) -> list[Proposal]:
        """Returns ranges for a model's predictions, of the baseline also for the volume of its route.

        Raises:
            InvalidFields: what is asked for cannot be.
        """
        now = self._clock.now()
        span, pages, width, wanted = wish.checked(declared.name, declared.predictions, now)
        predictions = {name: declared.predictions[name] for name in wanted}
        before = {name: mature_before(now, one.attribution_window) for name, one in predictions.items()}
        watched = self._fleet.view().models.get(model)
        found = await read_histories(self._database, model, before, span)
        volumes: Mapping[str, History] = {}
        if watched is not None and watched.role is Role.BASELINE:
            volumes = await read_routes(self._database, declared.name, wanted, span)
        late = {(model, name): predictions[name].attribution_window for name, (_, waits) in found.items() if waits}
        delays = await self._delays_of(late)
        propose = functools.partial(
            propose_model,
            {name: found[name][0] if name in found else _nothing(span) for name in wanted},
            volumes,
            declared.predictions,
            target=self._target(declared, watched),
            pages_per_week=pages,
            width=width,
            delays={name: each for (_, name), each in delays.items()},
            current=_current(declared, watched, wanted),
        )
        return await asyncio.to_thread(propose)

    def _target(self, declared: DeclaredType, watched: WatchedModel | None) -> float:
        """Returns the target of the stability objective; of a model that does not serve, its baseline's."""
        if watched is not None:
            return watched.service_level.stability
        others = (other for other in self._fleet.view().models.values() if other.model_type == declared.name)
        levels = (other.service_level for other in others if other.role is Role.BASELINE)
        return next(levels, completed(_NOTHING_STATED, Tier.UNSTATED)).stability


def _current(
    declared: DeclaredType, watched: WatchedModel | None, wanted: Sequence[str]
) -> dict[tuple[str, Metric], HealthyRange]:
    """Returns the ranges in force."""
    if watched is not None:
        return dict(watched.ranges)
    found: dict[tuple[str, Metric], HealthyRange] = {}
    for name in wanted:
        prediction = declared.predictions[name]
        limits = {Metric.CALIBRATION: prediction.calibration_range, Metric.NE: prediction.ne_range}
        found |= {
            (name, metric): HealthyRange(name, metric, given.low, given.high)
            for metric, given in limits.items()
            if given is not None
        }
    return found


def _nothing(span: Span) -> History:
    return of_minutes(span.start, {"examples": np.zeros(0)})
