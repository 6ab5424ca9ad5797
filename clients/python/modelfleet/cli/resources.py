"""The standard verbs of a resource: list, get, create, update, delete; one way for every noun."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click
import yaml
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pool
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from modelfleet.cli import render
from modelfleet.cli.parameters import POINT, Point
from modelfleet.cli.session import Session, with_session

_NOW = Point()


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource with standard methods, and how people see it.

    `method` is its name in method names (`model_type`), `collection` the field of its list answer, `pattern` its
    resource name with `{}` for each id, `nothing` what an empty list says, `remark` what `get` adds for people.
    """

    service: str
    method: str
    collection: str
    pattern: str
    message: Callable[[], Message]
    columns: Sequence[render.Column]
    nothing: str
    reasons: bool = True
    # Where a change may be refused for what it would make of others: what --force does.
    force: str = ""
    remark: Callable[[Any], str] | None = None

    @property
    def words(self) -> str:
        """The resource in prose."""
        return self.method.replace("_", " ")

    @property
    def many(self) -> str:
        """Several of them in prose."""
        return self.collection.replace("_", " ")

    def name(self, value: str) -> str:
        """The full name from what a person typed: the full name itself, or its ids with `/` between."""
        prefix = self.pattern.split("{", 1)[0]
        if value.startswith(prefix):
            return value
        count = self.pattern.count("{}")
        ids = value.split("/")
        if len(ids) != count:
            raise click.UsageError(
                f"'{value}' is not a {self.words}; give {self.shape} or {self.pattern.format(*['ID'] * count)}"
            )
        return self.pattern.format(*ids)

    @property
    def shape(self) -> str:
        """What people type for its name: `TEAM`, `TYPE/MODEL`."""
        ids = "/".join(re.findall(r"(\w+?)s?/\{\}", self.pattern)).upper()
        return ids.replace("MODELTYPE", "TYPE")

    @property
    def is_filtered(self) -> bool:
        """Whether its list takes a filter and an order."""
        return "filter" in self._request("List", self.collection).fields_by_name

    @property
    def has_past(self) -> bool:
        """Whether it can be read as of a point in history."""
        return "as_of_revision" in self._request("Get", self.method).fields_by_name

    def _request(self, verb: str, words: str) -> Any:
        of = self.message().DESCRIPTOR.file
        return of.pool.FindMessageTypeByName(f"{of.package}.{verb}{words.title().replace('_', '')}Request")

    def call(self, session: Session, verb: str, **fields: Any) -> Any:
        """Calls `{verb}_{method}` of the service."""
        method = f"{verb}_{self.collection if verb == 'list' else self.method}"
        call = getattr(getattr(session.client, self.service), method)
        if self.force and verb in ("create", "update"):
            with render.busy("Looking at all entries"):
                return call(**fields)
        return call(**fields)

    def pages(self, session: Session, **fields: Any) -> Iterator[Message]:
        """Every resource of a list, page after page."""
        token = ""
        while True:
            answer = self.call(session, "list", page_size=1000, page_token=token, **fields)
            yield from getattr(answer, self.collection)
            token = answer.next_page_token
            if not token:
                return


def read_fields(file: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Fields from a YAML or JSON file (`-` is standard input) and `path=value` assignments, which win."""
    data: dict[str, Any] = {}
    if file:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        try:
            read = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise click.UsageError(f"{file} is not YAML: {error}") from None
        if not isinstance(read, dict):
            raise click.UsageError(f"{file} holds no fields; expected lines such as 'team: teams/ranking'")
        data = read
    for assignment in assignments:
        path, found, value = assignment.partition("=")
        if not found or not re.fullmatch(r"[a-z_][a-z0-9_]*(\.[A-Za-z0-9_-]+)*", path):
            raise click.UsageError(
                f"--set takes FIELD=VALUE, such as tier=TIER1 or labels.owner=alice, not '{assignment}'"
            )
        target: Any = data
        *parents, last = path.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise click.UsageError(f"--set {assignment}: '{parent}' holds no fields")
        try:
            target[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            target[last] = value
    return data


def writable(data: dict[str, Any], resource: Resource) -> dict[str, Any]:
    """The fields that a caller may set: what `get` shows can be sent back, less what the server sets itself."""
    read_only = {"name"}
    descriptor: Any
    for descriptor in resource.message().DESCRIPTOR.fields:
        if field_behavior_pb2.OUTPUT_ONLY in descriptor.GetOptions().Extensions[field_behavior_pb2.field_behavior]:
            read_only.add(descriptor.name)
    return {key: value for key, value in data.items() if key not in read_only}


def parse(data: dict[str, Any], message: Message) -> Message:
    """Fills a message from plain data; what does not fit is named, with what would be accepted."""
    _refuse_enum_numbers(data, message.DESCRIPTOR, "")
    try:
        return ParseDict(_as_json(data), message)
    except ParseError as error:
        raise click.UsageError(_explain(str(error))) from None


def _as_json(data: Any) -> Any:
    """YAML reads times and dates that stand without quotes as such; messages take them as text."""
    if isinstance(data, dict):
        return {key: _as_json(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_as_json(value) for value in data]
    if isinstance(data, datetime):
        return (data if data.tzinfo else data.replace(tzinfo=UTC)).astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(data, date):
        return data.isoformat()
    return data


def _refuse_enum_numbers(data: Any, descriptor: Any, path: str) -> None:
    """Values of enums are written by name: the numbers are the wire's, and tier=1 would be TIER0."""
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        field = descriptor.fields_by_name.get(key)
        if field is None:
            continue
        for item in value if isinstance(value, list) else [value]:
            if field.enum_type is not None and isinstance(item, int):
                names = ", ".join(known.name for known in field.enum_type.values if known.number)
                raise click.UsageError(f"{path}{key}: write the name and not a number: {names}")
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                _refuse_enum_numbers(item, field.message_type, f"{path}{key}.")


def _explain(text: str) -> str:
    """The parser's words as ours: field names as in the protos, and the values that an enum has."""
    pool = descriptor_pool.Default()
    field = re.search(r"Message type \"([\w.]+)\" has no field named \"(\w+)\"", text)
    if field:
        known = ", ".join(f.name for f in pool.FindMessageTypeByName(field[1]).fields)
        return f"{field[1].rsplit('.', 1)[-1]} has no field '{field[2]}'; there are: {known}"
    enum = re.search(r"Invalid enum value (\w+) for enum type ([\w.]+?)\.? at ([\w.\[\]]+)", text)
    if enum:
        values = (value.name for value in pool.FindEnumTypeByName(enum[2]).values if value.number)
        return f"{enum[3].strip('.').split('.', 1)[-1]}: '{enum[1]}' is none of {', '.join(values)}"
    return re.sub(r"Failed to parse (\w+) field: ", r"\1: ", text).rstrip(".")


def _name_argument(resource: Resource) -> Callable[[Any], Any]:
    return click.argument("name", metavar=resource.shape)


def _with_filter(resource: Resource) -> Callable[[Any], Any]:
    """The options of a list that can be filtered and ordered; none where its request has no such fields."""

    def with_options(command: Any) -> Any:
        if not resource.is_filtered:
            return command
        order = click.option(
            "--order-by", default="", metavar="FIELD", help="name, create_time …; 'FIELD desc' turns it around."
        )
        fits = click.option(
            "--filter", default="", metavar="EXPRESSION", help="Only those that fit, such as 'labels.site = paris'."
        )
        return fits(order(command))

    return with_options


def _with_as_of(resource: Resource) -> Callable[[Any], Any]:
    """The option of what can be read as it was."""
    if not resource.has_past:
        return lambda command: command
    return click.option(
        "--as-of",
        type=POINT,
        default=_NOW,
        metavar="POINT",
        help="As it was: a revision (41), a time (2026-11-24T15:00Z, yesterday, tuesday), how long ago (2h).",
    )


def add_standard_verbs(group: click.Group, resource: Resource, parent: str | None = None) -> None:
    """Adds list, get, create, update and delete of a resource to a group. `parent`: the parent's pattern, if any."""
    what = resource.words
    fields = (
        click.option(
            "-f", "--file", metavar="FILE", help="YAML or JSON with the fields of the proto; '-' is standard input."
        ),
        click.option("--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="One field; may be repeated."),
        click.option(
            "--reason",
            default="",
            help="Why; kept in the history." if resource.reasons else "",
            hidden=not resource.reasons,
        ),
        click.option("--dry-run", is_flag=True, help="Only check; change nothing."),
        *([click.option("--force", is_flag=True, help=resource.force)] if resource.force else []),
    )

    def with_fields(command: Any) -> Any:
        for option in reversed(fields):
            command = option(command)
        return command

    def common(reason: str, dry_run: bool, force: bool = False) -> dict[str, Any]:
        given: dict[str, Any] = {"force": True} if force else {}
        return given | {"validate_only": dry_run} | ({"reason": reason} if resource.reasons else {})

    def listed(session: Session, asked: dict[str, Any], **fields: Any) -> None:
        point: Point = asked.pop("as_of", _NOW)
        asked = {key: value for key, value in asked.items() if value}
        nothing = resource.nothing if point == _NOW else "There was nothing then."
        nothing = "Nothing fits the filter." if "filter" in asked else nothing
        asked |= point.fields("as_of")
        render.listing(session, resource.pages(session, **asked, **fields), resource.columns, nothing)

    if parent is None:

        @group.command("list", help=f"List {resource.many}.")
        @_with_filter(resource)
        @_with_as_of(resource)
        @with_session
        def list_(session: Session, **asked: Any) -> None:
            listed(session, asked)
    else:

        @group.command("list", help=f"List {resource.many}, of one parent or of all.")
        @click.argument("of", required=False, default="-")
        @_with_filter(resource)
        @_with_as_of(resource)
        @with_session
        def list_of(session: Session, of: str, **asked: Any) -> None:
            listed(session, asked, parent=of if "/" in of else parent.format(of))

    @group.command("get", help=f"Show a {what} with all its fields.")
    @_name_argument(resource)
    @_with_as_of(resource)
    @with_session
    def get(session: Session, name: str, as_of: Point = _NOW) -> None:
        found = resource.call(session, "get", name=resource.name(name), **as_of.fields("as_of"))
        render.show(session, found)
        if session.is_table and resource.remark is not None and (remark := resource.remark(found)):
            # As YAML has it, so that what was printed can be read again.
            click.echo(f"# {remark}")

    @group.command("create", help=f"Create a {what}.")
    @_name_argument(resource)
    @with_fields
    @with_session
    def create(
        session: Session,
        name: str,
        file: str | None,
        assignments: tuple[str, ...],
        reason: str,
        dry_run: bool,
        force: bool = False,
    ) -> None:
        full = resource.name(name)
        data = writable(read_fields(file, assignments), resource)
        request: dict[str, Any] = {
            resource.method: parse(data, resource.message()),
            f"{resource.method}_id": render.short(full),
        }
        if parent is not None:
            request["parent"] = full.rsplit("/", 2)[0]
        render.show(session, resource.call(session, "create", **request, **common(reason, dry_run, force)))

    @group.command("update", help=f"Change fields of a {what}; the others stay.")
    @_name_argument(resource)
    @with_fields
    @with_session
    def update(
        session: Session,
        name: str,
        file: str | None,
        assignments: tuple[str, ...],
        reason: str,
        dry_run: bool,
        force: bool = False,
    ) -> None:
        data = writable(read_fields(file, assignments), resource)
        mask = FieldMask(paths=sorted(key for key in data if key != "etag"))
        if not mask.paths:
            raise click.UsageError("nothing to change; give --set FIELD=VALUE or -f FILE")
        message = parse(data | {"name": resource.name(name)}, resource.message())
        answer = resource.call(
            session, "update", **{resource.method: message}, update_mask=mask, **common(reason, dry_run, force)
        )
        render.show(session, answer)

    @group.command("delete", help=f"Delete a {what} that nothing refers to.")
    @_name_argument(resource)
    @click.option("--reason", default="", help="Why; kept in the history.", hidden=not resource.reasons)
    @click.option("--dry-run", is_flag=True, help="Only check; change nothing.")
    @with_session
    def delete(session: Session, name: str, reason: str, dry_run: bool) -> None:
        full = resource.name(name)
        resource.call(session, "delete", name=full, **common(reason, dry_run))
        if session.is_table:
            click.echo(f"{'would delete' if dry_run else 'deleted'} {full}")
        else:
            render.dump(session, {"name": full, "deleted": not dry_run})
