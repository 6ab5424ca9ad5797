"""`modelfleet capacity`: whose capacity it is, what a replica carries, what a model needs."""

from __future__ import annotations

from pathlib import Path

import click

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.registry import MODEL
from modelfleet.cli.resources import Resource, add_standard_verbs
from modelfleet.cli.session import FleetGroup, Session, with_session

FLAVOR = Resource(
    "capacity",
    "flavor",
    "flavors",
    "flavors/{}",
    pb.Flavor,
    [
        ("FLAVOR", lambda m: render.short(m.name)),
        ("COST/UNIT/H", lambda m: f"{m.unit_cost:g}"),
        ("DESCRIPTION", lambda m: m.description),
    ],
    "No flavors yet. Create one: modelfleet capacity flavor create cpu --set unit_cost=0.04",
    reasons=False,
)
POOL = Resource(
    "capacity",
    "pool",
    "pools",
    "pools/{}",
    pb.Pool,
    [
        ("POOL", lambda m: render.short(m.name)),
        ("TEAM", lambda m: render.short(m.team)),
        ("QUOTAS", lambda m: ", ".join(
            f"{render.short(q.flavor)}@{render.short(q.region)}: {q.nominal_units}" for q in m.quotas)),
        ("AVAILABLE", lambda m: ", ".join(
            f"{render.short(u.flavor)}@{render.short(u.region)}: {u.available_units}" for u in m.usages)),
    ],
    "No pools yet. Create one: modelfleet capacity pool create ranking -f pool.yaml",
    reasons=False,
)  # fmt: skip


@click.group(cls=FleetGroup)
def group() -> None:
    """Flavors, pools, reservations, certificates, load tests and estimates."""


@group.group(cls=FleetGroup)
def flavor() -> None:
    """Flavors: kinds of machines with a cost per unit."""


@group.group(cls=FleetGroup)
def pool() -> None:
    """Pools: teams' quotas by flavor and region."""


add_standard_verbs(flavor, FLAVOR)
add_standard_verbs(pool, POOL)


@pool.command("usage")
@click.argument("name", metavar="POOL")
@with_session
def usage(session: Session, name: str) -> None:
    """Show what a pool owns, uses and has free, by flavor and region."""
    found = session.client.capacity.get_pool(name=POOL.name(name))
    columns: list[render.Column] = [
        ("FLAVOR", lambda m: render.short(m.flavor)),
        ("REGION", lambda m: render.short(m.region)),
        ("NOMINAL", lambda m: str(m.nominal_units)),
        ("SERVING", lambda m: str(m.serving_units)),
        ("HELD", lambda m: str(m.held_units)),
        ("RETAINED", lambda m: str(m.retained_units)),
        ("AVAILABLE", lambda m: str(m.available_units)),
    ]
    render.listing(
        session, found.usages, columns, f"{found.name} has no quota. Set one: modelfleet capacity pool update"
    )


@pool.command("ledger")
@click.argument("name", metavar="POOL")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def ledger(session: Session, name: str, limit: int) -> None:
    """List the changes of a pool's usage, newest first: who, when, why."""
    answer = session.client.capacity.list_ledger_entries(pool=POOL.name(name), page_size=limit)
    columns: list[render.Column] = [
        ("TIME", lambda m: render.clock(m.time)),
        ("FLAVOR", lambda m: render.short(m.flavor)),
        ("REGION", lambda m: render.short(m.region)),
        ("ACCOUNT", lambda m: render.enum(m, "account")),
        ("UNITS", lambda m: f"{m.delta_units:+d}"),
        ("MODEL", lambda m: render.short(m.model)),
        ("LAUNCH", lambda m: render.short(m.launch)),
        ("REASON", lambda m: m.reason),
    ]
    render.listing(session, answer.entries, columns, "Nothing was ever booked.")


@group.group(cls=FleetGroup)
def reservation() -> None:
    """Reservations: what launches hold."""


_RESERVATION_COLUMNS: list[render.Column] = [
    ("RESERVATION", lambda m: render.short(m.name)),
    ("LAUNCH", lambda m: render.short(m.launch)),
    ("POOL", lambda m: render.short(m.pool)),
    ("STATE", lambda m: render.enum(m, "state")),
    ("HOLD", lambda m: ", ".join(f"{i.hold_units} {render.short(i.flavor)}@{render.short(i.region)}" for i in m.items)),
    ("CREATED", lambda m: render.clock(m.create_time)),
]


@reservation.command("list")
@click.option("--pool", "of_pool", default="", help="Only of this pool.")
@click.option("--launch", "of_launch", default="", help="Only of this launch.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_reservations(session: Session, of_pool: str, of_launch: str, limit: int) -> None:
    """List reservations, newest first."""
    answer = session.client.capacity.list_reservations(
        pool=POOL.name(of_pool) if of_pool else "",
        launch=f"launches/{render.short(of_launch)}" if of_launch else "",
        page_size=limit,
    )
    render.listing(session, answer.reservations, _RESERVATION_COLUMNS, "No reservations.")


@reservation.command("get")
@click.argument("name", metavar="RESERVATION")
@with_session
def get_reservation(session: Session, name: str) -> None:
    """Show a reservation with everything that was moved, held and settled."""
    render.show(session, session.client.capacity.get_reservation(name=f"reservations/{render.short(name)}"))


@group.group(cls=FleetGroup)
def certificate() -> None:
    """Certificates: what one replica of a model carries, and who says so."""


@certificate.command("state")
@click.argument("model", metavar="TYPE/MODEL")
@click.option(
    "--max-qps", type=click.FloatRange(min=0, min_open=True), required=True, help="Requests a second of one replica."
)
@click.option("--flavor", "of_flavor", help="Flavor it ran on. Default: the model's.")
@click.option("--note", default="", help="Why the number may be believed.")
@with_session
def state_certificate(session: Session, model: str, max_qps: float, of_flavor: str | None, note: str) -> None:
    """State what one replica carries, by hand."""
    name = MODEL.name(model)
    flavor_name = (
        FLAVOR.name(of_flavor) if of_flavor else session.client.registry.get_model(name=name).serving_spec.flavor
    )
    wanted = pb.Certificate(model=name, flavor=flavor_name, max_qps=max_qps, note=note)
    render.show(session, session.client.capacity.create_certificate(certificate=wanted))


@certificate.command("list")
@click.argument("model", required=False, default="")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_certificates(session: Session, model: str, limit: int) -> None:
    """List certificates, newest first, of one model (TYPE/MODEL) or of all."""
    answer = session.client.capacity.list_certificates(model=MODEL.name(model) if model else "", page_size=limit)
    columns: list[render.Column] = [
        ("CERTIFICATE", lambda m: render.short(m.name)),
        ("MODEL", lambda m: m.model.removeprefix("modelTypes/").replace("/models/", "/")),
        ("MAX QPS", lambda m: f"{m.max_qps:.1f}"),
        ("FLAVOR", lambda m: render.short(m.flavor)),
        ("SOURCE", lambda m: render.enum(m, "source")),
        ("EXPIRES", lambda m: render.clock(m.expire_time)),
    ]
    render.listing(
        session, answer.certificates, columns, "No certificates. State one: modelfleet capacity certificate state"
    )


@group.command("estimate")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--explain", is_flag=True, help="Show the formula with the numbers in it.")
@click.option("--keep", is_flag=True, help="Keep the estimate.")
@with_session
def estimate(session: Session, model: str, explain: bool, keep: bool) -> None:
    """Estimate what a model needs for its whole route, region by region."""
    found = session.client.capacity.create_estimate(
        estimate=pb.Estimate(model=MODEL.name(model)), validate_only=not keep
    )
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    rows = [
        [
            render.short(r.region),
            f"{r.demand_qps:.1f}",
            f"{r.failover_demand_qps:.1f}",
            str(r.replicas),
            str(r.units),
            f"{r.cost_per_hour:.2f}",
        ]
        for r in found.regions
    ]
    headers = ["REGION", "DEMAND/S", "FAILOVER/S", "REPLICAS", "UNITS", "COST/H"]
    render.console().print(render.table(headers, rows))
    if explain:
        for r in found.regions:
            click.echo(f"{render.short(r.region)}: {r.explanation}")
        inputs = [[i.id, render.short(i.region), f"{i.value:g}", i.unit, i.source] for i in found.inputs]
        render.console().print(render.table(["INPUT", "REGION", "VALUE", "UNIT", "SOURCE"], inputs))


@group.group(cls=FleetGroup)
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
