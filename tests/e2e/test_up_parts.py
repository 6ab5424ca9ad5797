"""What `up` is made of, part by part: its folder, its supervisor, the embedded database, the front door."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import grpc
import pytest

from modelfleetd.kit.ports import free_port, is_free
from modelfleetd.local import front_door, leftovers, postgres
from modelfleetd.local.bounded_log import BoundedLog
from modelfleetd.local.data_directory import MARKER, DataDirectory
from modelfleetd.local.postgres import EmbeddedPostgres
from modelfleetd.local.readiness import healthy_parts
from modelfleetd.local.refusals import CannotRun
from modelfleetd.local.supervisor import Program, Supervisor
from tests.support.wait import until

_FOREVER = "import signal, sys; print('begun', flush=True); signal.pause()"


def python(script: str, *, name: str = "part", **changes: object) -> Program:
    return Program(name, (sys.executable, "-c", script), **changes)  # type: ignore[arg-type]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_second_owner_of_a_folder_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.create()
    second = DataDirectory(tmp_path)
    refusal = rf"running on {tmp_path} already \(process {os.getpid()}\)"
    with directory.locked(), pytest.raises(CannotRun, match=refusal), second.locked():
        pytest.fail("both have it")
    with DataDirectory(tmp_path).locked():
        pass


def test_a_folder_that_cannot_be_made_is_said_with_the_flag_that_helps(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotRun, match="name another folder with --data-dir"):
        DataDirectory(tmp_path / "file" / "data").create()


def _mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_other_users_may_pass_through_the_folder_and_read_nothing_in_it(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "data")
    for _ in range(2):
        directory.create()
        assert _mode(directory.path) == "0o711"
        assert {_mode(place) for place in (directory.node, directory.logs, directory.run)} == {"0o700"}
        # As an earlier version left it.
        for place in (directory.path, directory.node, directory.logs, directory.run):
            place.chmod(0o755)


def test_the_usual_folder_is_the_users_and_as_root_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MODELFLEET_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert DataDirectory.default() == Path("~/.local/share/modelfleet")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert DataDirectory.default() == Path("/var/lib/modelfleet")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert DataDirectory.default() == Path("/data/modelfleet")


def test_ports_are_free_different_and_the_same_at_the_next_start(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.create()
    with directory.ports(("a", "b", "c")) as ports:
        assert len(set(ports.values())) == 3
        assert all(is_free(port) for port in ports.values())
    with directory.ports(("a", "b", "c")) as again:
        assert again == ports


def test_ports_are_nobody_elses_meanwhile_nor_those_that_the_system_gives_to_clients(tmp_path: Path) -> None:
    names = [str(number) for number in range(100)]
    with contextlib.ExitStack() as running:
        found: list[int] = []
        for run in range(8):
            directory = DataDirectory(tmp_path / str(run))
            directory.create()
            found += running.enter_context(directory.ports(names)).values()
        assert len(set(found)) == len(found)
    if sys.platform == "linux":
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        assert not set(found) & set(range(low, high + 1))


def test_a_damaged_memory_of_ports_is_forgotten(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.create()
    for damaged in ('{"a": "x", "b": 99999999', '{"a": "x", "b": 99999999}'):
        (tmp_path / "ports.json").write_text(damaged)
        with directory.ports(("a", "b")) as ports:
            assert set(ports) == {"a", "b"}


def test_a_log_never_takes_more_than_twice_its_limit(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "part.log", limit=1_000)
    for number in range(100):
        log.write(f"line {number} {'x' * 40}\n".encode())
    log.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000
    assert log.last_line().startswith("line 99")


# --- the supervisor ---------------------------------------------------------------------------------------------------


async def test_a_program_that_ends_is_started_again_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, said.append)
    supervisor.start(python(_FOREVER))
    first = await until(lambda: supervisor.processes.get("part"))
    await until(lambda: supervisor.last_words("part") == "begun")
    os.kill(first, signal.SIGKILL)
    second = await until(lambda: (now := supervisor.processes.get("part")) != first and now)
    assert "part ended with SIGKILL; starting it again in 0.2 s; it said last: begun" in said
    await supervisor.stop(["part"])
    assert not alive(second)


async def test_a_program_that_cannot_live_is_started_with_growing_pauses(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, said.append)
    supervisor.start(python("raise SystemExit('no luck')"))
    await until(lambda: len(said) >= 3)
    await supervisor.stop(["part"])
    assert [line.partition("again in ")[2].partition(";")[0] for line in said[:3]] == ["0.2 s", "0.4 s", "0.8 s"]
    assert said[0].startswith("part ended with status 1;") and said[0].endswith("it said last: no luck")


async def test_a_program_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, said.append)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    supervisor.start(python(deaf, stop_seconds=0.2))
    process = await until(lambda: supervisor.processes.get("part"))
    await until(lambda: supervisor.last_words("part") == "deaf")
    await supervisor.stop(["part"])
    assert not alive(process)
    assert said == ["part did not end within 0 s; killing it"]


async def test_a_program_is_stopped_by_the_signal_that_it_wants(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, pytest.fail)
    wants = "import signal; print('begun', flush=True); print(signal.sigwait({signal.SIGINT, signal.SIGTERM}).name)"
    masked = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGINT, signal.SIGTERM}}); {wants}"
    supervisor.start(python(masked, stop_signal=signal.SIGINT))
    await until(lambda: supervisor.last_words("part") == "begun")
    await supervisor.stop(["part"])
    assert (tmp_path / "part.log").read_text().split() == ["begun", "SIGINT"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
async def test_programs_die_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, pathlib, sys
from modelfleetd.local.supervisor import Program, Supervisor
async def main():
    supervisor = Supervisor(pathlib.Path({str(tmp_path)!r}), print)
    supervisor.start(Program("part", (sys.executable, "-c", {_FOREVER!r})))
    while "begun" not in supervisor.last_words("part"):
        await asyncio.sleep(0.02)
    print(supervisor.processes["part"], flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    process = int(await parent.stdout.readline())
    assert alive(process)
    parent.kill()
    await parent.wait()
    await until(lambda: not alive(process))


async def test_what_carries_the_folders_mark_is_found_and_ended_with_its_children(tmp_path: Path) -> None:
    spawn = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {_FOREVER!r}]); {_FOREVER}"
    environment = {**os.environ, MARKER: str(tmp_path)}
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", spawn, env=environment, start_new_session=True)
    await until(lambda: len(leftovers.processes_of(tmp_path)) == 2)
    assert await asyncio.to_thread(leftovers.end, tmp_path) == 2
    assert leftovers.processes_of(tmp_path) == []
    await parent.wait()


async def test_replicas_are_left_to_the_next_agent(tmp_path: Path) -> None:
    environment = {**os.environ, MARKER: str(tmp_path), "MODELFLEET_REPLICA": "agent/one"}
    replica = await asyncio.create_subprocess_exec(sys.executable, "-c", _FOREVER, env=environment)
    await until(lambda: leftovers.processes_of(tmp_path))
    assert await asyncio.to_thread(leftovers.end, tmp_path, replicas=False) == 0
    assert await asyncio.to_thread(leftovers.end, tmp_path) == 1
    await replica.wait()


# --- the database -----------------------------------------------------------------------------------------------------


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that another user can reach, as PostgreSQL under root must; pytest closes its own again and again."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-tests-") as folder:
        yield Path(folder)


async def test_the_embedded_database_keeps_its_data_and_ends_cleanly(tmp_path: Path, reachable: Path) -> None:
    server = EmbeddedPostgres.at(reachable / "postgres")
    server.initialize()
    program = Program("postgres", server.command, user=server.user, stop_signal=signal.SIGINT)
    for found in (None, 7):
        supervisor = Supervisor(tmp_path, pytest.fail)
        supervisor.start(program)
        conn = await until(lambda: _connect(server.maintenance_url))
        try:
            if found is None:
                await conn.execute("CREATE TABLE kept AS SELECT 7 AS number")
            assert await conn.fetchval("SELECT number FROM kept") == 7
        finally:
            await conn.close()
        await supervisor.stop(["postgres"])
        server.initialize()  # once made, it is left alone
    assert "database system is shut down" in (tmp_path / "postgres.log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as the caller otherwise")
def test_the_home_of_root_is_not_opened_for_the_database(reachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = reachable / "root"
    home.mkdir(mode=0o700)
    monkeypatch.setattr(postgres, "_home", lambda: home)
    with pytest.raises(CannotRun, match="name a folder elsewhere with --data-dir"):
        EmbeddedPostgres.at(home / "data" / "postgres").initialize()
    assert _mode(home) == "0o700"
    assert not (home / "data").exists()


async def test_a_folder_with_a_long_path_has_its_socket_elsewhere(tmp_path: Path) -> None:
    server = EmbeddedPostgres.at(tmp_path / ("long" * 30) / "postgres")
    assert len(str(server.socket_folder)) < 80
    assert EmbeddedPostgres.at(tmp_path / "p").socket_folder == tmp_path / "p" or len(str(tmp_path)) > 80


async def _connect(url: str) -> asyncpg.Connection | None:
    try:
        return await asyncpg.connect(url, timeout=5)
    except (OSError, asyncpg.PostgresError):
        return None


# --- the front door ---------------------------------------------------------------------------------------------------


def test_envoy_accepts_the_front_doors_configuration(tmp_path: Path) -> None:
    ports = {name: 40_000 + number for number, name in enumerate(front_door.SERVICES)}
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(front_door.configuration(40_100, 40_101, ports)))
    command = (
        str(front_door.envoy_program()),
        "--mode",
        "validate",
        "--config-path",
        str(path),
        "--log-level",
        "error",
    )
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_a_part_is_ready_when_the_front_door_finds_it_healthy() -> None:
    clusters = """registry::default_priority::max_connections::4
registry::127.0.0.1:40001::health_flags::healthy
capacity::127.0.0.1:40002::health_flags::/failed_active_hc
traffic::127.0.0.1:40003::cx_active::0
"""
    assert healthy_parts(clusters) == {"registry"}
    assert healthy_parts("") == set()


async def test_calls_above_the_limit_are_shed_as_resource_exhausted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_door, "_MOST_CALLS_DEFAULT", 2)
    release = asyncio.Event()

    async def wait(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await release.wait()
        return b""

    service = front_door.SERVICES["registry"]
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    ports = {"registry": server.add_insecure_port("127.0.0.1:0")}
    await server.start()

    port, admin = free_port(), free_port()
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(front_door.configuration(port, admin, ports)))
    supervisor = Supervisor(tmp_path, pytest.fail)
    # Without hot restart there is no shared memory, which another user's Envoy may own.
    envoy = (str(front_door.envoy_program()), "--config-path", str(path), "--disable-hot-restart", "--concurrency", "1")
    supervisor.start(Program("envoy", envoy))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 20)
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{service}/Wait")
            calls = [asyncio.ensure_future(_code(method)) for _ in range(6)]
            await until(lambda: sum(call.done() for call in calls) == 4)
            release.set()
            codes = await asyncio.gather(*calls)
        assert sorted(code.name for code in codes) == ["OK"] * 2 + ["RESOURCE_EXHAUSTED"] * 4
    finally:
        release.set()
        await supervisor.stop(["envoy"])
        await server.stop(None)


async def _code(method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> grpc.StatusCode:
    try:
        await method(b"", timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
