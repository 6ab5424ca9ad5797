"""`modelfleet capacity reservation`: what launches hold, who waits for what, and what would fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleet.cli import render, watching
from modelfleet.cli.capacity.nouns import POOL
from modelfleet.cli.parameters import DURATION
from modelfleet.cli.registry import MODEL
from modelfleet.cli.resources import parse, read_fields
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.common.v1 import serving_pb2
from modelfleet.errors import ModelfleetError, ResourceExhausted


@click.group(cls=FleetGroup)
def reservation() -> None:
    """Reservations: what launches hold, wait for, and could hold."""


_LIVE = {pb.Reservation.PENDING, pb.Reservation.HELD}


_NEVER = "Nothing that is held would ever free enough."


def _name(value: str) -> str:
    return f"reservations/{render.short(value)}"


def _launch(value: str) -> str:
    return f"launches/{render.short(value)}"


def _units(items: Iterable[Any]) -> str:
    return ", ".join(f"{i.hold_units} {render.short(i.flavor)}@{render.short(i.region)}" for i in items)


_COLUMNS: list[render.Column] = [
    ("RESERVATION", lambda m: render.short(m.name)),
    ("LAUNCH", lambda m: render.short(m.launch)),
    ("POOL", lambda m: render.short(m.pool)),
    ("STATE", lambda m: render.enum(m, "state")),
    ("HOLD", lambda m: _units(m.items)),
    ("CREATED", lambda m: render.clock(m.create_time)),
    ("MESSAGE", lambda m: m.message),
]
_WAITING_COLUMNS: list[render.Column] = [
    ("PLACE", lambda m: str(m.position)),
    ("LAUNCH", lambda m: render.short(m.launch)),
    ("POOL", lambda m: render.short(m.pool)),
    ("TIER", lambda m: render.enum(m, "tier")),
    ("HOLD", lambda m: _units(m.items)),
    ("EXPECTED", lambda m: render.clock(m.expected_hold_time)),
    ("MESSAGE", lambda m: m.message),
]
_FIT_COLUMNS: list[render.Column] = [
    ("FLAVOR", lambda m: render.short(m.item.flavor)),
    ("REGION", lambda m: render.short(m.item.region)),
    ("HOLD", lambda m: str(m.item.hold_units)),
    ("MOVED", lambda m: str(m.item.moved_units)),
    ("NEW", lambda m: str(m.item.extra_units)),
    ("AVAILABLE", lambda m: str(m.available_units)),
    ("MISSING", lambda m: str(m.missing_units)),
    ("END OVER QUOTA", lambda m: str(m.end_excess_units)),
]


@reservation.command("list")
@click.option("--pool", "of_pool", default="", metavar="POOL", help="Only of this pool.")
@click.option("--launch", "of_launch", default="", metavar="LAUNCH", help="Only of this launch.")
@click.option("--waiting", is_flag=True, help="Only those that wait, the next first.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@with_session
def list_reservations(session: Session, of_pool: str, of_launch: str, waiting: bool, limit: int) -> None:
    """List reservations, newest first.

    With --waiting those that wait, in the order in which they will be held.
    """
    answer = session.client.capacity.list_reservations(
        pool=POOL.name(of_pool) if of_pool else "",
        launch=_launch(of_launch) if of_launch else "",
        waiting=waiting,
        page_size=limit,
    )
    if not waiting:
        render.listing(session, answer.reservations, _COLUMNS, "No reservations.")
        return
    in_order = sorted(answer.reservations, key=lambda one: (one.position, one.create_time.ToDatetime()))
    render.listing(session, in_order, _WAITING_COLUMNS, "Nobody waits.")


@reservation.command("get")
@click.argument("name", metavar="RESERVATION")
@with_session
def get_reservation(session: Session, name: str) -> None:
    """Show a reservation with all its fields.

    Everything that was moved, held, promised and settled.
    """
    render.show(session, session.client.capacity.get_reservation(name=_name(name)))


@reservation.command("watch")
@click.argument("name", metavar="RESERVATION")
@with_session
def watch_reservation(session: Session, name: str) -> None:
    """Follow a reservation until it has ended, a line a change."""
    updates = watching.updates(
        lambda: session.client.capacity.watch_reservation(name=_name(name)), lambda one: one.state not in _LIVE
    )
    for one in updates:
        if session.is_table:
            click.echo(f"{render.clock(one.update_time)}  {_said(one)}")
        else:
            render.emit(session, render.as_data(one))


def _said(one: pb.Reservation) -> str:
    """What is to be known of a reservation now, in a line."""
    state = render.enum(one, "state")
    if one.state == pb.Reservation.HELD:
        until = "in use" if one.HasField("activate_time") else f"expires at {render.clock(one.expire_time)}"
        return f"{state}  {_units(one.items)}, {until}. {one.message}".rstrip()
    return f"{state}  {one.message}".rstrip()


_WISHES = (
    click.option(
        "-f", "--file", metavar="FILE", help="YAML or JSON with the fields of the reservation; '-' is standard input."
    ),
    click.option("--pool", default="", metavar="POOL", help="Pool whose capacity it is."),
    click.option(
        "--item", "items", multiple=True, metavar="FLAVOR@REGION=UNITS", help="What is held; may be repeated."
    ),
    click.option(
        "--end", "ends", multiple=True, metavar="FLAVOR@REGION=UNITS",
        help="What of an item is still used in the end. Default: all of it.",
    ),
    click.option(
        "--replaces", multiple=True, metavar="TYPE/MODEL", help="Model whose usage moves in; may be repeated."
    ),
    click.option(
        "--tier",
        type=click.Choice([name for name, number in serving_pb2.Tier.items() if number]),
        help="How important the launch is; among those who wait, the lowest number goes first.",
    ),
    click.option("--ends-in", type=DURATION, help="When the launch is expected to end, from now."),
    click.option("--keeps", type=DURATION, help="How long the rest is meant to be kept for a rollback."),
)  # fmt: skip


def _with_wishes(command: Any) -> Any:
    for option in reversed(_WISHES):
        command = option(command)
    return command


def _wanted(launch: str, file: str | None, **wishes: Any) -> tuple[pb.Reservation, list[pb.Swap]]:
    """What is asked for, and the swaps behind it, which only a file can name."""
    data = read_fields(file, ())
    swaps = [pb.Swap() for _ in data.get("swaps") or ()]
    for swap, fields in zip(swaps, data.pop("swaps", None) or (), strict=True):
        parse(fields, swap)
    wanted = pb.Reservation()
    parse(data, wanted)
    if wishes["pool"]:
        wanted.pool = POOL.name(wishes["pool"])
    wanted.launch = _launch(launch) if launch else wanted.launch or "launches/simulated"
    for flavor, region, units in map(_place, wishes["items"]):
        wanted.items.add(flavor=flavor, region=region, hold_units=units)
    for flavor, region, units in map(_place, wishes["ends"]):
        item = next((one for one in wanted.items if (one.flavor, one.region) == (flavor, region)), None)
        if item is None:
            raise click.UsageError(f"--end {render.short(flavor)}@{render.short(region)}: there is no such --item")
        item.end_units = units
    wanted.replaced_models.extend(map(MODEL.name, wishes["replaces"]))
    if wishes["tier"]:
        wanted.tier = serving_pb2.Tier.Value(wishes["tier"])
    if wishes["ends_in"] is not None:
        wanted.expected_release_time.CopyFrom(_from_now(wishes["ends_in"]))
    if wishes["keeps"] is not None:
        wanted.expected_retain_duration.CopyFrom(wishes["keeps"])
    if not wanted.pool or not wanted.items:
        raise click.UsageError("give --pool POOL and --item FLAVOR@REGION=UNITS, or -f FILE")
    return wanted, swaps


def _place(text: str) -> tuple[str, str, int]:
    found = re.fullmatch(r"(?:flavors/)?([^@=/]+)@(?:regions/)?([^@=/]+)=(\d+)", text)
    if found is None:
        raise click.UsageError(f"'{text}' is not FLAVOR@REGION=UNITS, such as cpu@eu=584")
    return f"flavors/{found[1]}", f"regions/{found[2]}", int(found[3])


def _from_now(span: Duration) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime.now(UTC) + span.ToTimedelta())
    return made


@reservation.command("simulate")
@_with_wishes
@with_session
def simulate(session: Session, file: str | None, **wishes: Any) -> None:
    """Say whether something would fit, and when; change nothing.

    Now, in smaller steps, later and when, or never and why.
    """
    wanted, swaps = _wanted("", file, **wishes)
    answer = session.client.capacity.simulate_reservation(reservation=wanted, swaps=swaps)
    if not session.is_table:
        render.dump(session, render.as_data(answer))
        return
    click.echo(_answer(answer))
    render.console().print(_table(answer.items, _FIT_COLUMNS))
    _print_promises(answer.promises)
    click.echo(answer.explanation)


def _answer(answer: pb.SimulateReservationResponse) -> str:
    if answer.answer == pb.SimulateReservationResponse.IN_STEPS:
        return f"Fits now, in steps of {render.percent(answer.step_basis_points)}."
    if answer.answer == pb.SimulateReservationResponse.LATER:
        when = render.clock(answer.expected_hold_time)
        return f"Fits later, at about {when} UTC." if when else "Fits later; nobody can say when."
    return "Fits now." if answer.fits else "Never fits."


def _print_promises(promises: Sequence[pb.Promise]) -> None:
    if promises:
        click.echo("It would wait for:")
        columns: list[render.Column] = [
            ("LAUNCH", lambda m: render.short(m.launch)),
            ("FLAVOR", lambda m: render.short(m.flavor)),
            ("REGION", lambda m: render.short(m.region)),
            ("UNITS", lambda m: str(m.units)),
            ("EXPECTED", lambda m: render.clock(m.expected_time)),
        ]
        render.console().print(_table(promises, columns))


def _table(messages: Iterable[Any], columns: Sequence[tuple[str, Callable[[Any], str]]]) -> Any:
    return render.table([name for name, _ in columns], ([cell(m) for _, cell in columns] for m in messages))


@reservation.command("create")
@click.argument("launch", metavar="LAUNCH")
@_with_wishes
@click.option("--wait", "may_wait", is_flag=True, help="Wait where it does not fit now but would later.")
@click.option("--ttl", type=DURATION, help="How long it lives without being activated. Default 1h.")
@with_session
def create(
    session: Session, launch: str, file: str | None, may_wait: bool, ttl: Duration | None, **wishes: Any
) -> None:
    """Reserve by hand, for a launch that no launcher runs."""
    wanted, _ = _wanted(launch, file, **wishes)
    try:
        made = session.client.capacity.create_reservation(reservation=wanted, may_wait=may_wait, time_to_live=ttl)
    except ResourceExhausted as error:
        if error.reason != "QUOTA_EXCEEDED":
            raise
        outlook = _NEVER if may_wait else _outlook(session, wanted)
        raise ResourceExhausted(
            f"{error.message} {outlook}".rstrip(),
            code=error.code,
            reason=error.reason,
            metadata=error.metadata,
            violations=error.violations,
            preconditions=error.preconditions,
        ) from error
    _show(session, made)
    if session.is_table and made.state == pb.Reservation.PENDING:
        click.echo(f"Follow it: modelfleet capacity reservation watch {render.short(made.name)}")


def _outlook(session: Session, wanted: pb.Reservation) -> str:
    """Whether what does not fit now would later, in a sentence; empty where it fits meanwhile, or nobody can say."""
    try:
        answer = session.client.capacity.simulate_reservation(reservation=wanted)
    except ModelfleetError:
        # The refusal that this is added to matters more than why nothing can be added.
        return ""
    if answer.answer == pb.SimulateReservationResponse.LATER:
        return f"{_answer(answer)} To wait for it, add --wait."
    if answer.answer != pb.SimulateReservationResponse.NEVER:
        return ""
    beyond = any(fit.end_excess_units for fit in answer.items)
    return "It never will: what it ends with is beyond quota and loans." if beyond else _NEVER


def _show(session: Session, made: pb.Reservation) -> None:
    if session.is_table:
        click.echo(f"{render.short(made.name)}: {_said(made)}")
    else:
        render.show(session, made)


@reservation.command("renew")
@click.argument("name", metavar="RESERVATION")
@click.option("--ends-in", type=DURATION, help="When the launch is expected to end, from now. Default: as said before.")
@click.option("--ttl", type=DURATION, help="How long it lives from now without being activated. Default 1h.")
@with_session
def renew(session: Session, name: str, ends_in: Duration | None, ttl: Duration | None) -> None:
    """Say that the holder is there, and when it expects to end.

    Those who wait for it are told.
    """
    release = None if ends_in is None else _from_now(ends_in)
    _show(
        session,
        session.client.capacity.renew_reservation(name=_name(name), expected_release_time=release, time_to_live=ttl),
    )


@reservation.command("cancel")
@click.argument("name", metavar="RESERVATION")
@with_session
def cancel(session: Session, name: str) -> None:
    """Give back what was never activated, or stop waiting.

    Everything is as it was before.
    """
    _show(session, session.client.capacity.cancel_reservation(name=_name(name)))


@reservation.command("settle")
@click.argument("name", metavar="RESERVATION")
@click.option("--rolled-back", is_flag=True, help="What was moved in is booked again.")
@click.option(
    "--uses", multiple=True, metavar="TYPE/MODEL:FLAVOR@REGION=UNITS",
    help="The launch succeeded, and this is what a model uses now; may be repeated.",
)  # fmt: skip
@click.option(
    "--keep",
    type=DURATION,
    help="With --uses: how long what is left is kept for a rollback. Default: it is free at once.",
)
@with_session
def settle(session: Session, name: str, rolled_back: bool, uses: tuple[str, ...], keep: Duration | None) -> None:
    """End a hold by hand, once its launcher is gone.

    Only once it is gone for good: it does not stop what still runs.
    """
    if rolled_back == bool(uses):
        raise click.UsageError("give --rolled-back, or with --uses what each model uses now")
    if rolled_back and keep is not None:
        raise click.UsageError("--keep goes with --uses: once rolled back, nothing is left to undo")
    outcome = pb.SettleReservationRequest.ROLLED_BACK if rolled_back else pb.SettleReservationRequest.SUCCEEDED
    done = session.client.capacity.settle_reservation(
        name=_name(name), outcome=outcome, usages=map(_usage, uses), retain_duration=keep
    )
    _show(session, done)


def _usage(text: str) -> pb.ModelUnits:
    model, found, place = text.partition(":")
    if not found:
        raise click.UsageError(f"'{text}' is not TYPE/MODEL:FLAVOR@REGION=UNITS, such as feed/v7:cpu@eu=420")
    flavor, region, units = _place(place)
    return pb.ModelUnits(model=MODEL.name(model), flavor=flavor, region=region, units=units)
