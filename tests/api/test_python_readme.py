"""The examples of the Python client's README run as they stand there, but for the addresses."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import grpc.aio
import pytest

from modelfleet.inference.v2 import open_inference_pb2, open_inference_pb2_grpc
from modelfleet.registry.v1 import registry_pb2
from tests.support.fleet import fleet

README = Path(__file__).parents[2] / "clients/python/README.md"
FIRST, RECORDING = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


async def test_the_first_example_runs(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with fleet(database_url, ["registry"]) as running:
        async with running.client() as client:
            await client.registry.create_team(team_id="ranking", team=registry_pb2.Team(on_call="pager"))
        address = running.services["registry"].address
        assert "127.0.0.1:8460" in FIRST
        await asyncio.to_thread(exec, FIRST.replace("127.0.0.1:8460", address), {})
    assert capsys.readouterr().out == "teams/ranking pager\nRESOURCE_NOT_FOUND modelTypes/nope\n"


async def test_the_example_of_a_recording_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Model(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
        async def ModelInfer(self, request, context):  # type: ignore[no-untyped-def]
            return open_inference_pb2.ModelInferResponse(id=request.id)

    server = grpc.aio.server()
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Model(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.chdir(tmp_path)
    assert "127.0.0.1:8480" in RECORDING
    try:
        await asyncio.to_thread(exec, RECORDING.replace("127.0.0.1:8480", f"127.0.0.1:{port}"), {})
    finally:
        await server.stop(0)
    said = [re.sub(r".*# ", "", line) for line in RECORDING.splitlines() if "print(" in line]
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == said
