"""The Open Inference Protocol's wire contract, byte by byte: what other servers and clients of it send and expect.

Written from the published protocol; nothing here is computed from our own proto.
"""

from __future__ import annotations

import struct

from google.protobuf.descriptor import FieldDescriptor

from modelfleet.inference.v2 import open_inference_pb2 as pb

# Field numbers and types of the published protocol.
_CONTRACT = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, "string"), "version": (2, "string"), "extensions": (3, "string*")},
    "ModelMetadataRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "string*"),
        "platform": (3, "string"),
        "inputs": (4, "message*"),
        "outputs": (5, "message*"),
    },
    "ModelMetadataResponse.TensorMetadata": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*")},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "message*"),
        "inputs": (5, "message*"),
        "outputs": (6, "message*"),
        "raw_input_contents": (7, "bytes*"),
    },
    "ModelInferRequest.InferInputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64*"),
        "parameters": (4, "message*"),
        "contents": (5, "message"),
    },
    "ModelInferRequest.InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, "message*")},
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "message*"),
        "outputs": (5, "message*"),
        "raw_output_contents": (6, "bytes*"),
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64*"),
        "parameters": (4, "message*"),
        "contents": (5, "message"),
    },
    "InferParameter": {
        "bool_param": (1, "bool"),
        "int64_param": (2, "int64"),
        "string_param": (3, "string"),
        "double_param": (4, "double"),
        "uint64_param": (5, "uint64"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "bool*"),
        "int_contents": (2, "int32*"),
        "int64_contents": (3, "int64*"),
        "uint_contents": (4, "uint32*"),
        "uint64_contents": (5, "uint64*"),
        "fp32_contents": (6, "float*"),
        "fp64_contents": (7, "double*"),
        "bytes_contents": (8, "bytes*"),
    },
}
_TYPES = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_MESSAGE: "message",
}


def test_every_field_has_the_published_number_and_type() -> None:
    for name, fields in _CONTRACT.items():
        found = pb.DESCRIPTOR.message_types_by_name[name.split(".")[0]]
        for nested in name.split(".")[1:]:
            found = found.nested_types_by_name[nested]
        assert found.full_name == f"inference.{name}"
        ours = {f.name: (f.number, _TYPES[f.type] + ("*" if f.is_repeated else "")) for f in found.fields}
        assert ours == fields


def test_the_service_has_the_published_methods() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == "inference.GRPCInferenceService"
    assert [(m.name, m.input_type.name, m.output_type.name) for m in service.methods] == [
        (name, f"{name}Request", f"{name}Response")
        for name in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
    ]


def test_a_request_written_by_hand_is_read_as_it_was_meant() -> None:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    raw = struct.pack("<3f", 1.0, 2.0, -3.5)
    tensor = field(1, b"x") + field(2, b"FP32") + field(3, bytes([1, 3]))
    parameter = field(1, b"priority") + field(2, bytes([2 << 3, 7]))
    message = pb.ModelInferRequest.FromString(
        field(1, b"ranker") + field(3, b"42") + field(4, parameter) + field(5, tensor) + field(7, raw)
    )
    assert (message.model_name, message.id) == ("ranker", "42")
    assert message.parameters["priority"].int64_param == 7
    assert (message.inputs[0].name, message.inputs[0].datatype, list(message.inputs[0].shape)) == ("x", "FP32", [1, 3])
    assert struct.unpack("<3f", message.raw_input_contents[0]) == (1.0, 2.0, -3.5)
