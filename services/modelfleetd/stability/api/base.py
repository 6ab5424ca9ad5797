"""What all parts of the servicer share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

from modelfleet.stability.v1 import stability_pb2_grpc
from modelfleetd.clock import Clock
from modelfleetd.kit.db import Database
from modelfleetd.stability.board import Board
from modelfleetd.stability.budgets import BudgetKeeper
from modelfleetd.stability.fleet import Fleet
from modelfleetd.stability.intake_metrics import IntakeMetrics
from modelfleetd.stability.judging import Judge
from modelfleetd.stability.proposer import Proposer
from modelfleetd.stability.reader import Reader
from modelfleetd.stability.registry import Registry
from modelfleetd.stability.writer import Writer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Base(stability_pb2_grpc.StabilityServiceServicer):
    """What the methods work with."""

    def __init__(
        self,
        registry: Registry,
        writer: Writer,
        reader: Reader,
        fleet: Fleet,
        metrics: IntakeMetrics,
        board: Board,
        budgets: BudgetKeeper,
        database: Database,
        clock: Clock,
        silences_changed: Callable[[], None],
        proposer: Proposer,
        judge: Judge,
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._reader = reader
        self._fleet = fleet
        self._metrics = metrics
        self._board = board
        self._budgets = budgets
        self._database = database
        self._clock = clock
        self._silences_changed = silences_changed
        self._proposer = proposer
        self._judge = judge
