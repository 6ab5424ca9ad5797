"""`modelfleet stability ingest`: Parquet files become what their columns say, once, and bad rows are told by number."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelfleet.cli import main
from modelfleet.histories import PIECE_ROWS, History, HistoryError
from tests.support.stability import BUY, CLICK, CTR, NEW, OLD, StabilityFleet, at, some_ids, stability_fleet

PLACE = ["--model-type", "ctr", "--model", "new", "--prediction", CLICK]


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[StabilityFleet]:
    async with stability_fleet(database_url) as running_fleet:
        yield running_fleet


def parquet(folder: Path, name: str = "history.parquet", row_group_size: int | None = None, **columns: Any) -> str:
    path = folder / name
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


async def ingest(
    fleet: StabilityFleet, capsys: pytest.CaptureFixture[str], path: str, *options: str
) -> tuple[int, dict[str, Any], str]:
    """Runs the command; returns its exit status, what it prints as JSON, and its complaint."""
    arguments = ["stability", "ingest", path, *options, "--address", fleet.stability.address, "-o", "json"]
    status = await asyncio.to_thread(main, arguments)
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else {}, captured.err


def some_examples(size: int) -> dict[str, Any]:
    rng = np.random.default_rng(size)
    start = np.datetime64("2025-02-01T00:00:00", "us")
    return {
        "event_time": start + (137 * rng.integers(0, 200, size)).astype("timedelta64[m]"),
        "score": rng.beta(1, 9, size),
        "label": rng.random(size) < 0.1,
        "model": pa.array(np.array(["new", OLD])[rng.integers(0, 2, size)]).dictionary_encode(),
        "prediction": np.array([CLICK, BUY])[rng.integers(0, 2, size)],
    }


async def test_a_history_is_written_as_if_it_had_been_sent_whatever_its_row_groups_are(
    fleet: StabilityFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = some_examples(PIECE_ROWS + 1000)
    path = parquet(tmp_path, row_group_size=10_000, **columns)
    status, said, _ = await ingest(fleet, capsys, path, "--model-type", "ctr")
    assert status == 0
    assert said["examples"]["accepted_rows"] == PIECE_ROWS + 1000
    assert said["examples"]["rejected"] == []
    hours = "SELECT sum(n) AS n, sum(p_n) AS positives, sum(wp) AS expected FROM totals_hour JOIN series ON id = series"
    everything = (await fleet.fetch(hours))[0]
    assert (everything["n"], everything["positives"]) == (PIECE_ROWS + 1000, int(columns["label"].sum()))
    assert float(everything["expected"]) / 2**40 == pytest.approx(columns["score"].sum(), rel=1e-9)
    # The same file with the same options, again: nothing changes. Other row groups are another file.
    again, said, _ = await ingest(fleet, capsys, path, "--model-type", "modelTypes/ctr")
    assert (again, said["examples"]["repeated_rows"]) == (0, PIECE_ROWS + 1000)
    assert (await fleet.fetch(hours))[0] == everything


async def test_an_ingest_that_was_stopped_goes_on_where_it_stood(
    fleet: StabilityFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path, **some_examples(2 * PIECE_ROWS + 5))
    first, *_ = History(path, CTR).pieces()
    await fleet.write(first.request)
    status, said, _ = await ingest(fleet, capsys, path, "--model-type", "ctr")
    assert (status, said["examples"]["repeated_rows"]) == (0, PIECE_ROWS)
    (record,) = await fleet.fetch("SELECT sum(n) AS n FROM totals_hour")
    assert record["n"] == 2 * PIECE_ROWS + 5


async def test_rows_that_are_rejected_are_told_with_reason_and_number_and_the_exit_status(
    fleet: StabilityFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = PIECE_ROWS + 10
    score, label = np.full(rows, 0.5), np.zeros(rows)
    times = np.full(rows, np.datetime64("2025-03-01T11:00:00", "ms"))
    score[[3, PIECE_ROWS + 1]], label[PIECE_ROWS + 2] = np.nan, 2
    times[7] = np.datetime64("NaT")
    times[8] = np.datetime64(datetime.now(UTC).replace(tzinfo=None) - timedelta(days=91))
    path = parquet(tmp_path, event_time=times, score=score, label=label)
    status, said, _ = await ingest(fleet, capsys, path, *PLACE)
    assert status == 1
    assert {entry["reason"]: (entry["rows"], entry["first_row"]) for entry in said["examples"]["rejected"]} == {
        "BAD_SCORE": (2, 3),
        "BAD_LABEL": (1, PIECE_ROWS + 2),
        "BAD_TIME": (2, 7),
    }
    # The clock of the test's service stands in another year: what is old by it, the command does not know.
    allowed, *_ = await ingest(fleet, capsys, path, *PLACE, "--allow-rejected")
    assert allowed == 0
    assert (await fleet.total()).examples == rows - 5
    await asyncio.to_thread(main, ["stability", "ingest", path, *PLACE, "--address", fleet.stability.address])
    printed = capsys.readouterr().out
    assert f"examples: {rows:,} rows, {rows - 5:,} accepted, 5 rejected, {rows:,} had been written before" in printed
    assert "BAD_SCORE" in printed and "no finite number" in printed
    assert "see them: modelfleet stability show ctr/new" in printed


async def test_request_ids_make_predictions_and_label_times_make_their_labels(
    fleet: StabilityFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = some_ids(6)
    columns: dict[str, Any] = {
        "happened": [at(minutes=-2)] * 6,
        "logit": np.zeros(6, np.float32),
        "id": [str(identifier) for identifier in ids],
        "label_time": [at(minutes=-1)] * 3 + [None] * 3,
        "label": [1, 1, 0, None, None, None],
    }
    path = parquet(tmp_path, **columns)
    renamed = ("--column", "event_time=happened", "--column", "request_id=id")
    status, said, _ = await ingest(fleet, capsys, path, *PLACE, *renamed)
    assert status == 0
    assert {kind: said[kind]["accepted_rows"] for kind in ("predictions", "labels")} == {"predictions": 6, "labels": 3}
    total = await fleet.total()
    assert (total.examples, total.positives, total.mean_prediction) == (6, 2, 0.5)
    # The same, in two files, of another model.
    labels = parquet(tmp_path, "labels.parquet", id=[identifier.bytes for identifier in ids[:2]], time=[at()] * 2)
    place = ("--model-type", "ctr", "--model", "old", "--prediction", CLICK)
    for file, options in (
        (labels, ("--column", "request_id=id", "--column", "label_time=time")),
        (path, (*renamed, "--write", "predictions")),
    ):
        status, said, _ = await ingest(fleet, capsys, file, *place, *options)
        assert status == 0, said
    total = await fleet.total(OLD)
    assert (total.examples, total.positives) == (6, 2)


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "no label": ({"event_time": [0], "score": [0.5]}, (), "lacks label for examples; it has: event_time, score"),
    "nothing": ({"x": [0]}, (), "lacks event_time, score or logit, label for examples; it has: x"),
    "score and logit": ({"event_time": [0], "score": [0.5], "logit": [0.5], "label": [0]}, (), "both score and logit"),
    "no such column": ({"event_time": [0]}, ("--column", "score=p"), "has no column p; it has: event_time"),
    "no column of ours": ({"event_time": [0]}, ("--column", "p=score"), "--column takes OURS=THEIRS"),
    "times": ({"event_time": ["x"], "score": [0.5], "label": [1]}, (), "event_time is string; it must hold timestamps"),
    "scores": ({"event_time": [0], "score": ["x"], "label": [1]}, (), "score is string; it must hold numbers"),
    "labels": ({"event_time": [0], "score": [0.5], "label": ["x"]}, (), "label is string; it must hold booleans"),
    "ids": ({"request_id": ["x"], "label_time": [0]}, (), "request_id is string; it must hold 16 bytes"),
    "no id": ({"request_id": [None], "label_time": [0]}, (), "row 0 (the first is 0) has no request_id"),
    "no model": ({"request_id": ["x"], "label_time": [0]}, ("--model", ""), "lacks model for labels"),
}


async def test_what_cannot_be_read_is_told_with_what_would_be_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case, (columns, options, expected) in WRONG.items():
        path = parquet(tmp_path, **columns)
        assert await asyncio.to_thread(main, ["stability", "ingest", path, *PLACE, *options]) == 1
        assert expected in capsys.readouterr().err, case
    (tmp_path / "text").write_text("no table")
    assert await asyncio.to_thread(main, ["stability", "ingest", str(tmp_path / "text"), *PLACE]) == 1
    assert "is no Parquet file" in capsys.readouterr().err


def test_more_names_than_a_batch_can_hold_are_told(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(300)]
    path = parquet(tmp_path, event_time=[0] * 300, score=[0.5] * 300, label=[0] * 300, model=names)
    with pytest.raises(HistoryError, match="300 names of a model"):
        list(History(path, CTR, prediction=CLICK).pieces())


def test_the_same_file_makes_the_same_batches_and_another_one_others(tmp_path: Path) -> None:
    columns = some_examples(3000)
    path = parquet(tmp_path, **columns)
    pieces = [piece.request for piece in History(path, CTR).pieces()]
    assert pieces == [piece.request for piece in History(path, CTR).pieces()]
    named = History(path, CTR, model="new")
    assert named.producer != History(path, CTR).producer
    assert [set(piece.request.batch.models) for piece in named.pieces()] == [{NEW}]
    other = parquet(tmp_path, "other.parquet", **(columns | {"score": columns["score"] / 2}))
    assert History(other, CTR).producer != History(path, CTR).producer
    assert len(uuid.UUID(History(path, CTR).producer.removeprefix("ingest-")).bytes) == 16
