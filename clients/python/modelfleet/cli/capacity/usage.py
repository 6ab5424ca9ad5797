"""`modelfleet capacity pool usage|history|tree`: what pools use, now and over time, and how they belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.capacity.v1 import usage_pb2
from modelfleet.cli import render
from modelfleet.cli.capacity.nouns import FLAVOR, POOL
from modelfleet.cli.parameters import DURATION, POINT, Point
from modelfleet.cli.session import Session, with_session
from modelfleet.plot import SUFFIXES, Chart, Series

_BAR = 20
_CHARTS = 6
_ALWAYS = ("FLAVOR", "REGION", "NOMINAL", "SERVING", "HELD", "RETAINED", "AVAILABLE")


def used(usage: pb.Usage) -> int:
    """What is used, in whatever account."""
    return usage.serving_units + usage.held_units + usage.retained_units


def bar(usage: pb.Usage) -> str:
    """What is used of what is owned: █ serves, ▓ is held, ░ is kept for a rollback, · is unused; │ ends the quota."""
    whole = max(usage.nominal_units, used(usage))
    if not whole:
        return ""
    cells, total = "", 0
    for units, character in (
        (usage.serving_units, "█"), (usage.held_units, "▓"), (usage.retained_units, "░"), (whole - used(usage), "·"),
    ):  # fmt: skip
        total += units
        cells += character * (round(total * _BAR / whole) - len(cells))
    end = round(usage.nominal_units * _BAR / whole)
    return f"{cells[:end]}│{cells[end:]}"


_USAGE_COLUMNS: list[render.Column] = [
    ("FLAVOR", lambda m: render.short(m.flavor)),
    ("REGION", lambda m: render.short(m.region)),
    ("NOMINAL", lambda m: str(m.nominal_units)),
    ("SERVING", lambda m: str(m.serving_units)),
    ("HELD", lambda m: str(m.held_units)),
    ("RETAINED", lambda m: str(m.retained_units)),
    ("BORROWED", lambda m: str(m.borrowed_units or "")),
    ("LOANED", lambda m: str(m.loaned_units or "")),
    ("LENT", lambda m: str(m.lent_units or "")),
    ("OVERDUE", lambda m: str(m.overdue_units or "")),
    ("AVAILABLE", lambda m: str(m.available_units)),
    ("", bar),
]


@click.command("usage")
@click.argument("name", metavar="POOL")
@with_session
def usage(session: Session, name: str) -> None:
    """Show what a pool owns, uses, borrows and has free.

    By flavor and region.
    In the bar █ serves, ▓ is in the holds of launches, ░ is kept for rollbacks, · is unused; │ is where the quota ends.
    """
    show_usages(session, session.client.capacity.get_pool(name=POOL.name(name)))


def show_usages(session: Session, found: pb.Pool) -> None:
    """Prints what a pool owns and uses, and beneath it what is odd about it."""
    columns = [(title, cell) for title, cell in _USAGE_COLUMNS if title in _ALWAYS or any(map(cell, found.usages))]
    nothing = f"{found.name} has no quota. Set one: modelfleet capacity pool update {render.short(found.name)} -f FILE"
    render.listing(session, found.usages, columns, nothing)
    if session.is_table:
        for one in found.usages:
            if message := _remark(one):
                click.echo(f"{render.short(one.flavor)} in {render.short(one.region)}: {message}")


def _remark(usage: pb.Usage) -> str:
    """What a person should know about a place; empty where nothing is odd."""
    if usage.message:
        return usage.message
    if usage.overdue_units:
        return f"{usage.overdue_units} units serve beyond what is owned and was lent: raise the quota or get a loan."
    return ""


@click.command("history")
@click.argument("name", metavar="POOL")
@click.option("--flavor", "of_flavor", default="", metavar="FLAVOR", help="Only of this flavor.")
@click.option("--region", default="", metavar="REGION", help="Only of this region.")
@click.option(
    "--since", type=POINT, default="7d", show_default=True, metavar="POINT", help="From when: how long ago, or a time."
)
@click.option("--step", type=DURATION, help="Length of a step: 5m, 1h … Default: about 200 steps.")
@click.option("--plot", "path", type=click.Path(dir_okay=False), metavar="FILE", help="Write a picture: .png or .svg.")
@with_session
def history(
    session: Session, name: str, of_flavor: str, region: str, since: Point, step: Duration | None, path: str | None
) -> None:
    """Show what a pool used over time, against its quota.

    Drawn here, or as a picture.
    Each step shows the most that was used in it, however short.
    """
    if since.time is None:
        raise click.UsageError("--since: give a time, or how long ago: 12h, 7d, 2026-11-24")
    if path and not path.lower().endswith(SUFFIXES):
        raise click.UsageError(f"--plot {path}: write a file that ends in {' or '.join(SUFFIXES)}")
    start = Timestamp()
    start.FromDatetime(since.time)
    request = usage_pb2.ListUsageHistoryRequest(
        pool=POOL.name(name),
        flavor=FLAVOR.name(of_flavor) if of_flavor else "",
        region=f"regions/{render.short(region)}" if region else "",
        start_time=start,
        step=step,
    )
    answer = session.client.capacity.list_usage_history(request)
    if not session.is_table:
        render.dump(session, render.as_data(answer))
        if not path:
            return
    series = [one for one in answer.series if one.points]
    if not series:
        click.echo("Nothing is known of that time.", err=not session.is_table)
        return
    now = datetime.now(UTC)
    if path:
        render.picture([chart(one, answer.step, _LINES, now) for one in series], path)
        return
    render.console().print(render.table(_SUMMARY, map(_summary, series)))
    # As characters few lines can be told apart.
    render.curves([chart(one, answer.step, ("used", "quota"), now) for one in series[:_CHARTS]])
    if len(series) > _CHARTS:
        click.echo(f"{len(series) - _CHARTS} more are not drawn: choose by --flavor and --region, or give --plot FILE.")


_LINES = {
    "used": "used_units",
    "serving": "serving_units",
    "held": "held_units",
    "kept for rollbacks": "retained_units",
    "quota": "nominal_units",
}
_SUMMARY = ["FLAVOR", "REGION", "STEPS", "QUOTA", "MOST USED", "OF QUOTA", "LAST STEP"]


def _summary(series: usage_pb2.UsageSeries) -> list[str]:
    last = series.points[-1]
    most = max(point.used_units for point in series.points)
    share = f"{100 * most / last.nominal_units:.0f}%" if last.nominal_units else ""
    return [
        render.short(series.flavor),
        render.short(series.region),
        *map(str, (len(series.points), last.nominal_units, most)),
        share,
        str(last.used_units),
    ]


def chart(series: usage_pb2.UsageSeries, step: Duration, shown: Collection[str], now: datetime) -> Chart:
    """The accounts of a place over time, those of `shown`, and what was owned; to the end of the last step, or now."""
    times = [point.time.ToDatetime(tzinfo=UTC).timestamp() for point in series.points]
    # The last step lasts until it ends, not only until it begins; what comes after now is not known.
    end = times[-1] + step.ToTimedelta().total_seconds()
    times.append(min(end, now.timestamp()) if now.timestamp() > times[-1] else end)
    fields = {label: field for label, field in _LINES.items() if label in shown}
    lines = {label: [getattr(point, field) for point in series.points] for label, field in fields.items()}
    # An account that is all of it would hide what is used as a whole.
    drawn = [
        Series(label, times, [*values, values[-1]], "steps")
        for label, values in lines.items()
        if label in ("used", "quota") or (any(values) and values != lines["used"])
    ]
    place = f"{render.short(series.pool)}: {render.short(series.flavor)} in {render.short(series.region)}"
    # A step shows what was only in a part of it, so it may begin before the first booking.
    title = f"{place}, the most in each step of {render.duration(step)}"
    return Chart(title, "", "units", drawn, time_x=True, zero_y=True)


@click.command("tree")
@click.argument("organisation", metavar="[POOL]", required=False, default="")
@with_session
def tree(session: Session, organisation: str) -> None:
    """Show organisations with their teams' pools.

    What each owns, uses, borrows and has free.
    """
    of = {"organisation": POOL.name(organisation)} if organisation else {}
    pools = [found for found in POOL.pages(session, **of) if isinstance(found, pb.Pool)]
    if organisation and not pools:
        # Says that there is no such pool.
        session.client.capacity.get_pool(name=POOL.name(organisation))
    below: defaultdict[str, list[pb.Pool]] = defaultdict(list)
    known = {found.name for found in pools}
    for found in pools:
        below[found.parent if found.parent in known else ""].append(found)
    if not session.is_table:
        render.dump(session, [_nested(root, below) for root in below[""]])
        return
    if not pools:
        click.echo(POOL.nothing)
        return
    render.console().print(render.table(_TREE, _lines(below[""], below)))


_TREE = ["POOL", "TEAM", "FLAVOR", "REGION", "NOMINAL", "USED", "BORROWED", "AVAILABLE", "WITH TEAMS"]


def _nested(root: pb.Pool, below: dict[str, list[pb.Pool]]) -> dict[str, Any]:
    return {**render.as_data(root), "pools": [_nested(child, below) for child in below.get(root.name, ())]}


def _lines(roots: Sequence[pb.Pool], below: dict[str, list[pb.Pool]]) -> Iterator[list[str]]:
    for root in roots:
        yield from _of_pool(root, "")
        children = below.get(root.name, [])
        for child in children:
            yield from _of_pool(child, "└─ " if child is children[-1] else "├─ ")


def _of_pool(found: pb.Pool, branch: str) -> Iterable[list[str]]:
    """The lines of a pool, one a place; its name stands in the first."""
    stem = "│" if branch.startswith("├") else ""
    name, team = branch + render.short(found.name), render.short(found.team)
    if not found.usages:
        yield [name, team, *[""] * (len(_TREE) - 2)]
    for one in found.usages:
        together = f"{one.subtree_used_units} of {one.subtree_nominal_units}" if one.subtree_nominal_units else ""
        yield [
            name, team, render.short(one.flavor), render.short(one.region), str(one.nominal_units), str(used(one)),
            str(one.borrowed_units or ""), str(one.available_units), together,
        ]  # fmt: skip
        name, team = stem, ""
