"""How labels are delayed: histograms of ages, learned hour by hour of what has matured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleetd.kit.db import Connection
from modelfleetd.stability.domain.delays import BUCKETS, HALF_LIFE_HOURS, AgeHistogram, histogram
from modelfleetd.stability.domain.exact import SCALE

_LEARN_ALONE: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended('stability delays', 0))"
_ALL_SERIES: Final = "SELECT id, model, prediction FROM series ORDER BY id"
_READ: Final = """
SELECT subject, prediction, learned_until, positives, weights FROM delays
JOIN unnest($1::text[], $2::text[]) AS given (subject, prediction) USING (subject, prediction)
"""
# A series at a time: each looks into the index for the hours that it lacks, which usually is one. Each hour fades from
# its end on, so that it does not matter when it is learned.
_READ_AGES: Final = f"""
SELECT series, age, sum(n * fading)::float8 AS n, sum(w::float8 * fading)::float8 AS w
FROM unnest($1::int[], $2::int[], $3::int[]) AS given (series, first, stop)
CROSS JOIN LATERAL (
    SELECT age, n, w, power(0.5::float8, (given.stop - 60 - minute) / {60 * HALF_LIFE_HOURS}) AS fading
    FROM positives_hour p
    WHERE p.series = given.series AND minute >= given.first AND minute < given.stop AND NOT known OFFSET 0
) AS matured GROUP BY 1, 2
"""
_WRITE: Final = """
INSERT INTO delays (subject, prediction, learned_until, positives, weights)
SELECT subject, prediction, learned_until, positives, string_to_array(weights, ' ')::float8[]
FROM unnest($1::text[], $2::text[], $3::int[], $4::float8[], $5::text[])
    AS given (subject, prediction, learned_until, positives, weights)
ON CONFLICT (subject, prediction) DO UPDATE SET learned_until = excluded.learned_until,
    positives = excluded.positives, weights = excluded.weights
"""

Subject = tuple[str, str]  # a model or a model type, and the prediction


@dataclass(frozen=True, slots=True)
class Learned:
    """The histogram of a subject, of all hours before a minute."""

    until: int
    ages: AgeHistogram


async def learn_alone(conn: Connection) -> bool:
    """Says whether no other replica learns at this moment; none does until the end of the transaction then."""
    alone: bool = await conn.fetchval(_LEARN_ALONE)
    return alone


async def all_series(conn: Connection) -> dict[int, Subject]:
    """Returns the model and the prediction of every series."""
    return {record["id"]: (record["model"], record["prediction"]) for record in await conn.fetch(_ALL_SERIES)}


async def read(conn: Connection, subjects: Sequence[Subject]) -> dict[Subject, Learned]:
    """Returns what is known of some subjects; nothing of those of which nothing is."""
    names = ([subject for subject, _ in subjects], [prediction for _, prediction in subjects])
    return {
        (record["subject"], record["prediction"]): Learned(
            record["learned_until"], histogram(record["positives"], record["weights"])
        )
        for record in await conn.fetch(_READ, *names)
    }


async def read_ages(conn: Connection, spans: Mapping[int, tuple[int, int]]) -> dict[int, AgeHistogram]:
    """Returns the ages of labels that came late, of hours from the first minute to the second of each series."""
    given = (list(spans), [first for first, _ in spans.values()], [stop for _, stop in spans.values()])
    counts: dict[int, float] = defaultdict(float)
    weights: dict[int, list[float]] = defaultdict(lambda: [0.0] * BUCKETS)
    for record in await conn.fetch(_READ_AGES, *given):
        counts[record["series"]] += record["n"]
        weights[record["series"]][record["age"]] += record["w"] / SCALE
    return {number: AgeHistogram(count, tuple(weights[number])) for number, count in counts.items()}


async def write(conn: Connection, found: Mapping[Subject, Learned]) -> None:
    """Keeps histograms."""
    columns = (
        [subject for subject, _ in found],
        [prediction for _, prediction in found],
        [each.until for each in found.values()],
        [each.ages.positives for each in found.values()],
        [" ".join(map(repr, each.ages.weights)) for each in found.values()],
    )
    await conn.execute(_WRITE, *columns)
