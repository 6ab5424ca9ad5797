"""`modelfleet capacity estimate`: what a model needs, and what changes when it takes over."""

from __future__ import annotations

from collections.abc import Iterable

import click

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.parameters import SHARE
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import Session, with_session
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
    """Estimate what a model needs, region by region, and what changes when it takes over."""
    wanted = pb.Estimate(
        model=MODEL.name(model),
        share_basis_points=share or 0,
        replaces=MODEL.name(replaces) if replaces not in ("", "-") else replaces,
        max_step_basis_points=step or 0,
        allow_expired_certificate=allow_expired,
    )
    with render.busy("Estimating"):
        found = session.client.capacity.create_estimate(estimate=wanted, validate_only=not keep)
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
    if keep:
        click.echo(f"kept as {found.name}")
    elif not explain:
        click.echo("check it by hand: the same with --explain")


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
