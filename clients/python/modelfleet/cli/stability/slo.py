"""`modelfleet stability slo|rules`: objectives, what is left of their budgets, and both as files for other tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import yaml
from google.protobuf.duration_pb2 import Duration

from modelfleet import openslo
from modelfleet.burn_rates import MIN_BAD, shorthand
from modelfleet.cli import render
from modelfleet.cli.parameters import ENTRY
from modelfleet.cli.resources import Resource
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.cli.stability.alerts import COLUMNS as ALERT_COLUMNS
from modelfleet.code.tree import replace_text
from modelfleet.errors import NotFound
from modelfleet.rules import rules as rules_of
from modelfleet.stability.v1 import alerts_pb2
from modelfleet.stability.v1 import slos_pb2 as pb
from modelfleet.wording import short, short_model

_BAR = 20
# Expressions of rules stay in one line.
_WIDTH = 10_000
_ANSWERS = {"PAGE": "page", "TICKET": "ticket"}
# A day.
_FEWEST_MINUTES = 1440
# What is not said of the objectives already.
_ALERT_SHOWN = ("SEVERITY", "WHAT", "CULPRIT", "FOR", "STATE", "ALERT")
_MOST_ALERTS = 20


@click.group(cls=FleetGroup)
def slo() -> None:
    """Objectives, and what is left of their budgets.

    Every model that serves has objectives: the service level of its model type, or what its tier gives. Those of a
    baseline belong to the model type and pass from baseline to baseline.
    """


def objective(found: pb.Slo, kind: pb.Objective.Kind.ValueType) -> pb.Objective | None:
    """One of the objectives; None where the model has no such."""
    return next((each for each in found.objectives if each.kind == kind), None)


def left(found: pb.Objective | None) -> str:
    """What is left of a budget.

    Empty where there is no such objective, `-` where no minute counts yet; how many do, where they are too few.
    """
    if found is None:
        return ""
    if is_young(found):
        return f"({render.duration(Duration(seconds=60 * _counted(found)))} so far)"
    return f"{found.budget_left:.0%}" if found.HasField("budget_left") else "-"


def is_young(found: pb.Objective) -> bool:
    """Whether so few minutes count yet that a share of their budget says nothing: of ten, one bad minute is ten."""
    return found.HasField("budget_left") and _counted(found) < _FEWEST_MINUTES


def _counted(found: pb.Objective) -> int:
    return found.good + found.bad


def firing(found: pb.Slo) -> str:
    """What fires for objectives that are alerted for: PAGE, TICKET, or nothing."""
    responses = {render.enum(rate, "response") for each in found.objectives for rate in each.burn_rates if rate.firing}
    return "PAGE" if "PAGE" in responses else "TICKET" if responses else ""


_COLUMNS: list[render.Column] = [
    ("SLO", lambda m: short(m.name)),
    ("MODEL", lambda m: short_model(m.model)),
    ("ROLE", lambda m: render.enum(m, "role")),
    ("TIER", lambda m: render.enum(m, "tier") or "-"),
    ("TEAM", lambda m: short(m.team)),
    ("STABILITY LEFT", lambda m: left(objective(m, pb.Objective.STABILITY))),
    ("COVERAGE LEFT", lambda m: left(objective(m, pb.Objective.COVERAGE))),
    ("AVAILABILITY LEFT", lambda m: left(objective(m, pb.Objective.AVAILABILITY))),
    ("FIRES", firing),
]
_SLO = Resource("stability", "slo", "slos", "slos/{}", pb.Slo, _COLUMNS, "No model serves yet.")

_fits = click.option(
    "--filter",
    "where",
    default="",
    metavar="EXPRESSION",
    help="Only those that fit, such as 'tier <= TIER1 AND team = feed'; over role, tier, team and model_type.",
)


@slo.command("list")
@_fits
@click.option(
    "--order-by",
    default="budget_left",
    show_default=True,
    metavar="FIELD",
    help="budget_left: the smallest first; or name; 'FIELD desc' turns it around.",
)
@with_session
def list_(session: Session, where: str, order_by: str) -> None:
    """List the objectives of all models that serve.

    With what is left of each budget of the last 30 days, as a share of it: below 0% it is overdrawn.
    """
    found = _SLO.pages(session, filter=where, order_by=order_by)
    render.listing(session, found, _COLUMNS, "Nothing fits the filter." if where else _SLO.nothing)


@slo.command("get")
@click.argument("name", metavar="TYPE[/MODEL]")
@with_session
def get(session: Session, name: str) -> None:
    """Show objectives: budgets, burn rates, open alerts.

    TYPE are those of its baseline, whichever model that is.
    """
    found = _find(session, name)
    # More than these would be no help.
    fires = f'state = FIRING AND model = "{found.model}"'
    alerts = session.client.stability.list_alerts(filter=fires, page_size=_MOST_ALERTS).alerts
    if not session.is_table:
        render.dump(session, {**render.as_data(found), "alerts": [render.as_data(each) for each in alerts]})
        return
    model, role = short_model(found.model), render.enum(found, "role").lower()
    people = f"team {short(found.team)}" + (f" (on call: {found.on_call})" if found.on_call else "")
    owner = ", ".join(part for part in (render.enum(found, "tier"), people) if part)
    as_of = f"as of {render.clock(found.evaluate_time)} UTC" if found.HasField("evaluate_time") else "not evaluated yet"
    click.echo(f"{short(found.name)}: {role} {model}, {owner}; {as_of}")
    for each in found.objectives:
        click.echo()
        click.echo(_headline(each))
        if any(rate.HasField("long_burn_rate") or rate.HasField("short_burn_rate") for rate in each.burn_rates):
            render.console().print(render.table(_HEADERS, map(_row, each.burn_rates)))
    click.echo()
    if alerts:
        columns = [column for column in ALERT_COLUMNS if column[0] in _ALERT_SHOWN]
        render.console().print(
            render.table([head for head, _ in columns], ([cell(m) for _, cell in columns] for m in alerts))
        )
        click.echo()
    for line in _advice(found, model, alerts):
        click.echo(line)


_HEADERS = ("ALERT", "LONG", "BURNS", "SHORT", "BURNS", "LIMIT", "BAD", "NOW")


def _row(rate: pb.BurnRate) -> list[str]:
    """A pair of windows."""
    return [
        _ANSWERS[render.enum(rate, "response")],
        shorthand(rate.long_window),
        f"{rate.long_burn_rate:.2f}" if rate.HasField("long_burn_rate") else "-",
        shorthand(rate.short_window),
        f"{rate.short_burn_rate:.2f}" if rate.HasField("short_burn_rate") else "-",
        f"{rate.factor:g}",
        f"{rate.bad:,}",
        "FIRES" if rate.firing else "",
    ]


def _headline(found: pb.Objective) -> str:
    """An objective in a line: `STABILITY 99%  ███████████········· 57% left: 86 of 20,000 minutes bad, 200 allowed`."""
    name, target = render.enum(found, "kind"), f"{found.target * 100:.6g}%"
    counted = _counted(found)
    if not found.HasField("budget_left"):
        unknown = f", {render.count(found.unknown, 'minute')} unknown" if found.unknown else ""
        return f"{name} {target}: no minute counts yet{unknown}"
    if is_young(found):
        unknown = f"; {found.unknown:,} unknown" if found.unknown else ""
        bad = f"{found.bad:,} of {render.count(counted, 'minute')} bad{unknown}"
        return f"{name} {target}: {bad}; too few minutes yet to say what is left"
    kept = max(0.0, min(1.0, found.budget_left))
    full = round(kept * _BAR)
    drawn = "█" * full + "·" * (_BAR - full)
    much = (
        f"{found.budget_left:.0%} left" if found.budget_left >= 0 else f"overdrawn, {1 - found.budget_left:.0%} spent"
    )
    unknown = f"; {found.unknown:,} unknown" if found.unknown else ""
    allowed = counted * (1 - found.target)
    return (
        f"{name} {target}  {drawn} {much}: {found.bad:,} of {render.count(counted, 'minute')} bad, "
        f"{allowed:,.{0 if allowed >= MIN_BAD else 1}f} allowed{unknown}"
    )


def _advice(found: pb.Slo, model: str, alerts: Sequence[alerts_pb2.Alert]) -> Iterator[str]:
    """What the burn rates and the open alerts say together, and what to type next.

    They differ around a launch: the budget is its model type's, alerts look at a model's own minutes alone.
    """
    burns = firing(found)
    if alerts:
        if not burns:
            yield f"No burn rate is over its limits, but {_open(alerts)}: alerts look at the model's own minutes alone."
        yield f"What to do: modelfleet stability alert get {short(alerts[0].name)}"
    elif burns:
        yield f"Burn rates are over the limits of a {_ANSWERS[burns]}, but no alert of {model} is open."
        yield "Alerts look at a model's own minutes alone: the bad ones may be those of the baseline before it."
        yield f"How it stands, and what to do: modelfleet stability get {model}"
    else:
        yield "No burn rate is over its limits, and no alert is open."
        yield f"What is watched, and how it stands: modelfleet stability get {model}"


def _open(alerts: Sequence[alerts_pb2.Alert]) -> str:
    return f"{render.count(len(alerts), 'alert')} {'is' if len(alerts) == 1 else 'are'} open"


def _find(session: Session, name: str) -> pb.Slo:
    """The objectives of a model, or of a type's baseline; also by their own name."""
    stability = session.client.stability
    if name.startswith("slos/"):
        return stability.get_slo(name=name)
    try:
        return _of_entry(session, short_model(name))
    except NotFound:
        # In the words of the question: the entry does not exist, or it has no objectives since nothing serves.
        entry: str = ENTRY.convert(name, None, None)
        registry = session.client.registry
        if "/models/" in entry:
            registry.get_model(name=entry)
            raise click.ClickException(f"{entry} does not serve, so it has no objectives") from None
        registry.get_model_type(name=entry)
        raise click.ClickException(f"{entry} has no baseline that serves, so it has no objectives") from None


def _of_entry(session: Session, entry: str) -> pb.Slo:
    stability = session.client.stability
    type_id, _, model_id = entry.partition("/")
    if not model_id:
        return stability.get_slo(name=f"slos/{type_id}")
    try:
        of_type = stability.get_slo(name=f"slos/{type_id}")
        if short(of_type.model) == model_id:
            return of_type
    except NotFound:
        pass
    return stability.get_slo(name=f"slos/{type_id}.{model_id}")


def _out(command: Any) -> Any:
    return click.option(
        "--out",
        type=click.Path(dir_okay=False, writable=True, path_type=Path),
        metavar="FILE",
        help="Write into this file, as a whole or not at all. Default: print.",
    )(command)


@slo.command("export")
@click.option(
    "--format",
    "form",
    type=click.Choice(["openslo"]),
    default="openslo",
    show_default=True,
    help="How the file is written.",
)
@_fits
@_out
@with_session
def export(session: Session, form: str, where: str, out: Path | None) -> None:
    """Write objectives as OpenSLO v1: one SLO each.

    With services, alert policies and conditions. For tools that read OpenSLO; alerts need no such file.
    """
    del form  # There is one so far.
    slos: list[Any] = list(_SLO.pages(session, filter=where))
    documents = list(openslo.documents(slos))
    number = sum(document["kind"] == "SLO" for document in documents)
    _give(session, documents, out, render.count(number, "objective"))


@click.command("rules")
@_fits
@_out
@with_session
def rules(session: Session, where: str, out: Path | None) -> None:
    """Write rules for Prometheus, from the registry.

    Burn rates over several windows, and alerts for the objectives of each model that serves. Write them again when
    models, tiers or service levels have changed, and have Prometheus read them again.
    """
    slos: list[Any] = list(_SLO.pages(session, filter=where))
    _give(session, [rules_of(slos)], out, f"rules for {render.count(len(slos), 'model')}")


def _give(session: Session, documents: Sequence[Any], out: Path | None, what: str) -> None:
    """Prints documents, or writes them into a file; one that says the same already is left as it is."""
    if session.output == "json":
        text = json.dumps(documents if len(documents) != 1 else documents[0], indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=_WIDTH)
    if out is None:
        click.echo(text, nl=False)
        return
    changed = replace_text(out, text)
    click.echo(f"wrote {what} to {out}" if changed else f"{out} has the same {what} already")
