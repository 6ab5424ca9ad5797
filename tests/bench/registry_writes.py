"""UpdateModelType of one label, with full history, beside pgbench with the same statements on the same database.

PostgreSQL runs with its default durability: every commit waits for the disk. pgbench sends the registry's own
statements (`registry/store`) with values of the same size, a revision a transaction, from as many clients as serve it
best. Both are measured in turn, and the ratio is the median of the pairs'.
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
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import grpc

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.registry.v1 import registry_pb2_grpc
from modelfleetd.kit.db import Database
from modelfleetd.kit.idempotency import KNOWN
from modelfleetd.registry.store import ledger
from tests.bench.figures import Figure
from tests.support.postgres import Postgres
from tests.support.processes import part, registry_process
from tests.support.registry_calls import request_id

_ROUNDS = 5
_SECONDS = 2
_CALLERS = 64
# What serves pgbench best is not known beforehand.
_PGBENCH_CLIENTS = (1, 4, 16)
_TYPES = 100


async def run() -> list[Figure]:
    """Measures the pairs."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder), "")
        stack.callback(postgres.stop)
        url = postgres.create()
        async with registry_process(url) as (_, address), part(__name__, address) as client:
            await client.line()
            script = Path(folder) / "write.sql"
            script.write_text(await _script(url))
            script.chmod(0o644)
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
            name="registry.writes",
            value=rate,
            unit="writes/s",
            yardstick=f"pgbench, the same statements from {best} clients, {yardstick:,.0f} transactions/s",
            ratio=statistics.median(ours / theirs for ours, theirs in pairs),
            target=0.4,
            better="higher",
        )
    ]


async def _script(url: str) -> str:
    """Returns a transaction of pgbench: what the registry sends for one write, with values as it last wrote them."""
    database = await Database.open(url, "registry")
    row = await database.fetchrow(
        """
        SELECT header, change, state, response, requests.digest AS digest, method, revisions.hash AS hash
        FROM revisions JOIN changes ON revision = revisions.number JOIN resources USING (revision), requests
        WHERE revisions.number = (SELECT number FROM head) ORDER BY requests.create_time DESC LIMIT 1
        """
    )
    # Tables of its own: the registry would not take these revisions for a history.
    tables = ("head", "revisions", "changes", "resources", "requests", "launch_outcomes")
    await database.execute(
        "CREATE SCHEMA pgbench;"
        + "".join(f"CREATE TABLE pgbench.{table} (LIKE registry.{table} INCLUDING ALL);" for table in tables)
        + """
        INSERT INTO pgbench.head SELECT * FROM registry.head;
        INSERT INTO pgbench.resources (name, kind, revision, state)
        SELECT 'modelTypes/pgbench' || number, 'model_type', 0, '' FROM generate_series(0, 99) AS number
        """
    )
    await database.close()
    assert row is not None
    value = {
        name: f"'\\x{content.hex()}'" if isinstance(content, bytes) else f"'{content}'" for name, content in row.items()
    }
    name = "('modelTypes/pgbench' || :client_id::text)"
    given = {
        1: ":number::bigint", 2: "now()", 3: value["header"], 4: value["hash"], 5: value["hash"],
        6: ":number::bigint", 7: "0", 8: name, 9: value["change"],
        12: name, 13: "'model_type'", 14: ":number::bigint", 15: value["state"],
        17: "gen_random_uuid()", 18: value["method"], 19: value["digest"], 20: value["response"],
    }  # fmt: skip

    def parameter(match: re.Match[str]) -> str:
        number = int(match[1])
        if number == 16:
            return f"jsonb_build_object({name}, :previous::bigint)"
        return f"(ARRAY[{given.get(number, '')}])"

    append = re.sub(r"\$(\d+)", parameter, ledger._APPEND)
    lock = ledger._LOCK_HEAD.replace("$1", f"'{ledger._MOST_IDLE_MS}'")
    # The number comes from the head; each client writes a resource of its own, so nobody else changes its revision.
    lock = lock.replace("SELECT number,", "SELECT number + 1 AS number,").strip()
    known = KNOWN.replace("$1", "ARRAY[gen_random_uuid()]")
    return "\n".join(
        (
            "BEGIN; SET LOCAL statement_timeout = 30000;",
            f"{_line(lock)} \\gset",
            f"{_line(known)};",
            f"SELECT revision AS previous FROM resources WHERE name = {name} \\gset",
            f"{_line(append)};",
            "COMMIT;",
        )
    )


def _line(statement: str) -> str:
    return " ".join(statement.split())


async def _pgbench(postgres: Postgres, url: str, script: Path, clients: int) -> float:
    """Returns pgbench's transactions a second."""
    parts = urlsplit(url)
    host = parse_qs(parts.query)["host"][0]
    command = [
        str(postgres.program("pgbench")), "--no-vacuum", "--protocol=prepared",
        f"--client={clients}", f"--time={_SECONDS}", f"--file={script}",
        "--host", host, "--username=postgres", parts.path.strip("/"),
    ]  # fmt: skip
    environment = {"PGOPTIONS": "-c search_path=pgbench", "LD_LIBRARY_PATH": ""}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    found = re.search(r"tps = ([\d.]+)", output)
    if found is None or "number of failed transactions: 0 " not in output:
        raise RuntimeError(output)
    return float(found[1])


async def _client(registry: str) -> None:
    async with grpc.aio.insecure_channel(registry) as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        await stub.CreateTeam(pb.CreateTeamRequest(team_id="stories", team=pb.Team(), request_id=request_id()))
        for number in range(_TYPES):
            model_type = pb.ModelType(
                purpose="Ranks the stories in the tray.",
                team="teams/stories",
                funnel_stage=pb.LATE_STAGE_RANKING,
                predictions=[pb.Prediction(id=name) for name in ("like", "comment", "follow")],
                labels={"surface": "stories", "placement": "tray"},
            )
            await stub.CreateModelType(
                pb.CreateModelTypeRequest(model_type_id=f"t{number}", model_type=model_type, request_id=request_id())
            )
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await _rate(stub)), flush=True)


async def _rate(stub: registry_pb2_grpc.RegistryServiceAsyncStub) -> float:
    start = time.perf_counter()
    end = start + _SECONDS

    async def write_again_and_again(caller: int) -> int:
        count = 0
        while time.perf_counter() < end:
            changed = pb.ModelType(
                name=f"modelTypes/t{(caller + count) % _TYPES}", labels={"site": f"{caller}-{count}"}
            )
            request = pb.UpdateModelTypeRequest(model_type=changed, request_id=request_id())
            request.update_mask.paths.append("labels.site")
            await stub.UpdateModelType(request, timeout=10)
            count += 1
        return count

    counts = await asyncio.gather(*map(write_again_and_again, range(_CALLERS)))
    return sum(counts) / (time.perf_counter() - start)


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_client(*sys.argv[1:]))
