"""`modelfleet stability ranges`: what a model's metrics stay in while all is well."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from typing import Any, TypeVar

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet import plot
from modelfleet.cli import render
from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.parameters import POINT, SPAN, Point
from modelfleet.cli.registry import MODEL, MODEL_TYPE
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.errors import FailedPrecondition
from modelfleet.healthy_ranges import in_force, key
from modelfleet.plot import Chart, Series
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleet.stability.v1 import stability_pb2 as pb

HealthyRange = monitoring_pb2.HealthyRange
_C = TypeVar("_C", bound=Callable[..., Any])
_NOT_CONFIGURED = "NOT_CONFIGURED"
_RANGES = FieldMask(paths=["healthy_ranges"])
_FLAGS = {
    "start_time": "--from",
    "end_time": "--to",
    "pages_per_week": "--pages-per-week",
    "predictions": "--prediction",
    "window": "--window",
}


@click.group(cls=FleetGroup)
def ranges() -> None:
    """Healthy ranges: what metrics stay in while all is well.

    Proposed from a healthy history, accepted into the registry.
    """


def _proposing(command: _C) -> _C:
    """The options that say what to propose."""
    options = [
        click.option(
            "--from", "start", type=POINT, metavar="POINT", help="Start of the healthy history. Default: 28 d ago."
        ),
        click.option("--to", "end", type=POINT, metavar="POINT", help="Its end. Default: now."),
        click.option(
            "--pages-per-week",
            # The service takes 0 for its own default.
            type=click.FloatRange(min=0, min_open=True),
            default=0.05,
            show_default=True,
            help="False alarms to allow: pages per week, over all of the model's predictions and metrics.",
        ),
        click.option("--prediction", "predictions", multiple=True, help="Only of this prediction; may be repeated."),
        click.option("--window", type=SPAN, help="Width of the windows: 5m to 1d. Default: what sees faults soonest."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@ranges.command("propose")
@click.argument("model", metavar="TYPE/MODEL")
@_proposing
@click.option("--plot", "path", type=click.Path(dir_okay=False), metavar="FILE", help="Write a picture: .png or .svg.")
@with_session
def propose(session: Session, model: str, path: str | None, **wish: Any) -> None:
    """Propose healthy ranges from a history.

    Changes nothing. Says what the ranges would have done to that history: how often they would have paged, and when.
    """
    if path:
        try:
            plot.check(path)
        except plot.CannotPlot as error:
            raise click.UsageError(f"--plot {error}") from None
    found = _propose(session, model, with_history=bool(path), **wish)
    if found is None:
        _say_not_applicable(session, model)
        return
    if session.is_table:
        _print(model, found)
    else:
        render.dump(session, [render.as_data(proposal) for proposal in found])
    if path and (charts := [chart(model, proposal) for proposal in found if proposal.history]):
        render.picture(charts, path)
    if session.is_table and found:
        click.echo(f"Take them over: modelfleet stability ranges accept {_typed(model)} --reason …")


@ranges.command("accept")
@click.argument("model", metavar="TYPE/MODEL")
@_proposing
@click.option("--for-type", is_flag=True, help="Write all of them to the model type, for every model without its own.")
@click.option("--reason", required=True, help="Why; kept in the history of the registry.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@with_session
def accept(session: Session, model: str, reason: str, *, for_type: bool, yes: bool, **wish: Any) -> None:
    """Propose healthy ranges, and write them into the registry.

    Those of calibration and NE become the model's own; those of volume its model type's, since the volume is that of
    the whole route. Ranges that nothing is proposed for stay as they are.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody is there to confirm it; give --yes")
    # Read before proposing: a change in between is then refused.
    before = session.client.registry.get_model(name=MODEL.name(model))
    before_type = session.client.registry.get_model_type(name=before.name.split("/models/")[0])
    found = _propose(session, model, with_history=False, **wish)
    if not found:
        raise click.ClickException(_not_applicable(model) if found is None else _nothing(model))
    if session.is_table:
        _print(model, found)
    if not yes:
        click.confirm("Write these into the registry?", abort=True)
    proposed = [proposal.range for proposal in found]
    own = [range_ for range_ in proposed if not for_type and range_.metric != HealthyRange.VOLUME]
    of_type = [range_ for range_ in proposed if for_type or range_.metric == HealthyRange.VOLUME]
    written: list[registry_pb2.Model | registry_pb2.ModelType] = []
    if own:
        written.append(_write_model(session, before, _merged(before.healthy_ranges, own), reason))
    if of_type:
        written.append(_write_type(session, before_type, _merged(before_type.healthy_ranges, of_type), reason))
    _written(session, written)
    if session.is_table and (hint := _who_else(before, own, of_type)):
        click.echo(hint)


def _who_else(model: registry_pb2.Model, own: Sequence[Any], of_type: Sequence[Any]) -> str:
    """Says which models the ranges that were written are not in force for, where that may surprise."""
    if own and model.role == registry_pb2.Model.BASELINE:
        return (
            "They are this model's: candidates are judged by their model type's until they have their own. "
            "For these too: give --for-type"
        )
    if {*map(key, of_type)} & {*map(key, model.healthy_ranges)}:
        return (
            f"{model.name} has ranges of its own, which stay in force for it; to take them out: "
            f"modelfleet stability ranges clear {_typed(model.name)} --reason …"
        )
    return ""


@ranges.command("show")
@click.argument("model", metavar="TYPE/MODEL")
@with_session
def show(session: Session, model: str) -> None:
    """Show the ranges in force, and where they come from."""
    found = session.client.registry.get_model(name=MODEL.name(model))
    model_type = session.client.registry.get_model_type(name=found.name.split("/models/")[0])
    if not model_type.predictions:
        _say_not_applicable(session, model)
        return
    shown = list(in_force(found, model_type))
    if not session.is_table:
        render.dump(session, [{"source": source, "range": render.as_data(range_)} for source, range_ in shown])
        return
    rows = [[*_cells(range_), source, _history_of(range_)] for source, range_ in shown]
    headers = ["PREDICTION", "METRIC", "WINDOW", "RANGE", "FROM", "HISTORY"]
    render.console().print(render.table(headers, rows))
    if not found.healthy_ranges:
        click.echo(f"The model has none of its own. Propose some: modelfleet stability ranges propose {_typed(model)}")


@ranges.command("clear")
@click.argument("entry", metavar="TYPE[/MODEL]")
@click.option("--prediction", default="", help="Only of this prediction.")
@click.option("--reason", required=True, help="Why; kept in the history of the registry.")
@with_session
def clear(session: Session, entry: str, prediction: str, reason: str) -> None:
    """Take healthy ranges out of the registry.

    Those of a model, or of a model type, and of one prediction where that is given.

    A model without its own has those of its type; without these what its predictions declare.
    """
    is_model = "/models/" in entry or (not entry.startswith("modelTypes/") and "/" in entry)
    get = session.client.registry.get_model if is_model else session.client.registry.get_model_type
    before: Any = get(name=(MODEL if is_model else MODEL_TYPE).name(entry))
    kept = [range_ for range_ in before.healthy_ranges if prediction and range_.prediction != prediction]
    if len(kept) == len(before.healthy_ranges):
        if prediction:
            _expect_declared(session, before.name.split("/models/")[0], prediction)
        click.echo(f"{before.name} has no such range.", err=not session.is_table)
        return
    write = _write_model if is_model else _write_type
    _written(session, [write(session, before, kept, reason)])


def _expect_declared(session: Session, model_type: str, prediction: str) -> None:
    """Refuses a prediction that the model type does not declare, most likely a slip of the pen."""
    declared = [each.id for each in session.client.registry.get_model_type(name=model_type).predictions]
    if prediction not in declared:
        there_are = f"; there are: {', '.join(declared)}" if declared else "; it declares none"
        raise click.ClickException(f"--prediction: {model_type} declares no '{prediction}'{there_are}")


def _propose(
    session: Session,
    model: str,
    *,
    with_history: bool,
    start: Point | None,
    end: Point | None,
    pages_per_week: float,
    predictions: Sequence[str],
    window: Duration | None,
) -> list[pb.RangeProposal] | None:
    """Asks for proposals; None where stability does not apply."""
    request = pb.ProposeRangesRequest(
        model=MODEL.name(model),
        start_time=_time("--from", start),
        end_time=_time("--to", end),
        pages_per_week=pages_per_week,
        predictions=predictions,
        window=window,
        include_history=with_history,
    )
    try:
        with told_in_flags(_FLAGS), render.busy("Going over the history"):
            return list(session.client.stability.propose_ranges(request).proposals)
    except FailedPrecondition as error:
        if error.reason != _NOT_CONFIGURED:
            raise
        return None


def _time(option: str, point: Point | None) -> Timestamp | None:
    if point is None or point == Point():
        return None
    if point.time is None:
        raise click.UsageError(f"{option}: give a time, or how long ago: 12h, 7d, 2026-11-24")
    stamp = Timestamp()
    stamp.FromDatetime(point.time)
    return stamp


def _print(model: str, found: Sequence[pb.RangeProposal]) -> None:
    if not found:
        click.echo(_nothing(model))
        return
    headers = ["PREDICTION", "METRIC", "WINDOW", "RANGE", "BASIS", "NOW", "WOULD HAVE PAGED", "WHY"]
    render.console().print(render.table(headers, map(_row, found)))


def _row(proposal: pb.RangeProposal) -> list[str]:
    now = f"{proposal.current.low:g} to {proposal.current.high:g}" if proposal.HasField("current") else "-"
    basis = render.enum(proposal, "basis")
    return [*_cells(proposal.range), basis, now, str(proposal.pages), proposal.explanation]


def _cells(range_: monitoring_pb2.HealthyRange) -> list[str]:
    """Prediction, metric, window and range."""
    between = f"{range_.low:g} to {range_.high:g}"
    if range_.hour_of_week_factors:
        factors = range_.hour_of_week_factors
        between += f", by the hour × {min(factors):.3g} to {max(factors):.3g}"
    return [range_.prediction, render.enum(range_, "metric"), render.duration(range_.window) or "1h", between]


def _history_of(range_: monitoring_pb2.HealthyRange) -> str:
    if not range_.HasField("history_start_time"):
        return ""
    return f"{render.day(range_.history_start_time)} to {render.day(range_.history_end_time)}"


def _merged(
    before: Iterable[monitoring_pb2.HealthyRange], proposed: Iterable[monitoring_pb2.HealthyRange]
) -> list[monitoring_pb2.HealthyRange]:
    return list(({key(range_): range_ for range_ in before} | {key(range_): range_ for range_ in proposed}).values())


def _write_model(
    session: Session, before: registry_pb2.Model, kept: Sequence[monitoring_pb2.HealthyRange], reason: str
) -> registry_pb2.Model:
    changed = registry_pb2.Model(name=before.name, etag=before.etag, healthy_ranges=kept)
    return session.client.registry.update_model(model=changed, update_mask=_RANGES, reason=reason)


def _write_type(
    session: Session, before: registry_pb2.ModelType, kept: Sequence[monitoring_pb2.HealthyRange], reason: str
) -> registry_pb2.ModelType:
    changed = registry_pb2.ModelType(name=before.name, etag=before.etag, healthy_ranges=kept)
    return session.client.registry.update_model_type(model_type=changed, update_mask=_RANGES, reason=reason)


def _written(session: Session, written: Sequence[registry_pb2.Model | registry_pb2.ModelType]) -> None:
    if not session.is_table:
        render.dump(session, [render.as_data(message) for message in written])
        return
    for message in written:
        ranges_ = render.count(len(message.healthy_ranges), "healthy range")
        click.echo(f"{message.name} has {ranges_} since revision {message.revision}.")


def _say_not_applicable(session: Session, model: str) -> None:
    if session.is_table:
        click.echo(_not_applicable(model))
    else:
        render.dump(session, [])


def _not_applicable(model: str) -> str:
    model_type = MODEL.name(model).split("/models/")[0]
    return f"NOT_APPLICABLE: {model_type} declares no predictions, so that only its availability is watched."


def _nothing(model: str) -> str:
    return f"Nothing is proposed for {_typed(model)}."


def _typed(model: str) -> str:
    """A model as people type it."""
    return model.removeprefix("modelTypes/").replace("/models/", "/")


def chart(model: str, proposal: pb.RangeProposal) -> Chart:
    """The history of a metric with the proposed range, and what lies outside of it."""
    range_ = proposal.range
    points = proposal.history
    times = [point.end_time.ToDatetime(tzinfo=UTC).timestamp() for point in points]
    low, high = ([getattr(point.range, end) for point in points] for end in ("low", "high"))
    out = [index for index, point in enumerate(points) if not low[index] <= point.value <= high[index]]
    series = [
        Series("proposed range", times, low, "band", high),
        Series("value", times, [point.value for point in points]),
    ]
    if out:
        series.append(Series("outside", [times[i] for i in out], [points[i].value for i in out], "points", mark="bad"))
    metric = {HealthyRange.CALIBRATION: "calibration", HealthyRange.NE: "NE", HealthyRange.VOLUME: "volume"}
    what = metric[range_.metric]
    title = f"{_typed(model)}: {what} of {range_.prediction} in windows of {render.duration(range_.window)}"
    unit = "examples" if range_.metric == HealthyRange.VOLUME else what
    return Chart(title, "", unit, series, time_x=True)
