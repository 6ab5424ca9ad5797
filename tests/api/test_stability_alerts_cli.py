"""Alerts and silences on the command line, as whoever is woken at night types it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from modelfleet.cli import main
from modelfleet.cli.stability.alerts import changes
from modelfleet.stability.v1 import alerts_pb2 as pb
from modelfleetd.stability.domain.alert import Kind, Severity
from modelfleetd.stability.domain.fleet import Role, Tier
from tests.api.test_stability_alerts import alert, over, write
from tests.support.stability import NEW, NOW, StabilityFleet, stability_fleet

Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def running(database_url: str) -> AsyncIterator[StabilityFleet]:
    """A page, a ticket, and one that is over."""
    async with stability_fleet(database_url) as found:
        ticket = {"severity": Severity.TICKET, "role": Role.EXPERIMENT, "tier": Tier.TIER3, "on_call": ""}
        await write(
            found,
            over("o1", 90),
            alert("f1", 70),
            alert("f2", 60, model=NEW, kind=Kind.UNAVAILABLE, prediction="", metric=None, summary="Fails.", **ticket),
        )
        yield found


@pytest.fixture
def run(running: StabilityFleet, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `modelfleet stability …`: status, output, errors."""

    async def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        arguments = ["stability", *words, "--address", running.stability.address]
        status = await asyncio.to_thread(main, arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return command


async def test_what_fires_is_listed_with_pages_first_and_who_is_on_call(run: Run) -> None:
    status, out, _ = await run("alert", "list")
    head, page, ticket = out.splitlines()
    assert status == 0
    assert head.split() == ["SEVERITY", "MODEL", "WHAT", "CULPRIT", "FOR", "ON", "CALL", "STATE", "ALERT"]
    assert page.startswith("PAGE") and "ctr/old" in page and " ada " in page and "calibration of click" in page
    assert ticket.startswith("TICKET") and "UNAVAILABLE" in ticket and "nobody (team feed)" in ticket
    _, out, _ = await run("alert", "list", "--all")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["PAGE", "TICKET", "PAGE"]
    assert "RECOVERED" in out.splitlines()[-1]
    _, out, _ = await run("alert", "list", "--filter", "severity = PAGE OR team = ads", "-o", "json")
    assert [one["name"] for one in json.loads(out)] == ["alerts/f1"]
    _, out, _ = await run("alert", "list", "--limit", "1")
    assert out.splitlines()[1].startswith("PAGE") and out.endswith("and 1 more that fire: --limit 2\n")
    assert (await run("alert", "list", "--filter", "team = ads"))[1] == "Nothing fires that fits.\n"
    status, _, err = await run("alert", "list", "--filter", "model = ")
    assert status == 1 and "filter" in err


async def test_an_alert_says_what_happened_what_to_do_and_whom_it_reached(run: Run) -> None:
    status, out, _ = await run("alert", "get", "f1")
    assert status == 0
    assert out.startswith("PAGE  ctr/old  UNSTABLE  FIRING for ")
    for line in (
        "Calibration of click is 1.31.",
        "DO\n  Page its owner.",
        "ON CALL  ada (team feed)",
        "CULPRIT  calibration of click",
        "BEGAN    2025-03-01 10:50:30 UTC",
        "TOLD     nobody: no Alertmanager has taken it over; one is named by `modelfleetd --alertmanager-url`",
        'modelfleet stability silence create ctr/old --for 2h --reason "…"',
    ):
        assert line in out, out
    _, out, _ = await run("alert", "get", "o1")
    assert out.startswith("PAGE  ctr/old  UNSTABLE  RECOVERED after 1h 30m")
    assert "DO" not in out and "silence create" not in out
    status, _, err = await run("alert", "get", "nope")
    assert status == 1 and "alerts/nope" in err


async def test_a_silence_is_declared_seen_and_ended(running: StabilityFleet, run: Run) -> None:
    until = f"{NOW.replace(hour=14, second=0):%Y-%m-%dT%H:%MZ}"
    status, out, err = await run("silence", "create", "ctr/old", "--for", until, "--reason", "moving house")
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    name = first.split()[0]
    assert first == f"{name} keeps ctr/old quiet until 2025-03-01 14:00:00 UTC"
    assert second == f"end it: modelfleet stability silence end {name}"
    _, out, _ = await run("alert", "get", "f1")
    assert "SILENCED for" in out
    assert f"SILENCED  until 2025-03-01 14:00:00 UTC by local: moving house ({name})" in out
    assert "SILENCED" in (await run("alert", "list"))[1]
    _, out, _ = await run("silence", "list", "--active")
    assert name in out and "ctr/old" in out and "moving house" in out
    assert (await run("silence", "end", name))[1] == f"{name} of ctr/old ended at 2025-03-01 12:00:30 UTC\n"
    again = f"{name} of ctr/old had ended already at 2025-03-01 12:00:30 UTC, by local\n"
    assert (await run("silence", "end", name))[1] == again
    assert (await run("silence", "list", "--active"))[1] == "Nothing is silenced now.\n"
    assert name in (await run("silence", "list", "ctr/old"))[1]
    status, _, err = await run("silence", "create", "ctr/nope", "--for", until, "--reason", "x")
    refused = (
        "TYPE[/MODEL] refers to modelTypes/ctr/models/nope, which does not exist; create it first, or check its name."
    )
    assert (status, err) == (1, f"modelfleet: {refused} [REFERENCE_NOT_FOUND]\n")
    status, _, err = await run("silence", "create", "ctr", "--for", "2024-01-01T00:00Z", "--reason", "x")
    assert status == 1 and "--for: must be after the start" in err
    from_, to = "2025-03-02T10:00Z", "2025-03-02 12:00:00 UTC"
    _, out, _ = await run("silence", "create", "ctr", "--from", from_, "--for", "2h", "--reason", "x", "--dry-run")
    assert out == f"would keep ctr quiet from 2025-03-02 10:00:00 UTC until {to}\n"
    status, out, _ = await run("silence", "create", "ctr", "--for", until, "--reason", "x", "--dry-run")
    assert (status, out) == (0, "would keep ctr quiet until 2025-03-01 14:00:00 UTC\n")


async def test_a_watch_tells_what_fires_and_then_what_changes_until_it_is_interrupted(running: StabilityFleet) -> None:
    code = "import sys; from modelfleet.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["stability", "alert", "watch", "--every", "100ms", "--address", running.stability.address]
    watch = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert watch.stdout is not None and watch.stderr is not None
    try:
        async with asyncio.timeout(60):
            lines = [(await watch.stdout.readline()).decode().split() for _ in range(2)]
            assert sorted(line[2:5] for line in lines) == [
                ["FIRING", "PAGE", "ctr/old"],
                ["FIRING", "TICKET", "ctr/new"],
            ]
            recovered = {"kind": Kind.UNAVAILABLE, "severity": Severity.TICKET, "summary": "Fails."}
            await write(running, over("f2", 60, model=NEW, **recovered))
            line = (await watch.stdout.readline()).decode().split()
            assert line[2:5] == ["RECOVERED", "TICKET", "ctr/new"]
            watch.send_signal(signal.SIGINT)
            assert await watch.wait() == 130
            assert not (await watch.stderr.read()).strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            watch.kill()


def test_only_what_is_another_one_than_before_is_told() -> None:
    page = pb.Alert(name="alerts/a", state=pb.Alert.FIRING, severity=pb.Alert.PAGE)
    ticket = pb.Alert(name="alerts/a", state=pb.Alert.FIRING, severity=pb.Alert.TICKET)
    quiet = pb.Alert(name="alerts/a", state=pb.Alert.FIRING, severity=pb.Alert.PAGE, silence="silences/s")
    longer = pb.Alert(name="alerts/a", state=pb.Alert.FIRING, severity=pb.Alert.PAGE, summary="still")
    for after, told in ((ticket, [ticket]), (quiet, [quiet]), (longer, [])):
        assert list(changes({"alerts/a": page}, {"alerts/a": after}, [])) == told
    assert list(changes({"alerts/a": page}, {}, [ticket])) == [ticket]
