"""`launch stats`: how launches went, and what they lost their time on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import click
from google.protobuf.duration_pb2 import Duration
from rich.console import RenderableType
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.launch.told import with_session
from modelfleet.cli.parameters import POINT, Point
from modelfleet.cli.session import Session
from modelfleet.launcher.v1 import kpis_pb2 as pb

_GROUPS = {
    "team": pb.GetLaunchStatisticsRequest.TEAM,
    "surface": pb.GetLaunchStatisticsRequest.SURFACE,
    "strategy": pb.GetLaunchStatisticsRequest.STRATEGY,
    "week": pb.GetLaunchStatisticsRequest.WEEK,
}
_BAR = 16
# What a launch does on purpose: its time is not lost.
_MEANT = {"Baking"}


@click.command("stats")
@click.option("--by", type=click.Choice(list(_GROUPS)), help="Put launches together. Default: all of them.")
@click.option(
    "--since", type=POINT, default="4w", show_default=True, help="Launches that ended since then: 4w, 90d, 2026-03-01."
)
@click.option("--team", default="", help="Only of this team.")
@click.option("--surface", default="", help="Only of this surface.")
@with_session
def stats(session: Session, by: str | None, since: Point, team: str, surface: str) -> None:
    """Say how launches went: how many and how long, what they waited for, and why they were taken back."""
    if since.time is None:
        raise click.UsageError("--since must be a time or how long ago, as 4w or 2026-03-01")
    found = session.client.launcher.get_launch_statistics(
        group_by=_GROUPS[by] if by else pb.GetLaunchStatisticsRequest.GROUP_BY_UNSPECIFIED,
        team=f"teams/{render.short(team)}" if team else "",
        surface=surface,
        **since.fields("start"),
    )
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    groups = [group for group in found.statistics if group.launches]
    if not groups:
        whose = [f"teams/{render.short(team)}"] * bool(team) + [f"surface {surface}"] * bool(surface)
        of = f" of {', '.join(whose)}" if whose else ""
        click.echo(f"No launch{of} ended in {_span(found)}. Those that run: modelfleet launch list --active")
    elif by is None:
        for part in _whole(groups[0], _span(found)):
            render.console().print(part)
    else:
        if by == "week":
            groups.sort(key=lambda group: group.group)
        # What happened to no launch takes no room.
        told = [(name, cell) for name, cell in _COLUMNS if any(map(cell, groups))]
        columns: list[render.Column] = [(by.upper(), lambda m: _called(by, m.group)), *told]
        render.listing(session, groups, columns, "")


def _called(by: str, group: str) -> str:
    return group.lower().replace("_", "-") if by == "strategy" else render.short(group) or "(none)"


def _span(found: pb.GetLaunchStatisticsResponse) -> str:
    start, end = found.start_time.ToDatetime(tzinfo=UTC), found.end_time.ToDatetime(tzinfo=UTC)
    weeks, rest = divmod(round((end - start).total_seconds()), 7 * 86_400)
    recent = abs((datetime.now(UTC) - end).total_seconds()) < 60
    if weeks and rest < 60 and recent:
        return "the last week" if weeks == 1 else f"the last {weeks} weeks"
    return f"the last {render.seconds((end - start).total_seconds())}" if recent else f"{start:%F} to {end:%F}"


def _whole(found: pb.LaunchStatistics, span: str) -> Iterator[RenderableType]:
    """All launches together: a sentence, then what their time went into."""
    others = [
        f"{count:,} {word}"
        for count, word in (
            (found.rolled_back, "rolled back"),
            (found.cancelled, "cancelled"),
            (found.failed, "failed"),
        )
        if count
    ]
    launches = f"{found.launches:,} launch{'' if found.launches == 1 else 'es'} ended in {span}"
    succeeded = f"{found.succeeded:,} succeeded ({_rate(found.succeeded_per_week)} a week)"
    yield Text(f"{launches}: {', '.join([succeeded, *others])}", style="bold")
    if found.HasField("median_duration"):
        half, most = render.duration(found.median_duration), render.duration(found.p90_duration)
        yield Text(f"From creation to success: half took at most {half or '0s'}, nine of ten at most {most or '0s'}.")
    if people := render.duration(found.people_wait):
        yield Text(f"They waited {people} for people, all together.")
    total = sum(_seconds(phase.total_duration) for phase in found.phases)
    longest = max((_seconds(phase.total_duration) for phase in found.phases), default=0.0)
    yield Text("")
    yield render.table(
        ["PHASE", "TIME", "", "OF ALL", "LAUNCHES", "MEDIAN", "P90"],
        [
            [
                phase.phase,
                render.seconds(_seconds(phase.total_duration)),
                _bar(_seconds(phase.total_duration), longest),
                _share(_seconds(phase.total_duration), total),
                f"{phase.launches:,}",
                render.seconds(_seconds(phase.median_duration)),
                render.seconds(_seconds(phase.p90_duration)),
            ]
            for phase in found.phases
        ],
    )
    if found.waits:
        longest = max(_seconds(wait.total_duration) for wait in found.waits)
        yield Text("")
        yield render.table(
            ["WAITED FOR", "TIME", "", "OF ALL", "LAUNCHES", ""],
            [
                [
                    wait.cause,
                    render.seconds(_seconds(wait.total_duration)),
                    _bar(_seconds(wait.total_duration), longest),
                    _share(_seconds(wait.total_duration), total),
                    f"{wait.launches:,}",
                    "as planned" if wait.cause in _MEANT else "",
                ]
                for wait in found.waits
            ],
        )
    yield from _counts("TAKEN BACK BY", found.causes)
    yield from _counts("GATE THAT FAILED", found.failed_gates)


def _counts(title: str, counts: Sequence[pb.CauseCount]) -> Iterator[RenderableType]:
    if not counts:
        return
    most = max(count.count for count in counts)
    yield Text("")
    yield render.table(
        [title, "TIMES", ""], [[count.cause, f"{count.count:,}", _bar(count.count, most)] for count in counts]
    )


def _most(found: pb.LaunchStatistics) -> str:
    """What a group lost most time on, beside what it means to wait for."""
    lost = next((wait for wait in found.waits if wait.cause not in _MEANT), None)
    return f"{lost.cause} {render.duration(lost.total_duration)}".strip() if lost else ""


def _seconds(span: Duration) -> float:
    return span.seconds + span.nanos / 1e9


def _bar(value: float, most: float) -> str:
    """A bar as long as the value is of the largest; anything at all is a little bar."""
    full = round(_BAR * value / most) if most else 0
    return "█" * full or ("▏" if value else "")


def _share(value: float, total: float) -> str:
    return f"{value / total:.0%}" if total else ""


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _of(value: int, total: int) -> str:
    return f"{value:,} ({value / total:.0%})" if value else ""


_COLUMNS: list[render.Column] = [
    ("LAUNCHES", lambda m: f"{m.launches:,}"),
    ("SUCCEEDED", lambda m: f"{m.succeeded:,}"),
    ("A WEEK", lambda m: _rate(m.succeeded_per_week)),
    ("ROLLED BACK", lambda m: _of(m.rolled_back, m.launches)),
    ("CANCELLED", lambda m: f"{m.cancelled:,}" if m.cancelled else ""),
    ("FAILED", lambda m: f"{m.failed:,}" if m.failed else ""),
    ("MEDIAN", lambda m: render.duration(m.median_duration)),
    ("P90", lambda m: render.duration(m.p90_duration)),
    ("PEOPLE", lambda m: render.duration(m.people_wait)),
    ("WAITS MOST FOR", _most),
]
