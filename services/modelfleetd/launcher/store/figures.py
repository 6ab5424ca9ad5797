"""Figures of launches that have ended: a narrow table, so that no launch is read for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from modelfleetd.kit.db import Database, Record
from modelfleetd.launcher.domain.deadlines import NO_TIME
from modelfleetd.launcher.domain.figures import (
    MOST_GROUPS,
    Asked,
    CauseCount,
    GroupBy,
    LaunchStatistics,
    PhaseStatistics,
    WaitStatistics,
    figures_of,
)
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import State

_GROUPS: Final[Mapping[GroupBy | None, str]] = {
    None: "''",
    GroupBy.TEAM: "team",
    GroupBy.SURFACE: "surface",
    GroupBy.STRATEGY: "strategy",
    GroupBy.WEEK: "to_char(date_trunc('week', end_time AT TIME ZONE 'UTC'), 'YYYY-MM-DD')",
}
# p90 is a time that some launch took: the least that nine of ten do not exceed.
_SPREAD = """count(*) AS count, percentile_cont(0.5) WITHIN GROUP (ORDER BY {0}) AS median,
           percentile_disc(0.9) WITHIN GROUP (ORDER BY {0}) AS p90"""


def figures_row(launch: Launch) -> dict[str, Any]:
    """What is kept of a launch that has ended; times in seconds."""
    found = figures_of(launch)
    return {
        "team": launch.team,
        "surface": launch.surface,
        "strategy": launch.strategy.name,
        "duration": found.duration.total_seconds(),
        "phases": {state.name: took.total_seconds() for state, took in found.phases.items()},
        "waits": {cause: took.total_seconds() for cause, took in found.waits.items()},
        "people_wait": found.people_wait.total_seconds(),
        "cause": found.cause,
        "failed_gates": dict(found.failed_gates),
    }


def statistics_query(asked: Asked) -> tuple[str, list[object]]:
    """The statement of the figures, with its arguments: one, so that all of them are of the same launches."""
    arguments: list[object] = [asked.start, asked.end]
    where = ["end_time >= $1", "end_time < $2"]
    for column, value in (("team", asked.team), ("surface", asked.surface)):
        if value:
            arguments.append(value)
            where.append(f"{column} = ${len(arguments)}")
    return (
        f"""WITH ended AS MATERIALIZED (
    SELECT {_GROUPS[asked.group_by]} AS part, state, duration, phases, waits, people_wait, cause, failed_gates
    FROM figures WHERE {" AND ".join(where)}
), counted AS MATERIALIZED (
    SELECT ended.* FROM ended
    JOIN (SELECT part FROM ended GROUP BY part ORDER BY count(*) DESC, part LIMIT {MOST_GROUPS}) AS shown USING (part)
)
SELECT part, 'state' AS kind, state AS key, {_SPREAD.format("duration")}, sum(people_wait) AS total
FROM counted GROUP BY part, state
UNION ALL
SELECT part, 'phase', key, {_SPREAD.format("value::float8")}, sum(value::float8)
FROM counted, jsonb_each_text(phases) GROUP BY part, key
UNION ALL
SELECT part, 'wait', key, count(*), NULL, NULL, sum(value::float8)
FROM counted, jsonb_each_text(waits) GROUP BY part, key
UNION ALL
SELECT part, 'cause', cause, count(*), NULL, NULL, NULL FROM counted WHERE cause <> '' GROUP BY part, cause
UNION ALL
SELECT part, 'gate', key, sum(value::bigint)::bigint, NULL, NULL, NULL
FROM counted, jsonb_each_text(failed_gates) GROUP BY part, key""",
        arguments,
    )


class FiguresStore:
    """The side of the store that statistics use."""

    _database: Database

    async def statistics(self, asked: Asked) -> list[LaunchStatistics]:
        """The figures group by group, most launches first; without groups exactly one."""
        statement, arguments = statistics_query(asked)
        groups: dict[str, list[Record]] = {}
        for row in await self._database.fetch(statement, *arguments):
            groups.setdefault(row["part"], []).append(row)
        if asked.group_by is None and not groups:
            return [LaunchStatistics()]
        found = [_statistics(group, rows, asked.weeks) for group, rows in groups.items()]
        return sorted(found, key=lambda one: (-one.launches, one.group))


def _statistics(group: str, rows: Sequence[Record], weeks: float) -> LaunchStatistics:
    kinds: dict[str, dict[str, Record]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], {})[row["key"]] = row
    states, phases, waits = kinds["state"], kinds.get("phase", {}), kinds.get("wait", {})
    ended = {state: row["count"] for state, row in states.items()}
    succeeded = states.get(State.SUCCEEDED.name)
    return LaunchStatistics(
        group=group,
        launches=sum(ended.values()),
        succeeded=ended.get(State.SUCCEEDED.name, 0),
        rolled_back=ended.get(State.ROLLED_BACK.name, 0),
        cancelled=ended.get(State.CANCELLED.name, 0),
        failed=ended.get(State.FAILED.name, 0),
        succeeded_per_week=ended.get(State.SUCCEEDED.name, 0) / weeks,
        median_duration=_time(succeeded["median"]) if succeeded else None,
        p90_duration=_time(succeeded["p90"]) if succeeded else None,
        phases=tuple(
            PhaseStatistics(name, row["count"], _time(row["median"]), _time(row["p90"]), _time(row["total"]))
            for name, row in sorted(phases.items(), key=lambda item: State[item[0]].value)
        ),
        waits=tuple(
            WaitStatistics(cause, row["count"], _time(row["total"]))
            for cause, row in sorted(waits.items(), key=lambda item: (-item[1]["total"], item[0]))
        ),
        causes=_counts(kinds.get("cause", {}).values()),
        failed_gates=_counts(kinds.get("gate", {}).values()),
        people_wait=sum((_time(row["total"]) for row in states.values()), NO_TIME),
    )


def _counts(rows: Iterable[Record]) -> tuple[CauseCount, ...]:
    ordered = sorted(rows, key=lambda row: (-row["count"], row["key"]))
    return tuple(CauseCount(row["key"], row["count"]) for row in ordered)


def _time(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
