"""A snapshot's registry is killed, away for long, and comes back with less history than it had; its disk hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import modelfleet
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.snapshot import BaselineChange
from tests.support.addresses import free_address
from tests.support.processes import Part, registry_process
from tests.support.registry_calls import CTR, NEW, OLD, Registry, populate, swap
from tests.support.wait import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


@asynccontextmanager
async def a_registry(url: str, address: str) -> AsyncIterator[tuple[Part, Registry]]:
    import grpc

    async with registry_process(url, address) as (process, _), grpc.aio.insecure_channel(address) as channel:
        yield process, Registry(channel)


@contextlib.contextmanager
def reading(snapshot: modelfleet.Snapshot) -> Iterator[list[float]]:
    """Reads all the while in a thread; gives how long each read took, in seconds."""
    took: list[float] = []
    end = threading.Event()

    def read() -> None:
        while not end.is_set():
            start = time.perf_counter()
            assert snapshot.baseline("ctr") is not None and snapshot.split("ctr", "eu")
            took.append(time.perf_counter() - start)
            # One core is enough for the others of this test.
            time.sleep(0.0005)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield took
    finally:
        end.set()
        thread.join()


async def test_a_registry_that_is_killed_and_comes_back_without_its_history_is_followed_again(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    address = free_address()
    told: list[BaselineChange] = []
    snapshot = modelfleet.Snapshot(address, path=tmp_path / "fleet.snapshot", on_baseline=told.append)
    async with a_registry(database_url, address) as (process, registry):
        await populate(registry)
        snapshot.start()
        await asyncio.to_thread(snapshot.wait_ready, 20, max_age=5)
        with reading(snapshot) as took:
            process.process.kill()
            await process.process.wait()
            await until(lambda: snapshot.problem, timeout=30)
            away = snapshot.age
            assert not told and snapshot.baseline("ctr") == OLD
    # While it is away for this client, a launch goes on elsewhere, and its history is compacted.
    elsewhere = free_address()
    async with a_registry(database_url, elsewhere) as (_, registry):
        planned = await registry.GetModelType(name=CTR)
        await registry.FinalizeLaunch(**swap(planned.revision))
        for number in range(5):
            last = await registry.UpdateTeam(team=pb.Team(name="teams/feed", on_call=str(number)))
        await registry.CompactHistory(oldest_kept=last.revision)
    with reading(snapshot) as took:
        assert snapshot.age > away and snapshot.baseline("ctr") == OLD
        async with a_registry(database_url, address):
            await asyncio.to_thread(snapshot.wait_ready, 60, revision=last.revision, max_age=5)
            assert snapshot.baseline("ctr") == NEW
    await asyncio.to_thread(snapshot.close)
    assert [(change.before, change.after) for change in told] == [(OLD, NEW)]
    assert "can no longer be followed: loading again" in caplog.text
    assert len(took) > 10 and max(took) < 1.0, "no read waits for what is loaded"


async def test_a_program_begins_without_a_registry_and_follows_once_there_is_one(
    database_url: str, tmp_path: Path
) -> None:
    address, path = free_address(), tmp_path / "fleet.snapshot"
    async with a_registry(database_url, address) as (_, registry):
        await populate(registry)
        async with modelfleet.AsyncSnapshot(address, path=path) as first:
            await first.wait_ready(20, max_age=5)
    async with modelfleet.AsyncSnapshot(address, path=path) as snapshot:
        await snapshot.wait_ready(20)
        assert snapshot.baseline("ctr") == OLD
        await until(lambda: snapshot.problem, timeout=30)
        async with a_registry(database_url, address) as (_, registry):
            planned = await registry.GetModelType(name=CTR)
            ended = await registry.FinalizeLaunch(**swap(planned.revision))
            await snapshot.wait_ready(60, revision=ended.revision, max_age=5)
            assert snapshot.baseline("ctr") == NEW


async def test_a_damaged_file_does_no_harm_while_the_registry_is_away(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, path = free_address(), tmp_path / "fleet.snapshot"
    path.write_bytes(os.urandom(10_000))
    async with modelfleet.AsyncSnapshot(address, path=path) as snapshot:
        await until(lambda: "is not used" in caplog.text)
        with pytest.raises(TimeoutError):
            await snapshot.wait_ready(0.2)
        async with a_registry(database_url, address) as (_, registry):
            await populate(registry)
            await until(lambda: snapshot.is_ready and snapshot.baseline("ctr") == OLD, timeout=60)
    async with modelfleet.AsyncSnapshot(address, path=path) as again:
        await again.wait_ready(20)
        assert again.baseline("ctr") == OLD


async def test_a_disk_that_hangs_holds_up_neither_reads_nor_news(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is real; only the last step of writing waits, as a file system that does not answer does."""
    hangs, goes_on = threading.Event(), threading.Event()
    sync = os.fsync

    def hang(handle: int) -> None:
        hangs.set()
        goes_on.wait(60)
        sync(handle)

    monkeypatch.setattr(os, "fsync", hang)
    address, path = free_address(), tmp_path / "fleet.snapshot"
    async with a_registry(database_url, address) as (_, registry):
        await populate(registry)
        snapshot = modelfleet.Snapshot(address, path=path)
        snapshot.start()
        await asyncio.to_thread(snapshot.wait_ready, 20, max_age=5)
        await until(hangs.is_set)
        with reading(snapshot) as took:
            planned = await registry.GetModelType(name=CTR)
            ended = await registry.FinalizeLaunch(**swap(planned.revision))
            await asyncio.to_thread(snapshot.wait_ready, 20, revision=ended.revision)
            assert snapshot.baseline("ctr") == NEW and not path.exists()
        assert max(took) < 1.0
        goes_on.set()
        await asyncio.to_thread(snapshot.close)
    assert path.exists()
