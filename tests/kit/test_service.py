"""Configuration, workers, and how a service is put together and runs as a process."""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelfleetd.__main__ import COMMANDS, main
from modelfleetd.clock import ManualClock
from modelfleetd.kit import deadline
from modelfleetd.kit.app import Service
from modelfleetd.kit.config import ServiceConfig, add_arguments
from modelfleetd.kit.worker import Periodic, Workers
from tests.kit.fakes import FakeRegistry, build_with
from tests.support.servers import running
from tests.support.wait import until


def _config(*flags: str, **environment: str) -> ServiceConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return ServiceConfig.from_args(parser.parse_args(flags), environment)


def test_flags_win_over_the_environment_and_that_over_defaults() -> None:
    assert _config().registry_address == "127.0.0.1:8461"
    assert _config(MODELFLEET_REGISTRY_ADDRESS="a:1").registry_address == "a:1"
    assert _config("--registry-address", "b:2", MODELFLEET_REGISTRY_ADDRESS="a:1").registry_address == "b:2"
    assert _config(MODELFLEET_ADMINS="ada, group:sre,").admins == ("ada", "group:sre")
    assert _config("--max-calls", "7").max_calls == 7
    assert _config("--alertmanager-url", "http://a:9093, http://b:9093").alertmanager_url == (
        "http://a:9093",
        "http://b:9093",
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tls-cert", "x"], "go together"),
        (["--prometheus-url", "prometheus:9090"], "--prometheus-url must be http://host:port"),
        (["--alertmanager-url", "http://a:9093,b:9093"], "--alertmanager-url must be http://host:port"),
        (["--dashboard-url", "grafana/d/models"], "--dashboard-url must be http://host:port"),
        (["--jwt-jwks", "x"], "--jwt-issuer"),
        (["--trace-ratio", "2"], "between 0 and 1"),
        (["--jwt-jwks", "x", "--jwt-issuer", "y", "--service-token-file", "z"], "--jwt-service-prefix"),
        (["--listen", "0.0.0.0:1", "--jwt-jwks", "x", "--jwt-issuer", "y"], "--tls-terminated-upstream"),
    ],
)
def test_contradictions_are_found_at_once(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(*flags)


def test_a_malformed_variable_is_named() -> None:
    with pytest.raises(ValueError, match="MODELFLEET_MAX_CALLS"):
        _config(MODELFLEET_MAX_CALLS="many")
    with pytest.raises(ValueError, match="MODELFLEET_TLS_TERMINATED_UPSTREAM: must be true or false"):
        _config(MODELFLEET_TLS_TERMINATED_UPSTREAM="perhaps")


def test_tokens_are_taken_in_plain_text_only_where_something_before_the_service_encrypts() -> None:
    tokens = ("--listen", "0.0.0.0:1", "--jwt-jwks", "x", "--jwt-issuer", "y")
    assert _config(*tokens, "--tls-terminated-upstream").tls_terminated_upstream
    assert _config(*tokens, MODELFLEET_TLS_TERMINATED_UPSTREAM="true").tls_terminated_upstream
    assert not _config(*tokens, "--tls-cert", "c", "--tls-key", "k").tls_terminated_upstream
    with pytest.raises(ValueError, match="without encryption"):
        _config(*tokens, "--no-tls-terminated-upstream", MODELFLEET_TLS_TERMINATED_UPSTREAM="true")


async def test_periodic_work_goes_on_after_a_failed_round_and_can_be_woken() -> None:
    clock, rounds = ManualClock(), []

    async def act() -> None:
        rounds.append(clock.monotonic())
        if len(rounds) == 1:
            raise ValueError

    worker = Periodic("sweep", 60, act, clock, jitter=0)
    async with Workers([worker]):
        await clock.advance(0)
        await clock.advance(59)
        assert rounds == [0]
        await clock.advance(1)
        assert rounds == [0, 60]
        worker.wake()
        await clock.advance(0)
        assert rounds == [0, 60, 60]
    assert clock.next_wake is None


async def test_a_worker_that_fails_is_begun_again_and_ends_with_its_service() -> None:
    class Failing:
        name = "failing"
        begun = 0
        ended = False

        async def run(self) -> None:
            self.begun += 1
            if self.begun == 1:
                raise ValueError
            try:
                await asyncio.Event().wait()
            finally:
                self.ended = True

    worker = Failing()
    async with Workers([worker]):
        await until(lambda: worker.begun == 2)
    assert worker.ended


async def test_what_a_service_was_built_from_is_closed_when_building_fails() -> None:
    closed = []

    async def build(service: Service) -> None:
        async def close() -> None:
            closed.append(1)

        service.at_end(close)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        async with running("registry", build):
            raise AssertionError("unreachable")
    assert closed == [1]


async def test_two_services_do_not_share_a_port() -> None:
    build = build_with(FakeRegistry())  # type: ignore[abstract]
    async with running("registry", build) as first:
        with pytest.raises(OSError, match="cannot listen"):
            async with running("registry", build, listen=first.address):
                raise AssertionError("unreachable")


async def test_limits_inside_limits_keep_the_tighter_one() -> None:
    assert deadline.remaining() is None
    with deadline.limit(10), deadline.limit(20):
        left = deadline.remaining()
        assert left is not None and left <= 10
    with deadline.limit(0):
        assert deadline.remaining() == 0
    assert deadline.remaining() is None


async def test_a_manual_clock_wakes_sleepers_in_order() -> None:
    clock, woken = ManualClock(), list[tuple[float, float]]()

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.monotonic()))

    async with asyncio.TaskGroup() as tasks:
        for seconds in (3, 1, 2):
            tasks.create_task(sleeper(seconds))
        await clock.advance(2.5)
        assert woken[:2] == [(1, 1), (2, 2)]
        await clock.advance(1)
        assert woken[2:] == [(3, 3)]


def test_a_manual_clock_does_not_go_back() -> None:
    clock = ManualClock()
    clock.set(2)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.set(1)


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_every_command(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == (0 if arguments else 2)
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nope"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


PROGRAM = """
import sys
from modelfleetd.kit.app import run_service
from tests.kit.fakes import FakeRegistry, build_with
sys.exit(run_service("registry", build_with(FakeRegistry()), sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_serves_until_it_is_told_to_stop(number: signal.Signals) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, "--log-format", "console"]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "registry serves on 127.0.0.1:" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(10) == 0
        assert "stops" in process.stderr.read()


def test_a_service_loads_nothing_heavy_that_it_does_not_need() -> None:
    heavy = ("alembic", "sqlalchemy", "jwt", "cryptography", "opentelemetry.sdk", "scipy", "numpy", "httpx")
    program = f"import sys, modelfleetd.kit.app; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
