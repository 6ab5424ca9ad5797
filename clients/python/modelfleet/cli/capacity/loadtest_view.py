"""How a load test looks: its live view, its details, and its curves."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelfleet import plot, wording
from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.plot import Chart, Limit, Series

ENDED = {pb.LoadTest.SUCCEEDED, pb.LoadTest.FAILED, pb.LoadTest.CANCELLED}
_STATE_STYLE = {
    pb.LoadTest.SUCCEEDED: "bold green",
    pb.LoadTest.FAILED: "bold red",
    pb.LoadTest.CANCELLED: "bold yellow",
}
_VERDICTS = {
    pb.Probe.WITHIN: "within",
    pb.Probe.OVER: "over",
    pb.Probe.UNDECIDED: "undecided",
    pb.Probe.GENERATOR_LIMIT: "generator too slow",
    pb.Probe.TRANSPORT_ERRORS: "not reached",
    pb.Probe.UNSTABLE: "unstable",
}
# Those that say something of the replica.
_JUDGED = (pb.Probe.WITHIN, pb.Probe.OVER, pb.Probe.UNDECIDED)
_VERDICT_STYLE = {pb.Probe.WITHIN: "green", pb.Probe.OVER: "yellow", pb.Probe.UNDECIDED: "yellow"}
_BAR = 48
_SHOWN_LIVE = 8


def rate(qps: float) -> str:
    """A rate as people say it: `142/s`; a dash where there is none."""
    if not qps:
        return "-"
    return f"{qps:,.4g}/s" if qps < 1000 else f"{qps:,.0f}/s"


def stoppers(asked: pb.Stoppers) -> str:
    """What a replica must keep: `p50 ≤ 20 ms, p99 ≤ 60 ms, errors ≤ 0.1%`."""
    limits = [f"p{one.percentile:g} ≤ {one.latency_ms:g} ms" for one in latency_limits(asked)]
    return ", ".join([*limits, f"errors ≤ {100 * asked.error_rate:.3g}%"])


def latency_limits(asked: pb.Stoppers) -> list[pb.LatencyStopper]:
    """The percentiles to keep, the short form among them, by percentile."""
    limits = list(asked.latencies)
    if asked.latency_p99_ms:
        limits.append(pb.LatencyStopper(percentile=99, latency_ms=asked.latency_p99_ms))
    return sorted(limits, key=lambda limit: limit.percentile)


def took(test: pb.LoadTest) -> str:
    """From its begin to its end, or until now."""
    if not test.HasField("start_time"):
        return "0s"
    if test.HasField("end_time"):
        return render.seconds((test.end_time.ToDatetime() - test.start_time.ToDatetime()).total_seconds())
    return render.age(test.start_time)


def verdict(probe: pb.Probe) -> str:
    """What a probe found, in a word or two."""
    return _VERDICTS.get(probe.outcome, "") + (" (certification)" if probe.certification else "")


def probe_table(probes: Sequence[pb.Probe], *, last: int | None = None) -> Table:
    """The probes, or the last ones, a line each."""
    # A line of it fits in 80 columns, with the longest verdict of a replica too.
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("#", "RATE/S", "REQUESTS", "ERRORS", "P50 MS", "P90 MS", "P99 MS", "P99.9 MS"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("VERDICT", no_wrap=True)
    skipped = max(0, len(probes) - last) if last else 0
    for number, probe in enumerate(probes[skipped:], skipped + 1):
        table.add_row(
            str(number),
            f"{probe.intended_qps:,.1f}",
            f"{probe.requests:,}",
            f"{probe.errors:,}",
            *(f"{latency:,.1f}" for latency in _latencies(probe)),
            Text(verdict(probe), style=_VERDICT_STYLE.get(probe.outcome, "red")),
        )
    return table


def line(number: int, probe: pb.Probe) -> str:
    """One probe in one line, for logs."""
    latencies = "/".join(f"{latency:.1f}" for latency in _latencies(probe))
    return (
        f"probe {number}: {rate(probe.intended_qps)} {verdict(probe)}, p50/p90/p99/p99.9 {latencies} ms, "
        f"{probe.errors:,} of {probe.requests:,} failed"
    )


def bracket(test: pb.LoadTest) -> Iterator[Text]:
    """The rates tried so far on a logarithmic line, and what is known between them."""
    within, beyond, current = test.highest_within_qps, test.lowest_beyond_qps, test.current_qps
    rates = [probe.intended_qps for probe in test.probes] + [qps for qps in (within, beyond, current) if qps]
    if not rates:
        return
    low, high = min(rates) / 1.02, max(rates) * 1.02

    def place(qps: float) -> int:
        return round((_BAR - 1) * math.log(qps / low) / math.log(high / low))

    bar = ["─"] * _BAR
    if within and beyond:
        bar[place(within) : place(beyond)] = "═" * (place(beyond) - place(within))
    for qps, mark in ((within, "●"), (beyond, "○"), (current, "▲")):
        if qps:
            bar[place(qps)] = mark
    styles = {"●": "bold green", "○": "bold yellow", "▲": "bold cyan", "═": "bold"}
    yield Text.assemble(f"{low:,.3g}/s ", *((mark, styles.get(mark, "dim")) for mark in bar), f" {high:,.3g}/s")
    known = [f"● kept {rate(within)}" if within else "nothing kept yet"]
    known += [f"○ not kept {rate(beyond)}"] if beyond else []
    known += [f"{beyond / within - 1:.0%} apart"] if within and beyond else []
    known += [f"▲ trying {rate(current)}"] if current else []
    yield Text("   ".join(known))


def frame(test: pb.LoadTest) -> RenderableType:
    """One picture of the live view."""
    place = f"{wording.short_model(test.model)} on {render.short(test.flavor)} in {render.short(test.region)}"
    again = f"  attempt {test.attempt}" if test.attempt > 1 else ""
    state = (render.enum(test, "state"), _STATE_STYLE.get(test.state, "bold cyan"))
    parts: list[RenderableType] = [
        Text.assemble((f"{render.short(test.name)}  {place}  ", "bold"), state, f"{again}  {took(test)}"),
        Text(test.message),
        Text(f"must keep {stoppers(test.stoppers)}"),
        Text(""),
        *bracket(test),
    ]
    if test.HasField("expected_end_time"):
        parts.append(Text(_end(test)))
    if test.probes:
        parts += [Text(""), probe_table(test.probes, last=_SHOWN_LIVE), Text(test.probes[-1].explanation, style="dim")]
    return Group(*parts)


def follow(updates: Iterable[pb.LoadTest]) -> pb.LoadTest | None:
    """Draws a load test live until it ends; without a terminal, a line a probe and state. Gives its last state."""
    if not sys.stdout.isatty():
        return _log(updates)
    last: pb.LoadTest | None = None
    # Drawn again and again: the time that is left goes by between the changes too.
    with Live(
        console=render.console(),
        get_renderable=lambda: Text("") if last is None else frame(last),
        refresh_per_second=2,
        vertical_overflow="visible",
    ) as live:
        for test in updates:
            last = test
            live.refresh()
    return last


def _log(updates: Iterable[pb.LoadTest]) -> pb.LoadTest | None:
    state, attempt, told = "", 0, 0
    test = None
    for test in updates:
        if (render.enum(test, "state"), test.attempt) != (state, attempt):
            told = told if test.attempt == attempt else 0
            state, attempt = render.enum(test, "state"), test.attempt
            print(f"{_of_day(datetime.now(UTC))} {state} {test.message}".rstrip(), flush=True)
        for number, probe in enumerate(test.probes[told:], told + 1):
            print(f"{_of_day(datetime.now(UTC))} {line(number, probe)}", flush=True)
        told = len(test.probes)
    return test


def details(test: pb.LoadTest) -> Iterator[RenderableType]:
    """Everything about a load test but its curves."""
    state = (render.enum(test, "state"), _STATE_STYLE.get(test.state, "bold cyan"))
    yield Text.assemble((f"{test.name}  ", "bold"), state)
    yield Text(test.message)
    rows = [
        ("model", f"{wording.short_model(test.model)} on {render.short(test.flavor)} in {render.short(test.region)}"),
        ("must keep", stoppers(test.stoppers)),
        ("replays", replayed(test.recording, test.recording_digest)),
        ("confirms with", f"{test.certification_requests:,} requests"),
        ("begun", f"{render.clock(test.start_time)} UTC by {test.actor}, took {took(test)}" if test.attempt else ""),
        ("attempts", str(test.attempt) if test.attempt > 1 else ""),
        ("cause", render.enum(test, "cause")),
        ("certificate", render.short(test.certificate)),
    ]
    yield render.facts(rows)
    if test.probes:
        yield Text("")
        yield probe_table(test.probes)


def replayed(recording: str, digest: str) -> str:
    """What was replayed, and its digest."""
    return f"{recording or 'sample requests'} ({digest})" if digest else recording or "sample requests"


def charts(test: pb.LoadTest) -> list[Chart]:
    """The convergence curve and the latency over the rate; nothing before the first probe."""
    if not test.probes:
        return []
    return [_rates(test), _latency(test)]


def _rates(test: pb.LoadTest) -> Chart:
    numbered = list(enumerate(test.probes, 1))
    series = list(_closing_in(numbered))
    chosen_as: list[tuple[str, plot.Mark, list[tuple[int, pb.Probe]]]] = [
        ("within", "good", [(n, p) for n, p in numbered if p.outcome == pb.Probe.WITHIN and not p.certification]),
        ("not within", "bad", [(n, p) for n, p in numbered if p.outcome in _JUDGED and p.outcome != pb.Probe.WITHIN]),
        ("says nothing", "unknown", [(n, p) for n, p in numbered if p.outcome not in _JUDGED]),
        ("confirmed", "best", [(n, p) for n, p in numbered if p.outcome == pb.Probe.WITHIN and p.certification]),
    ]
    for label, mark, chosen in chosen_as:
        if chosen:
            rates = [probe.intended_qps for _, probe in chosen]
            series.append(Series(label, [number for number, _ in chosen], rates, "points", mark=mark))
    result = test.probes[-1].intended_qps
    limits = [Limit(result, f"result {rate(result)}")] if test.state == pb.LoadTest.SUCCEEDED else []
    title = f"{wording.short_model(test.model)} on {render.short(test.flavor)}: rates tried"
    return Chart(title, "probe", "rate (requests/s)", series, limits, whole_x=True)


def _closing_in(numbered: Sequence[tuple[int, pb.Probe]]) -> Iterator[Series]:
    """The ends of the bracket after each probe: they close in on the maximum."""
    kept: list[float] = []
    beyond: list[float] = []
    for last, _ in numbered:
        judged = [probe for number, probe in numbered if number <= last and probe.outcome in _JUDGED]
        lowest = min((probe.intended_qps for probe in judged if probe.outcome != pb.Probe.WITHIN), default=math.nan)
        below = [p.intended_qps for p in judged if p.outcome == pb.Probe.WITHIN and not p.intended_qps >= lowest]
        kept.append(max(below, default=math.nan))
        beyond.append(lowest)
    for label, ends in (("highest kept", kept), ("lowest not kept", beyond)):
        if not all(map(math.isnan, ends)):
            yield Series(label, [number for number, _ in numbered], ends, "steps")


def _latency(test: pb.LoadTest) -> Chart:
    # Of several probes at one rate the last: the longer one.
    judged = {probe.intended_qps: probe for probe in test.probes if probe.outcome in _JUDGED}
    rates = sorted(judged)
    values = zip(*(_latencies(judged[qps]) for qps in rates), strict=True)
    names = ("p50", "p90", "p99", "p99.9")
    series = [Series(name, rates, latencies) for name, latencies in zip(names, values, strict=False)]
    limits = [
        Limit(one.latency_ms, f"p{one.percentile:g} ≤ {one.latency_ms:g} ms") for one in latency_limits(test.stoppers)
    ]
    wide = bool(rates) and rates[-1] > 4 * rates[0]
    title = "Latency from the intended send time"
    return Chart(title, "rate (requests/s)", "latency (ms)", series, limits, log_x=wide, log_y=True)


def _latencies(probe: pb.Probe) -> tuple[float, float, float, float]:
    return probe.latency_p50_ms, probe.latency_p90_ms, probe.latency_p99_ms, probe.latency_p999_ms


def _of_day(time: datetime) -> str:
    return f"{time:%H:%M:%S}"


def _end(test: pb.LoadTest) -> str:
    """When it will end. Before there is a bracket nobody knows how far the maximum is: then the earliest time."""
    end = _of_day(test.expected_end_time.ToDatetime())
    left = _about((test.expected_end_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)).total_seconds())
    if test.highest_within_qps and test.lowest_beyond_qps:
        return f"ends about {end} UTC, in {left}"
    return f"ends {end} UTC at the earliest, in at least {left}"


def _about(seconds: float) -> str:
    return wording.seconds(seconds) if seconds >= 10 else "a moment"
