"""`modelfleet capacity loadtest`: measure what one replica carries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration

from modelfleet import plot, wording
from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render, watching
from modelfleet.cli.capacity import loadtest_view
from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import FleetGroup, Session, with_session


@click.group(cls=FleetGroup)
def loadtest() -> None:
    """Load tests: measure what one replica carries."""


class LatencyParameter(click.ParamType[pb.LatencyStopper]):
    """A limit on a percentile of the latency: `p99=60` (milliseconds), `p99.9=0.2s`."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> pb.LatencyStopper:
        """The limit."""
        if isinstance(value, pb.LatencyStopper):
            return value
        found = re.fullmatch(r"p?(\d{2}(?:\.\d{1,2})?)=(\d{1,7}(?:\.\d{1,3})?)(ms|s)?", str(value).strip())
        if found is None:
            self.fail(f"'{value}' is no limit on a percentile; write p99=60 (milliseconds) or p99.9=0.2s", param, ctx)
        latency_ms = float(found[2]) * (1000 if found[3] == "s" else 1)
        return pb.LatencyStopper(percentile=float(found[1]), latency_ms=latency_ms)


LATENCY = LatencyParameter()
# How the fields of a load test are given.
_FLAGS = {
    "load_test.recording": "--recording",
    "load_test.sample_requests": "--request",
    "load_test.stoppers.latencies": "--latency",
    "load_test.stoppers.error_rate": "--error-rate",
    "load_test.start_qps": "--start-qps",
    "load_test.certification_requests": "--requests",
    "load_test.warm_up_duration": "--warm-up",
    "load_test.validity_duration": "--validity",
}
_COLUMNS: list[render.Column] = [
    ("LOAD TEST", lambda m: render.short(m.name)),
    ("MODEL", lambda m: wording.short_model(m.model)),
    ("REGION", lambda m: render.short(m.region)),
    ("STATE", lambda m: render.enum(m, "state")),
    ("PROBES", lambda m: str(len(m.probes))),
    ("KEPT", lambda m: loadtest_view.rate(m.highest_within_qps)),
    ("CREATED", lambda m: render.clock(m.create_time)),
    ("MESSAGE", lambda m: m.message),
]


@loadtest.command("create")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--region", required=True, metavar="REGION", help="Where the clone runs.")
@click.option(
    "--recording",
    metavar="RECORDING",
    help="Recording to replay, in the order in which its requests came, over and over.",
)
@click.option(
    "--request", "requests", type=click.Path(exists=True, dir_okay=False), multiple=True,
    help="Instead: file with one inference.ModelInferRequest in bytes; may be repeated.",
)  # fmt: skip
@click.option(
    "--latency", "latencies", type=LATENCY, multiple=True,
    help="Highest value of a percentile, such as p99=60 (milliseconds); may be repeated.",
)  # fmt: skip
@click.option(
    "--error-rate", type=click.FloatRange(0, 1), default=0.001, show_default=True, help="Highest share of failures."
)
@click.option(
    "--start-qps", type=click.FloatRange(min=0), default=0.0,
    help="Rate to begin with. Default: the newest certificate of the type, else 50.",
)  # fmt: skip
@click.option(
    "--requests", "certification_requests", type=click.IntRange(1_000, 1_000_000),
    help="Requests of the run that confirms the maximum. Default 50,000; fewer state no confidence. How few there may "
    "be depends on --error-rate and the percentiles: 0.001 takes 3,689, 0.004 takes 1,000.",
)  # fmt: skip
@click.option("--warm-up", type=DURATION, help="How long the clone is warmed up. Default: until its latency settles.")
@click.option("--validity", type=DURATION, help="How long the certificate will be valid. Default 90d.")
@click.option("--watch", is_flag=True, help="Follow it until it ends.")
@with_session
def create_load_test(
    session: Session,
    model: str,
    region: str,
    recording: str | None,
    requests: tuple[str, ...],
    latencies: tuple[pb.LatencyStopper, ...],
    error_rate: float,
    start_qps: float,
    certification_requests: int | None,
    warm_up: Duration | None,
    validity: Duration | None,
    watch: bool,
) -> None:
    """Measure what one replica of a model carries.

    On a clone, by replaying requests at changing rates.
    """
    if bool(recording) == bool(requests):
        raise click.UsageError("give what to replay: --recording RECORDING, or --request FILE once or more")
    wanted = pb.LoadTest(
        model=MODEL.name(model),
        region=f"regions/{render.short(region)}",
        recording=f"recordings/{render.short(recording)}" if recording else "",
        sample_requests=[Path(path).read_bytes() for path in requests],
        stoppers=pb.Stoppers(error_rate=error_rate, latencies=latencies),
        start_qps=start_qps,
        certification_requests=certification_requests or 0,
        warm_up_duration=warm_up,
        validity_duration=validity,
    )
    with told_in_flags(_FLAGS):
        made = session.client.capacity.create_load_test(load_test=wanted)
    if watch:
        _follow(session, made.name)
    elif session.is_table:
        click.echo(f"created {made.name}\nfollow it: modelfleet capacity loadtest watch {render.short(made.name)}")
    else:
        render.dump(session, render.as_data(made))


@loadtest.command("list")
@click.argument("model", metavar="[TYPE/MODEL]", required=False, default="")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_load_tests(session: Session, model: str, limit: int) -> None:
    """List load tests of one model or of all, newest first."""
    if model and "/" not in model:
        raise click.UsageError(f"'{model}' is no model; name one as {model}/MODEL, or none to list those of all")
    answer = session.client.capacity.list_load_tests(model=MODEL.name(model) if model else "", page_size=limit)
    render.listing(
        session,
        answer.load_tests,
        _COLUMNS,
        "No load tests. Begin one: modelfleet capacity loadtest create TYPE/MODEL --region REGION",
    )


@loadtest.command("show")
@click.argument("name", metavar="LOAD_TEST")
@click.option("--plot", "picture", type=click.Path(dir_okay=False), help="Write its curves to FILE.png or FILE.svg.")
@with_session
def show_load_test(session: Session, name: str, picture: str | None) -> None:
    """Show a load test, probe by probe.

    With the rates that it tried, and the latency over the rate, as curves.
    """
    if picture:
        try:
            plot.check(picture)
        except plot.CannotPlot as error:
            raise click.UsageError(f"--plot {error}") from None
    found = session.client.capacity.get_load_test(name=_name(name))
    charts = loadtest_view.charts(found)
    if not session.is_table:
        render.dump(session, render.as_data(found))
    else:
        for part in loadtest_view.details(found):
            render.console().print(part)
        render.curves(charts)
        if found.certificate:
            click.echo(f"\nthe result: modelfleet capacity certificate show {render.short(found.certificate)}")
        elif found.state not in loadtest_view.ENDED:
            click.echo(f"\nfollow it: modelfleet capacity loadtest watch {render.short(found.name)}")
    if picture and not charts:
        raise click.ClickException(f"{found.name} has no probe yet, so there is nothing to draw")
    if picture:
        render.picture(charts, picture)


@loadtest.command("watch")
@click.argument("name", metavar="LOAD_TEST")
@with_session
def watch_load_test(session: Session, name: str) -> None:
    """Follow a load test live until it ends. Exit status 1 unless it succeeds. With -o json, a line for each change."""
    _follow(session, _name(name))


@loadtest.command("cancel")
@click.argument("name", metavar="LOAD_TEST")
@with_session
def cancel_load_test(session: Session, name: str) -> None:
    """Cancel a load test; its clone goes at once."""
    found = session.client.capacity.cancel_load_test(name=_name(name))
    if session.is_table:
        click.echo(f"{found.name}: {found.message}")
    else:
        render.dump(session, render.as_data(found))


def _name(name: str) -> str:
    return f"loadTests/{render.short(name)}"


def _follow(session: Session, name: str) -> None:
    """Shows it until it has ended. Interrupted, it goes on: the service tests, not this command."""
    try:
        last = _ending(session, name)
    except KeyboardInterrupt:
        short = render.short(name)
        click.echo(
            f"\n{name} goes on; watch it: modelfleet capacity loadtest watch {short}; "
            f"cancel it: modelfleet capacity loadtest cancel {short}",
            err=True,
        )
        raise click.exceptions.Exit(130) from None
    if last is None:
        return
    if last.state != pb.LoadTest.SUCCEEDED:
        raise click.ClickException(f"{name} ended as {render.enum(last, 'state')}. {last.message}")
    if session.is_table:
        click.echo(f"the result: modelfleet capacity certificate show {render.short(last.certificate)}")


def _ending(session: Session, name: str) -> pb.LoadTest | None:
    updates = watching.updates(
        lambda: session.client.capacity.watch_load_test(name=name), lambda test: test.state in loadtest_view.ENDED
    )
    return loadtest_view.follow(updates) if session.is_table else _stream(session, updates)


def _stream(session: Session, updates: Iterator[pb.LoadTest]) -> pb.LoadTest | None:
    last = None
    for last in updates:
        render.emit(session, render.as_data(last))
    return last
