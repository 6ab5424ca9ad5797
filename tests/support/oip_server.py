"""A replica for tests: the Open Inference Protocol on grpc.aio, with everything that a test wants to switch.

    python oip_server.py --port 9000 --model ranker [--delay 0.01] [--error-rate 0.1] [--start-delay 1] [--fail-start]
        [--not-ready] [--ignore-term] [--die-after 100]

The answer holds one BYTES output `answer` with what `--says` says. Starts fast: imports only grpc and the messages.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

import grpc

from modelfleet.inference.v2 import open_inference_pb2 as pb
from modelfleet.inference.v2 import open_inference_pb2_grpc as rpc


class Inference(rpc.GRPCInferenceServiceServicer):
    """Answers as it was told on the command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._served = 0
        self._draw = random.Random(options.seed)

    async def ServerLive(self, request, context):  # type: ignore[no-untyped-def]
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request, context):  # type: ignore[no-untyped-def]
        return pb.ServerReadyResponse(ready=not self._options.not_ready)

    async def ModelReady(self, request, context):  # type: ignore[no-untyped-def]
        unready = self._options.not_ready or (self._options.unready_file and Path(self._options.unready_file).exists())
        return pb.ModelReadyResponse(ready=request.name == self._options.model and not unready)

    async def ServerMetadata(self, request, context):  # type: ignore[no-untyped-def]
        return pb.ServerMetadataResponse(name="oip_server", version="1")

    async def ModelMetadata(self, request, context):  # type: ignore[no-untyped-def]
        answer = pb.ModelMetadataResponse(name=request.name, versions=["1"], platform="test")
        answer.outputs.add(name="answer", datatype="BYTES", shape=[1])
        return answer

    async def ModelInfer(self, request, context):  # type: ignore[no-untyped-def]
        self._served += 1
        if self._options.die_after and self._served >= self._options.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._options.delay:
            await asyncio.sleep(self._options.delay)
        if self._options.error_rate and self._draw.random() < self._options.error_rate:
            await context.abort(grpc.StatusCode.INTERNAL, "told to fail")
        answer = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        output = answer.outputs.add(name="answer", datatype="BYTES", shape=[1])
        output.contents.bytes_contents.append(self._options.says.encode())
        return answer


async def serve(options: argparse.Namespace) -> None:
    """Serves until SIGTERM, then finishes what it has."""
    server = grpc.aio.server()
    rpc.add_GRPCInferenceServiceServicer_to_server(Inference(options), server)
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    await server.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if options.ignore_term else stop.set)
    await stop.wait()
    await server.stop(5)


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--says", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--error-rate", type=float, default=0.0)
    parser.add_argument("--start-delay", type=float, default=0.0)
    parser.add_argument("--fail-start", action="store_true")
    parser.add_argument("--not-ready", action="store_true")
    parser.add_argument("--unready-file", default="")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--die-after", type=int, default=0)
    options = parser.parse_args()
    if options.start_delay:
        time.sleep(options.start_delay)
    if options.fail_start:
        sys.exit("told to fail")
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
