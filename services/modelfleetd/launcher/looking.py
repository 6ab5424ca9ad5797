"""Looks at several regions of a launch at once. Whoever has been looked at refuses every older epoch from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from modelfleetd.errors import FleetError, StaleEpoch
from modelfleetd.kit import deadline
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.estimation import AT_ONCE
from modelfleetd.launcher.executor import Executor
from modelfleetd.platform.model import ServingObservation

# Of what is left of a round, the most that one region of several may take: the others are to be acted upon as well.
_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen, in the order that was asked for, and why the other regions could not be observed."""

    seen: Mapping[str, ServingObservation] = field(default_factory=dict)
    blind: Mapping[str, FleetError] = field(default_factory=dict)


async def look(executor: Executor, launch: Launch, regions: Iterable[str]) -> Look:
    """Observes regions with the launch's epoch, several at once.

    Raises:
        StaleEpoch: somebody else has claimed the launch since.
    """
    wanted = list(regions)
    if len(wanted) == 1:
        return await _alone(executor, launch, wanted[0])
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(region: str) -> ServingObservation | FleetError:
        async with slots:
            try:
                left = deadline.remaining()
                if left is None:
                    return await executor.observe(launch, region, launch.epoch)
                with deadline.limit(_SHARE * left):
                    return await executor.observe(launch, region, launch.epoch)
            except FleetError as error:
                return error

    found = dict(zip(wanted, await asyncio.gather(*map(one, wanted)), strict=True))
    blind = {region: error for region, error in found.items() if isinstance(error, FleetError)}
    for error in blind.values():
        if isinstance(error, StaleEpoch):
            raise error
    return Look({region: seen for region, seen in found.items() if isinstance(seen, ServingObservation)}, blind)


async def _alone(executor: Executor, launch: Launch, region: str) -> Look:
    """The same of one region, which mostly is all that there is: nobody else needs the time."""
    try:
        return Look({region: await executor.observe(launch, region, launch.epoch)})
    except StaleEpoch:
        raise
    except FleetError as error:
        return Look(blind={region: error})
