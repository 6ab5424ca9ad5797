"""`modelfleet capacity loadtest`: measure what one replica carries."""

from __future__ import annotations

from pathlib import Path

import click

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import FleetGroup, Session, with_session


@click.group(cls=FleetGroup)
def loadtest() -> None:
    """Load tests: measure what one replica carries."""


_LOAD_TEST_COLUMNS: list[render.Column] = [
    ("LOAD TEST", lambda m: render.short(m.name)),
    ("MODEL", lambda m: m.model.removeprefix("modelTypes/").replace("/models/", "/")),
    ("STATE", lambda m: render.enum(m, "state")),
    ("PROBES", lambda m: str(len(m.probes))),
    ("MESSAGE", lambda m: m.message),
    ("CREATED", lambda m: render.clock(m.create_time)),
]


@loadtest.command("create")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--region", required=True, help="Where the clone runs.")
@click.option(
    "--request", "requests", type=click.Path(exists=True, dir_okay=False), multiple=True, required=True,
    help="File with one inference.ModelInferRequest in bytes; may be repeated.",
)  # fmt: skip
@click.option("--p99-ms", type=click.FloatRange(min=0), default=0.0, help="Highest 99th percentile of the latency.")
@click.option(
    "--error-rate", type=click.FloatRange(0, 1), default=0.001, show_default=True, help="Highest share of failures."
)
@click.option("--watch", is_flag=True, help="Follow it until it ends.")
@with_session
def create_load_test(
    session: Session, model: str, region: str, requests: tuple[str, ...], p99_ms: float, error_rate: float, watch: bool
) -> None:
    """Measure what one replica of a model carries, on a clone, by replaying requests at changing rates."""
    samples = [Path(path).read_bytes() for path in requests]
    wanted = pb.LoadTest(
        model=MODEL.name(model),
        region=f"regions/{render.short(region)}",
        sample_requests=samples,
        stoppers=pb.Stoppers(latency_p99_ms=p99_ms, error_rate=error_rate),
    )
    made = session.client.capacity.create_load_test(load_test=wanted)
    _follow(session, made.name) if watch else render.show(session, made)


@loadtest.command("list")
@click.argument("model", required=False, default="")
@with_session
def list_load_tests(session: Session, model: str) -> None:
    """List load tests, newest first, of one model (TYPE/MODEL) or of all."""
    answer = session.client.capacity.list_load_tests(model=MODEL.name(model) if model else "", page_size=100)
    render.listing(session, answer.load_tests, _LOAD_TEST_COLUMNS, "No load tests.")


@loadtest.command("show")
@click.argument("name", metavar="LOAD_TEST")
@with_session
def show_load_test(session: Session, name: str) -> None:
    """Show a load test, probe by probe."""
    found = session.client.capacity.get_load_test(name=f"loadTests/{render.short(name)}")
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    click.echo(f"{found.name}: {render.enum(found, 'state')} {found.message}".rstrip())
    render.console().print(render.table(_PROBE_HEADERS, [_probe_row(probe) for probe in found.probes]))
    if found.certificate:
        click.echo(f"result: {found.certificate}")


@loadtest.command("watch")
@click.argument("name", metavar="LOAD_TEST")
@with_session
def watch_load_test(session: Session, name: str) -> None:
    """Follow a load test until it ends, a line a probe."""
    _follow(session, f"loadTests/{render.short(name)}")


@loadtest.command("cancel")
@click.argument("name", metavar="LOAD_TEST")
@with_session
def cancel_load_test(session: Session, name: str) -> None:
    """Cancel a load test; its clone goes at once."""
    render.show(session, session.client.capacity.cancel_load_test(name=f"loadTests/{render.short(name)}"))


_PROBE_HEADERS = ["RATE/S", "SENT/S", "REQUESTS", "ERRORS", "P99 MS", "OUTCOME"]


def _probe_row(probe: pb.Probe) -> list[str]:
    outcome = render.enum(probe, "outcome") + (" (certification)" if probe.certification else "")
    rates = [f"{probe.intended_qps:.1f}", f"{probe.actual_qps:.1f}"]
    return [*rates, str(probe.requests), str(probe.errors), f"{probe.latency_p99_ms:.1f}", outcome]


def _follow(session: Session, name: str) -> None:
    seen, state, last = 0, "", None
    for last in session.client.capacity.watch_load_test(name=name):
        if not session.is_table:
            continue
        if render.enum(last, "state") != state:
            state = render.enum(last, "state")
            click.echo(f"{state}: {last.message}" if last.message else state)
        for probe in last.probes[seen:]:
            click.echo(
                "  " + "  ".join(f"{h.lower()} {v}" for h, v in zip(_PROBE_HEADERS, _probe_row(probe), strict=True))
            )
        seen = len(last.probes)
    if last is not None and not session.is_table:
        render.dump(session, render.as_data(last))
    if last is not None and last.state != pb.LoadTest.SUCCEEDED:
        raise click.ClickException(f"{name} ended as {render.enum(last, 'state')}: {last.message}")
    if last is not None and session.is_table:
        click.echo(f"result: {last.certificate}")
