"""`modelfleet capacity loadtest|certificate` as a user types it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from modelfleet import plot
from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli.capacity import loadtest_view
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.domain.certificate import Certificate, GeneratorHealth, Source
from modelfleetd.capacity.domain.loadtest import (
    Cause,
    LatencyStopper,
    Outcome,
    Probe,
    State,
    Stoppers,
    Wanted,
)
from modelfleetd.capacity.store import certificates, loadtests
from modelfleetd.capacity.store.loadtests import Progress
from modelfleetd.kit.db import Database
from tests.api.test_cli import Run, runner
from tests.support.fleet import fleet

NOW = datetime.now(UTC)
STOPPERS = Stoppers(0.0, 0.001, (LatencyStopper(50.0, 20.0), LatencyStopper(99.0, 60.0)))
RATES = [
    (100.0, Outcome.WITHIN, False),
    (110.0, Outcome.WITHIN, False),
    (128.0, Outcome.OVER, False),
    (118.7, Outcome.GENERATOR_LIMIT, False),
    (118.7, Outcome.OVER, False),
    (114.3, Outcome.WITHIN, False),
    (114.3, Outcome.WITHIN, True),
]


@dataclass(frozen=True)
class Line:
    """A command line against a fleet, and the database behind it."""

    run: Run
    database: Database
    address: str


@pytest.fixture
async def line(database_url: str, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Line]:
    async with fleet(database_url, ["registry", "capacity"]) as services:
        async with services.client() as client:
            await client.registry.create_team(team_id="feed", team=registry_pb2.Team())
            region = registry_pb2.Region(agent_address="127.0.0.1:1")
            await client.registry.create_region(region_id="eu", region=region)
            await client.capacity.create_flavor(flavor_id="cpu", flavor=pb.Flavor(unit_cost=1.0))
            route = registry_pb2.ModelType(team="teams/feed", regions=["regions/eu"])
            await client.registry.create_model_type(model_type_id="ctr", model_type=route)
            model = registry_pb2.Model(serving_spec=ServingSpec(command=["serve", "{port}"], flavor="flavors/cpu"))
            await client.registry.create_model(parent="modelTypes/ctr", model_id="new", model=model)
        database = await Database.open(database_url, "capacity", max_size=2)
        yield Line(runner(services, "capacity", capsys), database, services.services["capacity"].address)
        await database.close()


def probe(qps: float, outcome: Outcome, certification: bool) -> Probe:
    slow = qps / 2
    found = Probe(qps, qps, 5000, 3, slow, outcome, certification, f"{outcome.name}: 0.4% took longer than 60 ms.")
    return replace(found, latency_p50_ms=slow / 10, latency_p90_ms=slow / 3, latency_p999_ms=slow * 2, rate_ratio=0.998)


async def store(database: Database, *, ended: str = "", probes: int = len(RATES)) -> None:
    """Stores a load test that no worker has taken, with some probes, under way or ended."""
    name, model = "loadTests/t1", "modelTypes/ctr/models/new"
    wanted = Wanted(model, "regions/eu", "flavors/cpu", (b"x",), STOPPERS, 100.0, 50_000)
    end = datetime.now(UTC) + timedelta(minutes=29)
    async with database.transaction() as conn:
        await loadtests.insert(conn, name, replace(wanted, recording_digest="sha256:cd"), "alice")
        await conn.execute(
            """UPDATE load_tests SET epoch = 7, attempt = 1, start_time = now(), lease_holder = 'test',
                   lease_expire_time = now() + interval '1 hour' WHERE name = $1""",
            name,
        )
        for rate in RATES[:probes]:
            now = Progress(State.SEARCHING, "Trying 111.2 requests/s.", 111.2, 110.0, 118.7, end)
            assert await loadtests.progress(conn, name, 7, now, probe(*rate))
        if ended == "SUCCEEDED":
            certificate = Certificate(
                "certificates/c1", wanted.model, wanted.flavor, 114.3, 0.95, Source.LOAD_TEST, "Confirmed.", "alice",
                NOW, NOW + timedelta(days=3650), name, wanted.region, STOPPERS, None, "sha256:cd",
                GeneratorHealth(0.998, 0.4, 0.31), 50_000, "sha256:ef",
            )  # fmt: skip
            await certificates.insert(conn, certificate)
            message = "One replica carries 114.3 requests/s."
            assert await loadtests.finish(conn, name, 7, State.SUCCEEDED, message, None, certificate.name)
        elif ended:
            cause = Cause(ended)
            assert await loadtests.finish(conn, name, 7, State.FAILED, f"It failed. {cause.advice}", cause, None)


async def test_a_load_test_is_created_listed_and_cancelled(line: Line, tmp_path: Path) -> None:
    (tmp_path / "request.pb").write_bytes(inference.ModelInferRequest(model_name="ctr").SerializeToString())
    made = await line.run(
        *("capacity", "loadtest", "create", "ctr/new", "--region", "eu", "--request", str(tmp_path / "request.pb")),
        *("--latency", "p99=60", "--latency", "p50=0.02s", "--requests", "4000"),
        *("--warm-up", "30s", "--validity", "7d"),
    )
    assert made.out.startswith("created loadTests/t"), made.err
    name = made.out.split()[1].removeprefix("loadTests/")
    assert made.out.endswith(f"follow it: modelfleet capacity loadtest watch {name}\n")
    found = json.loads((await line.run("capacity", "loadtest", "show", name, "-o", "json")).out)
    assert found["stoppers"] == {
        "error_rate": 0.001,
        "latencies": [{"percentile": 99.0, "latency_ms": 60.0}, {"percentile": 50.0, "latency_ms": 20.0}],
    }
    assert (found["certification_requests"], found["warm_up_duration"], found["validity_duration"]) == (
        4000,
        "30s",
        "604800s",
    )
    listed = (await line.run("capacity", "loadtest", "list", "ctr/new")).out
    assert "LOAD TEST" in listed and name in listed and "ctr/new" in listed
    cancelled = await line.run("capacity", "loadtest", "cancel", name)
    assert cancelled.out == f"loadTests/{name}: Cancelled by local.\n"
    watched = await line.run("capacity", "loadtest", "watch", name)
    assert watched.status == 1
    assert "ended as CANCELLED. Cancelled by local." in watched.err


async def test_wrong_input_is_answered_with_what_would_be_right(line: Line, tmp_path: Path) -> None:
    create = ("create", "ctr/new", "--region", "eu")
    (tmp_path / "serve.sh").write_text("#!/bin/sh\n")
    script = ("--request", str(tmp_path / "serve.sh"))
    for arguments, said in (
        (create, "give what to replay: --recording RECORDING, or --request FILE"),
        ((*create, "--latency", "99", "--recording", "r"), "'99' is no limit on a percentile; write p99=60"),
        ((*create, "--recording", "nope"), "recordings/nope, which does not exist"),
        (
            (*create, *script, "--requests", "2000"),
            "--requests: must be 3,689 to 1,000,000, or unset (the default): fewer",
        ),
        ((*create, *script), "--request: number 1 must be an inference.ModelInferRequest in bytes"),
        (("list", "ctr"), "'ctr' is no model; name one as ctr/MODEL"),
        (("show", "nope"), "loadTests/nope does not exist"),
        (("show", "nope", "--plot", "curve.jpg"), "a picture's name ends in .png or .svg"),
        (("watch", "nope"), "loadTests/nope does not exist"),
    ):
        done = await line.run("capacity", "loadtest", *arguments)
        assert done.status == 1
        assert said in done.err


async def test_what_there_is_none_of_says_how_to_make_one(line: Line) -> None:
    assert "Begin one: modelfleet capacity loadtest create" in (await line.run("capacity", "loadtest", "list")).out
    assert "Measure one: modelfleet capacity loadtest create" in (await line.run("capacity", "certificate", "list")).out


async def test_show_has_every_probe_the_curves_and_the_way_to_the_certificate(line: Line, tmp_path: Path) -> None:
    await store(line.database, ended="SUCCEEDED")
    picture = tmp_path / "curve.svg"
    shown = (await line.run("capacity", "loadtest", "show", "t1", "--plot", str(picture))).out
    assert "loadTests/t1  SUCCEEDED" in shown
    assert "p50 ≤ 20 ms, p99 ≤ 60 ms, errors ≤ 0.1%" in shown
    for text in ("generator too slow", "within (certification)", "result 114.3/s", "highest kept", "p99 ≤ 60 ms"):
        assert text in shown
    assert "latency (ms)" in shown
    assert "the result: modelfleet capacity certificate show c1" in shown
    assert max(map(len, shown.splitlines())) <= 120
    assert shown.endswith(f"wrote {picture}\n")
    drawn = picture.read_text()
    assert "ctr/new on cpu: rates tried" in drawn and "Latency from the intended send time" in drawn


async def test_there_is_no_picture_before_the_first_probe(line: Line, tmp_path: Path) -> None:
    await store(line.database, probes=0)
    done = await line.run("capacity", "loadtest", "show", "t1", "--plot", str(tmp_path / "curve.png"))
    assert done.status == 1
    assert "has no probe yet" in done.err


async def test_a_watch_in_a_pipe_is_a_line_for_each_probe_and_ends_as_the_test_does(line: Line) -> None:
    await store(line.database, ended="SUCCEEDED")
    watched = await line.run("capacity", "loadtest", "watch", "t1")
    lines = [text.partition(" ")[2] for text in watched.out.splitlines()]
    assert watched.status == 0
    assert lines[0] == "SUCCEEDED One replica carries 114.3 requests/s."
    assert lines[1] == "probe 1: 100/s within, p50/p90/p99/p99.9 5.0/16.7/50.0/100.0 ms, 3 of 5,000 failed"
    assert lines[4].startswith("probe 4: 118.7/s generator too slow")
    assert len(lines) == 9
    each = await line.run("capacity", "loadtest", "watch", "t1", "-o", "json")
    assert json.loads(each.out)["state"] == "SUCCEEDED"


async def test_ctrl_c_ends_the_watch_and_says_that_the_load_test_goes_on(line: Line) -> None:
    await store(line.database, probes=1)
    program = Path(sys.executable).with_name("modelfleet")
    words = (str(program), "capacity", "loadtest", "watch", "t1", "--address", line.address)
    pipe = asyncio.subprocess.PIPE
    watching = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)
    try:
        assert watching.stdout is not None
        assert b"SEARCHING" in await asyncio.wait_for(watching.stdout.readline(), 30)
        watching.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(watching.communicate(), 30)
    finally:
        if watching.returncode is None:
            watching.kill()
            await watching.wait()
    assert watching.returncode == 130
    assert said.decode() == (
        "\nloadTests/t1 goes on; watch it: modelfleet capacity loadtest watch t1; "
        "cancel it: modelfleet capacity loadtest cancel t1\n"
    )


async def test_a_failed_one_ends_the_watch_with_its_cause_and_what_to_do(line: Line) -> None:
    await store(line.database, ended="NOTHING_BEYOND")
    watched = await line.run("capacity", "loadtest", "watch", "t1")
    assert watched.status == 1
    assert "It failed. Look whether the sample requests make the model work at all" in watched.err
    assert "NOTHING_BEYOND" in (await line.run("capacity", "loadtest", "show", "t1")).out


async def test_the_live_view_has_the_bracket_the_rate_under_trial_and_the_end(line: Line) -> None:
    await store(line.database, probes=6)
    found = json.loads((await line.run("capacity", "loadtest", "show", "t1", "-o", "json")).out)
    console = Console(width=110)
    with console.capture() as captured:
        console.print(loadtest_view.frame(json_format.ParseDict(found, pb.LoadTest())))
    drawn = captured.get()
    assert drawn.startswith("t1  ctr/new on cpu in eu  SEARCHING")
    (bar,) = [text for text in drawn.splitlines() if "▲" in text and "─" in text]
    assert bar.index("●") < bar.index("▲") < bar.index("○")
    assert "● kept 110/s   ○ not kept 118.7/s   8% apart   ▲ trying 111.2/s" in drawn
    assert re.search(r"ends about \d\d:\d\d:\d\d UTC, in 2\dm", drawn)
    assert "generator too slow" in drawn
    assert "WITHIN: 0.4% took longer than 60 ms." in drawn


def test_the_live_view_says_only_what_is_known_and_fits_in_eighty_columns() -> None:
    shown = pb.LoadTest(name="loadTests/t1", highest_within_qps=1110.0)
    shown.expected_end_time.FromDatetime(datetime.now(UTC) + timedelta(minutes=29, seconds=30))
    for outcome, certification in ((pb.Probe.GENERATOR_LIMIT, False), (pb.Probe.WITHIN, True)):
        shown.probes.add(
            intended_qps=1111.1, requests=50_000, errors=100, latency_p50_ms=10.0, latency_p90_ms=90.0,
            latency_p99_ms=100.0, latency_p999_ms=1000.0, outcome=outcome, certification=certification,
        )  # fmt: skip
    console = Console(width=80)
    with console.capture() as captured:
        console.print(loadtest_view.frame(shown))
    lines = captured.get().splitlines()
    assert any(re.fullmatch(r"ends \S+ UTC at the earliest, in at least 29m.*", text) for text in lines)
    assert any(text.rstrip().endswith("1,000.0 generator too slow") for text in lines)
    assert any(text.rstrip().endswith("1,000.0 within (certification)") for text in lines)


def test_a_picture_tells_what_was_kept_from_what_was_not_and_counts_probes_in_whole_numbers() -> None:
    shown = pb.LoadTest(name="loadTests/t1")
    shown.probes.add(intended_qps=100.0, outcome=pb.Probe.WITHIN)
    (rates, _) = loadtest_view.charts(shown)
    drawn = plot.terminal(rates)
    assert "● within" in drawn
    assert "×" not in drawn
    (ticks,) = [text for text in drawn.splitlines() if re.fullmatch(r" *1 *", text)]
    assert ticks.strip() == "1"
    shown.probes.add(intended_qps=110.0, outcome=pb.Probe.OVER)
    (rates, _) = loadtest_view.charts(shown)
    assert "× not within" in plot.terminal(rates)


@pytest.mark.parametrize(("qps", "said"), [(0.0, "-"), (142.0, "142/s"), (12345.6, "12,346/s")])
def test_a_rate_is_said_as_people_say_it(qps: float, said: str) -> None:
    assert loadtest_view.rate(qps) == said


async def test_a_certificate_shows_what_it_rests_on(line: Line) -> None:
    await store(line.database, ended="SUCCEEDED")
    shown = (await line.run("capacity", "certificate", "show", "c1")).out
    assert shown.startswith("certificates/c1  one replica carries at least 114.3/s, at 95% confidence\n")
    for text in (
        "ctr/new on cpu in eu",
        "LOAD_TEST loadTests/t1",
        "p50 ≤ 20 ms, p99 ≤ 60 ms, errors ≤ 0.1%",
        "50,000 requests",
        "sample requests (sha256:cd)",
        "sent 99.8% of the rate, 1 % of the requests 0.4 ms late or later, with 31% of a core",
        "sha256:ef",
        f"until {NOW + timedelta(days=3650):%Y-%m-%d}",
    ):
        assert text in shown
    found = json.loads((await line.run("capacity", "certificate", "show", "c1", "-o", "json")).out)
    assert found["generator_health"] == {"rate_ratio": 0.998, "send_late_p99_ms": 0.4, "cpu_fraction": 0.31}


async def test_a_certificate_can_still_be_stated_and_says_when_it_is_over(line: Line) -> None:
    stated = await line.run(
        *("capacity", "certificate", "state", "ctr/new", "--max-qps", "40", "--flavor", "cpu", "--note", "a guess"),
        *("--validity", "2d", "-o", "json"),
    )
    made = json.loads(stated.out)
    end = Timestamp()
    end.FromJsonString(made["expire_time"])
    assert timedelta(days=1, hours=23) < end.ToDatetime(tzinfo=UTC) - datetime.now(UTC) <= timedelta(days=2)
    name = made["name"].removeprefix("certificates/")
    shown = (await line.run("capacity", "certificate", "show", name)).out
    assert "no confidence stated" in shown and "STATED" in shown and "a guess" in shown
    assert "replayed" not in shown
    made_at, over_at = NOW - timedelta(days=9), NOW - timedelta(days=2)
    await line.database.execute("UPDATE certificates SET create_time = $1, expire_time = $2", made_at, over_at)
    shown = (await line.run("capacity", "certificate", "show", name)).out
    assert f"EXPIRED {over_at:%Y-%m-%d %H:%M:%S} UTC: measure again" in shown
    assert "EXPIRED" in (await line.run("capacity", "certificate", "list", "ctr/new")).out
