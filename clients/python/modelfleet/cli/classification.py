"""`modelfleet registry schema|scheme|name`: what an organisation lays down of attributes and ids."""

from __future__ import annotations

import click
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.cli import render
from modelfleet.cli.resources import Resource, add_standard_verbs, parse, read_fields, writable
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.errors import FailedPrecondition, NotFound
from modelfleet.registry.v1 import classification_pb2 as pb

SCHEMA = Resource(
    "registry",
    "extension_schema",
    "extension_schemas",
    "extensionSchemas/{}",
    pb.ExtensionSchema,
    [
        ("SCHEMA", lambda m: render.short(m.name)),
        ("OF", lambda m: render.enum(m, "target")),
        ("VERSION", lambda m: str(m.version)),
        ("FILTERABLE", lambda m: ", ".join(m.filterable)),
        ("DESCRIPTION", lambda m: m.description),
    ],
    "No schemas of attributes yet. Create one: modelfleet registry schema create finance -f schema.yaml",
    force="Write it although entries would no longer be valid; they are refused at their next change.",
)
SCHEME = Resource(
    "registry",
    "naming_scheme",
    "naming_schemes",
    "namingSchemes/{}",
    pb.NamingScheme,
    [
        ("SCHEME", lambda m: render.short(m.name)),
        ("FORM", lambda m: m.separator.join(f"[{f.id}]" if f.optional else f.id for f in m.fields)),
        ("WORDS", lambda m: str(sum(len(field.words) for field in m.fields))),
        ("ENFORCED", lambda m: "yes" if m.enforced else "no"),
        ("DESCRIPTION", lambda m: m.description),
    ],
    "No naming schemes yet. Create one: modelfleet registry scheme create NAME -f scheme.yaml",
    force="Write it although ids of model types would no longer be valid; new ones have to be.",
)


@click.group(cls=FleetGroup)
def schema() -> None:
    """Schemas of attributes: what the attributes of model types and models must fulfil."""


@click.group(cls=FleetGroup)
def scheme() -> None:
    """Naming schemes: how ids of model types are made of words."""


@click.group(cls=FleetGroup)
def name() -> None:
    """Ids of model types, explained."""


def add_to(group: click.Group) -> None:
    """Adds the nouns of this file."""
    for noun in (schema, scheme, name):
        group.add_command(noun)


add_standard_verbs(schema, SCHEMA)
add_standard_verbs(scheme, SCHEME)


@schema.command("check")
@click.argument("schema_name", metavar="SCHEMA")
@click.option("-f", "--file", required=True, help="YAML or JSON with the fields of the proto; '-' is standard input.")
@with_session
def check(session: Session, schema_name: str, file: str) -> int:
    """Say which entries would not fulfil a schema, new or changed, and change nothing.

    The exit status is 1 where there are any. With 100,000 entries give --timeout 60.
    """
    data = writable(read_fields(file, ()), SCHEMA)
    full = SCHEMA.name(schema_name)
    try:
        _validate(session, full, data)
    except FailedPrecondition as error:
        if error.reason != "ENTRIES_INVALIDATED":
            raise
        _show_invalid(session, full, error)
        return 1
    if session.is_table:
        click.echo(f"Every entry fulfils {full}; write it with `modelfleet registry schema create|update`.")
    else:
        render.dump(session, {"schema": full, "count": 0, "entries": []})
    return 0


def _validate(session: Session, full: str, data: dict[str, object]) -> None:
    try:
        SCHEMA.call(session, "get", name=full)
    except NotFound:
        made = parse(data, pb.ExtensionSchema())
        SCHEMA.call(
            session, "create", extension_schema_id=render.short(full), extension_schema=made, validate_only=True
        )
        return
    mask = FieldMask(paths=sorted(key for key in data if key != "etag"))
    changed = parse(data | {"name": full}, pb.ExtensionSchema())
    SCHEMA.call(session, "update", extension_schema=changed, update_mask=mask, validate_only=True)


def _show_invalid(session: Session, full: str, error: FailedPrecondition) -> None:
    count, shown = int(error.metadata.get("count", 0)), error.preconditions
    if not session.is_table:
        entries = [{"entry": each.subject, "problem": each.description} for each in shown]
        render.dump(session, {"schema": full, "count": count, "entries": entries})
        return
    rows = [[each.subject.removeprefix("modelTypes/").replace("/models/", "/"), each.description] for each in shown]
    render.console().print(render.table(["ENTRY", "WHAT IS WRONG"], rows))
    more = f", {count - len(shown):,} of them not shown" if count > len(shown) else ""
    click.echo(f"{count:,} {'entry does' if count == 1 else 'entries do'} not fulfil {full}{more}.")


@name.command("explain")
@click.argument("id_", metavar="ID")
@click.option("--scheme", "by", default="", help="By this scheme. Default: the one that fits, or comes closest.")
@with_session
def explain(session: Session, id_: str, by: str) -> int:
    """Explain an id of a model type word by word, registered or not.

    The exit status is 1 where it does not fit the scheme.
    """
    answer = session.client.registry.explain_name(id=id_, scheme=SCHEME.name(by) if by else "")
    if not session.is_table:
        render.dump(session, render.as_data(answer))
    elif not answer.scheme:
        click.echo(SCHEME.nothing)
    else:
        rows = [[part.word, part.field, _says(part)] for part in answer.parts]
        render.console().print(render.table(["WORD", "FIELD", "MEANING"], rows))
        for problem in answer.problems:
            click.echo(problem)
        fits = "fits" if answer.valid else "does not fit"
        known = "registered" if answer.registered else "not registered"
        click.echo(f"{render.short(id_)} {fits} {answer.scheme} and is {known}.")
    return 0 if answer.valid or not answer.scheme else 1


def _says(part: pb.NamePart) -> str:
    if not part.problem:
        return part.meaning or part.field_description
    if not part.accepted or "accepted:" in part.problem:
        return part.problem
    return f"{part.problem} accepted: {', '.join(part.accepted)}"
