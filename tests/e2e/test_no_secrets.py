"""No secret anywhere that others can look: output, logs, status, command lines, and what callers are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd.kit.ports import free_port
from modelfleetd.local import leftovers
from tests.support.memory import memory
from tests.support.postgres import Postgres
from tests.support.tls import Issuer
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PASSWORD = "Qx7-hunter%23two%40Zz"
# As it is written, and as it is.
SECRETS = ["Qx7-hunter", "%23two%40Zz", "two@Zz"]


def _with_password(url: str) -> str:
    """The server trusts whoever reaches its socket: any password will do."""
    return urlsplit(url)._replace(netloc=f"postgres:{PASSWORD}@").geturl()


class Output:
    """What a process says, read as it says it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None and process.stderr is not None
        self.process = process
        self.text = ""
        self._reading = [asyncio.create_task(self._read(stream)) for stream in (process.stdout, process.stderr)]

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(4096):
            self.text += data.decode(errors="replace")

    async def end(self) -> str:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 60)
        await asyncio.gather(*self._reading)
        return self.text


@contextlib.asynccontextmanager
async def _started(*command: str, **environment: str) -> AsyncIterator[Output]:
    pipe = asyncio.subprocess.PIPE
    output = Output(
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "modelfleetd", *command,
            stdout=pipe, stderr=pipe, env={**os.environ, **environment}, start_new_session=True,
        )
    )  # fmt: skip
    try:
        yield output
    finally:
        await output.end()


def _command_lines(processes: list[int]) -> str:
    found = []
    for process in processes:
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace"))
    return "\n".join(found)


def _expect_none(secrets: list[str], **places: str) -> None:
    for place, text in places.items():
        assert text, f"nothing was looked at in {place}"
        for secret in secrets:
            assert secret not in text, f"{secret} in {place}: …{text[max(0, text.index(secret) - 200) :][:400]}"


async def _answer(stub: Any, token: str, team: str = "teams/x") -> str:
    """Calls, and returns everything that the caller is told about what went wrong."""
    try:
        await stub.GetTeam(pb.GetTeamRequest(name=team), metadata=[("authorization", token)], timeout=10)
    except grpc.aio.AioRpcError as error:
        return f"{error.code()} {error.details()} {list(error.trailing_metadata() or ())}"
    return "answered"


async def test_a_service_keeps_the_password_and_the_tokens_to_itself(postgres: Postgres, tmp_path: Path) -> None:
    issuer, url = Issuer(tmp_path), postgres.create()
    tokens = [
        issuer.token("ada"), issuer.token("stranger"), issuer.token("ada", lives=-90), issuer.token("ada", aud="z")
    ]  # fmt: skip
    metadata = [f"Bearer {token}" for token in tokens]
    metadata += [f"Basic {PASSWORD}", f"Bearer {PASSWORD}", f"Bearer {tokens[0]}x"]
    secrets = [*SECRETS, *(token.rpartition(".")[2] for token in tokens)]
    port = free_port()
    flags = (
        "--listen", f"127.0.0.1:{port}", "--jwt-jwks", issuer.jwks, "--jwt-issuer", issuer.url, "--admins", "ada",
        "--log-level", "debug", "--drain-seconds", "0.1",
    )  # fmt: skip
    async with (
        _started("registry", *flags, MODELFLEET_DATABASE_URL=_with_password(url)) as output,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        await until(lambda: "serves on" in output.text, 60)
        stub: Any = registry_pb2_grpc.RegistryServiceStub(channel)
        told = [await _answer(stub, each) for each in metadata]
        assert "NOT_FOUND" in told[0]
        told.append(await _answer(stub, metadata[0], "not a name"))
        commands = _command_lines([output.process.pid])
        # The database goes away under it.
        postgres.drop(url)
        create = pb.CreateTeamRequest(team_id="x", request_id="0456b8a1-3511-458e-bb36-64d6d9bff7a7")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateTeam(create, metadata=[("authorization", metadata[0])], timeout=10)
        told.append(str(caught.value))
        said = await output.end()
    _expect_none(secrets, output=said, commands=commands, told="\n".join(told))


@pytest.mark.parametrize("password", ["Qsec#Qret", "Qsec/Qret", "Qsec?Qret", "Qsec@Qret"])
async def test_a_password_that_was_not_encoded_is_not_shown(password: str) -> None:
    url = f"postgresql://app:{password}@127.0.0.1:1/x"
    for command in (("registry", "--log-level", "debug"), ("up",), ("migrate",)):
        async with _started(*command, MODELFLEET_DATABASE_URL=url) as output:
            assert await asyncio.wait_for(output.process.wait(), 60) == 1
            said = await output.end()
        assert said.count("\n") == 1 and "percent-encode" in said
        _expect_none(["Qsec", "Qret"], output=said)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="modelfleet-tests-", dir=memory()) as path:
        yield Path(path)


async def test_up_keeps_the_password_out_of_its_folder_and_every_command_line(
    folder: Path, empty_database_url: str, tmp_path: Path
) -> None:
    token = Issuer(tmp_path).token("ada")
    flags = ("--json", "--data-dir", str(folder), "--port", str(free_port()))
    environment = {"MODELFLEET_DATABASE_URL": _with_password(empty_database_url), "MODELFLEET_LOG_LEVEL": "debug"}
    async with _started("up", *flags, **environment) as output:
        try:
            await until(lambda: "address" in output.text or output.process.returncode is not None, 90)
            status = folder / "run" / "status.json"
            before: int = json.loads(status.read_text())["processes"]["registry"]
            address = json.loads(status.read_text())["address"]
            async with grpc.aio.insecure_channel(address) as channel:
                told = await _answer(registry_pb2_grpc.RegistryServiceStub(channel), f"Bearer {token}")
            os.kill(before, signal.SIGKILL)
            await until(lambda: json.loads(status.read_text())["processes"].get("registry", before) != before, 60)
            commands = _command_lines([output.process.pid, *leftovers.processes_of(folder)])
            files = [path for path in folder.rglob("*") if path.is_file()]
            texts = {str(path): path.read_bytes().decode(errors="replace") for path in files}
            assert any(path.endswith("status.json") for path in texts)
            assert any(path.endswith("registry.log") for path in texts)
            said = await output.end()
            texts |= {str(path): path.read_text(errors="replace") for path in folder.rglob("*.log")}
        finally:
            await asyncio.to_thread(leftovers.end, folder)
    shown = {path: text for path, text in texts.items() if text}
    _expect_none([*SECRETS, token.rpartition(".")[2]], output=said, commands=commands, told=told, **shown)


async def test_a_database_that_refuses_up_leaves_one_line_and_no_password_in_its_log(
    folder: Path, postgres: Postgres
) -> None:
    url = postgres.create(migrated=False)
    gone = _with_password(url)
    postgres.drop(url)
    flags = ("--data-dir", str(folder), "--port", str(free_port()))
    for bad in (gone, gone.replace("?", "?sslmode=Qbogus&")):
        async with _started("up", *flags, MODELFLEET_DATABASE_URL=bad) as output:
            assert await asyncio.wait_for(output.process.wait(), 90) == 1
            said = await output.end()
        assert said.splitlines()[-1].startswith("modelfleetd up: The database could not be prepared: ")
        log = (folder / "logs" / "prepare.log").read_text()
        assert "Traceback" not in log
        _expect_none([*SECRETS, "Qbogus"], output=said, log=log)
