"""A small model server for the demo: scores impressions over the Open Inference Protocol v2.

    python -m modelfleetd.local.model_server --port 9000 --model zozo_fashion_main_ctr --artifact model.npz

A request carries one tensor per column (scoring.COLUMNS), each with one value an impression; the answer is one FP64
tensor `click` of probabilities. Imports little, since a launch starts many of them: grpc and numpy.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from modelfleet.inference.v2 import open_inference_pb2 as pb
from modelfleet.inference.v2 import open_inference_pb2_grpc as rpc
from modelfleetd.local.scoring import COLUMNS, ClickModel

OUTPUT = "click"
_INTEGERS = frozenset({"item", "position", "hour", "close"})
_DRAIN_SECONDS = 5.0


class ModelServer(rpc.GRPCInferenceServiceServicer):
    """One model, under the name that its route has."""

    def __init__(self, name: str, model: ClickModel) -> None:
        self._name = name
        self._model = model

    def ServerLive(self, request: pb.ServerLiveRequest, context: grpc.ServicerContext) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: pb.ServerReadyRequest, context: grpc.ServicerContext) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=True)

    def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.ServicerContext) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=request.name == self._name)

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="modelfleet-demo-model-server", version="1")

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        self._check_name(request.name, context)
        answer = pb.ModelMetadataResponse(name=self._name, platform="numpy")
        for column in COLUMNS:
            answer.inputs.add(name=column, datatype="INT64" if column in _INTEGERS else "BYTES", shape=[-1])
        answer.outputs.add(name=OUTPUT, datatype="FP64", shape=[-1])
        return answer

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        self._check_name(request.model_name, context)
        columns = {tensor.name: _values(tensor) for tensor in request.inputs}
        missing = [column for column in COLUMNS if column not in columns]
        lengths = {len(values) for values in columns.values()}
        if missing or len(lengths) != 1:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"inputs: lacks {', '.join(missing)}" if missing else "inputs: all tensors must have the same length",
            )
        scores = self._model.score(columns)
        answer = pb.ModelInferResponse(model_name=self._name, id=request.id)
        output = answer.outputs.add(name=OUTPUT, datatype="FP64", shape=[len(scores)])
        output.contents.fp64_contents.extend(scores.tolist())
        return answer

    def _check_name(self, name: str, context: grpc.ServicerContext) -> None:
        if name != self._name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"model {name} is not served here, {self._name} is")


def _values(tensor: pb.ModelInferRequest.InferInputTensor) -> Sequence[object]:
    if tensor.datatype == "INT64":
        return tensor.contents.int64_contents
    return [value.decode() for value in tensor.contents.bytes_contents]


def encode_request(name: str, request_id: str, columns: Mapping[str, Sequence[object]]) -> pb.ModelInferRequest:
    """Makes the request for a few impressions."""
    request = pb.ModelInferRequest(model_name=name, id=request_id)
    for column, values in columns.items():
        integers = column in _INTEGERS
        tensor = request.inputs.add(name=column, datatype="INT64" if integers else "BYTES", shape=[len(values)])
        if integers:
            tensor.contents.int64_contents.extend(int(str(value)) for value in values)
        else:
            tensor.contents.bytes_contents.extend(str(value).encode() for value in values)
    return request


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM; requests under way are finished."""
    parser = argparse.ArgumentParser(prog="python -m modelfleetd.local.model_server", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="name that requests carry: the id of the model type")
    parser.add_argument("--artifact", type=Path, required=True, help=".npz as training wrote it")
    options = parser.parse_args(argv)

    server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.so_reuseport", 0),))
    model_server = ModelServer(options.model, ClickModel.load(options.artifact))
    rpc.add_GRPCInferenceServiceServicer_to_server(model_server, server)
    if server.add_insecure_port(f"127.0.0.1:{options.port}") == 0:
        print(f"port {options.port} is in use", file=sys.stderr)
        return 1
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    stop.wait()
    server.stop(_DRAIN_SECONDS).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
