"""CreateReservation on one hot pool, over gRPC, beside pgbench with the same statements on the same database.

PostgreSQL runs with its default durability: every commit waits for the disk. The statements are those that capacity was
seen to send for one reservation, each value as it was sent, but for what must differ from one reservation to the next.
pgbench runs them from as many clients as serve it best; like capacity, it has one pool, whose rows are locked until the
commit. Both are measured in turn, and the ratio is the median of the pairs'.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import capacity_pb2_grpc
from modelfleetd.capacity.admissions import Admissions
from modelfleetd.capacity.domain.pool import Flavor, Pool, Quota
from modelfleetd.capacity.domain.reservation import Asked, HoldItem
from modelfleetd.capacity.store import flavors, pools
from modelfleetd.kit.db import Connection, Database
from tests.bench.figures import Figure
from tests.support.postgres import Postgres
from tests.support.processes import capacity_process, part, registry_process
from tests.support.registry_calls import request_id
from tests.support.reservations import arrival

_ROUNDS = 5
_SECONDS = 2
_CALLERS = 64
# What serves pgbench best is not known beforehand.
_PGBENCH_CLIENTS = (1, 4, 16)
_CPU, _EU = "flavors/cpu", "regions/eu"
_HOT, _YARDSTICK = "pools/hot", "pools/yardstick"
_UNITS = 10**11


async def run() -> list[Figure]:
    """Measures the pairs."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder), "")
        stack.callback(postgres.stop)
        url = postgres.create()
        script = Path(folder) / "reserve.sql"
        script.write_text(await _script(url))
        script.chmod(0o644)
        async with (
            registry_process(url) as (_, registry),
            capacity_process(url, registry) as (_, address),
            part(__name__, address) as client,
        ):
            await client.line()
            tried = {count: await _pgbench(postgres, url, script, count) for count in _PGBENCH_CLIENTS}
            best = max(tried, key=lambda count: tried[count])
            pairs = []
            for _ in range(_ROUNDS):
                yardstick = await _pgbench(postgres, url, script, best)
                client.send("go")
                pairs.append((json.loads(await client.line()), yardstick))
    rate = statistics.median(ours for ours, _ in pairs)
    yardstick = statistics.median(theirs for _, theirs in pairs)
    return [
        Figure(
            name="capacity.reserve",
            value=rate,
            unit="reservations/s",
            yardstick=f"pgbench, the same statements from {best} clients, {yardstick:,.0f} transactions/s",
            ratio=statistics.median(ours / theirs for ours, theirs in pairs),
            target=0.5,
            better="higher",
        )
    ]


def _asked(pool: str, launch: str) -> Asked:
    return Asked(pool, f"launches/{launch}", (HoldItem(_CPU, _EU, 2, end_units=1),))


@dataclass
class _Seen:
    """A connection that takes note of what is sent over it."""

    conn: Any
    sent: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.conn, name)

        async def noted(query: str, *args: object, **options: Any) -> Any:
            self.sent.append((query, args))
            return await call(query, *args, **options)

        return noted


class _Watched(Database):
    """A database whose transactions are taken note of."""

    sent: list[tuple[str, tuple[object, ...]]]

    async def run(self, work: Any, *, isolation: str | None = None, attempts: int = 5) -> Any:
        async def seen(conn: Connection) -> Any:
            noted = _Seen(conn)
            result = await work(noted)
            self.sent = noted.sent
            return result

        return await super().run(seen, isolation=isolation, attempts=attempts)


async def _script(url: str) -> str:
    """Makes the pools, and returns a transaction of pgbench: what capacity sends for one reservation."""
    database = await _Watched.open(url, "capacity")
    async with database.transaction() as conn:
        await flavors.insert(conn, Flavor(_CPU, "", 1.0))
        for pool in (_HOT, _YARDSTICK):
            await pools.insert(conn, Pool(pool, "teams/feed", None, (Quota(_CPU, _EU, _UNITS),)))
    asked = arrival(_asked(_YARDSTICK, "l0"))
    await Admissions(database).reserve(asked)
    own = {asked.request.request_id, asked.name.removeprefix("reservations/"), "launches/l0"}
    await database.close()
    statements = [_rendered(query, args, own) for query, args in database.sent]
    return "\n".join(
        (
            "\\set id random(1, 1000000000000000)",
            "BEGIN; SET LOCAL statement_timeout = 30000;",
            *(f"{statement};" for statement in statements),
            "COMMIT;",
        )
    )


def _rendered(query: str, args: Sequence[object], own: set[str]) -> str:
    text = re.sub(r"--.*", "", query)
    return " ".join(re.sub(r"\$(\d+)", lambda found: _literal(args[int(found[1]) - 1], own), text).split())


def _literal(value: object, own: set[str]) -> str:
    """A value as SQL has it; what is this reservation's own is drawn anew for each transaction."""
    if isinstance(value, list):
        return f"ARRAY[{', '.join(_literal(one, own) for one in value)}]" if value else "'{}'"
    if value is None:
        return "NULL"
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'::bytea"
    if isinstance(value, timedelta | datetime):
        return f"'{value}'"
    assert isinstance(value, str)
    if re.fullmatch(r"[0-9a-f]{8}-[0-9a-f-]{27}", value):
        return "(md5(:id::text)::uuid)"
    if any(name in value for name in own):
        return f"('{value.rpartition('/')[0]}/x' || :id::text)"
    return f"'{value}'"


async def _pgbench(postgres: Postgres, url: str, script: Path, clients: int) -> float:
    """Returns pgbench's transactions a second."""
    parts = urlsplit(url)
    host = parse_qs(parts.query)["host"][0]
    command = [
        str(postgres.program("pgbench")), "--no-vacuum", "--protocol=prepared",
        f"--client={clients}", f"--time={_SECONDS}", f"--file={script}",
        "--host", host, "--username=postgres", parts.path.strip("/"),
    ]  # fmt: skip
    environment = {"PGOPTIONS": "-c search_path=capacity", "LD_LIBRARY_PATH": ""}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    found = re.search(r"tps = ([\d.]+)", output)
    if found is None or "number of failed transactions: 0 " not in output:
        raise RuntimeError(output)
    return float(found[1])


async def _client(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = capacity_pb2_grpc.CapacityServiceStub(channel)
        print("ready", flush=True)
        calls = 0
        while await asyncio.to_thread(sys.stdin.readline):
            count, seconds = await _reserve(stub, calls)
            calls += count
            print(json.dumps(count / seconds), flush=True)


async def _reserve(stub: capacity_pb2_grpc.CapacityServiceAsyncStub, before: int) -> tuple[int, float]:
    start = time.perf_counter()
    end = start + _SECONDS

    async def reserve_again_and_again(caller: int) -> int:
        count = 0
        while time.perf_counter() < end:
            wanted = pb.Reservation(pool=_HOT, launch=f"launches/l{before}-{caller}-{count}")
            wanted.items.add(flavor=_CPU, region=_EU, hold_units=2, end_units=1)
            made = await stub.CreateReservation(
                pb.CreateReservationRequest(reservation=wanted, request_id=request_id()), timeout=10
            )
            assert made.state == pb.Reservation.HELD
            count += 1
        return count

    counts = await asyncio.gather(*map(reserve_again_and_again, range(_CALLERS)))
    return sum(counts), time.perf_counter() - start


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_client(*sys.argv[1:]))
