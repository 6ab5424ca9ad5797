"""The replica under load, over the Open Inference Protocol: requests are bytes as they were recorded, answers too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from modelfleetd.capacity.domain.loadtest import Stoppers
from modelfleetd.capacity.loadtest.generator import Answer

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_FEWEST_SECONDS = 1.0
# A request that takes this many times longer than it may is given up: it counts as failed and slow.
_PATIENCE = 5.0
_MESSAGE_BYTES = 16 << 20


class Replica:
    """Sends requests to one model of a target."""

    def __init__(self, channel: grpc.aio.Channel, target: str, model: str, stoppers: Stoppers) -> None:
        """Makes the sender.

        Args:
            channel: to the agent's traffic address.
            target: its id is what stands for the model type of the route.
            model: addressed directly, past any split.
            stoppers: from which the timeout follows.
        """
        self._infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            _INFER, request_serializer=None, response_deserializer=None
        )
        self._metadata = (
            ("x-modelfleet-model-type", target.removeprefix("targets/")),
            ("x-modelfleet-model", model),
        )
        self._timeout = max(_FEWEST_SECONDS, _PATIENCE * stoppers.longest_ms / 1000)

    async def __call__(self, body: bytes) -> Answer:
        try:
            await self._infer(body, timeout=self._timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return Answer.UNREACHED if error.code() is grpc.StatusCode.UNAVAILABLE else Answer.FAILED
        return Answer.OK


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """Gives a channel to a traffic address, without the retries that would hide failures."""
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(address, options) as channel:
        yield channel
