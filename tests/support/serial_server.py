"""A replica that serves one request at a time, each in the same time: its maximum load is known.

python serial_server.py --port 9000 --model ranker --service-ms 2
"""

from __future__ import annotations

import argparse
import asyncio
import signal

import grpc

from modelfleet.inference.v2 import open_inference_pb2 as pb
from modelfleet.inference.v2 import open_inference_pb2_grpc as rpc


class Serial(rpc.GRPCInferenceServiceServicer):
    """A queue with one server."""

    def __init__(self, service_seconds: float) -> None:
        self._service_seconds = service_seconds
        # When the last request that was accepted will be done.
        self._free = 0.0

    async def ServerLive(self, request, context):  # type: ignore[no-untyped-def]
        return pb.ServerLiveResponse(live=True)

    async def ServerMetadata(self, request, context):  # type: ignore[no-untyped-def]
        return pb.ServerMetadataResponse(name="serial")

    async def ModelMetadata(self, request, context):  # type: ignore[no-untyped-def]
        return pb.ModelMetadataResponse(name=request.name)

    async def ServerReady(self, request, context):  # type: ignore[no-untyped-def]
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(self, request, context):  # type: ignore[no-untyped-def]
        return pb.ModelReadyResponse(ready=True)

    async def ModelInfer(self, request, context):  # type: ignore[no-untyped-def]
        now = asyncio.get_running_loop().time()
        self._free = max(now, self._free) + self._service_seconds
        await asyncio.sleep(self._free - now)
        return pb.ModelInferResponse(model_name=request.model_name)


async def serve(port: int, service_seconds: float) -> None:
    """Serves until SIGTERM."""
    server = grpc.aio.server()
    rpc.add_GRPCInferenceServiceServicer_to_server(Serial(service_seconds), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--service-ms", type=float, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.service_ms / 1000))


if __name__ == "__main__":
    main()
