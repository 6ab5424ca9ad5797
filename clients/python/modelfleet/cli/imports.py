"""`modelfleet registry import`: somebody's own list of models into the ledger."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from modelfleet import errors
from modelfleet.cli import render
from modelfleet.cli.resources import read_fields
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.code.importing import (
    Doubt,
    Import,
    Row,
    WrongInput,
    batches,
    compare,
    csv_rows,
    jsonl_rows,
    merged,
    read_rows,
)
from modelfleet.code.ledger import Ledger
from modelfleet.code.mlflow import MAPPING, MlflowRegistry
from modelfleet.code.plan import name_of
from modelfleet.registry.v1 import registry_pb2 as pb

_F = TypeVar("_F", bound=Callable[..., Any])
_TIMEOUT: Final = 120.0
_MOST_SHOWN: Final = 50
# Doubts that may be right: a model may well be there under two names.
_ACCEPTABLE: Final = frozenset({Doubt.SAME_URI, Doubt.LOOKALIKE})


def add_commands(group: click.Group) -> None:
    """Adds the commands to `modelfleet registry`."""
    group.add_command(imports, "import")


@click.group(cls=FleetGroup)
def imports() -> None:
    """Import models from a list: CSV, JSON Lines, or an MLflow registry.

    Each row is a model. A mapping says what becomes of its columns: `type` and `model` hold fields of the protos, with
    ${COLUMN} where a column belongs. Ids are made valid: lower case; runs of other characters than letters, digits, _
    and - become one _; what does not begin with a letter gets a v before it (a t, for a type); at most 63 characters.

    Duplicates, look-alikes and conflicts are listed before anything is written. What is in the ledger already, the
    same, is passed over: an import that was cut off is simply repeated.
    """


def _with_options(command: _F) -> _F:
    options = (
        click.option("--mapping", type=click.Path(exists=True, dir_okay=False), help="YAML file with the mapping."),
        click.option(
            "--map", "assignments", multiple=True, metavar="PART.FIELD=TEMPLATE", help="One field of the mapping."
        ),
        click.option("--adopt", is_flag=True, help="State the roles in the list: of types that have no baseline."),
        click.option("--skip", is_flag=True, help="Leave out what is doubtful, and write the rest."),
        click.option("--anyway", is_flag=True, help="Also write look-alikes and models with the same URI."),
        click.option("--reason", default="import", show_default=True, help="Why; kept in the history."),
        click.option("--dry-run", is_flag=True, help="Only look; write nothing."),
        click.option("--yes", is_flag=True, help="Do not ask."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@imports.command("csv")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_with_options
@with_session
def from_csv(session: Session, file: Path, **options: Any) -> int:
    """Import from a CSV file with a header."""
    return _import(session, lambda: csv_rows(file), {}, **options)


@imports.command("jsonl")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_with_options
@with_session
def from_jsonl(session: Session, file: Path, **options: Any) -> int:
    """Import from a file with a JSON object a line."""
    return _import(session, lambda: jsonl_rows(file), {}, **options)


@imports.command("mlflow")
@click.argument("url")
@click.option("--mlflow-token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Bearer token.")
@click.option("--baseline-alias", help="The version with this alias is the baseline; with --adopt.")
@_with_options
@with_session
def from_mlflow(
    session: Session, url: str, mlflow_token_file: Path | None, baseline_alias: str | None, **options: Any
) -> int:
    """Import the versions of all models of an MLflow registry.

    Registered models become types, versions become models. Columns: name, version, description, source, run_id, stage,
    status, aliases, tags.KEY, model.description, model.tags.KEY. What MLflow does not know has to be said: --map
    type.team=…, --map model.serving_spec.flavor=…, and how a replica is run. Credentials come from
    MLFLOW_TRACKING_TOKEN, from MLFLOW_TRACKING_USERNAME and _PASSWORD, or from a file.
    """
    token = mlflow_token_file.read_text(encoding="utf-8").strip() if mlflow_token_file else ""

    def rows() -> Iterable[Row]:
        for row in MlflowRegistry(url, token).rows():
            role = "BASELINE" if baseline_alias and baseline_alias in row.values["aliases"] else ""
            yield Row(row.place, {**row.values, "role": role})

    return _import(session, rows, merged(MAPPING, {"model": {"role": "${role}"}}), **options)


def _import(
    session: Session,
    rows: Callable[[], Iterable[Row]],
    defaults: Mapping[str, Any],
    *,
    mapping: str | None,
    assignments: tuple[str, ...],
    adopt: bool,
    skip: bool,
    anyway: bool,
    reason: str,
    dry_run: bool,
    yes: bool,
) -> int:
    try:
        with render.busy("reading the list"):
            found = read_rows(rows(), merged(defaults, _mapping(mapping, assignments)))
    except WrongInput as error:
        raise click.ClickException(str(error)) from None
    if not adopt:
        for candidate in found.models.values():
            candidate.document.pop("role", None)
            candidate.message.ClearField("role")
    count = len(found.types) + len(found.models)
    with render.busy("comparing with the registry"):
        ledger = Ledger(session.client.registry)
        compare(found, {message.name: message for message in map(_any, ledger.at(0))})
    if anyway:
        found.findings = [finding for finding in found.findings if finding.kind not in _ACCEPTABLE]
    blocked = bool(found.findings) and not skip
    left_out = found.leave_out_doubtful()
    _show(session, found, there=count - len(found.types) - len(found.models) - len(left_out))
    if blocked or dry_run:
        if blocked and session.is_table:
            click.echo("Nothing was written. Mend the list, or leave these out with --skip.")
        return 1 if blocked else 0
    return _write(session, found, adopt=adopt, reason=reason, yes=yes)


def _mapping(file: str | None, assignments: tuple[str, ...]) -> Mapping[str, Any]:
    try:
        return read_fields(file, assignments)
    except click.UsageError as error:
        raise click.UsageError(error.message.replace("--set", "--map")) from None


def _any(entry: Any) -> Any:
    return entry


def _show(session: Session, found: Import, there: int) -> None:
    if not session.is_table:
        findings = [
            {"kind": each.kind.name, "place": each.place, "name": each.name, "text": each.text}
            for each in found.findings
        ]
        counts = {"types": len(found.types), "models": len(found.models)}
        render.dump(session, {"new": counts, "findings": findings, "renamed": found.renamed})
        return
    if found.findings:
        columns = ["WHERE", "NAME", "DOUBT", "WHAT"]
        rows = [[each.place, each.name, each.kind.name, each.text] for each in found.findings[:_MOST_SHOWN]]
        render.console().print(render.table(columns, rows))
    for name, given in list(found.renamed.items())[:_MOST_SHOWN]:
        click.echo(f"'{given}' becomes {name}")
    if max(len(found.renamed), len(found.findings)) > _MOST_SHOWN:
        click.echo("There are more: -o json shows all of them.")
    new = f"{render.count(len(found.types), 'type')} and {render.count(len(found.models), 'model')} new"
    doubts = render.count(len(found.findings), "doubt")
    click.echo(f"{new}, {render.count(there, 'entry')} there already, {doubts}.")


def _write(session: Session, found: Import, *, adopt: bool, reason: str, yes: bool) -> int:
    parts = list(batches(found))
    total = sum(map(len, parts))
    if not total:
        return 0
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to ask; give --yes")
        click.confirm(
            f"Write {render.count(total, 'entry')} in {render.count(len(parts), 'revision')}?", abort=True, err=True
        )
    done = 0
    for part in parts:
        request = pb.ApplyEntriesRequest(
            changes=part, request_id=str(uuid.uuid4()), reason=reason[:1000], adopt_serving=adopt
        )
        try:
            with render.busy(f"writing {done:,} of {total:,}"):
                answer = session.client.registry.apply_entries(request, timeout=_TIMEOUT)
        except errors.ModelfleetError as error:
            if not error.violations:
                raise
            _tell_refusal(found, part, error, done)
            return 1
        done += len(part)
        if session.is_table:
            click.echo(f"Revision {answer.revision}: {done:,} of {total:,} entries written.")
    return 0


def _tell_refusal(found: Import, part: list[pb.EntryChange], error: errors.ModelfleetError, done: int) -> None:
    for violation in error.violations:
        index = violation.field.removeprefix("changes[").partition("]")[0]
        name = name_of(part[int(index)]) if index.isdigit() and int(index) < len(part) else ""
        candidate = found.candidate(name)
        place = "" if candidate is None else f"{candidate.place}: "
        click.echo(f"{place}{name} {violation.field.partition('].')[2]}: {violation.description}", err=True)
    click.echo(f"{done:,} entries were written before, and these were refused; mend the list and repeat it.", err=True)
