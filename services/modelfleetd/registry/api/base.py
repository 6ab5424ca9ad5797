"""What all parts of the servicer share."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import grpc

from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd.clock import Clock
from modelfleetd.errors import FieldViolation, InvalidFields, ResourceNotFound
from modelfleetd.kit import ordering, paging
from modelfleetd.kit.auth import current_principal
from modelfleetd.kit.filter import Node
from modelfleetd.kit.filter import read as read_filter
from modelfleetd.kit.ordering import Order
from modelfleetd.registry import wire
from modelfleetd.registry.domain.revisions import Author
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.index import Index
from modelfleetd.registry.snapshot import Snapshot
from modelfleetd.registry.store import Store
from modelfleetd.registry.watch import Watches
from modelfleetd.registry.writer import Writer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
M = TypeVar("M", bound=wire.AnyMessage)


class Base(registry_pb2_grpc.RegistryServiceServicer):
    """Answers reads from the snapshot and hands writes to the writer."""

    def __init__(self, store: Store, follower: Follower, writer: Writer, watches: Watches, clock: Clock) -> None:
        self._store = store
        self._follower = follower
        self._writer = writer
        self._watches = watches
        self._clock = clock

    async def _at(self, min_revision: int) -> Snapshot:
        """Returns the snapshot, at a revision or a later one."""
        if min_revision:
            await self._follower.reach(min_revision)
        return self._follower.snapshot


def found(name: str, table: Mapping[str, M]) -> M:
    message = table.get(name)
    if message is None:
        raise ResourceNotFound(name)
    return message


def page_of(request: Any, snapshot: Snapshot, collection: str, table: Mapping[str, M]) -> tuple[Sequence[M], str]:
    """Returns the messages of a page of a collection, filtered and ordered as asked, and the token of the next one."""
    index = snapshot.index_of(collection)
    where, order = _asked(request, index)
    page = paging.read(request, *order.position)
    found = snapshot.page(collection, page.position, page.size + 1, where, order)
    return page.answer(found, lambda name: index.position(name, order), table.__getitem__)


def _asked(request: Any, index: Index) -> tuple[Node | None, Order]:
    """Returns filter and order of a list. Raises InvalidFields with what is wrong with either."""
    where, order = None, Order()
    wrong: list[FieldViolation] = []
    try:
        where = read_filter(request.filter, index.fields)
    except InvalidFields as error:
        wrong += error.violations
    try:
        order = ordering.read(request.order_by, index.orders)
    except InvalidFields as error:
        wrong += error.violations
    if wrong:
        raise InvalidFields(wrong)
    return where, order


def author(request: Any, launch: str = "") -> Author:
    principal = current_principal()
    return Author(principal.name, principal.asserted, principal.on_behalf_of or "", request.reason, launch)


def new_uid() -> str:
    return str(uuid.uuid4())
