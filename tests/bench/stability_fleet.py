"""The evaluation of 1,000 models × 3 predictions each minute: CPU seconds of a round, PostgreSQL's included.

The service runs in this process on a clock of its own, the registry in another one. The tables hold hours of
statistics of realistic volumes (0.2 to 200 positives a minute, log-spread; base rates of 0.1 % to 30 %; labels delayed
within attribution windows of 15 min, 1 h and 6 h), and between rounds comes what a minute brings: a new minute of
examples, and labels of the older ones. What the writing itself costs is measured elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from google.protobuf.duration_pb2 import Duration

from modelfleet import AsyncClient
from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleetd.clock import ManualClock
from modelfleetd.kit.codec import timestamp_to_proto
from modelfleetd.kit.db import Database
from modelfleetd.stability.app import build
from modelfleetd.stability.domain.delays import BUCKETS
from modelfleetd.stability.domain.maturity import AGE_BOUNDS, MINUTE_MICROS, minute_of, moment_of
from modelfleetd.stability.store import slices
from modelfleetd.stability.store.copying import copy_rows
from modelfleetd.stability.store.partitions import Partitions
from tests.bench.figures import Figure
from tests.support.postgres import Postgres
from tests.support.processes import registry_process
from tests.support.servers import running
from tests.support.stability import NOW
from tests.support.wait import until

NAMES = ("stability.evaluate_fleet_cpu_seconds",)
_MODELS: Final = int(os.environ.get("STABILITY_BENCH_MODELS", "1000"))
# Attribution windows in minutes, of the three predictions of each model.
_WINDOWS: Final = (15, 60, 360)
_HOURS: Final = 10
# Of the newest minutes there are rows by minute.
_BY_MINUTE: Final = 15
_STEP: Final = 5
# CPU seconds in a quarter of a second, of a service that has nothing to do.
_REST: Final = 0.02
_ROUNDS: Final = 5
_TARGET: Final = 5.0
_APPLIED: Final = 400

Matrix = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Series:
    """What comes of each series, by its number."""

    number: Matrix
    window: Matrix  # minutes
    examples: npt.NDArray[np.float64]  # a minute
    base_rate: npt.NDArray[np.float64]
    ages: npt.NDArray[np.float64]  # share of the labels by bucket of age


async def run() -> list[Figure]:
    """Fills the tables, and lets minute after minute begin."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder, contextlib.ExitStack() as stack:
        postgres = await asyncio.to_thread(Postgres, Path(folder))
        stack.callback(postgres.stop)
        url = postgres.create()
        clock = ManualClock(NOW)
        async with registry_process(postgres.create()) as (_, address), _at(address) as registry:
            models = await _register(registry)
            database = await Database.open(url, "stability", max_size=1)
            series = await _series(database, models)
            rng = np.random.default_rng(6)
            await _fill(database, series, rng)
            async with running("stability", build, url, clock=clock, registry_address=address):
                first = await _round(database, clock, postgres)
                taken = []
                for number in range(_ROUNDS):
                    await _next_minute(database, series, rng, minute_of(clock.now()))
                    await _report(registry, models, clock, number + 1)
                    taken.append(await _round(database, clock, postgres))
            rows = await database.fetchrow(
                "SELECT (SELECT count(*) FROM exposure) AS exposure, (SELECT count(*) FROM positives) AS positives"
            )
            await database.close()
    assert rows is not None
    process, server = (statistics.median(each[place] for each in taken) for place in (0, 1))
    return [
        Figure(
            name="stability.evaluate_fleet_cpu_seconds",
            value=process + server,
            unit="s",
            yardstick=f"{len(models):,} models × {len(_WINDOWS)} predictions, median of {_ROUNDS} rounds: the service "
            f"{process:.2f} s, PostgreSQL {server:.2f} s; {rows['exposure'] / 1e6:.1f} million rows of exposure and "
            f"{rows['positives'] / 1e6:.1f} million of positives; the first round, with nothing in memory, "
            f"{sum(first):.1f} s",
            target=_TARGET,
            better="lower",
        )
    ]


@contextlib.asynccontextmanager
async def _at(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient("127.0.0.1:1", registry=address) as client:
        yield client


async def _register(client: AsyncClient) -> list[str]:
    """Registers model types with one model each that serves; returns the models."""
    await client.registry.create_team(team_id="feed", team=registry_pb2.Team())
    await client.registry.create_region(region_id="eu", region=registry_pb2.Region(agent_address="127.0.0.1:1"))
    volume, ne = monitoring_pb2.HealthyRange.VOLUME, monitoring_pb2.HealthyRange.NE
    predictions = [
        registry_pb2.Prediction(id=f"p{window}", attribution_window=Duration(seconds=60 * window))
        for window in _WINDOWS
    ]
    ranges = [
        monitoring_pb2.HealthyRange(prediction=prediction.id, metric=metric, low=low, high=high)
        for prediction in predictions
        for metric, low, high in ((volume, 1.0, 1e9), (ne, 0.5, 1.2))
    ]
    spec = serving_pb2.ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
    models: list[str] = []
    changes: list[registry_pb2.EntryChange] = []
    for index in range(_MODELS):
        name = f"modelTypes/ranker{index}"
        model = f"{name}/models/main"
        share = serving_pb2.ModelShare(model=model, share_basis_points=10_000)
        changes += [
            registry_pb2.EntryChange(
                model_type=registry_pb2.ModelType(
                    name=name,
                    team="teams/feed",
                    regions=["regions/eu"],
                    predictions=predictions,
                    healthy_ranges=ranges,
                    baseline=model,
                    splits=[serving_pb2.RegionSplit(region="regions/eu", shares=[share])],
                )
            ),
            registry_pb2.EntryChange(
                model=registry_pb2.Model(name=model, serving_spec=spec, role=registry_pb2.Model.BASELINE)
            ),
        ]
        models.append(model)
        if len(changes) >= _APPLIED or index == _MODELS - 1:
            await client.registry.apply_entries(changes=changes, adopt_serving=True, timeout=60)
            changes = []
    return models


async def _series(database: Database, models: list[str]) -> Series:
    """Makes the series."""
    pairs = [(model, f"p{window}", window) for model in models for window in _WINDOWS]
    await database.execute(
        "INSERT INTO series (model, prediction) SELECT * FROM unnest($1::text[], $2::text[])",
        [model for model, _, _ in pairs],
        [prediction for _, prediction, _ in pairs],
    )
    rows = await database.fetch("SELECT id, model, prediction FROM series")
    numbers = {(row["model"], row["prediction"]): row["id"] for row in rows}
    rng = np.random.default_rng(7)
    positives = np.exp(rng.uniform(np.log(0.2), np.log(200), len(pairs)))
    base_rate = np.exp(rng.uniform(np.log(1e-3), np.log(0.3), len(pairs)))
    windows = np.array([window for _, _, window in pairs])
    return Series(
        np.array([numbers[model, prediction] for model, prediction, _ in pairs]),
        windows,
        positives / base_rate,
        base_rate,
        np.stack([_ages(window) for window in windows.tolist()]),
    )


def _ages(window: int) -> npt.NDArray[np.float64]:
    """Returns the share of the labels in each bucket of age: most of them come early, all within the window."""
    found: npt.NDArray[np.float64] = np.diff(
        _share_by(np.concatenate(([0.0], AGE_BOUNDS / MINUTE_MICROS, [np.inf])), window)
    )
    return found


def _share_by(ages: npt.NDArray[np.floating[Any]], window: int) -> npt.NDArray[np.float64]:
    """Returns the share of the labels that have come by each age in minutes."""
    found: npt.NDArray[np.float64] = np.log1p(np.minimum(ages, window) * 8 / window) / np.log(9)
    return found


async def _fill(database: Database, series: Series, rng: np.random.Generator) -> None:
    """Writes hours of statistics, as far as their labels have come by now: by 5 minutes, the newest also by minute.

    Older rows by minute are of no use to an evaluation, and millions of them would take longer than all the rest.
    """
    now = minute_of(NOW)
    await Partitions(database).make(NOW, now - _HOURS * 60 - 60)
    steps = np.arange(now - _HOURS * 60, now - _BY_MINUTE, _STEP)
    examples = rng.poisson(_STEP * series.examples[:, np.newaxis], (len(series.number), len(steps)))
    ages = now - steps - _STEP / 2
    came = np.stack([_share_by(ages, window) for window in series.window.tolist()])
    positives = rng.binomial(rng.binomial(examples, series.base_rate[:, np.newaxis]), came)
    await _add_totals(database, series, steps, examples, positives)
    minutes = np.arange(now - _BY_MINUTE, now)
    examples = rng.poisson(series.examples[:, np.newaxis], (len(series.number), len(minutes)))
    by_age = rng.multinomial(rng.binomial(examples, series.base_rate[:, np.newaxis]), series.ages[:, np.newaxis, :])
    begins = np.concatenate(([0.0], AGE_BOUNDS / MINUTE_MICROS))
    by_age[:, (now - minutes)[:, np.newaxis] <= begins] = 0
    await _add(database, series, minutes, examples, by_age)
    # What labels' delays are was learned.
    weights = [" ".join(map(repr, row)) for row in (1e4 * series.ages).tolist()]
    await database.execute(
        "INSERT INTO delays (subject, prediction, learned_until, positives, weights) "
        "SELECT model, prediction, $3, 1e4, string_to_array(weights, ' ')::float8[] "
        "FROM unnest($1::int[], $2::text[]) AS given (id, weights) JOIN series USING (id)",
        series.number.tolist(),
        weights,
        now - 600,
    )
    async with database.connection() as conn:
        await conn.execute("VACUUM (ANALYZE) exposure, positives, totals_5min", timeout=60)
        await conn.execute("CHECKPOINT", timeout=60)


async def _next_minute(database: Database, series: Series, rng: np.random.Generator, minute: int) -> None:
    """Writes what a minute brings: its examples, and labels of the minutes before it."""
    minutes = np.arange(minute - max(_WINDOWS), minute + 1)
    examples = np.zeros((len(series.number), len(minutes)), dtype=np.int64)
    examples[:, -1] = rng.poisson(series.examples)
    edges = np.concatenate(([0.0], AGE_BOUNDS / MINUTE_MICROS, [np.inf]))
    age = np.searchsorted(edges, minute - minutes, side="right") - 1
    # Evenly over each bucket.
    width = np.minimum(edges[age + 1], max(_WINDOWS)) - edges[age]
    share = series.ages[:, age] / np.maximum(width, 1.0)
    came = rng.poisson((series.examples * series.base_rate)[:, np.newaxis] * share)
    by_age = np.zeros((*came.shape, BUCKETS), dtype=np.int64)
    by_age[:, np.arange(len(minutes)), age] = came
    await _add(database, series, minutes, examples, by_age)


_ADD = """
CREATE TEMPORARY TABLE added_exposure ON COMMIT DROP AS
SELECT series, minute, n, n * unit AS w, np, floor(np * p) AS npp FROM (
    SELECT *, floor(n * p * 1099511627776)::numeric AS np, 1099511627776::numeric AS unit FROM new_exposure
) AS given;
CREATE TEMPORARY TABLE added_positives ON COMMIT DROP AS
SELECT series, minute, age, n, n * unit AS w, nl, floor(nl * l) AS nll FROM (
    SELECT *, floor(n * l * 1099511627776)::numeric AS nl, 1099511627776::numeric AS unit FROM new_positives
) AS given;
INSERT INTO exposure AS kept (series, minute, known, seen, n, w, w2, wp, w2pq, wl, w2l, w2l2)
SELECT series, minute, false, n, n, w, w, np, np, np, np, npp FROM added_exposure;
INSERT INTO positives AS kept (series, minute, known, age, n, w, w2, w2l1, wl, w2l, w2l2)
SELECT series, minute, false, age, n, w, w, nl, nl, nl, nll FROM added_positives
ON CONFLICT (series, minute, known, age) DO UPDATE SET n = kept.n + excluded.n, w = kept.w + excluded.w,
    w2 = kept.w2 + excluded.w2, w2l1 = kept.w2l1 + excluded.w2l1, wl = kept.wl + excluded.wl,
    w2l = kept.w2l + excluded.w2l, w2l2 = kept.w2l2 + excluded.w2l2;
INSERT INTO totals_5min AS kept (series, minute, known, seen, n, w, w2, wp, w2pq, wl, w2l, w2l2, rejected,
    malformed, p_n, p_w, p_w2, p_w2l1, p_wl, p_w2l, p_w2l2)
SELECT series, minute / 5 * 5, false, sum(n), sum(n), sum(w), sum(w), sum(np), sum(np), sum(np), sum(np), sum(npp), 0,
       0, sum(k), sum(kw), sum(kw), sum(kl), sum(kl), sum(kl), sum(kll)
FROM (SELECT series, minute, n, w, np, npp, 0 AS k, 0 AS kw, 0 AS kl, 0 AS kll FROM added_exposure
      UNION ALL SELECT series, minute, 0, 0, 0, 0, n, w, nl, nll FROM added_positives) AS new GROUP BY 1, 2
ON CONFLICT (series, minute, known) DO UPDATE SET seen = kept.seen + excluded.seen, n = kept.n + excluded.n,
    w = kept.w + excluded.w, w2 = kept.w2 + excluded.w2, wp = kept.wp + excluded.wp, w2pq = kept.w2pq + excluded.w2pq,
    wl = kept.wl + excluded.wl, w2l = kept.w2l + excluded.w2l, w2l2 = kept.w2l2 + excluded.w2l2,
    p_n = kept.p_n + excluded.p_n, p_w = kept.p_w + excluded.p_w, p_w2 = kept.p_w2 + excluded.p_w2,
    p_w2l1 = kept.p_w2l1 + excluded.p_w2l1, p_wl = kept.p_wl + excluded.p_wl, p_w2l = kept.p_w2l + excluded.p_w2l,
    p_w2l2 = kept.p_w2l2 + excluded.p_w2l2;
DROP TABLE new_exposure, new_positives
"""


async def _add(database: Database, series: Series, minutes: Matrix, examples: Matrix, by_age: Matrix) -> None:
    """Adds examples (series × minutes) and positives (… × buckets of age) to the tables."""
    row, column = np.nonzero(examples)
    place, minute, age = np.nonzero(by_age)
    counted = examples[row, column]
    exposure: dict[str, tuple[str, npt.NDArray[Any]]] = {
        "series": (">i4", series.number[row]),
        "minute": (">i4", minutes[column]),
        "n": (">i8", counted),
        "p": (">f8", series.base_rate[row]),
    }
    positives: dict[str, tuple[str, npt.NDArray[Any]]] = {
        "series": (">i4", series.number[place]),
        "minute": (">i4", minutes[minute]),
        "age": (">i2", age),
        "n": (">i8", by_age[place, minute, age]),
        "l": (">f8", -np.log(series.base_rate[place])),
    }
    async with database.transaction() as conn:
        await conn.execute("CREATE TEMPORARY TABLE new_exposure (series int, minute int, n bigint, p float8)")
        await conn.execute(
            "CREATE TEMPORARY TABLE new_positives (series int, minute int, age smallint, n bigint, l float8)"
        )
        await copy_rows(conn, "new_exposure", exposure)
        await copy_rows(conn, "new_positives", positives)
        await conn.execute("SET LOCAL statement_timeout = '600s'")
        await conn.execute(_ADD, timeout=600)


_ADD_TOTALS = """
INSERT INTO totals_5min (series, minute, known, seen, n, w, w2, wp, w2pq, wl, w2l, w2l2, rejected, malformed, p_n, p_w,
    p_w2, p_w2l1, p_wl, p_w2l, p_w2l2)
SELECT series, minute, false, n, n, n * unit, n * unit, np, np, np, np, floor(np * p), 0, 0, k, k * unit, k * unit,
       kl, kl, kl, floor(kl * -ln(p))
FROM (SELECT series, minute, n, k, p, 1099511627776::numeric AS unit, (n * p * 1099511627776)::bigint AS np,
             (k * -ln(p) * 1099511627776)::bigint AS kl FROM new_totals) AS given;
DROP TABLE new_totals
"""


async def _add_totals(database: Database, series: Series, steps: Matrix, examples: Matrix, positives: Matrix) -> None:
    """Adds examples and positives (series × steps) to the rows by 5 minutes."""
    row, column = np.nonzero(examples)
    totals: dict[str, tuple[str, npt.NDArray[Any]]] = {
        "series": (">i4", series.number[row]),
        "minute": (">i4", steps[column]),
        "n": (">i8", examples[row, column]),
        "k": (">i8", positives[row, column]),
        "p": (">f8", series.base_rate[row]),
    }
    async with database.transaction() as conn:
        await conn.execute("CREATE TEMPORARY TABLE new_totals (series int, minute int, n bigint, k bigint, p float8)")
        await copy_rows(conn, "new_totals", totals)
        await conn.execute("SET LOCAL statement_timeout = '60s'")
        await conn.execute(_ADD_TOTALS, timeout=60)


async def _report(client: AsyncClient, models: list[str], clock: ManualClock, minute: int) -> None:
    """Reports what each model served until now."""
    by_type: dict[str, list[registry_pb2.ModelServing]] = {}
    for model in models:
        serving = registry_pb2.ModelServing(model=model, requests=6000 * minute, errors=minute, latency_p99_ms=20)
        by_type.setdefault(model.partition("/models/")[0], []).append(serving)
    now = timestamp_to_proto(clock.now())
    statuses = [
        registry_pb2.ServingStatus(model_type=name, region="regions/eu", models=serving, observe_time=now)
        for name, serving in by_type.items()
    ]
    await client.registry.report_serving(statuses=statuses, timeout=30)


async def _round(database: Database, clock: ManualClock, postgres: Postgres) -> tuple[float, float]:
    """Lets a minute begin; returns the CPU seconds of the service and of PostgreSQL for all that it brings.

    What is asked meanwhile costs next to nothing; a roll-up of the fleet would cost as much as the evaluation.
    """
    clock.set(clock.monotonic() + 60)
    wanted = moment_of(minute_of(clock.now()))
    before = time.process_time(), postgres.cpu_seconds()

    async def is_evaluated() -> bool:
        await clock.advance(1 if clock.now() < wanted + timedelta(seconds=50) else 0)
        return await slices.newest_minute(database) == minute_of(wanted)

    used = time.process_time()

    async def is_at_rest() -> bool:
        """After the evaluation come the alerts."""
        nonlocal used
        before, used = used, time.process_time()
        return used - before < _REST

    await until(is_evaluated, timeout=120, every=0.25)
    await until(is_at_rest, timeout=30, every=0.25)
    return time.process_time() - before[0], postgres.cpu_seconds() - before[1]
