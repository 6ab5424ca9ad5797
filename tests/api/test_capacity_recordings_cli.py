"""`modelfleet capacity recording`: what people see of recordings."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import click
import pytest

from modelfleet.cli import main
from modelfleet.cli.capacity import recording_view
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.recordings import DatasetWriter
from tests.api.test_capacity_recordings import fleet, simulator
from tests.support.capacity import CapacityFleet
from tests.support.front_door import door

__all__ = ["fleet", "simulator"]


async def test_a_recording_is_made_watched_looked_at_and_deleted(
    fleet: CapacityFleet, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    services = {"registry": fleet.registry.address, "capacity": fleet.capacity.address}
    async with door(tmp_path_factory.mktemp("door"), services) as address:

        async def run(*words: str, status: int = 0) -> str:
            capsys.readouterr()
            ended = await asyncio.to_thread(main, ["capacity", "recording", *words, "--address", address])
            said = capsys.readouterr()
            assert ended == status, said
            return said.out + said.err

        assert "No recordings. Make one:" in await run("list")
        watched = await run("create", "ctr", "--region", "eu", "--permille", "500", "--max-requests", "300", "--watch")
        assert watched.startswith("PENDING\n")
        assert "READY: 300 requests are recorded." in watched
        assert "ctr in eu, 500 of 1,000 requests" in watched
        assert "after 1h or 1 GiB or 300 requests" in watched
        listed = json.loads(await run("list", "ctr", "-o", "json"))
        (name,) = [each["name"].partition("/")[2] for each in listed]
        assert f"--recording {name}" in watched
        table = await run("list")
        assert all(words in table for words in (name, "agent of eu", "READY", "300", "4.4 KiB"))
        assert json.loads(await run("show", name, "-o", "json"))["digest"].startswith("sha256:")
        first = await run("head", name, "-n", "2")
        assert "00000000" in first
        assert "00000002" not in first
        assert "first 300 requests: 15 bytes (median)" in first
        looked = json.loads(await run("head", name, "-n", "1", "-o", "json"))
        assert looked["requests"][0]["request"] == {"model_name": "ctr", "id": "00000000"}
        assert "READY: 300 requests are recorded." in await run("stop", name)
        assert "deleted" in await run("delete", name)
        assert "does not exist" in await run("show", name, status=1)
        assert "--region REGION" in await run("create", "ctr", status=1)
        assert "there is no dataset" in await run("create", "ctr", "--client", "nothing", status=1)
        assert "capacity recording list ctr" in await run("list", "ctr/v1", status=1)
        made = await run("create", "ctr", "--region", "eu", "--max-requests", "1000000000")
        (going_on,) = re.findall("created recordings/([^ ]+)", made)
        assert f"end it first: modelfleet capacity recording stop {going_on}" in await run("delete", going_on, status=1)
        assert "write 64MiB" in await run("create", "ctr", "--region", "eu", "--max-bytes", "x", status=1)


def test_a_dataset_without_requests_is_told_from_one_that_has_none_yet(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="there is no dataset at"):
        recording_view.look(str(tmp_path / "none"), 1, 1)
    with pytest.raises(click.ClickException, match="nothing is written yet; it is RECORDING"):
        recording_view.look(str(tmp_path / "none"), 1, 1, "RECORDING")


def test_the_first_requests_of_a_dataset_are_told_of(tmp_path: Path) -> None:
    writer = DatasetWriter(str(tmp_path), "ctr")
    request = inference.ModelInferRequest(model_name="ctr", id="a")
    request.inputs.add(name="x", datatype="FP32", shape=[4, 16])
    arrivals = [0, 50, 60, 5_000, 2_000_000]
    for arrival_us in arrivals:
        writer.write(request.SerializeToString(), 1_795_690_800_000_000 + arrival_us, "/m")
    writer.write(b"\xff\xff", 1_795_690_803_000_000, "/other")
    writer.complete()
    looked = recording_view.look(str(tmp_path), 6, 100)
    rows = [recording_view.request_row(row) for row in looked.shown]
    assert rows[0] == ["11:00:00.000000", str(request.ByteSize()), "ctr", "a", "x:FP32[4,16]"]
    assert rows[-1][-1] == "not a ModelInferRequest (/other)"
    counts = dict(looked.distances)
    assert counts == {"< 0.1 ms": 2, "< 1 ms": 0, "< 10 ms": 1, "< 100 ms": 0, "< 1 s": 0, "≥ 1 s": 2}
    lines = list(looked.lines())
    assert lines[0].startswith("first 6 requests: ")
    assert lines[1].startswith("recorded at 1.7/s over 3s")
