"""The ledger as of a revision or a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.errors import ResourceNotFound, RevisionOutOfRange, invalid
from modelfleetd.kit import paging
from modelfleetd.kit.codec import timestamp_from_proto
from modelfleetd.registry import wire
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.store import HistoryStore

M = TypeVar("M", bound=wire.AnyMessage)

# A page whose filter fits few entries ends here, with a token: names that are looked at for one answer.
_MOST_LOOKED_AT = 5000


class Past:
    """Answers reads of the past from the database: memory holds only the present."""

    def __init__(self, store: HistoryStore, follower: Follower) -> None:
        self._store = store
        self._follower = follower

    async def point(self, request: Any) -> int | None:
        """Returns the revision that `as_of_revision` or `as_of_time` of a request mean; None where neither is set.

        Raises:
            InvalidFields: both are set, or the revision is negative.
            RevisionOutOfRange: there is no such revision yet, or it was forgotten.
        """
        revision, has_time = request.as_of_revision, request.HasField("as_of_time")
        if not revision and not has_time:
            return None
        if revision and has_time:
            raise invalid("as_of_time", "cannot be given together with as_of_revision; leave one out")
        if has_time:
            return await self.at_time(request.as_of_time, "as_of_time")
        await self._follower.reach(revision, "as_of_revision")
        return int(revision)

    async def at_time(self, time: Any, path: str) -> int:
        """Returns the newest revision of a time or before; 0 before the first one. A time to come is the present."""
        try:
            moment = timestamp_from_proto(time)
        except OverflowError:
            raise invalid(path, "must be a time between the years 1 and 9999") from None
        found = await self._store.revision_at(moment)
        if found is None:
            base = await self._store.base()
            raise self._forgotten(base.number - 1, base.number)
        return found

    async def find(self, name: str, revision: int) -> wire.AnyMessage | None:
        """Returns a resource as of a revision; None where it did not exist.

        Raises:
            RevisionOutOfRange: what was before the revision was forgotten.
        """
        found = await self._store.change_as_of(name, revision)
        self._expect_kept(revision, found.base)
        return _message(found.changes[0].change)

    async def page(
        self, request: Any, kind: type[M], revision: int, fits: Callable[[M], bool] | None = None
    ) -> tuple[Sequence[M], str, int]:
        """Returns a page of one kind as of a revision by name, the token of the next one, and the revision.

        Args:
            request: of a method that lists; its parent is checked already.
            kind: the class of the messages.
            revision: of the first page; later ones stay at that of the first.
            fits: whether a message is asked for; without, all are.

        Raises:
            ResourceNotFound: the parent did not exist then.
            RevisionOutOfRange: what was before the revision was forgotten.
        """
        pattern, parent = wire.kind_of_message(kind).pattern, getattr(request, "parent", "")
        asked = paging.read(request, str, int)
        last, before = _range(pattern, parent)
        if asked.position is not None:
            last, revision = str(asked.position[0]), int(asked.position[1])
        elif parent and names.WILDCARD not in parent.split("/") and await self.find(parent, revision) is None:
            raise ResourceNotFound(parent)
        kept: list[M] = []
        looked_at = 0
        while len(kept) <= asked.size:
            limit = asked.size + 1 - len(kept)
            found = await self._store.walk(last, before, pattern.accepted, 2 * len(pattern.variables), revision, limit)
            self._expect_kept(revision, found.base)
            messages = (cast(M | None, _message(newest.change)) for newest in found.changes)
            kept += [message for message in messages if message is not None and (fits is None or fits(message))]
            if len(found.changes) < limit:
                break
            last, looked_at = found.changes[-1].name, looked_at + limit
            if looked_at >= _MOST_LOOKED_AT and len(kept) <= asked.size:
                return kept, paging.encode(asked.scope, (last, revision)), revision
        shown, token = asked.cut(kept, lambda message: (message.name, revision))
        return shown, token, revision

    async def differences(self, request: pb.DiffRevisionsRequest) -> pb.DiffRevisionsResponse:
        """Answers DiffRevisions: what differs between two points, by name. Either may be the older one.

        Raises:
            InvalidFields: a point is stated twice, or what is compared is no entry.
            RevisionOutOfRange: there is no such revision yet, or it was forgotten.
        """
        page, resource = paging.read(request, str, int, int), request.resource
        if page.position is None:
            last, first, second = "", await self._end(request, "from"), await self._end(request, "to")
            second = self._follower.snapshot.revision if second is None else second
            first = first or 0
        else:
            last, first, second = str(page.position[0]), int(page.position[1]), int(page.position[2])
        older, newer = sorted((first, second))
        self._expect_kept(older, (await self._store.base()).number)
        low, high = (f"{resource}/", f"{resource}0") if resource else ("", "~")
        changes = await self._compared([resource], first, second) if resource and not last else []
        go_on: str | None = last or low
        looked_at = 0
        while go_on is not None and len(changes) <= page.size and looked_at < _MOST_LOOKED_AT:
            changed, go_on = await self._store.changed(go_on, high, older, newer, page.size + 1)
            changes += await self._compared(changed, first, second)
            looked_at += page.size + 1
        shown, token = page.cut(changes, lambda change: (change.resource, first, second))
        if not token and go_on is not None:
            token = paging.encode(page.scope, (go_on, first, second))
        return pb.DiffRevisionsResponse(changes=shown, next_page_token=token, from_revision=first, to_revision=second)

    async def _end(self, request: pb.DiffRevisionsRequest, end: str) -> int | None:
        """Returns the revision of one end, `from` or `to`; None where the request does not say."""
        revision, has_time = getattr(request, f"{end}_revision"), request.HasField(f"{end}_time")  # type: ignore[arg-type]
        if revision and has_time:
            raise invalid(f"{end}_time", f"cannot be given together with {end}_revision; leave one out")
        if has_time:
            return await self.at_time(getattr(request, f"{end}_time"), f"{end}_time")
        await self._follower.reach(revision, f"{end}_revision")
        return int(revision) or None

    async def _compared(self, names_: Sequence[str], first: int, second: int) -> list[pb.ResourceChange]:
        """Returns what differs of some resources between two revisions."""
        then, now = [
            {
                name: _message(change)
                for name, change in (await self._store.changes_as_of(dict.fromkeys(names_, revision))).items()
            }
            for revision in (first, second)
        ]
        found = (wire.difference(then.get(name), now.get(name)) for name in names_)
        return [change for change in found if change is not None]

    def _expect_kept(self, revision: int, base: int) -> None:
        if revision < base:
            raise self._forgotten(revision, base)

    def _forgotten(self, revision: int, base: int) -> RevisionOutOfRange:
        return RevisionOutOfRange(revision, base, self._follower.snapshot.revision)


def _message(change: bytes | None) -> wire.AnyMessage | None:
    return None if change is None else wire.after_of(pb.ResourceChange.FromString(change))


def _range(pattern: names.Pattern, parent: str) -> tuple[str, str]:
    """Returns two names between which all names of a pattern below a parent are: of all parents where an id is `-`."""
    collections = pattern.template.split("/")[::2]
    ids = parent.split("/")[1::2]
    ids = ids[: ids.index(names.WILDCARD)] if names.WILDCARD in ids else ids
    segments = [segment for pair in zip(collections, ids, strict=False) for segment in pair]
    prefix = "/".join((*segments, collections[len(ids)]))
    # "0" comes after "/".
    return f"{prefix}/", f"{prefix}0"
