"""How answers look: tables for people, the protos' own JSON or YAML for programs."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

import click
import yaml
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from modelfleet import wording
from modelfleet.cli import tables
from modelfleet.cli.session import Session
from modelfleet.plot import Chart

_PIPE_WIDTH = 400
_CHART_WIDTH, _CHART_HEIGHT = 100, 16
_CHART_GAP, _TWO_CHARTS_WIDTH = 3, 140

Column = tuple[str, Callable[[Any], str]]

# As the library says them.
short, percent, seconds = wording.short, wording.percent, wording.seconds
table, facts = tables.FittedTable, tables.facts


def console() -> Console:
    """The terminal; without colour and cut to nothing where it is none."""
    terminal = Console(highlight=False)
    # In a pipe nobody folds lines: a table is as wide as it has to be.
    return terminal if terminal.is_terminal else _Piped()


class _Piped(Console):
    """What is not read on a terminal: wide enough for every line, and no line filled up with blanks."""

    def __init__(self) -> None:
        super().__init__(highlight=False, width=_PIPE_WIDTH)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as `Console` does."""
        with self.capture() as captured:
            super().print(*objects, **options)
        click.echo(re.sub(r" +$", "", captured.get(), flags=re.MULTILINE), nl=False)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Shows on a terminal that something goes on which may take longer than a person likes to wait."""
    terminal = Console(stderr=True)
    with terminal.status(f"{what} …") if terminal.is_terminal else nullcontext():
        yield


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how far something has come; gives what it is told that with."""
    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True) as bar:
        yield functools.partial(bar.advance, bar.add_task(what, total=total))


def as_data(message: Message) -> Any:
    """A message as plain data with the field names of the proto."""
    return MessageToDict(message, preserving_proto_field_name=True)


def dump(session: Session, data: Any) -> None:
    """Prints plain data as JSON or YAML, as asked."""
    if session.output == "yaml":
        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)
    else:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def emit(session: Session, data: Any) -> None:
    """Prints one of several: a line of JSON, or a document of YAML."""
    if session.output == "yaml":
        click.echo("---")
        dump(session, data)
    else:
        click.echo(json.dumps(data, ensure_ascii=False))


def show(session: Session, message: Message) -> None:
    """Prints one resource: YAML where a person reads, since it is what `-f` takes again."""
    if session.output == "json":
        dump(session, as_data(message))
    else:
        click.echo(yaml.safe_dump(as_data(message), sort_keys=False, allow_unicode=True), nl=False)


def listing(session: Session, messages: Iterable[Message], columns: Sequence[Column], nothing: str) -> None:
    """Prints a list: a table, or all of it as data. `nothing` is said where the table would be empty."""
    messages = list(messages)
    if not session.is_table:
        dump(session, [as_data(message) for message in messages])
        return
    if not messages:
        click.echo(nothing)
        return
    console().print(table([name for name, _ in columns], ([cell(m) for _, cell in columns] for m in messages)))


def curves(charts: Iterable[Chart], *, beside: bool = False) -> None:
    """Draws charts as text, as wide as the terminal; with `beside` two in a row where there is room for them."""
    from modelfleet import plot

    terminal = Console()
    in_a_row = 2 if beside and terminal.width >= _TWO_CHARTS_WIDTH else 1
    width = min((terminal.width - _CHART_GAP * (in_a_row - 1)) // in_a_row, _CHART_WIDTH)
    color = terminal.color_system is not None and not terminal.no_color
    drawn = [plot.terminal(chart, width, round(_CHART_HEIGHT * chart.height), color=color) for chart in charts]
    for first in range(0, len(drawn), in_a_row):
        click.echo()
        columns = [text.splitlines() for text in drawn[first : first + in_a_row]]
        for line in itertools.zip_longest(*columns, fillvalue=""):
            click.echo((" " * _CHART_GAP).join(_padded(cell, width) for cell in line).rstrip())


def _padded(line: str, width: int) -> str:
    """A line with spaces after it; the escape sequences of its colours take no room."""
    return line + " " * (width - Text.from_ansi(line).cell_len)


def picture(charts: Sequence[Chart], path: str) -> None:
    """Writes charts into a .png or .svg file, and says so."""
    from modelfleet import plot

    try:
        plot.write(charts, path)
    except plot.CannotPlot as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"wrote {path}")


def count(number: int, word: str) -> str:
    """A number of things: `1 file`, `1,200 files`; a word in y becomes one in ies."""
    many = word[:-1] + "ies" if word.endswith("y") else word + "s"
    return f"{number:,} {word if number == 1 else many}"


def enum(message: Message, field: str) -> str:
    """The name of an enum field's value; empty where it is not stated."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    assert descriptor.enum_type is not None
    value = descriptor.enum_type.values_by_number.get(getattr(message, field))
    return "" if value is None or value.name.endswith("_UNSPECIFIED") else value.name


def clock(stamp: Timestamp) -> str:
    """A time as UTC to the second; empty where it is unset."""
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S") if stamp.seconds else ""


def day(stamp: Timestamp) -> str:
    """The day of a time, in UTC; empty where it is unset."""
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d") if stamp.seconds else ""


def age(stamp: Timestamp, now: datetime | None = None) -> str:
    """How long ago a time was: `3m 12s`."""
    if not stamp.seconds:
        return ""
    return seconds(((now or datetime.now(UTC)) - stamp.ToDatetime(tzinfo=UTC)).total_seconds())


def duration(value: Duration) -> str:
    """A proto's duration as people say it; empty where it is zero."""
    total = value.seconds + value.nanos / 1e9
    return seconds(total) if total else ""
