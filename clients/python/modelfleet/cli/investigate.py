"""`modelfleet investigate`: everything about one model on one screen, for somebody who has never heard of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NoReturn

import click
from google.protobuf.duration_pb2 import Duration
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelfleet.asking import Unknown
from modelfleet.cli import render
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.registry import describe_change
from modelfleet.cli.session import Session, with_session
from modelfleet.cli.stability import standing_view as view
from modelfleet.cli.stability.show import figure
from modelfleet.incidents import Kind, Problem
from modelfleet.investigate import Investigation, Neighbours, investigate, plain
from modelfleet.lookup import Ambiguous, NothingFound, described, typed
from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import stability_pb2
from modelfleet.wording import short_model

# What a screen has room for; `-o json` has all of it.
_PROBLEMS, _ALERTS, _REGIONS, _PREDICTIONS, _CHANGES, _FINDINGS = 6, 3, 6, 6, 4, 3
_METRICS = 6
# What stands before each part.
_LABELS = 12
_INDENT = (0, 0, 0, 2)
_WORST_FIRST = (
    stability_pb2.ModelStability.UNSTABLE,
    stability_pb2.ModelStability.UNKNOWN,
    stability_pb2.ModelStability.STABLE,
    stability_pb2.ModelStability.NOT_APPLICABLE,
)
# "Irrelevant" tells what it does to the product; to whoever is woken by it, it would read as "ignore it".
_IN_WORDS = {Kind.IRRELEVANT: "unstable"}
_HARMFUL = {Kind.UNAVAILABLE, Kind.FAILING, Kind.LAUNCH_FAILED, Kind.IRRELEVANT}


@click.command("investigate")
@click.argument("query", metavar="MODEL")
@click.option(
    "--within",
    type=DURATION,
    default="250ms",
    show_default=True,
    help="How long to wait for the services. What is not there by then is shown as unknown.",
)
@with_session
def group(session: Session, query: str, within: Duration) -> None:
    """Show everything about a model: what is wrong, what to do, whom to page, and what it stands in.

    MODEL is TYPE/MODEL, or TYPE for its baseline, a full name or a part of one, the URI of an asset, or the address of
    an endpoint.
    """
    found = asyncio.run(_investigate(session, query, within.ToTimedelta().total_seconds()))
    if not session.is_table:
        render.dump(session, found.as_data())
        return
    for part in screen(found):
        render.console().print(part)


async def _investigate(session: Session, query: str, within: float) -> Investigation:
    # Once each: a service that is away is to be seen at once.
    async with session.client.for_asyncio(attempts=1) as client:
        try:
            return await investigate(client, query, within=within)
        except NothingFound as nothing:
            raise click.ClickException(str(nothing)) from None
        except Ambiguous as several:
            refuse_ambiguous(session, several, "investigate")


def refuse_ambiguous(session: Session, several: Ambiguous, command: str) -> NoReturn:
    """Lists what fits and asks for one of them; the exit status is 1.

    Args:
        session: of the command.
        several: what fits.
        command: to type again, with one of them.
    """
    if not session.is_table:
        render.dump(session, {"query": several.query, "matches": plain(several.matches), "more": several.truncated})
        raise click.exceptions.Exit(1)
    rows = [[typed(match), described(match)] for match in several.matches]
    render.console().print(render.table(["ENTRY", "FITS BY"], rows))
    raise click.ClickException(f"{several}; say which: modelfleet {command} {typed(several.matches[0])}")


def screen(found: Investigation) -> Iterator[RenderableType]:
    """The screen, the most important first."""
    yield from _head(found)
    yield Text("")
    yield from _wrong(found)
    yield from _to_do(found)
    yield Text("")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, part in _parts(found):
        grid.add_row(label, _unknown(part) if isinstance(part, Unknown) else part)
    yield grid


def _head(found: Investigation) -> Iterator[RenderableType]:
    name = short_model(found.model or found.model_type)
    head = Text.assemble((name, "bold"), "  ", (found.role or ("" if found.model else "no baseline"), "bold"))
    if isinstance(found.criticality, Unknown):
        yield head
        yield Text.assemble("what it is: ", _unknown(found.criticality))
        return
    tier, critical = found.criticality.counted, found.criticality
    stated = critical.own or critical.required
    head.append(f"  {tier if stated else 'no tier'}", "bold red" if stated and tier in ("TIER0", "TIER1") else "bold")
    if critical.overdue:
        head.append("  overdue", "bold red")
    yield head
    if isinstance(found.type, Unknown):
        return
    yield Text(found.type.purpose or "Nobody has written down what it is for.", overflow="ellipsis", no_wrap=True)
    yield Text(", ".join(_place(found.type)), style="dim")


def _place(model_type: registry_pb2.ModelType) -> Iterator[str]:
    """Where a model type stands: its stage in the funnel, and the words of its name."""
    stage = render.enum(model_type, "funnel_stage")
    yield stage.lower().replace("_", " ") if stage else "no funnel stage"
    words = dict(model_type.naming) or {
        key: model_type.labels[key] for key in ("app", "surface", "placement") if key in model_type.labels
    }
    yield from (f"{key} {word}" for key, word in words.items())


def _wrong(found: Investigation) -> Iterator[RenderableType]:
    unseen = [
        name
        for name, part in (
            ("traffic", found.statuses),
            ("stability", found.stability if isinstance(found.stability, Unknown) else found.judgements),
            ("launches", found.launches),
            ("alerts", found.alerts),
        )
        if isinstance(part, Unknown)
    ]
    blind = f" (not seen: {', '.join(unseen)})" if unseen else ""
    if not found.problems:
        yield Text(f"Nothing is known to be wrong{blind}", style="bold" if unseen else "bold green")
        return
    yield Text(f"WRONG NOW{blind}", style="bold")
    for problem in found.problems[:_PROBLEMS]:
        yield Padding(problem_line(problem, found.model), _INDENT, expand=False)
    if len(found.problems) > _PROBLEMS:
        yield Text(f"  and {len(found.problems) - _PROBLEMS} more", style="dim")


def problem_line(problem: Problem, model: str = "") -> Text:
    """A problem in a line; whose it is is said where it is not the model's."""
    whose = render.short(problem.model) if problem.model not in ("", model) else ""
    where = " ".join(each for each in (render.short(problem.region), whose) if each)
    since = "" if problem.since is None else f", for {_age(problem.since)}"
    style = "red" if problem.kind in _HARMFUL else "yellow"
    kind = _IN_WORDS.get(problem.kind, problem.kind.value.replace("_", " ").lower())
    return Text.assemble((kind, style), f" {where}: " if where else ": ", problem.message, since)


def _to_do(found: Investigation) -> Iterator[RenderableType]:
    yield Text("DO", style="bold")
    if isinstance(found.response, Unknown):
        yield Padding(_unknown(found.response), _INDENT, expand=False)
        return
    for step in found.response.steps:
        yield Padding(Text(step), _INDENT, expand=False)
    for command in found.response.commands:
        yield Text(f"    {command}", style="cyan")


def _parts(found: Investigation) -> Iterator[tuple[str, RenderableType | Unknown]]:
    yield "OWNER", _owner(found)
    yield "TIER", _tier(found)
    yield "LAUNCH", _launches(found)
    yield "ALERTS", _alerts(found)
    yield "TRAFFIC", _traffic(found)
    yield "STABILITY", _stability(found)
    yield "CHANGES", _changes(found)
    yield "UPSTREAM", _neighbours(found.upstream, "nothing: it takes no other type's output")
    yield "DOWNSTREAM", _neighbours(found.downstream, "nothing: no other type takes its output")
    yield "CAPACITY", _capacity(found)
    yield "LINT", _lint(found)


def _owner(found: Investigation) -> RenderableType | Unknown:
    if isinstance(found.team, Unknown):
        return found.team
    team = found.team
    contacts = f", then {', '.join(team.contacts)}" if team.contacts else ", no backup contacts"
    return Text(f"{render.short(team.name)}: on call {team.on_call or 'nobody'}{contacts}")


def _tier(found: Investigation) -> RenderableType | Unknown:
    if isinstance(found.criticality, Unknown):
        return found.criticality
    critical = found.criticality
    own = critical.own or "none stated"
    required = critical.required or "none"
    text = f"own {own}{' (the model’s, not its type’s)' if critical.overridden else ''}, required {required}"
    if critical.path:
        text += f", since {render.short(critical.path[0])} depends on it"
    if len(critical.path) > 2:
        text += f" ({' → '.join(render.short(name) for name in critical.path)})"
    return Text(text)


def _launches(found: Investigation) -> RenderableType | Unknown:
    if isinstance(found.launches, Unknown):
        return found.launches
    lines = []
    for launch in found.launches:
        state = render.enum(launch, "state") + (" (paused)" if launch.pause_reasons else "")
        head = f"{render.short(launch.name)} of {render.short(launch.candidate)}: {state}"
        lines += [Text(head), Text(launch.summary, style="dim")]
    if lines:
        return Group(*lines)
    if isinstance(found.ended_launches, Unknown) or not found.ended_launches:
        return Text("none in flight")
    last = found.ended_launches[0]
    how = f"{render.short(last.name)} of {render.short(last.candidate)} {render.enum(last, 'state')}"
    return Text(f"none in flight; the last one, {how} {render.age(last.end_time)} ago")


def _alerts(found: Investigation) -> RenderableType | Unknown:
    """Those of the model first, pages before tickets."""
    if isinstance(found.alerts, Unknown):
        return found.alerts
    alerts = sorted(found.alerts, key=lambda one: (one.model != found.model, one.severity))
    lines = []
    for one in alerts[:_ALERTS]:
        severity = render.enum(one, "severity")
        whose = f"{render.short(one.model)} " if one.model != found.model else ""
        quiet = " (silenced)" if one.silence else ""
        style = "red" if severity == "PAGE" else "yellow"
        told = f" {whose}{render.enum(one, 'kind')} for {render.age(one.start_time)}{quiet}, {render.short(one.name)}: "
        line = Text.assemble((severity.lower(), style), told, one.summary)
        line.no_wrap, line.overflow = True, "ellipsis"
        lines.append(line)
    if len(alerts) > _ALERTS:
        lines.append(Text(f"and {len(alerts) - _ALERTS} more", style="dim"))
    return Group(*lines) if lines else Text("none fires")


def _traffic(found: Investigation) -> RenderableType | Unknown:
    """The model's share region by region, as the ledger has it and as reported, and what serves beside it."""
    if isinstance(found.type, Unknown) and isinstance(found.statuses, Unknown):
        return found.statuses
    ledger = {} if isinstance(found.type, Unknown) else {split.region: split for split in found.type.splits}
    reported = {} if isinstance(found.statuses, Unknown) else {status.region: status for status in found.statuses}
    rows = []
    for region in sorted(ledger.keys() | reported.keys()):
        shares = {share.model: share.share_basis_points for share in ledger[region].shares} if region in ledger else {}
        status = reported.get(region)
        serving = next((one for one in status.models if one.model == found.model), None) if status is not None else None
        beside = {one.model: one.share_basis_points for one in status.models} if status is not None else shares
        rows.append(
            [
                render.short(region),
                render.percent(shares.get(found.model, 0)) if ledger else "?",
                *_reported(status, serving),
                ", ".join(
                    f"{render.short(m)} {render.percent(s)}" for m, s in beside.items() if s and m != found.model
                ),
            ]
        )
    if not rows:
        return Text("it has no share of any traffic, and no agent reports it")
    headers = ["REGION", "LEDGER", "REPORTED", "REPLICAS", "REQUESTS", "FAILED", "P99 MS", "AGE", "BESIDE IT"]
    parts: list[RenderableType] = [render.table(headers, rows[:_REGIONS])]
    if len(rows) > _REGIONS:
        parts.append(Text(f"and {len(rows) - _REGIONS} more regions", style="dim"))
    if isinstance(found.statuses, Unknown):
        parts.append(Text.assemble("reported: ", _unknown(found.statuses)))
    return Group(*parts)


def _reported(status: registry_pb2.ServingStatus | None, serving: registry_pb2.ModelServing | None) -> Sequence[str]:
    if status is None:
        return ["?"] * 6
    age = render.age(status.observe_time)
    if serving is None:
        return ["0%", "0", "", "", "", age]
    failed = f"{100 * serving.errors / serving.requests:.2g}%" if serving.requests else ""
    latency = f"{serving.latency_p99_ms:.3g}" if serving.HasField("latency_p99_ms") else ""
    replicas = f"{serving.available_replicas}/{serving.total_replicas}"
    return [render.percent(serving.share_basis_points), replicas, str(serving.requests), failed, latency, age]


def _stability(found: Investigation) -> RenderableType | Unknown:
    """What the newest evaluation said; of a model that does not serve, what the judge says."""
    if found.stability is None or (isinstance(found.stability, Unknown) and found.judgements):
        return _judged(found)
    return found.stability if isinstance(found.stability, Unknown) else _standing(found.stability)


def _standing(found: stability_pb2.ModelStability) -> RenderableType:
    """The state beside availability, then each metric against its range, those that are wrong first."""
    style = {stability_pb2.ModelStability.UNSTABLE: "bold red", stability_pb2.ModelStability.STABLE: "bold green"}
    since = f" for {render.age(found.since)}" if found.HasField("since") else ""
    available = " ".join(part for part in (view.availability(found), view.success(found)) if part)
    head = Text.assemble(
        (render.enum(found, "state"), style.get(found.state, "bold")), f"{since}; requests: {available}"
    )
    if not found.metrics:
        return Group(head, Text(found.explanation))
    metrics = sorted(found.metrics, key=lambda each: _WORST_FIRST.index(each.state))
    shown = view.table(view.METRIC_COLUMNS, metrics[:_METRICS], render.console().width - _LABELS)
    more = [Text(f"and {len(metrics) - _METRICS} more", style="dim")] if len(metrics) > _METRICS else []
    return Group(head, shown, *more)


def _judged(found: Investigation) -> RenderableType | Unknown:
    if isinstance(found.judgements, Unknown):
        return found.judgements
    rows, span = [], ""
    for judgement in found.judgements:
        by_prediction: dict[str, list[stability_pb2.Finding]] = {}
        for finding in judgement.findings:
            by_prediction.setdefault(finding.prediction, []).append(finding)
        until = judgement.end_time.ToDatetime(tzinfo=UTC)
        span = f"{judgement.start_time.ToDatetime(tzinfo=UTC):%H:%M}-{until:%H:%M}"
        for prediction, findings in by_prediction.items():
            point = findings[0].candidate
            verdict = max((render.enum(finding, "verdict") for finding in findings), key=_BAD.index)
            rows.append([prediction, verdict, figure(point.calibration), figure(point.ne), span])
    if not rows:
        return Text("not applicable: no predictions are declared" if found.model else "no model to judge")
    rows.sort(key=lambda row: -_BAD.index(row[1]))
    headers = ["PREDICTION", "VERDICT", "CALIBRATION", "NE", "EVENTS (UTC)"]
    more = [Text(f"and {len(rows) - _PREDICTIONS} more predictions", style="dim")] if len(rows) > _PREDICTIONS else []
    return Group(render.table(headers, rows[:_PREDICTIONS]), *more)


_BAD = ["", "PASS", "INCONCLUSIVE", "ERROR", "FAIL"]


def _changes(found: Investigation) -> RenderableType | Unknown:
    if isinstance(found.changes, Unknown):
        return found.changes
    lines = []
    for revision in found.changes[:_CHANGES]:
        own = [change for change in revision.changes if change.resource in (found.model_type, found.model)]
        what = "; ".join(
            describe_change(change).replace(f"{found.model_type}/models/", "").replace("modelTypes/", "")
            for change in own
        )
        by = revision.on_behalf_of or revision.actor
        why = f' "{revision.reason}"' if revision.reason else ""
        launch = f" ({render.short(revision.launch)})" if revision.launch else ""
        text = f"{render.age(revision.time)} ago  {by}: {what}{launch}{why}"
        lines.append(Text(text, overflow="ellipsis", no_wrap=True))
    return Group(*lines) if lines else Text("none")


def _neighbours(found: Neighbours | Unknown, nothing: str) -> RenderableType | Unknown:
    if isinstance(found, Unknown):
        return found
    if not found.types:
        return Text(nothing)
    named = ", ".join(f"{render.short(each.name)} {each.tier}".rstrip() for each in found.types[:8])
    more = ", and more" if found.more or len(found.types) > 8 else ""
    return Text(named + more)


def _capacity(found: Investigation) -> RenderableType | Unknown:
    if isinstance(found.certificate, Unknown):
        return found.certificate
    if found.certificate is None:
        carries = "what a replica carries was never measured or stated"
    else:
        source = render.enum(found.certificate, "source").lower().replace("_", " ")
        carries = f"a replica carries {found.certificate.max_qps:.3g} requests/s ({source})"
    if isinstance(found.estimate, Unknown) or found.estimate is None:
        return Text(carries)
    needs = ", ".join(f"{region.replicas} in {render.short(region.region)}" for region in found.estimate.regions)
    age = render.age(found.estimate.create_time)
    return Text(f"{carries}; the whole route would need {needs} (estimated {age} ago)")


def _lint(found: Investigation) -> RenderableType | Unknown:
    if isinstance(found.findings, Unknown):
        return found.findings
    if not found.findings:
        return Text("it meets the minimum standard")
    more = len(found.findings) - _FINDINGS
    lines = [Text(f"{each.rule}: {each.message}", overflow="ellipsis", no_wrap=True) for each in found.findings]
    return Group(*lines[:_FINDINGS], *([Text(f"and {more} more", style="dim")] if more > 0 else []))


def _unknown(part: Unknown) -> Text:
    return Text(f"unknown: {part.reason}", style="yellow")


def _age(since: datetime) -> str:
    return render.seconds((datetime.now(UTC) - since).total_seconds())
