"""`modelfleet capacity estimate|estimates`: what a model needs, and what changes when it takes over."""

from __future__ import annotations

from collections.abc import Iterable

import click

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.parameters import SHARE
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.wording import short_model


@click.command("estimate")
@click.argument("model", metavar="TYPE/MODEL")
@click.option("--share", type=SHARE, help="Share of the route that it is to have: 5%. Default: all of it.")
@click.option(
    "--replaces", default="", metavar="TYPE/MODEL", help="Whose share it takes; '-': nobody's. Default: the baseline's."
)
@click.option("--step", type=SHARE, help="Largest step of traffic while it takes over. Default: 20%.")
@click.option("--allow-expired", is_flag=True, help="Use a certificate although it has expired.")
@click.option("--explain", is_flag=True, help="Show every formula with the numbers in it, and every input.")
@click.option("--keep", is_flag=True, help="Keep the estimate.")
@with_session
def estimate(
    session: Session,
    model: str,
    share: int | None,
    replaces: str,
    step: int | None,
    allow_expired: bool,
    explain: bool,
    keep: bool,
) -> None:
    """Estimate what a model needs, region by region.

    And what changes when it takes over from another.
    """
    wanted = pb.Estimate(
        model=MODEL.name(model),
        share_basis_points=share or 0,
        replaces=MODEL.name(replaces) if replaces not in ("", "-") else replaces,
        max_step_basis_points=step or 0,
        allow_expired_certificate=allow_expired,
    )
    with render.busy("Estimating"):
        found = session.client.capacity.create_estimate(estimate=wanted, validate_only=not keep)
    _show(session, found, explain=explain)
    if session.is_table and keep:
        click.echo(
            f"kept as {found.name}; show it again: modelfleet capacity estimates show {render.short(found.name)}"
        )
    elif session.is_table and not explain:
        click.echo("check it by hand: the same with --explain")


@click.group(cls=FleetGroup)
def estimates() -> None:
    """Estimates that were kept; never changed afterwards."""


_COLUMNS: list[render.Column] = [
    ("ESTIMATE", lambda m: render.short(m.name)),
    ("MODEL", lambda m: short_model(m.model)),
    ("SHARE", lambda m: render.percent(m.share_basis_points)),
    ("REPLACES", lambda m: short_model(m.replaces)),
    ("CHANGE/H", lambda m: f"{m.cost_change_per_hour:+,.2f}"),
    ("TIME", lambda m: render.clock(m.create_time)),
]


@estimates.command("list")
@click.argument("model", metavar="[TYPE/MODEL]", required=False, default="")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_estimates(session: Session, model: str, limit: int) -> None:
    """List kept estimates, newest first.

    Those of one model, or of all. A decision keeps the estimate that it saw.
    """
    answer = session.client.capacity.list_estimates(model=MODEL.name(model) if model else "", page_size=limit)
    nothing = "No estimates kept yet. Keep one: modelfleet capacity estimate TYPE/MODEL --keep"
    render.listing(session, answer.estimates, _COLUMNS, nothing)


@estimates.command("show")
@click.argument("name", metavar="ESTIMATE")
@click.option("--explain", is_flag=True, help="Show every formula with the numbers in it, and every input.")
@with_session
def show_estimate(session: Session, name: str, explain: bool) -> None:
    """Show a kept estimate as when it was made."""
    _show(session, session.client.capacity.get_estimate(name=f"estimates/{render.short(name)}"), explain=explain)


def _show(session: Session, found: pb.Estimate, *, explain: bool) -> None:
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    replaced = f", taking over from {short_model(found.replaces)}" if found.replaces != "-" else ""
    click.echo(f"{short_model(found.model)} with {render.percent(found.share_basis_points)} of its route{replaced}")
    _show_regions(found)
    click.echo(_difference(found))
    if explain:
        _explain(found)
    for warning in found.warnings:
        click.echo(f"note: {warning}", err=True)


def _show_regions(found: pb.Estimate) -> None:
    rows = [
        [
            render.short(each.region),
            f"{each.demand_qps:,.1f}",
            f"{each.failover_demand_qps:,.1f}",
            f"{each.replicas:,}",
            f"{each.share_replicas:,}",
            f"{each.replaced_replicas:,}" if each.replaced_flavor else "-",
            _units(each.swap_peaks),
            _units(each.unit_changes, signed=True),
            f"{each.cost_per_hour:,.2f}",
        ]
        for each in found.regions
    ]
    headers = [
        "REGION", "DEMAND/S", "FAILOVER/S", "WHOLE ROUTE", "REPLICAS", "REPLACED", "PEAK UNITS", "CHANGE",
        "WHOLE COST/H",
    ]  # fmt: skip
    render.console().print(render.table(headers, rows))


def _units(units: Iterable[pb.PeakUnits], *, signed: bool = False) -> str:
    form = "+,d" if signed else ",d"
    return ", ".join(f"{each.units:{form}} {render.short(each.flavor)}" for each in units)


def _difference(found: pb.Estimate) -> str:
    if found.replaces == "-":
        return f"cost: {found.cost_change_per_hour:+,.2f} an hour; nothing is replaced"
    if not found.cost_ratio:
        return f"cost: {found.cost_change_per_hour:+,.2f} an hour; what the replaced model costs is not known"
    before = found.cost_change_per_hour / (found.cost_ratio - 1) if found.cost_ratio != 1 else None
    sides = "" if before is None else f" ({before:,.2f} before, {before * found.cost_ratio:,.2f} after)"
    return f"cost: {found.cost_change_per_hour:+,.2f} an hour, {found.cost_ratio:.4g} times what it was{sides}"


def _explain(found: pb.Estimate) -> None:
    for each in found.regions:
        click.echo(f"\n{render.short(each.region)}:")
        for line in (*each.explanation.splitlines(), *each.swap_explanation.splitlines()):
            click.echo(f"  {line}")
    click.echo("")
    inputs = [
        [i.id, render.short(i.region), f"{i.value:.10g}", i.unit, i.source, render.clock(i.time)[:16]]
        for i in found.inputs
    ]
    render.console().print(render.table(["INPUT", "REGION", "VALUE", "UNIT", "SOURCE", "AS OF"], inputs))
