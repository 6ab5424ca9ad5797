"""`modelfleet stability ingest`: histories from Parquet files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
import numpy as np

from modelfleet.cli import render
from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.session import Session, with_session
from modelfleet.errors import DeadlineExceeded, ModelfleetError, ResourceExhausted, Unavailable
from modelfleet.histories import COLUMNS, EXAMPLES, LABELS, PREDICTIONS, History, HistoryError, Piece
from modelfleet.stability.v1 import stability_pb2 as pb

_METHODS: Final = {EXAMPLES: "write_examples", PREDICTIONS: "write_predictions", LABELS: "write_labels"}
# What is repeated until the service is back, and for how long.
_PASSING: Final = (Unavailable, DeadlineExceeded, ResourceExhausted)
_PATIENCE: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
# Rows of many minutes, as a history in no order has them, are many sums to add to.
_CALL_SECONDS: Final = 120.0
_OLDEST: Final = timedelta(days=90)
_MEANINGS: Final = {
    "BAD_SCORE": "no finite number, or a score outside 0 to 1",
    "BAD_WEIGHT": "no number, negative, or above 1,000,000",
    "BAD_LABEL": "neither 0 nor 1",
    "BAD_TIME": "in the future, more than 90 days ago, or a prediction whose labels can no longer come",
    "DUPLICATE": "the same model, prediction and request id came before",
    "TOO_LATE": "a label after the attribution window, or whose prediction is gone",
}


@dataclass
class _Tally:
    """What became of the rows of one kind."""

    rows: int = 0
    accepted: int = 0
    # Rows of batches that had been written before.
    repeated: int = 0
    rejected: dict[str, list[int]] = field(default_factory=dict)  # by reason: how many, and the first

    def count(self, piece: Piece, answer: pb.WriteResponse) -> None:
        self.rows += len(piece.rows)
        self.accepted += answer.accepted_rows
        self.repeated += len(piece.rows) if answer.duplicate else 0
        for entry in answer.rejected:
            reason = pb.RejectedRows.Reason.Name(entry.reason)
            found = self.rejected.setdefault(reason, [0, int(piece.rows[entry.first_row])])
            found[0] += entry.rows

    def as_data(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "accepted_rows": self.accepted,
            "repeated_rows": self.repeated,
            "rejected": [{"reason": why, "rows": n, "first_row": row} for why, (n, row) in self.rejected.items()],
        }


@click.command("ingest")
@click.argument("file", metavar="FILE.parquet", type=click.Path(exists=True, dir_okay=False))
@click.option("--model-type", metavar="TYPE", required=True, help="The model type that the rows are of.")
@click.option("--model", metavar="MODEL", default="", help="Model of all rows. Default: the column `model`.")
@click.option("--prediction", default="", help="Prediction of all rows. Default: the column `prediction`.")
@click.option(
    "--column", "names", metavar="OURS=THEIRS", multiple=True,
    help="What the file calls a column, such as score=pctr; `logit=` leaves one out. May be repeated.",
)  # fmt: skip
@click.option(
    "--write", "kinds", type=click.Choice([EXAMPLES, PREDICTIONS, LABELS]), multiple=True,
    help="What is made of the rows. May be repeated. Default: what the columns say.",
)  # fmt: skip
@click.option("--allow-rejected", is_flag=True, help="Exit status 0 though rows were rejected.")
@with_session
def ingest(
    session: Session,
    file: str,
    model_type: str,
    model: str,
    prediction: str,
    names: Sequence[str],
    kinds: Sequence[str],
    allow_rejected: bool,
) -> None:
    """Write predictions and labels from a Parquet file.

    Columns: event_time, score or logit, label, weight; request_id and label_time where labels are to be joined; model
    and prediction where the file is of several. Rows with a label are written as examples. With request_id and
    label_time they are written as predictions and labels, which are joined within the attribution window only: write
    what is older as examples. Events may be up to 90 days old.

    May be stopped and repeated: what was written counts once (for 7 days). Exit status 1 where rows were rejected.
    """
    try:
        kind_order = tuple(kind for kind in _METHODS if kind in kinds)
        history = History(
            file,
            f"modelTypes/{render.short(model_type)}",
            model=render.short(model),
            prediction=prediction,
            names=_mapping(names),
            kinds=kind_order,
        )
        with told_in_flags(_flags(model, prediction)):
            tallies, notes = _write(session, history, file)
    except HistoryError as error:
        raise click.ClickException(str(error)) from None
    if session.is_table:
        _show(tallies, notes, model_type, model)
    else:
        data = {kind: tally.as_data() for kind, tally in tallies.items()}
        render.dump(session, {"file": file, "producer": history.producer, "notes": notes, **data})
    if any(tally.rejected for tally in tallies.values()) and not allow_rejected:
        raise click.exceptions.Exit(1)


def _flags(model: str, prediction: str) -> dict[str, str]:
    """Where names of the fields come from: an option, or else a column of the file."""
    return {
        "batch.model_type": "--model-type",
        "batch.models": "--model" if model else "column model",
        "batch.predictions": "--prediction" if prediction else "column prediction",
    }


def _mapping(names: Sequence[str]) -> dict[str, str]:
    pairs = [name.partition("=") for name in names]
    for ours, sign, _ in pairs:
        if not sign or ours not in COLUMNS:
            raise click.UsageError(f"--column takes OURS=THEIRS; ours are: {', '.join(COLUMNS)}")
    return {ours: theirs for ours, _, theirs in pairs}


def _write(session: Session, history: History, file: str) -> tuple[dict[str, _Tally], list[str]]:
    """Writes all pieces; returns what became of them, and what else there is to say."""
    tallies = {kind: _Tally() for kind in history.kinds}
    ages = _Ages()
    with render.progress(f"Reading {file}, bytes", history.size) as advance:
        history.read_producer(advance)
    with render.progress(f"Writing {file}, rows", history.rows * len(history.kinds)) as advance:
        for piece in history.pieces():
            tallies[piece.kind].count(piece, _sent(session, piece))
            ages.count(piece)
            advance(len(piece.rows))
    return tallies, ages.notes()


def _sent(session: Session, piece: Piece) -> pb.WriteResponse:
    """Sends a batch, again and again while the service is away: it counts once."""
    method = getattr(session.client.stability, _METHODS[piece.kind])
    timeout = max(_CALL_SECONDS, session.client.timeout)
    for wait in _PATIENCE:
        try:
            answer: pb.WriteResponse = method(piece.request, timeout=timeout)
        except _PASSING as error:
            time.sleep(max(wait, error.retry_after or 0))
        else:
            return answer
    try:
        last: pb.WriteResponse = method(piece.request, timeout=timeout)
    except ModelfleetError:
        click.echo(f"stopped before row {piece.rows[0]:,}; the same command goes on there", err=True)
        raise
    return last


@dataclass
class _Ages:
    """How old events are: what the service cannot take is said in the words of the file."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    old: int = 0
    oldest: int | None = None

    def count(self, piece: Piece) -> None:
        if len(piece.times):
            limit = int((self.now - _OLDEST).timestamp() * 1e6)
            self.old += int(np.count_nonzero(piece.times <= limit))
            oldest = int(piece.times.min())
            self.oldest = oldest if self.oldest is None else min(self.oldest, oldest)

    def notes(self) -> list[str]:
        if not self.old or self.oldest is None:
            return []
        try:
            oldest = f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.oldest):%Y-%m-%d %H:%M}"
        except OverflowError:
            oldest = "before all times; are these microseconds since 1970?"
        return [
            f"{render.count(self.old, 'row')} of more than {_OLDEST.days} days ago (before "
            f"{self.now - _OLDEST:%Y-%m-%d %H:%M}): the service takes none so old; the oldest is of {oldest}"
        ]


def _show(tallies: dict[str, _Tally], notes: Sequence[str], model_type: str, model: str) -> None:
    for kind, tally in tallies.items():
        said = [f"{tally.accepted:,} accepted"]
        if rejected := sum(rows for rows, _ in tally.rejected.values()):
            said.append(f"{rejected:,} rejected")
        if tally.repeated:
            said.append(f"{tally.repeated:,} had been written before and count once")
        click.echo(f"{kind}: {render.count(tally.rows, 'row')}, {', '.join(said)}")
    rows = [
        [kind, why, f"{number:,}", f"{first:,}", _MEANINGS.get(why, "")]
        for kind, tally in tallies.items()
        for why, (number, first) in tally.rejected.items()
    ]
    if rows:
        render.console().print(render.table(["KIND", "REASON", "ROWS", "FIRST ROW", "WHAT"], rows))
    for note in notes:
        click.echo(f"note: {note}")
    if any(tally.accepted for tally in tallies.values()):
        shown = f"{render.short(model_type)}/{render.short(model) or 'MODEL'}"
        click.echo(f"see them: modelfleet stability show {shown} --last 90d --resolution 1h")
