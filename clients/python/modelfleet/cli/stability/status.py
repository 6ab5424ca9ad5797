"""`modelfleet stability status`, `list` and `get`: is the fleet stable, and if not, what is wrong?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import click
from rich.text import Text

from modelfleet.cli import render
from modelfleet.cli.registry import MODEL
from modelfleet.cli.session import Session, with_session
from modelfleet.cli.stability import standing_view as view
from modelfleet.stability.v1 import stability_pb2 as pb

_GROUPINGS: Final = {
    "team": pb.RollUpStabilityRequest.TEAM,
    "surface": pb.RollUpStabilityRequest.SURFACE,
    "funnel-stage": pb.RollUpStabilityRequest.FUNNEL_STAGE,
    "product": pb.RollUpStabilityRequest.PRODUCT,
    "tier": pb.RollUpStabilityRequest.TIER,
}
_WORST: Final = 10
FILTER = click.option(
    "--filter",
    "fitting",
    default="",
    metavar="EXPRESSION",
    help="Only models that fit, such as 'tier <= TIER1 AND team = feed'; by state, role, tier, team, surface, "
    "funnel_stage, product, model_type, availability.state, culprit_metric.",
)


@click.command("status")
@click.option(
    "--by", type=click.Choice(list(_GROUPINGS)), default="team", show_default=True, help="What to put together."
)
@FILTER
@with_session
def status(session: Session, by: str, fitting: str) -> None:
    """Show how much of the fleet is stable, and the worst.

    Available beside relevant, by team or another part of the fleet, and the models that are worst.

    Shares are of the models whose stability is known; unknown ones are counted apart.
    """
    stability = session.client.stability
    answer = stability.roll_up_stability(group_by=_GROUPINGS[by], filter=fitting)
    bad = f"({view.BAD}) AND ({fitting})" if fitting else view.BAD
    worst = stability.list_model_stabilities(filter=bad, page_size=_WORST).models
    if not session.is_table:
        render.dump(session, {**render.as_data(answer), "worst": [render.as_data(model) for model in worst]})
        return
    total = answer.total
    if not total.models:
        click.echo("No model fits the filter." if fitting else _NOTHING)
        return
    console = render.console()
    console.print(_headline(answer))
    console.print()
    console.print(render.table(["", "AVAILABLE", "UNAVAILABLE", "NOT REPORTED"], _two_by_two(total)))
    console.print()
    console.print(
        render.table([by.replace("-", " ").upper(), *_GROUP_HEADERS], ([*_group(group, by)] for group in answer.groups))
    )
    if worst:
        console.print()
        console.print(view.table(view.COLUMNS, worst, console.width))
        if len(worst) == _WORST:
            click.echo(f"All of them: modelfleet stability list --filter '{bad}'")
        first = worst[0].model.removeprefix("modelTypes/").replace("/models/", "/")
        click.echo(f"What is wrong with the first: modelfleet stability get {first}")


_NOTHING = "No model serves yet. What does is set by launches: modelfleet launch create TYPE/MODEL"
_GROUP_HEADERS: Final = ["MODELS", "STABLE", "UNSTABLE", "UNKNOWN", "NOT APPLICABLE", "SHARE", "OF TRAFFIC"]


def _headline(answer: pb.RollUpStabilityResponse) -> Text:
    total = answer.total
    if not answer.HasField("evaluate_time"):
        return Text("Nothing has been evaluated yet: that is done each minute.", style="yellow")
    if not total.HasField("stable_share"):
        said = "Of no model is it known whether it is stable."
    else:
        known = total.stable + total.unstable
        said = f"{total.stable} of {render.count(known, 'decidable model')} "
        said += f"{'is' if known == 1 else 'are'} stable ({_share(total, 'stable_share')})"
        if total.HasField("stable_traffic_share"):
            said += f", with {_share(total, 'stable_traffic_share')} of their traffic"
        said += f"; of {total.unknown} it is not known." if total.unknown else "."
    style = "bold red" if total.unstable else "bold green" if total.stable else "bold"
    return Text.assemble((said, style), f"\nEvaluated at {render.clock(answer.evaluate_time)} UTC.")


def _share(group: pb.StabilityGroup, field: Literal["stable_share", "stable_traffic_share"]) -> str:
    """Never rounded up to all."""
    return f"{int(getattr(group, field) * 1000) / 10:g}%" if group.HasField(field) else ""


def _two_by_two(total: pb.StabilityGroup) -> Iterator[list[str]]:
    for name, all_, available, unavailable in (
        ("STABLE", total.stable, total.available_stable, total.unavailable_stable),
        ("UNSTABLE", total.unstable, total.available_unstable, total.unavailable_unstable),
    ):
        yield [name, *(f"{number:,}" for number in (available, unavailable, all_ - available - unavailable))]


def _group(group: pb.StabilityGroup, by: str) -> Iterator[str]:
    yield render.short(group.group) or f"(no {by.replace('-', ' ')})"
    counts = (group.models, group.stable, group.unstable, group.unknown, group.not_applicable)
    yield from (f"{number:,}" for number in counts)
    yield _share(group, "stable_share")
    yield _share(group, "stable_traffic_share")


@click.command("list")
@FILTER
@with_session
def list_(session: Session, fitting: str) -> None:
    """List how stable the models are that serve, worst first."""
    nothing = "No model fits the filter." if fitting else _NOTHING
    models = list(session.client.stability.list_model_stabilities_all(page_size=1000, filter=fitting))
    if session.is_table and models:
        console = render.console()
        console.print(view.table(view.COLUMNS, models, console.width))
    else:
        render.listing(session, models, view.COLUMNS, nothing)


@click.command("get")
@click.argument("model", metavar="TYPE/MODEL")
@with_session
def get(session: Session, model: str) -> None:
    """Show whether a model is stable, and what to do.

    Each metric stands against its healthy range, with the window that decided.
    """
    found = session.client.stability.get_model_stability(model=MODEL.name(model))
    if not session.is_table:
        render.dump(session, render.as_data(found))
        return
    console = render.console()
    name = found.model.removeprefix("modelTypes/").replace("/models/", "/")
    style = {pb.ModelStability.UNSTABLE: "bold red", pb.ModelStability.STABLE: "bold green"}.get(found.state, "bold")
    console.print(Text.assemble((name, "bold"), "  ", (render.enum(found, "state"), style)))
    console.print(Text(found.explanation))
    if found.role:
        served = f"{render.percent(found.share_basis_points)} of its route"
        served += f", {view.number(found.request_rate)} requests/s" if found.request_rate else ""
        console.print()
        console.print(
            render.facts(
                [
                    ("requests", f"{view.availability(found)} {view.success(found)}".strip()),
                    ("role", f"{render.enum(found, 'role')}, {render.enum(found, 'tier') or 'no tier'}"),
                    ("traffic", served),
                    ("team", render.short(found.team)),
                    ("evaluated", render.clock(found.evaluate_time)),
                ]
            )
        )
    if found.metrics:
        console.print()
        console.print(view.table(view.METRIC_COLUMNS, found.metrics, console.width))
    for metric in found.metrics:
        # The sentence of the first one stands above.
        if metric.state != pb.ModelStability.STABLE and metric.explanation not in found.explanation:
            console.print(Text(metric.explanation))
    steps = list(view.what_to_do(found))
    if steps:
        console.print()
    for step in steps:
        console.print(Text(step))
