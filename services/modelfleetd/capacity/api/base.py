"""What all parts of the servicer share."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

from modelfleet.capacity.v1 import capacity_pb2_grpc
from modelfleetd import names
from modelfleetd.capacity.admissions import Admissions
from modelfleetd.capacity.datasets import Datasets
from modelfleetd.capacity.demands import Demands
from modelfleetd.capacity.estimator import Estimator
from modelfleetd.capacity.registry import Registry
from modelfleetd.capacity.watching import Watching
from modelfleetd.clock import Clock
from modelfleetd.kit import paging
from modelfleetd.kit.auth import current_principal
from modelfleetd.kit.db import Database

_NEWEST = 2**62

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Base(capacity_pb2_grpc.CapacityServiceServicer):
    """What the methods work with."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        clock: Clock,
        datasets: Datasets,
        demands: Demands,
        freed: Callable[[], None],
    ) -> None:
        """Makes the servicer.

        Args:
            database: of capacity.
            registry: that it asks.
            clock: that waits are measured by.
            datasets: of recordings.
            demands: measures how much traffic routes must carry.
            freed: called when something may have become free, or somebody waits.
        """
        self._database = database
        self._registry = registry
        self._demands = demands
        self._clock = clock
        self._datasets = datasets
        self._freed = freed
        self._admissions = Admissions(database)
        self._estimator = Estimator(database, registry, demands, clock)
        self._watching = Watching(database, clock)


def new_name(pattern: names.Pattern, prefix: str) -> str:
    """Returns a name that nothing has."""
    return pattern.format(f"{prefix}{secrets.token_hex(8)}")


def actor() -> str:
    """Returns who calls, as the records say it."""
    principal = current_principal()
    return f"{principal.name} for {principal.on_behalf_of}" if principal.on_behalf_of else principal.name


def after_name(page: paging.Page) -> str:
    """Returns the name after which a page in the order of names begins."""
    return "" if page.position is None else str(page.position[0])


def before(page: paging.Page) -> int:
    """Returns the number before which a page of newest ones begins."""
    return _NEWEST if page.position is None else int(page.position[0])
