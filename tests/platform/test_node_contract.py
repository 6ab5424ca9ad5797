"""Every method of the node agent: who may call it, and what bad input is told. Made from the descriptors."""

from __future__ import annotations

import random

import grpc
import grpc.aio

from modelfleet.common.v1 import permission_pb2
from tests.support.contracts import arbitrary, name_fields, refused, required_fields, rpcs
from tests.support.node import Node

VIEWER, SERVICE = permission_pb2.VIEWER, permission_pb2.SERVICE


async def test_only_services_act_on_a_platform(node: Node) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        for rpc in rpcs("platform"):
            stranger = await refused(rpc, channel, rpc.request(), "alice")
            denied = stranger is not None and stranger.code is grpc.StatusCode.PERMISSION_DENIED
            assert denied == (VIEWER not in rpc.roles), f"{rpc.name}: {stranger}"
            assert stranger is None or stranger.reason in {"ROLE_MISSING", "INVALID_FIELDS"}
            service = await refused(rpc, channel, rpc.request(), "service/launcher")
            assert service is None or service.code is not grpc.StatusCode.PERMISSION_DENIED, f"{rpc.name}: {service}"
            assert rpc.roles & {VIEWER, SERVICE}


async def test_bad_input_is_told_what_is_wrong_and_changes_nothing(node: Node) -> None:
    chance = random.Random(20_261)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        for rpc in rpcs("platform"):
            required = required_fields(rpc)
            empty = await refused(rpc, channel, rpc.request())
            assert (empty is not None) == bool(required), f"{rpc.name}: {empty}"
            if empty is not None:
                assert empty.code is grpc.StatusCode.INVALID_ARGUMENT and empty.reason == "INVALID_FIELDS"
                assert set(required) <= {path.split(".")[0] for path in empty.paths}, f"{rpc.name}: {empty.paths}"
            for descriptor, _ in name_fields(rpc):
                malformed = await refused(rpc, channel, rpc.request(**{descriptor.name: "Not A Name"}))
                assert malformed is not None and "/" in malformed.paths[descriptor.name], f"{rpc.name}: {malformed}"
            for _ in range(30):
                request = arbitrary(rpc.request(), chance)
                found = await refused(rpc, channel, request)
                if found is not None:
                    assert found.reason not in {"INTERNAL_ERROR", "METHOD_UNKNOWN"}, f"{rpc.name}({request}): {found}"
    assert (await node.platform.effects()).effects == ()
