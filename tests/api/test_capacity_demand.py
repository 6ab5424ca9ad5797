"""Demand as people see it: from a real Prometheus, from a file, and stated."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1.demand_pb2 import MeasuredDemand
from modelfleet.cli import main
from modelfleet.errors import FailedPrecondition, InvalidArgument, Unavailable
from modelfleet.registry.v1 import registry_pb2
from modelfleetd.capacity.prometheus import Prometheus
from modelfleetd.errors import PartUnavailable
from tests.support.capacity import CPU, CTR, EU, NEW, US, CapacityFleet, capacity_fleet
from tests.support.front_door import door
from tests.support.prometheus import prometheus

# Three days of minutes that ended two hours ago, in each region a permutation of 0 … 4319.
MINUTES = 3 * 1440
END = int(time.time()) // 60 * 60 - 7200
# The window is one of 59 s, so that each minute sees its own sample alone.
QUERY = 'sum(last_over_time(requests_per_second{type="{model_type}",dc="{region}"}[59s]))'


def samples() -> Iterator[tuple[str, float, str]]:
    for region, factor in (("eu", 7919), ("us", 3571)):
        for minute in range(MINUTES):
            value = str(minute * factor % MINUTES)
            if region == "us" and minute in (10, 11, 12):
                value = ("NaN", "+Inf", "-1")[minute - 10]
            yield f'{{type="ctr",dc="{region}",pod="a"}}', END - (MINUTES - 1 - minute) * 60, value


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a Prometheus answers."""
    with prometheus(tmp_path_factory.mktemp("prometheus"), samples()) as url:
        yield url


@pytest.fixture
async def fleet(database_url: str, source: str) -> AsyncIterator[CapacityFleet]:
    async with capacity_fleet(database_url, prometheus_url=source) as running:
        yield running


async def measure(fleet: CapacityFleet, query: str, days: int = 28, **demand: Any) -> None:
    """Has the demand of the route in eu and us measured by a query, but for what is stated."""
    how = registry_pb2.PrometheusDemand(query=query, window=Duration(seconds=days * 86400))
    source = registry_pb2.DemandSource(prometheus=how, **demand)
    wanted = registry_pb2.ModelType(name=CTR, regions=[EU, US], demand_source=source)
    await fleet.client.registry.update_model_type(
        model_type=wanted, update_mask=FieldMask(paths=["regions", "demand_source"])
    )


async def test_the_peak_is_the_quantile_of_more_minutes_than_prometheus_answers_at_a_time(fleet: CapacityFleet) -> None:
    await measure(fleet, QUERY)
    found = await fleet.client.capacity.get_demand(model_type=CTR)
    eu, us = found.regions
    # 28 days are 40,320 minutes: more than the 11,000 that Prometheus gives at a time. The quantile is that of 4,320
    # points: the 4,316th smallest.
    assert (eu.region, eu.peak_qps, eu.points, eu.quantile) == (EU, 4315.0, MINUTES, 0.999)
    assert eu.coverage == pytest.approx(MINUTES / 40_320)
    assert eu.source == MeasuredDemand.PROMETHEUS
    assert eu.detail == 'sum(last_over_time(requests_per_second{type="ctr",dc="eu"}[59s]))'
    assert (eu.time.seconds - eu.window_start_time.seconds) / 60 + 1 == 40_320
    assert "only 4,320 of 40,320 minutes are known (11%)" in eu.warning
    assert f"the newest point is of {datetime.fromtimestamp(END, UTC):%Y-%m-%d %H:%M} UTC" in eu.warning
    # What is no rate was dropped and counted.
    rates = sorted(minute * 3571 % MINUTES for minute in range(MINUTES) if minute not in (10, 11, 12))
    assert (us.points, us.peak_qps) == (MINUTES - 3, rates[math.ceil(0.999 * len(rates)) - 1])
    assert "3 samples were no rates" in us.warning


async def test_estimates_rest_on_it_and_say_so_and_stated_peaks_come_first(fleet: CapacityFleet) -> None:
    stated = [registry_pb2.RegionDemand(region=US, peak_qps=70.0, source="a guess")]
    await measure(fleet, QUERY, stated=stated, growth_basis_points=1_000)
    await fleet.client.capacity.create_certificate(certificate=pb.Certificate(model=NEW, flavor=CPU, max_qps=100.0))
    made = await fleet.client.capacity.create_estimate(estimate=pb.Estimate(model=NEW))
    peaks = {one.region: one for one in made.inputs if one.id == "peak_qps"}
    assert (peaks[EU].value, peaks[EU].source, peaks[US].value, peaks[US].source) == (4315.0, "Prometheus", 70.0, CTR)
    assert peaks[EU].HasField("time") and not peaks[US].HasField("time")
    assert [region.demand_qps for region in made.regions] == [4746.5, 77.0]
    assert [warning for warning in made.warnings if "regions/eu: only 4,320 of 40,320 minutes" in warning]
    us = (await fleet.client.capacity.get_demand(model_type=CTR)).regions[1]
    assert (us.source, us.detail, us.demand_qps) == (MeasuredDemand.STATED, "a guess", 77.0)


BAD_QUERIES = {
    'requests_per_second{type="{model_type}"} or up{region="{region}"}': "several series, such as {__name__=",
    'sum(requests_per_second{dc="{region}"': "Prometheus refuses the query: 1:32: parse error",
    'sum(requests_per_second{dc="nowhere-{region}"})': "Prometheus has no points since",
    '-1 - sum(requests_per_second{dc="{region}"})': "has no points but",
}


async def test_a_query_that_gives_no_one_series_of_rates_is_told_why(fleet: CapacityFleet) -> None:
    for query, why in BAD_QUERIES.items():
        await measure(fleet, query, days=5)
        with pytest.raises(FailedPrecondition) as refused:
            await fleet.client.capacity.get_demand(model_type=CTR)
        assert refused.value.reason == "DEMAND_UNMEASURABLE"
        assert why in refused.value.message
        assert refused.value.metadata["model_type"] == CTR


async def test_a_query_that_cannot_tell_regions_apart_is_not_taken(fleet: CapacityFleet) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await measure(fleet, "sum(requests_per_second)")
    (violation,) = refused.value.violations
    assert violation.field == "model_type.demand_source.prometheus.query"
    assert "{region}" in violation.description


async def test_a_prometheus_that_does_not_answer_is_named_and_one_that_is_not_there_is_asked_for(
    database_url: str,
) -> None:
    async with capacity_fleet(database_url, prometheus_url="http://127.0.0.1:9") as fleet:
        await measure(fleet, QUERY)
        with pytest.raises(Unavailable) as unavailable:
            await fleet.client.capacity.get_demand(model_type=CTR, timeout=5.0)
        assert unavailable.value.metadata["part"] == "Prometheus"
    async with capacity_fleet(database_url, is_new=False) as fleet:
        with pytest.raises(FailedPrecondition) as refused:
            await fleet.client.capacity.get_demand(model_type=CTR)
        assert refused.value.reason == "NOT_CONFIGURED"
        assert "--prometheus-url" in refused.value.message


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]',
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)  # fmt: skip
async def test_whatever_is_not_prometheus_is_taken_for_one_that_does_not_answer(answer: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        client = Prometheus(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(PartUnavailable):
            await client.rates("up", datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 2, tzinfo=UTC))
        await client.close()


# On the command line.

Run = Callable[..., Awaitable[str]]


@pytest.fixture
async def run(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Run]:
    """Runs a command line against a route in eu and us; gives what it printed."""
    monkeypatch.chdir(tmp_path)
    async with (
        capacity_fleet(database_url) as fleet,
        door(tmp_path, {"registry": fleet.registry.address, "capacity": fleet.capacity.address}) as address,
    ):
        both = registry_pb2.ModelType(name=CTR, regions=[EU, US])
        await fleet.client.registry.update_model_type(model_type=both)
        share = registry_pb2.FailoverShare(region=EU, share_basis_points=5_000)
        await fleet.client.registry.update_region(region=registry_pb2.Region(name=US, failover_shares=[share]))

        async def one(*arguments: str) -> str:
            capsys.readouterr()
            await asyncio.to_thread(main, ["capacity", "demand", *arguments, "--address", address])
            printed = capsys.readouterr()
            return printed.out + printed.err

        yield one


async def test_a_file_of_rates_becomes_the_stated_demand_with_its_source(run: Run, tmp_path: Path) -> None:
    newest = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    rows = [
        f"{(newest - timedelta(minutes=minute)).isoformat()},{region},{rate}\n"
        for region, rates in (("eu", range(1000)), ("us", range(0, 500, 5)))
        for minute, rate in enumerate(rates)
    ]
    (tmp_path / "rates.csv").write_text("time,region,qps\n" + "".join(rows) + "2026-01-01T00:00:00Z,eu,99999\n")
    planned = await run("import", "ctr", "rates.csv", "--quantile", "0.99", "--dry-run")
    assert "eu 686.0 989.0 rates.csv: 0.99 of 1,000 rows" in " ".join(planned.split())
    assert "nothing was changed" in planned
    assert "has no demand_source.stated for regions/us" in await run("show", "ctr")
    done = await run("import", "ctr", "rates.csv", "--quantile", "0.99")
    assert "updated modelTypes/ctr; what it makes of it: modelfleet capacity demand show ctr" in done
    shown = await run("show", "ctr")
    assert "stated: rates.csv: 0.99 of 1,000 rows, 2026-11-19 19:21 to 2026-11-20 12:00" in shown
    # When us fails, half of its 490 goes to eu and the rest nowhere.
    assert "989.0 1,234.0 us" in " ".join(shown.split())
    assert [line.split() for line in shown.splitlines() if line.startswith("us")][1] == ["us", "245.0", "-", "245.0"]
    stated = await run("state", "ctr", "us=400", "--source", "dashboard")
    assert "us 490.0 400.0 dashboard" in " ".join(stated.split())
    again = await run("show", "ctr")
    assert "stated: dashboard" in again and "989.0" in again


async def test_a_file_of_another_route_is_told_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rates.csv").write_text("time,region,qps\n2026-01-01T00:00Z,moon,1\n")
    assert "is not served in moon (it is in eu, us); leave these out" in await run("import", "ctr", "rates.csv")
    (tmp_path / "rates.csv").write_text("time,qps\n")
    assert "rates.csv, line 1: no column region" in await run("import", "ctr", "rates.csv")
    for peak in ("eu", "eu=-5", "eu=nan", "eu=inf"):
        refused = await run("state", "ctr", peak)
        assert f"'{peak}' is no peak; write REGION=QPS" in refused
        assert "STATED/S" not in refused


async def test_a_file_with_too_few_rows_for_the_quantile_is_said_to_be_doubtful(run: Run, tmp_path: Path) -> None:
    rows = "2026-01-01T00:00Z,eu,1\n2026-01-01T00:01Z,eu,2\n"
    (tmp_path / "rates.csv").write_text(f"time,region,qps\n{rows}")
    planned = await run("import", "ctr", "rates.csv", "--window", "1s", "--dry-run")
    assert "0.999 of 1 row, 2026-01-01 00:01" in planned
    assert "note: eu: the 0.999 quantile of 1 row is their maximum" in planned
    assert "note:" not in await run("import", "ctr", "rates.csv", "--quantile", "0.5", "--dry-run")


async def test_a_route_that_is_not_there_is_refused_in_the_same_words_everywhere(run: Run) -> None:
    shown, stated = await run("show", "nope"), await run("state", "nope", "eu=1")
    assert shown == stated
    assert "modelTypes/nope does not exist" in shown
