"""ListModels with a filter on three fields, beside GetModelType, in fleets of 1,000, 10,000 and 100,000 models.

Calls are made one at a time, a point get after each page, so that whatever else the machine does meets both. The pages
are of 100 models, and go on from page to page through all that fit. History grows with the fleet: one database, written
by the store's own statements, served by a new process for each size.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from tests.bench.figures import Figure
from tests.bench.registry_point_get import process

NAMES = ("registry.filtered_list_p99",)
_SIZES = (1_000, 10_000, 100_000)
_CALLS = 1500
_WARM_UP = 100
_PAGE = 100
_PRINCIPAL = (("x-modelfleet-principal", "alice"),)
# About half of the fleet, so that there are full pages at each size; and one that finds hardly anything, in all of it.
_WIDE = "role = RETIRED AND serving_spec.flavor != gpu{0} AND labels.site != site{1}"
_NARROW = "role = BASELINE AND serving_spec.flavor = gpu{0} AND labels.owner = person{1}"


@dataclass(frozen=True)
class Measured:
    """Seconds of calls in one fleet."""

    models: int
    point_get: float
    point_get_median: float
    page_p99: float
    page_median: float
    narrow_p99: float


async def run() -> list[Figure]:
    """Measures each size."""
    from tests.support.otlp import collector
    from tests.support.postgres import Postgres
    from tests.support.registry_rows import MODELS_A_TYPE, around, types_and_models, write

    measured = []
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder))
        stack.callback(postgres.stop)
        url = postgres.create()
        async with collector() as traces:
            await write(url, around())
            for before, models in itertools.pairwise((0, *_SIZES)):
                await write(url, types_and_models(before // MODELS_A_TYPE, models // MODELS_A_TYPE))
                async with (
                    process("serve-registry", url, traces.endpoint) as registry,
                    process("client", registry.address, str(models), module=__name__) as client,
                ):
                    measured.append(Measured(**json.loads(await client.line())))
    largest = measured[-1]
    shown = "; ".join(
        f"{each.models:,} models: page {1e3 * each.page_p99:.2f} ms (median {1e3 * each.page_median:.2f} ms), "
        f"a filter that finds little {1e3 * each.narrow_p99:.2f} ms, "
        f"point get {1e3 * each.point_get:.2f} ms (median {1e3 * each.point_get_median:.2f} ms)"
        for each in measured
    )
    return [
        Figure(
            name=NAMES[0],
            value=1e3 * largest.page_p99,
            unit="ms",
            yardstick=f"p99 of GetModelType, one call at a time, in the same run. {shown}",
            ratio=largest.page_p99 / largest.point_get,
            target=10.0,
            better="lower",
        )
    ]


async def _client(address: str, models: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = registry_pb2_grpc.RegistryServiceStub(channel)
        first = await stub.ListModelTypes(pb.ListModelTypesRequest(page_size=1), timeout=10)
        get = pb.GetModelTypeRequest(name=first.model_types[0].name)
        token, page = "", 0
        gets, pages, narrow = [], [], []
        for number in range(-_WARM_UP, _CALLS):
            variant = number // 10
            if number % 10 == 0:
                token = ""
            asked = pb.ListModelsRequest(
                parent="modelTypes/-",
                page_size=_PAGE,
                page_token=token,
                filter=_WIDE.format(variant % 6, variant % 11),
            )
            took, answer = await _timed(stub.ListModels, asked)
            token, page = answer.next_page_token, len(answer.models)
            rare = pb.ListModelsRequest(
                parent="modelTypes/-", page_size=_PAGE, filter=_NARROW.format(number % 6, number % 400)
            )
            found, _ = await _timed(stub.ListModels, rare)
            got, _ = await _timed(stub.GetModelType, get)
            if number >= 0 and page == _PAGE:
                pages.append(took)
                narrow.append(found)
                gets.append(got)
    measured = Measured(
        int(models), _p99(gets), statistics.median(gets), _p99(pages), statistics.median(pages), _p99(narrow)
    )
    print(json.dumps(vars(measured)), flush=True)


async def _timed(method: Callable[..., Awaitable[Any]], request: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = await method(request, metadata=_PRINCIPAL, timeout=10)
    return time.perf_counter() - began, answer


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_client(*sys.argv[2:]))
