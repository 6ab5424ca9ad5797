"""What all parts of the servicer share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import Message

from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd import names
from modelfleetd.clock import Clock
from modelfleetd.errors import FieldViolation, InvalidFields, ResourceNotFound, invalid
from modelfleetd.kit import ordering, paging
from modelfleetd.kit.auth import current_principal
from modelfleetd.kit.filter import Field, Node, matches
from modelfleetd.kit.filter import read as read_filter
from modelfleetd.kit.ordering import BY_NAME, Order
from modelfleetd.registry import listing, wire
from modelfleetd.registry.compaction import Compaction
from modelfleetd.registry.domain.revisions import Author
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.past import Past
from modelfleetd.registry.readout import Readout
from modelfleetd.registry.snapshot import Snapshot
from modelfleetd.registry.standings import Standings
from modelfleetd.registry.store import Store
from modelfleetd.registry.watch import Watches
from modelfleetd.registry.writer import Writer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
M = TypeVar("M", bound=wire.AnyMessage)


class Base(registry_pb2_grpc.RegistryServiceServicer):
    """Answers reads from the snapshot and hands writes to the writer."""

    def __init__(
        self,
        store: Store,
        follower: Follower,
        writer: Writer,
        watches: Watches,
        clock: Clock,
        standings: Standings,
    ) -> None:
        self._store = store
        self._follower = follower
        self._writer = writer
        self._watches = watches
        self._clock = clock
        self._standings = standings
        self._past = Past(store.history, follower)
        self._readout = Readout(store.history)
        self._compaction = Compaction(store.history)

    async def _get(self, request: Any, kind: type[M]) -> M:
        """Answers a method that gets one resource by its name: as it is, or as of the point that is asked for."""
        point = await self._point(request, kind)
        if point is None:
            return found(request.name, self._follower.snapshot.table(kind))
        message = await self._past.find(request.name, point)
        if message is None:
            raise ResourceNotFound(request.name)
        return cast(M, message)

    async def _list(self, request: Any, kind: type[M]) -> tuple[Sequence[M], str, int]:
        """Returns the messages of a page, the token of the next one, and the revision that they are as of.

        Args:
            request: of a method that lists one kind, whole or below `parent`.
            kind: the class of the messages. What is not kept in memory is read as of the newest revision.
        """
        pattern, parent = wire.kind_of_message(kind).pattern.parent, ""
        if pattern is not None:
            parent = request.parent
            pattern.parse(parent, "parent", wildcard=True)
        point = await self._point(request, kind)
        if point is not None:
            return await self._past.page(request, kind, point, fits_of(request, self._follower.snapshot, kind))
        snapshot = self._follower.snapshot
        if parent and names.WILDCARD not in parent.split("/") and snapshot.find(parent) is None:
            raise ResourceNotFound(parent)
        messages, token = page_of(request, snapshot, collection_of(kind, parent), snapshot.table(kind))
        return messages, token, snapshot.revision

    async def _point(self, request: Any, kind: type[M]) -> int | None:
        """Returns the revision to read the past as of; None where the snapshot answers."""
        if request.min_revision:
            await self._follower.reach(request.min_revision)
        point = await self._past.point(request)
        if point is None and not wire.kind_of_message(kind).in_memory:
            return self._follower.snapshot.revision
        return point

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


def collection_of(kind: type[Message], parent: str = "") -> str:
    """Returns the collection of one kind: below a parent, or of all parents where its id is `-`."""
    collection = wire.kind_of_message(kind).pattern.template.split("/")[-2]
    return f"{parent}/{collection}" if parent else collection


def page_of(request: Any, snapshot: Snapshot, collection: str, table: Mapping[str, M]) -> tuple[Sequence[M], str]:
    """Returns the messages of a page of a collection, filtered and ordered as asked, and the token of the next one."""
    index = snapshot.index_of(collection)
    where, order = _asked(request, index.fields, lambda text: ordering.read(text, index.orders))
    page = paging.read(request, *order.position)
    found = snapshot.page(collection, page.position, page.size + 1, where, order)
    return page.answer(found, lambda name: index.position(name, order), table.__getitem__)


def fits_of(request: Any, snapshot: Snapshot, kind: type[M]) -> Callable[[M], bool] | None:
    """Returns whether a message is asked for, in a list that is read by name from the database; None where all are.

    Raises:
        InvalidFields: the filter is none, or another order is asked for.
    """
    readings = {**listing.fields(wire.kind_of_message(kind).name), **snapshot.attributes_of(kind)}
    where, _ = _asked(request, {path: each.field for path, each in readings.items()}, _by_name)
    if where is None:
        return None
    return lambda message: matches(where, lambda asked: readings[asked.field.path].of(message, asked.key))


def _by_name(text: str) -> Order:
    if text.split() not in ([], [BY_NAME]):
        raise invalid("order_by", "must be name: this list is read in no other order")
    return Order()


def _asked(request: Any, fields: Mapping[str, Field], read_order: Callable[[str], Order]) -> tuple[Node | None, Order]:
    """Returns filter and order of a list. Raises InvalidFields with what is wrong with either."""
    where, order = None, Order()
    wrong: list[FieldViolation] = []
    try:
        where = read_filter(request.filter, fields)
    except InvalidFields as error:
        wrong += error.violations
    try:
        order = read_order(request.order_by)
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
