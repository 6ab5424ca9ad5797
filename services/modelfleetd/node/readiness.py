"""Asks replicas whether they are ready, in the words of the Open Inference Protocol."""

from __future__ import annotations

import grpc

from modelfleet.inference.v2 import open_inference_pb2 as pb
from modelfleet.inference.v2 import open_inference_pb2_grpc as rpc
from modelfleetd.kit.failpoint import passing

_TIMEOUT = 2.0


class Readiness:
    """One replica's readiness.

    Args:
        port: of the replica, on this machine.
        model_type: the id under which it has to serve.
    """

    def __init__(self, port: int, model_type: str) -> None:
        self._model_type = model_type
        # Reconnects soon: a replica that starts refuses connections for a while.
        self._channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}",
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 250),
                # A channel of its own, not one shared with whatever was on that port before.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub = rpc.GRPCInferenceServiceStub(self._channel)

    async def ready(self) -> bool:
        """Whether it says that it serves the model type. A server that only knows ServerReady is believed that."""
        try:
            with passing("node", "call", "ModelReady"):
                answer = await self._stub.ModelReady(pb.ModelReadyRequest(name=self._model_type), timeout=_TIMEOUT)
            return bool(answer.ready)
        except grpc.aio.AioRpcError as problem:
            if problem.code() is not grpc.StatusCode.UNIMPLEMENTED:
                return False
        try:
            with passing("node", "call", "ServerReady"):
                return bool((await self._stub.ServerReady(pb.ServerReadyRequest(), timeout=_TIMEOUT)).ready)
        except grpc.aio.AioRpcError:
            return False

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()
