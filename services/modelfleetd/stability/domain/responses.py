"""What alerts tell people: what happened, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.stability.domain.alert import Kind
from modelfleetd.stability.domain.fleet import Role, WatchedModel
from modelfleetd.stability.domain.slo import BurnRate
from modelfleetd.stability.domain.words import count, number, percent

_FOUND: Final[Mapping[Kind, str]] = {
    Kind.UNSTABLE: "unstable",
    Kind.UNAVAILABLE: "unavailable",
    Kind.NOT_OBSERVED: "without enough evidence to say whether it is stable",
}
_OBJECTIVES: Final[Mapping[Kind, str]] = {
    Kind.UNSTABLE: "stability",
    Kind.UNAVAILABLE: "availability",
    Kind.NOT_OBSERVED: "coverage",
}
_MINUTE: Final = timedelta(minutes=1)


def typed(model: WatchedModel) -> str:
    """Returns a model's name as commands take it: `feed_ctr/v7`."""
    return model.name.removeprefix("modelTypes/").replace("/models/", "/")


def summary(kind: Kind, model: WatchedModel, what: str, since: datetime | None, burning: BurnRate) -> str:
    """Returns what happened, since when, and how much of the budget it takes: one sentence, or two.

    Args:
        kind: of the alert.
        model: whose it is.
        what: what is outside of which range, as a sentence; empty where that is not known.
        since: when that began; None where that is not known.
        burning: the pair of windows that fires.
    """
    burn = burning.long_burn_rate or 0.0
    share = f"{count(burning.bad, 'minute')} of the last {_span(burning.long_window)}"
    target = getattr(model.service_level, _OBJECTIVES[kind])
    spent = (
        f"{typed(model)} was {_FOUND[kind]} in {share}: {number(burn)} times what its objective of "
        f"{percent(target)} {_OBJECTIVES[kind]} allows."
    )
    if not what:
        return spent
    began = f" (since {since:%Y-%m-%d %H:%M} UTC)" if since is not None else ""
    what = what.strip().rstrip(".")
    return f"{what[:1].upper()}{what[1:]}{began}. {spent}"


def response(kind: Kind, model: WatchedModel) -> str:
    """Returns what to do, by the role of the model: sentences, and beneath them, indented, what to type."""
    name, owner = typed(model), people(model)
    if kind is Kind.NOT_OBSERVED:
        return (
            f"Find out why its predictions or labels do not come, and tell its owner: {owner}.\n"
            f"What is missing:\n  modelfleet stability get {name}"
        )
    everything = f"All about it:\n  modelfleet investigate {name}"
    match model.role:
        case Role.EXPERIMENT:
            return (
                "It is an experiment: end it in one action, and its traffic goes back to the baseline:\n"
                f"  modelfleet mitigate {name}\nThen tell its owner: {owner}.\n{everything}"
            )
        case Role.HOLDOUT:
            return (
                "It is a holdout: ending it spoils the comparison that it is kept for. "
                f"Page its owner: {owner}.\n{everything}"
            )
        case _:
            return (
                f"It is the baseline: never turn it off. Page its owner: {owner}.\n"
                f"If a launch is in flight on its route, this says how to take that back:\n"
                f"  modelfleet mitigate {name}\n{everything}"
            )


def people(model: WatchedModel) -> str:
    """Returns whom to speak to."""
    team = model.team.rsplit("/", 1)[-1]
    return f"{model.on_call} (team {team})" if model.on_call else f"team {team}, which names no on-call"


def _span(window: timedelta) -> str:
    minutes = window // _MINUTE
    if minutes % 1440 == 0 and minutes > 1440:
        return count(minutes // 1440, "day")
    return "hour" if minutes == 60 else count(minutes // 60, "hour") if minutes % 60 == 0 else count(minutes, "minute")
