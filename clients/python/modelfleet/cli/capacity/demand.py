"""`modelfleet capacity demand`: how much traffic routes must carry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.capacity.v1 import demand_pb2
from modelfleet.cli import render
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.registry import MODEL_TYPE
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.demand import Peak, is_maximum, peaks_of
from modelfleet.registry.v1 import registry_pb2


@click.group(cls=FleetGroup)
def demand() -> None:
    """Demand: how much traffic a model type must carry.

    Region by region, and where each number comes from.
    """


@demand.command("show")
@click.argument("model_type", metavar="TYPE")
@with_session
def show(session: Session, model_type: str) -> None:
    """Show peaks, their sources and the failover.

    Region by region: the peak, where it comes from, and who takes what when a region fails.
    """
    name = MODEL_TYPE.name(model_type)
    with render.busy("Measuring"):
        found = session.client.capacity.get_demand(model_type=name)
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    rows = [
        [
            render.short(each.region),
            f"{each.peak_qps:,.1f}",
            _source(each),
            render.clock(each.time)[:16] or "-",
            f"{each.demand_qps:,.1f}",
            f"{each.failover_demand_qps:,.1f}",
            render.short(each.worst_failed_region) or "-",
        ]
        for each in found.regions
    ]
    headers = ["REGION", "PEAK/S", "SOURCE", "AS OF", "DEMAND/S", "FAILOVER/S", "WORST FAILURE"]
    render.console().print(render.table(headers, rows))
    growth, fanout = found.growth_basis_points / 10_000, found.fanout_basis_points / 10_000
    click.echo(
        f"demand = peak × (1 + growth {growth:g}) × fanout {fanout:g}; failover = demand + the worst failure's part"
    )
    _show_failover(session, found)
    for each in found.regions:
        if each.warning:
            click.echo(f"note: {render.short(each.region)}: {each.warning}", err=True)


def _source(each: demand_pb2.MeasuredDemand) -> str:
    if each.source == demand_pb2.MeasuredDemand.PROMETHEUS:
        return f"Prometheus: {each.quantile:g} of {each.points:,} minutes ({each.coverage:.0%})"
    return f"stated: {each.detail}" if each.detail else "stated"


def _show_failover(session: Session, found: demand_pb2.Demand) -> None:
    """The failover matrix: what goes where when each region fails."""
    carried = {each.region: each.demand_qps for each in found.regions}
    if len(carried) < 2:
        return
    shares = {
        (region.name, share.region): share.share_basis_points / 10_000
        for region in session.client.registry.list_regions_all(page_size=1000)
        for share in region.failover_shares
    }
    rows = []
    for failed, lost in carried.items():
        taken = [lost * shares.get((failed, region), 0.0) for region in carried]
        cells = [f"{part:,.1f}" if part else "-" for part in taken]
        rows.append([render.short(failed), *cells, f"{max(0.0, lost - sum(taken)):,.1f}"])
    headers = ["WHEN IT FAILS", *(f"TO {render.short(region).upper()}" for region in carried), "NOWHERE"]
    click.echo("")
    render.console().print(render.table(headers, rows))


@demand.command("state")
@click.argument("model_type", metavar="TYPE")
@click.argument("peaks", nargs=-1, metavar="[REGION=QPS]…")
@click.option("--source", default="", help="Where the numbers come from: a dashboard, a guess.")
@click.option("--growth", type=click.FloatRange(0, 1000), help="Expected growth of all peaks, in percent.")
@click.option("--fanout", type=click.FloatRange(0.0001, 100_000), help="Requests to the model for each one counted.")
@click.option("--reason", default="", help="Why; kept in the history.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@with_session
def state(
    session: Session,
    model_type: str,
    peaks: tuple[str, ...],
    source: str,
    growth: float | None,
    fanout: float | None,
    reason: str,
    dry_run: bool,
) -> None:
    """State peaks, growth or fanout by hand.

    Peaks are in requests a second; those of regions that are not named stay.
    """
    wanted = registry_pb2.DemandSource(stated=[_stated(peak, source) for peak in peaks])
    paths = ["stated"] if peaks else []
    for field, value, factor in (("growth_basis_points", growth, 100), ("fanout_basis_points", fanout, 10_000)):
        if value is not None:
            setattr(wanted, field, round(value * factor))
            paths.append(field)
    if not paths:
        raise click.UsageError("nothing to state; give REGION=QPS, such as eu=812.5, --growth or --fanout")
    _write(session, MODEL_TYPE.name(model_type), wanted, paths, reason or "demand stated", dry_run=dry_run)


@demand.command("query")
@click.argument("model_type", metavar="TYPE")
@click.argument("query", metavar="PROMQL")
@click.option("--window", type=DURATION, default="28d", show_default=True, help="How far back.")
@click.option(
    "--quantile", type=click.FloatRange(0, 1, min_open=True), default=0.999, show_default=True,
    help="Of the 1-minute rates, which is the peak.",
)  # fmt: skip
@click.option("--reason", default="", help="Why; kept in the history.")
@click.option("--dry-run", is_flag=True, help="Only check; change nothing.")
@with_session
def query_(
    session: Session, model_type: str, query: str, window: Duration, quantile: float, reason: str, dry_run: bool
) -> None:
    """Have Prometheus measure the peaks.

    PROMQL gives the 1-minute rate of one region as one series; {model_type} and {region} stand for the ids. Regions
    with a stated peak keep that.
    """
    how = registry_pb2.PrometheusDemand(query=query, window=window, quantile=quantile)
    wanted = registry_pb2.DemandSource(prometheus=how)
    _write(session, MODEL_TYPE.name(model_type), wanted, ["prometheus"], reason or "demand by query", dry_run=dry_run)


def _stated(text: str, source: str) -> registry_pb2.RegionDemand:
    region, _, qps = text.partition("=")
    try:
        rate = float(qps)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate >= 0):
        raise click.UsageError(f"'{text}' is no peak; write REGION=QPS, such as eu=812.5: requests a second, 0 or more")
    return registry_pb2.RegionDemand(
        region=f"regions/{render.short(region)}", peak_qps=rate, source=source, measure_time=_stamp(datetime.now(UTC))
    )


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment.replace(microsecond=0))
    return stamp


@demand.command("import")
@click.argument("model_type", metavar="TYPE")
@click.argument("file", metavar="FILE.csv", type=click.Path(exists=True, dir_okay=False))
@click.option("--window", type=DURATION, default="28d", show_default=True, help="How far back from the newest row.")
@click.option(
    "--quantile", type=click.FloatRange(0, 1, min_open=True), default=0.999, show_default=True,
    help="Of the rates of a region, which is its peak.",
)  # fmt: skip
@click.option("--reason", default="", help="Why; kept in the history.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@with_session
def import_(
    session: Session, model_type: str, file: str, window: Duration, quantile: float, reason: str, dry_run: bool
) -> None:
    """Take the peaks from a CSV of rates.

    Its columns are time, region and qps, a row for each minute and region. What changes is shown first.
    """
    name = MODEL_TYPE.name(model_type)
    with render.busy(f"Reading {file}"), Path(file).open(encoding="utf-8", newline="") as lines:
        try:
            found = peaks_of(lines, window.ToTimedelta(), quantile)
        except ValueError as error:
            raise click.UsageError(f"{file}, {error}") from None
    wanted = registry_pb2.DemandSource(stated=[_measured(peak, Path(file).name, quantile) for peak in found])
    doubts = [
        f"{render.short(peak.region)}: the {quantile:g} quantile of {render.count(peak.rows, 'row')} is their maximum"
        for peak in found
        if is_maximum(peak.rows, quantile)
    ]
    why = reason or f"demand from {Path(file).name}"
    _write(session, name, wanted, ["stated"], why, dry_run=dry_run, doubts=doubts)


def _measured(peak: Peak, file: str, quantile: float) -> registry_pb2.RegionDemand:
    rows = render.count(peak.rows, "row")
    source = f"{file}: {quantile:g} of {rows}, {peak.first:%Y-%m-%d %H:%M} to {peak.last:%Y-%m-%d %H:%M}"
    return registry_pb2.RegionDemand(
        region=peak.region, peak_qps=peak.qps, source=source[-500:], measure_time=_stamp(peak.last)
    )


def _write(
    session: Session,
    name: str,
    wanted: registry_pb2.DemandSource,
    paths: Sequence[str],
    reason: str,
    *,
    dry_run: bool,
    doubts: Iterable[str] = (),
) -> None:
    """Shows what changes of a demand source and what is doubtful of it, and changes it unless it is a dry run."""
    current = session.client.registry.get_model_type(name=name)
    before = {each.region: each for each in current.demand_source.stated}
    if elsewhere := [render.short(each.region) for each in wanted.stated if each.region not in current.regions]:
        known = ", ".join(map(render.short, current.regions)) or "nowhere"
        raise click.UsageError(
            f"{name} is not served in {', '.join(elsewhere)} (it is in {known}); leave these out, or add the region to "
            "the type first"
        )
    if session.is_table and wanted.stated:
        _show_plan(wanted.stated, before)
    for doubt in doubts:
        click.echo(f"note: {doubt}", err=True)
    # Those of other regions stay.
    stated = (before | {each.region: each for each in wanted.stated}).values()
    made = registry_pb2.ModelType(name=name, etag=current.etag, demand_source=wanted)
    del made.demand_source.stated[:]
    made.demand_source.stated.extend(stated)
    answer = session.client.registry.update_model_type(
        model_type=made,
        update_mask=FieldMask(paths=[f"demand_source.{path}" for path in paths]),
        reason=reason,
        validate_only=dry_run,
    )
    if not session.is_table:
        render.dump(session, render.as_data(answer.demand_source))
    elif dry_run:
        click.echo("nothing was changed; without --dry-run it is")
    else:
        click.echo(f"updated {name}; what it makes of it: modelfleet capacity demand show {render.short(name)}")


def _show_plan(wanted: Iterable[registry_pb2.RegionDemand], before: Mapping[str, Any]) -> None:
    rows = [
        [
            render.short(each.region),
            f"{before[each.region].peak_qps:,.1f}" if each.region in before else "-",
            f"{each.peak_qps:,.1f}",
            each.source or "by hand",
        ]
        for each in wanted
    ]
    render.console().print(render.table(["REGION", "STATED/S", "NEW/S", "SOURCE"], rows))
