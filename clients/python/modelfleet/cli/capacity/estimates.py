"""`modelfleet capacity estimate`: what a model needs."""

from __future__ import annotations

import click

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import Session, with_session


@click.command("estimate")
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
