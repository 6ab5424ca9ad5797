"""Several entries in one revision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from google.protobuf.message import Message

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.errors import FieldViolation, InvalidFields, invalid
from modelfleetd.kit.auth import Role, current_principal
from modelfleetd.kit.codec import from_proto
from modelfleetd.kit.method import Method, find_method
from modelfleetd.kit.validation import plan_of
from modelfleetd.registry import wire
from modelfleetd.registry.access import Grants
from modelfleetd.registry.api.base import Base, Context, author, new_uid
from modelfleetd.registry.batch import After
from modelfleetd.registry.domain import asset_entries, entries
from modelfleetd.registry.domain.apply import (
    ADOPTED,
    MAX_BYTES,
    MAX_CHANGES,
    Served,
    Step,
    apply,
    is_unserved,
    team_of,
)
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.resource import parent_of
from modelfleetd.registry.domain.resources import AnyResource, Model, ModelRole, ModelType
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.rules import check_waiver_times
from modelfleetd.registry.slices import in_slices

_SERVICE = "/modelfleet.registry.v1.RegistryService/"


class Apply(Base):
    """Several entries in one revision."""

    async def ApplyEntries(self, request: pb.ApplyEntriesRequest, context: Context) -> pb.ApplyEntriesResponse:
        _check_size(request)
        parser = _Parser(request, Grants(current_principal(), self._follower), self._clock.now())
        steps = parser.complete([step async for step in in_slices(parser.each())])

        # Their evidence goes with them.
        deleted = [change.delete for change in request.changes if names.MODEL.match(change.delete)]

        def decide(ledger: Ledger) -> Iterator[Edits]:
            return apply(ledger, steps, wire.references_of_resource)

        if request.validate_only:
            return pb.ApplyEntriesResponse(changes=await self._writer.preview(decide, deleted))

        def reply(revision: pb.Revision | None, _: After) -> pb.ApplyEntriesResponse:
            return pb.ApplyEntriesResponse(revision=0 if revision is None else revision.number)

        made = await self._writer.write(
            request,
            pb.ApplyEntriesResponse,
            author(request),
            decide,
            reply,
            evidence_of=deleted,
            weight=len(steps),
        )
        if made.revision:
            made.changes.extend(await self._changes(made.revision))
        return made

    async def _changes(self, number: int) -> Sequence[pb.ResourceChange]:
        """Returns the changes of a revision, which are kept once: in the history, not beside the request_id as well."""
        recent = self._follower.recent(number - 1, 1)
        if recent:
            return recent[0].revision.changes
        stored = await self._store.revision(number)
        return () if stored is None else wire.revision_of(stored).changes


def _check_size(request: pb.ApplyEntriesRequest) -> None:
    count, size = len(request.changes), request.ByteSize()
    if count > MAX_CHANGES:
        raise invalid("changes", f"must be at most {MAX_CHANGES:,}, they are {count:,}; send them in parts")
    if size > MAX_BYTES:
        most, found = (f"{each / (1 << 20):.1f} MiB" for each in (MAX_BYTES, size))
        raise invalid("changes", f"must have at most {most}, they have {found}; send them in parts")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What decides on one kind of entries."""

    create: Callable[[Ledger, Any, str], Edits]
    update: Callable[[Ledger, Any, Sequence[str]], Edits]
    delete: Callable[[Ledger, str, str], Edits]


def _update_team(ledger: Ledger, team: Any, mask: Sequence[str]) -> Edits:
    caller = current_principal()
    return entries.update_team(ledger, team, mask, caller.name, is_admin=Role.ADMIN in caller.roles_everywhere)


# By the field of EntryChange.
_KINDS: Final[Mapping[str, _Kind]] = {
    "team": _Kind(entries.create_team, _update_team, entries.delete_team),
    "region": _Kind(entries.create_region, entries.update_region, entries.delete_region),
    "model_type": _Kind(entries.create_model_type, entries.update_model_type, entries.delete_model_type),
    "asset": _Kind(asset_entries.create_asset, asset_entries.update_asset, asset_entries.delete_asset),
    "model": _Kind(entries.create_model, entries.update_model, entries.delete_model),
}
_ACCEPTED = ", ".join(wire.BY_NAME[name].pattern.template for name in _KINDS)


class _Parser:
    """Takes a request apart: each change becomes the request of the method that does it alone, checked likewise."""

    def __init__(self, request: pb.ApplyEntriesRequest, grants: Grants, now: datetime) -> None:
        self._request = request
        self._grants = grants
        self._now = now
        self._violations: list[FieldViolation] = []
        self._served: dict[str, Served] = {}

    def complete(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Returns all steps, once each change has been looked at. Raises InvalidFields with all that is wrong."""
        if self._violations:
            raise InvalidFields(self._violations)
        return [*steps, *(served.step(self._may_adopt(name)) for name, served in self._served.items())]

    def each(self) -> Iterator[Step]:
        """Yields a step for each change that is right by itself."""
        written: set[str] = set()
        deleted: set[str] = set()
        for index, change in enumerate(self._request.changes):
            path = f"changes[{index}]"
            field = change.WhichOneof("entry")
            if field is None or (field not in _KINDS and field != "delete"):
                self._wrong(path, f"must have one of {', '.join(_KINDS)}, delete")
                continue
            name = change.delete if field == "delete" else getattr(change, field).name
            if name in deleted:
                self._wrong(path, f"{name} is deleted before; write it again in another request")
            elif field == "delete":
                deleted.add(name)
                yield from self._delete(change, path)
            elif change.etag or name in written:
                yield from self._update(change, field, path)
            else:
                yield from self._create(change, field, path)
            written.add(name)

    def _create(self, change: pb.EntryChange, field: str, path: str) -> Iterator[Step]:
        entry = getattr(change, field)
        if not entry.name:
            self._wrong(f"{path}.{field}.name", wire.BY_NAME[field].pattern.expectation)
            return
        if change.update_mask.paths:
            self._wrong(f"{path}.update_mask", "must be empty for a new entry; send the etag of one that exists")
        method = _method("Create", field)
        single = method.request(request_id=self._request.request_id, **{f"{field}_id": entry.name.rsplit("/", 1)[-1]})
        if field == "model":
            single.parent = parent_of(entry.name)
        getattr(single, field).CopyFrom(entry)
        where = _paths(path, field)
        if self._is_wrong(single, where):
            return
        resource = from_proto(getattr(single, field), wire.BY_NAME[field].resource, name=entry.name)
        self._expect_waivers(resource, field, where)
        self._note_served(resource, where)
        uid, kind = new_uid(), _KINDS[field]

        def decide(ledger: Ledger) -> Edits:
            self._grants.expect(method, single, lambda name: team_of(ledger, name))
            return kind.create(ledger, self._own(ledger, resource), uid)

        yield Step(entry.name, decide, where)

    def _update(self, change: pb.EntryChange, field: str, path: str) -> Iterator[Step]:
        method, mask = _method("Update", field), change.update_mask.paths
        single = method.request(request_id=self._request.request_id, update_mask=change.update_mask)
        getattr(single, field).CopyFrom(getattr(change, field))
        where = _paths(path, field)
        if self._is_wrong(single, where):
            return
        resource = replace(from_proto(getattr(single, field), wire.BY_NAME[field].resource), etag=change.etag)
        self._expect_waivers(resource, field, where)
        self._note_served(resource, where)
        kind = _KINDS[field]
        destination = getattr(resource, "team", "") if not mask or {"team", "*"}.intersection(mask) else ""

        def decide(ledger: Ledger) -> Edits:
            self._grants.expect(method, single, lambda name: team_of(ledger, name))
            if destination:
                self._grants.expect_on(method, destination)
            own = self._own(ledger, resource)
            fields = mask if own is resource else [each for each in mask if each not in ADOPTED]
            return kind.update(ledger, own, fields) if fields or not mask else ()

        yield Step(resource.name, decide, where)

    def _delete(self, change: pb.EntryChange, path: str) -> Iterator[Step]:
        found = wire.kind_of_name(change.delete)
        if found is None or found.name not in _KINDS or found.pattern.match(change.delete) is None:
            self._wrong(f"{path}.delete", f"must be a name of the form {_ACCEPTED}")
            return
        method, kind = _method("Delete", found.name), _KINDS[found.name]
        single = method.request(name=change.delete, etag=change.etag)

        def decide(ledger: Ledger) -> Edits:
            self._grants.expect(method, single, lambda name: team_of(ledger, name))
            return kind.delete(ledger, change.delete, change.etag)

        yield Step(change.delete, decide, lambda field: f"{path}.delete" if field == "name" else _below(path, field))

    # What serves already.

    def _note_served(self, resource: AnyResource, path: Callable[[str], str]) -> None:
        """Keeps what an entry states of roles and splits, where that is asked for."""
        if not self._request.adopt_serving:
            return
        if isinstance(resource, ModelType) and (resource.baseline or resource.holdouts or resource.splits):
            served = self._of(resource.name, path)
            served.path, served.splits = path, resource.splits
            stated = [(resource.baseline, ModelRole.BASELINE, "baseline")] if resource.baseline else []
            stated += [(name, ModelRole.HOLDOUT, "holdouts") for name in resource.holdouts]
            for name, role, field in stated:
                self._note_role(served, name, role, path(f"model_type.{field}"))
        if isinstance(resource, Model) and resource.role not in (None, ModelRole.CANDIDATE):
            self._note_role(self._of(resource.model_type, path), resource.name, resource.role, path("model.role"))

    def _of(self, model_type: str, path: Callable[[str], str]) -> Served:
        return self._served.setdefault(model_type, Served(model_type, path))

    def _note_role(self, served: Served, model: str, role: ModelRole | None, path: str) -> None:
        if role is None:
            return
        known = served.roles.setdefault(model, (role, path))
        if known[0] is not role:
            self._wrong(path, f"makes {model} {role.name}, and {known[1]} makes it {known[0].name}")

    def _own(self, ledger: Ledger, resource: AnyResource) -> AnyResource:
        """Returns an entry without what is adopted at the end."""
        if self._request.adopt_serving:
            if isinstance(resource, ModelType) and is_unserved(ledger, resource.name):
                return replace(resource, baseline="", holdouts=(), splits=())
            if isinstance(resource, Model) and is_unserved(ledger, resource.model_type):
                return replace(resource, role=None)
        return resource

    def _may_adopt(self, model_type: str) -> Callable[[Ledger], None]:
        method = _method("AdoptServing")
        single = method.request(model_type=model_type)
        return lambda ledger: self._grants.expect(method, single, lambda name: team_of(ledger, name))

    # Violations.

    def _wrong(self, path: str, description: str) -> None:
        self._violations.append(FieldViolation(path, description))

    def _expect_waivers(self, resource: AnyResource, field: str, where: Callable[[str], str]) -> None:
        """Notes waivers that would hold for longer than they may."""
        if not isinstance(resource, (ModelType, Model)):
            return
        try:
            check_waiver_times(resource.lint_waivers, self._now, field)
        except InvalidFields as error:
            self._violations += [FieldViolation(where(each.path), each.description) for each in error.violations]

    def _is_wrong(self, single: Message, where: Callable[[str], str]) -> bool:
        """Notes what the method that does it alone would find wrong with its request."""
        plan = plan_of(single.DESCRIPTOR)
        found = [] if plan is None else plan(single)
        self._violations += [FieldViolation(where(each.path), each.description) for each in found]
        return bool(found)


@functools.cache
def _method(verb: str, field: str = "") -> Method:
    path = _SERVICE + verb + "".join(word.capitalize() for word in field.split("_"))
    method = find_method(path)
    if method is None:
        raise LookupError(f"no method {path}")
    return method


def _paths(path: str, field: str) -> Callable[[str], str]:
    """Returns where fields of a single request stand in the request for all."""
    named = {f"{field}_id": f"{path}.{field}.name", "parent": f"{path}.{field}.name"}
    return lambda inner: named.get(inner, _below(path, inner))


def _below(path: str, field: str) -> str:
    return f"{path}.{field}" if field else path
