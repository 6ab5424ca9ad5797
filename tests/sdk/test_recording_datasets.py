"""Datasets of recordings: what was written is read back in order, whole files or none, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from modelfleet.recordings import Dataset, DatasetWriter, Digest, RecordingError, Replay
from modelfleet.recordings.layout import microseconds, moment

METHOD = "/inference.GRPCInferenceService/ModelInfer"
NOON = 1_795_690_800_000_000
HOUR = 3_600_000_000


def write(
    folder: Path | str, rows: list[tuple[int, bytes]], part_bytes: int = 1 << 20, *, resume: bool = False
) -> DatasetWriter:
    writer = DatasetWriter(str(folder), "ranker", part_bytes=part_bytes, resume=resume)
    for arrival_us, request in rows:
        writer.write(request, arrival_us, METHOD)
    writer.complete()
    return writer


def read(folder: Path | str) -> list[tuple[int, bytes]]:
    return [(row.arrival_us, row.request) for row in Dataset.open(str(folder))]


def digest_of(requests: list[bytes]) -> str:
    return "sha256:" + hashlib.sha256(b"".join(len(r).to_bytes(8, "big") + r for r in requests)).hexdigest()


def parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_was_written_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    rows = [(NOON + us, os.urandom(us % 50)) for us in range(0, 5_000, 7)]
    writer = write(tmp_path, rows, part_bytes=2_000)
    assert read(tmp_path) == rows
    assert [row.method for row in Dataset.open(str(tmp_path))] == [METHOD] * len(rows)
    summary = Dataset.open(str(tmp_path)).summarize()
    assert summary.digest == digest_of([request for _, request in rows])
    assert (summary.requests, summary.bytes) == (len(rows), sum(len(request) for _, request in rows))
    assert (summary.first_us, summary.last_us) == (rows[0][0], rows[-1][0])
    assert (writer.written.requests, writer.written.bytes) == (summary.requests, summary.bytes)


def test_files_are_partitioned_by_model_type_and_hour(tmp_path: Path) -> None:
    write(tmp_path, [(NOON, b"a"), (NOON + HOUR, b"b")])
    hours = [f"model_type=ranker/hour={moment(us):%Y-%m-%dT%H}" for us in (NOON, NOON + HOUR)]
    assert [str(path.parent.relative_to(tmp_path)) for path in parts(tmp_path)] == hours
    # Whatever reads Parquet datasets reads them.
    table = parquet.read_table(tmp_path)
    assert table.column("request").to_pylist() == [b"a", b"b"]
    assert set(table.column("model_type").to_pylist()) == {"ranker"}
    facts = parquet.read_metadata(parts(tmp_path)[0]).metadata
    assert facts[b"modelfleet.digest"].decode() == digest_of([b"a"])


@settings(max_examples=20)
@given(
    writers=st.lists(
        st.lists(st.tuples(st.integers(NOON, NOON + 3 * HOUR), st.binary(max_size=8)), max_size=12),
        min_size=1,
        max_size=4,
    )
)
def test_writers_that_share_a_dataset_are_read_in_the_order_of_arrival(
    tmp_path_factory: pytest.TempPathFactory, writers: list[list[tuple[int, bytes]]]
) -> None:
    """For any number of writers; each of them writes in its own order of time."""
    folder = tmp_path_factory.mktemp("shared")
    expected: list[tuple[int, bytes]] = []
    for rows in writers:
        write(folder, sorted(rows), part_bytes=20)
        expected += rows
    if not expected:
        with pytest.raises(RecordingError):
            Dataset.open(str(folder))
        return
    found = read(folder)
    assert sorted(found) == sorted(expected)
    assert [us for us, _ in found] == sorted(us for us, _ in expected)
    # Twice the same: a digest names what is replayed.
    assert Dataset.open(str(folder)).summarize().digest == digest_of([request for _, request in found])


@given(requests=st.lists(st.binary(max_size=4), max_size=6))
def test_a_digest_tells_where_one_request_ends_and_the_next_begins(requests: list[bytes]) -> None:
    digest = Digest()
    for request in requests:
        digest.add(request)
    assert str(digest) == digest_of(requests)
    joined = Digest()
    joined.add(b"".join(requests))
    assert (str(joined) == str(digest)) == (len(requests) == 1)


def test_a_clock_that_is_set_back_never_puts_a_request_before_another(tmp_path: Path) -> None:
    write(tmp_path, [(NOON, b"a"), (NOON - 10, b"b"), (NOON + 10, b"c")])
    assert read(tmp_path) == [(NOON, b"a"), (NOON, b"b"), (NOON + 10, b"c")]


def test_a_file_is_seen_when_it_is_complete_and_not_before(tmp_path: Path) -> None:
    write(tmp_path, [(NOON, b"old")])
    dying = DatasetWriter(str(tmp_path), "ranker", row_group_bytes=1)
    dying.write(b"lost", NOON + 1, METHOD)
    assert len(parts(tmp_path)) == 2, "its file is there, under another name"
    assert read(tmp_path) == [(NOON, b"old")]
    assert len(parquet.read_table(tmp_path)) == 1, "others do not see it either"
    # Its successor removes what it has left, and goes on.
    del dying
    after = write(tmp_path, [(NOON - 5, b"new")], resume=True)
    assert read(tmp_path) == [(NOON, b"old"), (NOON + 1, b"new")]
    assert (after.written.requests, after.written.first_us, after.written.last_us) == (2, NOON, NOON + 1)
    assert len(parts(tmp_path)) == 2


def test_a_file_is_completed_by_age_when_nothing_arrives(tmp_path: Path) -> None:
    writer = DatasetWriter(str(tmp_path), "ranker", part_seconds=60)
    writer.write(b"a", NOON, METHOD)
    writer.complete_old(NOON + 59_000_000)
    assert writer.written.requests == 0
    writer.complete_old(NOON + 60_000_000)
    assert writer.written.requests == 1
    assert read(tmp_path) == [(NOON, b"a")]


def test_uris_and_paths_name_the_same_dataset(tmp_path: Path) -> None:
    write(f"file://{tmp_path}/set", [(NOON, b"a")])
    assert read(tmp_path / "set") == read(f"file://{tmp_path}/set") == [(NOON, b"a")]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no dataset"),
        (lambda folder: folder.mkdir(), "is empty"),
        (lambda folder: (folder.mkdir(), (folder / "a.parquet").write_bytes(b"no")), "no part"),
        (lambda folder: (folder.mkdir(), parquet.write_table(pa.table({"x": [1]}), folder / "a.parquet")), "no part"),
        (
            lambda folder: (
                folder.mkdir(),
                parquet.write_table(
                    pa.table({"arrival_time": pa.array([2, 1], pa.timestamp("us")), "request": [b"a", b"b"]}),
                    folder / "a.parquet",
                ),
            ),
            "order of arrival",
        ),
    ],
)
def test_what_is_no_recording_is_refused_with_the_reason(tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "set")
    with pytest.raises(RecordingError, match=words):
        read(tmp_path / "set")


def test_files_of_other_writers_are_read_too(tmp_path: Path) -> None:
    times = pa.array([moment(NOON + 5), moment(NOON + 6)], pa.timestamp("ns", "UTC"))
    parquet.write_table(pa.table({"request": [b"b", b"c"], "arrival_time": times}), tmp_path / "theirs.parquet")
    write(tmp_path, [(NOON, b"a"), (NOON + 7, b"d")])
    assert [request for _, request in read(tmp_path)] == [b"a", b"b", b"c", b"d"]


def test_a_place_that_no_filesystem_knows_is_refused() -> None:
    with pytest.raises(RecordingError, match="no place"):
        DatasetWriter("nowhere://x/y", "ranker")


def test_what_cannot_be_written_says_so_and_complete_files_stay(tmp_path: Path) -> None:
    writer = write(tmp_path, [(NOON, b"a")])
    blocked = tmp_path / f"model_type=ranker/hour={moment(NOON + HOUR):%Y-%m-%dT%H}"
    blocked.write_bytes(b"a file where a folder has to be")
    with pytest.raises(RecordingError, match="cannot be written"):
        writer.write(b"b", NOON + HOUR, METHOD)
    assert read(tmp_path) == [(NOON, b"a")]
    writer.write(b"c", NOON + 2 * HOUR, METHOD)
    writer.complete()
    assert [request for _, request in read(tmp_path)] == [b"a", b"c"]


async def test_a_replay_repeats_the_recording_for_ever_or_once(tmp_path: Path) -> None:
    requests = [bytes([number]) * 400 for number in range(100)]
    write(tmp_path, [(NOON + index, request) for index, request in enumerate(requests)], part_bytes=9_000)
    async with Replay(Dataset.open(str(tmp_path)), repeat=False) as once:
        assert [request async for request in once] == requests
    seen: list[bytes] = []
    async with Replay(Dataset.open(str(tmp_path))) as endless:
        async for request in endless:
            seen.append(request)
            if len(seen) == 250:
                break
    assert seen == (requests * 3)[:250]


async def test_a_replay_whose_recording_is_gone_says_so(tmp_path: Path) -> None:
    write(tmp_path, [(NOON, b"a")])
    dataset = Dataset.open(str(tmp_path))
    parts(tmp_path)[0].unlink()
    async with Replay(dataset) as requests:
        with pytest.raises(RecordingError, match="cannot be read"):
            await anext(requests)


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """200 MB in row groups of 4 MiB: a reader needs the memory of a few of them."""
    row = os.urandom(20_000)
    writer = DatasetWriter(str(tmp_path), "ranker")
    for index in range(10_000):
        writer.write(row, NOON + index, METHOD)
    writer.complete()
    pool = pa.default_memory_pool()
    dataset = Dataset.open(str(tmp_path))
    tracemalloc.start()
    before, peak = pool.bytes_allocated(), 0
    try:
        size = 0
        for request in dataset.requests():
            size += len(request)
            peak = max(peak, pool.bytes_allocated() - before)
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 200_000_000
    assert peak + python < 4 * (4 << 20), f"{peak:,} in pyarrow's pool, {python:,} in Python's"


def test_times_are_exact_to_the_microsecond() -> None:
    assert microseconds(moment(NOON + 123_457)) == NOON + 123_457
