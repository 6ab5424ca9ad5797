"""History from the command line: points in time, watches that outlive the registry, damage and its exit status."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from modelfleet.cli.parameters import POINT, Point
from modelfleetd.kit.db import Database
from tests.api.test_cli import Run, runner
from tests.support.fleet import fleet
from tests.support.processes import registry_process


def point(text: str) -> Point:
    found: Point = POINT.convert(text, None, None)
    return found


def test_points_are_read_as_people_write_them() -> None:
    now = datetime.now(UTC)
    for text, number in (("41", 41), ("r41", 41), ("revisions/41", 41)):
        assert point(text) == Point(revision=number)
        assert point(text).fields("as_of") == {"as_of_revision": number}
    assert point("now").fields("to") == {}
    times = {
        "2026-11-24T15:00Z": datetime(2026, 11, 24, 15, tzinfo=UTC),
        "2026-11-24T15:00+01:00": datetime(2026, 11, 24, 14, tzinfo=UTC),
        "2026-11-24 15:00": datetime(2026, 11, 24, 15, tzinfo=UTC),
        "2026-11-24": datetime(2026, 11, 24, tzinfo=UTC),
    }
    for text, expected in times.items():
        assert point(text).time == expected
        assert point(text).fields("from")["from_time"].ToDatetime(tzinfo=UTC) == expected
    for text, ago in (("2h", timedelta(hours=2)), ("1d12h ago", timedelta(days=1.5)), ("yesterday", timedelta(days=1))):
        time = point(text).time
        assert time is not None and abs(now - ago - time) < timedelta(seconds=5)
    for offset, day in enumerate(("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")):
        time = point(day).time
        assert time is not None and time.weekday() == offset
        assert timedelta(days=1) <= now - time + timedelta(seconds=5) and now - time < timedelta(days=7, seconds=5)
    for wrong in ("", "0", "-3", "later", "2 hours", "9999999999d", "2026-13-01"):
        with pytest.raises(click.UsageError):
            point(wrong)


@pytest.fixture
async def registry(database_url: str, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Run]:
    async with fleet(database_url, ["registry"]) as running:
        run = runner(running, "registry", capsys)
        for text in ("one", "two", "three"):
            made = await run(
                "registry", "team", "create" if text == "one" else "update", "feed", "--set", f"on_call={text}"
            )
            assert made.status == 0, made.err
        yield run


async def test_damage_is_named_in_words_or_as_data_with_exit_status_1(
    registry: Run, database_url: str, tmp_path: Path
) -> None:
    kept = str(tmp_path / "checkpoint.json")
    saved = await registry("registry", "verify", "--save", kept, "-o", "json")
    assert (saved.status, json.loads(saved.out)["revisions"]) == (0, 3)
    assert json.loads(Path(kept).read_text())["revision"] == "3"
    database = await Database.open(database_url, "registry")
    await database.execute("UPDATE revisions SET header = header || '\\x3a0178' WHERE number = 2")
    for output in ("table", "json"):
        found = await registry("registry", "verify", "--checkpoint", kept, "-o", output)
        assert found.status == 1
        if output == "table":
            assert found.err.startswith("DAMAGED. revision 2: hash: expected ") and found.out == ""
        else:
            assert json.loads(found.out)["damage"]["revision"] == 2
    await database.close()


async def test_a_file_that_is_no_checkpoint_is_told(registry: Run, tmp_path: Path) -> None:
    for content in ("", "[]", '{"number": 3}', '{"revision": "3"}'):
        (tmp_path / "x.json").write_text(content)
        found = await registry("registry", "verify", "--checkpoint", str(tmp_path / "x.json"))
        assert found.status == 1 and "holds no checkpoint; write one: modelfleet registry verify --save" in found.err


async def test_compaction_asks_first_and_says_what_it_did(registry: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter("ny")
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: next(answers))
    assert (await registry("registry", "compact", "--before", "3")).status == 130
    assert "Verified 3 revisions" in (await registry("registry", "verify")).out
    done = await registry("registry", "compact", "--before", "3")
    assert done.out == "Forgot 2 revisions. History begins with revision 3.\n"
    again = await registry("registry", "compact", "--before", "2", "--yes")
    assert again.out == "Nothing to forget: history begins after revision 2.\n"
    gone = await registry("registry", "team", "get", "feed", "--as-of", "1")
    assert gone.status == 1 and "Revision 1 is not between 2 and 3" in gone.err
    everything = await registry("registry", "compact", "--before", "now", "--yes")
    assert everything.status == 1 and "REVISION_OUT_OF_RANGE" in everything.err


async def test_a_watch_prints_changes_as_they_come_and_goes_on_after_the_registry_was_away(database_url: str) -> None:
    async def command(address: str, *arguments: str) -> asyncio.subprocess.Process:
        program = Path(sys.executable).with_name("modelfleet")
        words = (str(program), "registry", *arguments, "--address", address)
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)

    async def write(address: str, text: str) -> None:
        verb = "create" if text == "one" else "update"
        done = await command(address, "team", verb, "feed", "--set", f"on_call={text}", "--reason", text)
        assert await done.wait() == 0

    async def line(stream: asyncio.StreamReader | None) -> str:
        assert stream is not None
        return (await asyncio.wait_for(stream.readline(), 30)).decode()

    async with registry_process(database_url) as (_, address):
        await write(address, "one")
        watching = await command(address, "watch", "--team", "feed", "--from", "1h")
        try:
            assert await line(watching.stderr) == "Watching from revision 0 on; Ctrl-C ends it.\n"
            first = await line(watching.stdout)
            assert first.startswith("revision 1 at ") and first.endswith(": one\n")
            assert await line(watching.stdout) == "  teams/feed created\n"
        except BaseException:
            watching.kill()
            raise
    try:
        assert await line(watching.stderr) == "The registry is away; waiting for it.\n"
        async with registry_process(database_url, address):
            await write(address, "two")
            assert (await line(watching.stdout)).startswith("revision 2 at ")
            assert await line(watching.stdout) == "  teams/feed updated: on_call\n"
            assert await line(watching.stderr) == "The registry is there again; going on after revision 1.\n"
            watching.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(watching.wait(), 30) == 130
    finally:
        if watching.returncode is None:
            watching.kill()
            await watching.wait()
