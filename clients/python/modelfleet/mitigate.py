"""What may be done about a model that does harm, by its role and tier: decided here, done by the launcher.

An experiment is ended in one action. What a launch is bringing in is taken back by aborting that launch. A baseline is
never simply turned off: whoever owns it is paged.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from modelfleet.asking import Asking, Unknown
from modelfleet.client import AsyncClient
from modelfleet.incidents import ASSUMED_TIER, Criticality, criticality_of, ledger_share, observed_share, role_of
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.lookup import NothingFound, find_entry
from modelfleet.registry.v1 import registry_pb2
from modelfleet.wording import percent, short, short_model

_RECENT_LAUNCHES: Final = 100
_PAGED_AT_ANY_HOUR: Final = ("TIER0", "TIER1")


class Action(enum.Enum):
    """What one command can do about a model."""

    # Its share goes back to the baseline, and it becomes RETIRED.
    END_EXPERIMENT = "END_EXPERIMENT"
    # The launch that is bringing it in takes everything back.
    ABORT_LAUNCH = "ABORT_LAUNCH"
    # It is being taken back already.
    FOLLOW_LAUNCH = "FOLLOW_LAUNCH"
    # Nothing that one command should do: people decide.
    PAGE_OWNER = "PAGE_OWNER"
    # It takes no traffic.
    NOTHING = "NOTHING"


@dataclass(frozen=True, slots=True)
class Response:
    """What to do about a model.

    Attributes:
        action: what `modelfleet mitigate` does.
        steps: what to do, in order, as sentences for whoever is on call.
        commands: what to type, in order.
        launch: the launch that ABORT_LAUNCH aborts, or FOLLOW_LAUNCH follows.
        on_call: whom to page first, and `contacts` afterwards; empty where the team names nobody.
    """

    action: Action
    steps: tuple[str, ...]
    commands: tuple[str, ...] = ()
    launch: str = ""
    on_call: str = ""
    contacts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """What a response is decided from.

    Attributes:
        model_type: the route.
        model: the model; None for a model type without a baseline.
        team: who owns it; None where that is not known.
        launches: those in flight on the route; None where that is not known.
        serves: whether an agent reports that it has a share, whatever the ledger says.
    """

    model_type: registry_pb2.ModelType
    model: registry_pb2.Model | None
    team: registry_pb2.Team | None
    launches: Sequence[launcher_pb2.Launch] | None
    serves: bool = False

    @property
    def role(self) -> str:
        """The model's role in the ledger; empty without a model."""
        if self.model is None:
            return ""
        if self.model.role:
            return registry_pb2.Model.Role.Name(self.model.role)
        return role_of(self.model_type, self.model.name, self.launches or ())

    @property
    def criticality(self) -> Criticality:
        """How critical the model is."""
        return criticality_of(self.model_type, self.model)


def respond(case: Case) -> Response:
    """Returns the response to take."""
    on_call = case.team.on_call if case.team is not None else ""
    contacts = tuple(case.team.contacts) if case.team is not None else ()
    action, steps, commands, launch = _decide(case)
    return Response(action, tuple(steps), tuple(commands), launch, on_call, contacts)


_Decision = tuple[Action, list[str], list[str], str]


def _decide(case: Case) -> _Decision:
    if case.model is None:
        step = f"{short(case.model_type.name)} has no baseline: nothing is launched that could be taken back."
        return Action.PAGE_OWNER, [step, _page(case)], [], ""
    model = case.model.name
    match case.role:
        case "EXPERIMENT":
            return _experiment(case, model)
        case "BASELINE":
            return _baseline(case)
        case "HOLDOUT":
            return _holdout(case, model)
        case "CANDIDATE":
            return _candidate(case, model)
        case _:
            return _without_role(case, "It is retired")


def _experiment(case: Case, model: str) -> _Decision:
    ending = _first(case, lambda launch: launch.candidate == model and _ends(launch))
    if ending is not None:
        return _follow(ending, f"{ending.name} is ending it already.")
    share, baseline = ledger_share(case.model_type, model), short(case.model_type.baseline)
    return (
        Action.END_EXPERIMENT,
        [
            f"It is an experiment: it may be ended in one action. Its {percent(share)} of the traffic goes back to "
            f"{baseline}, the baseline, which grows first.",
            *_meanwhile(case, model),
            f"Then tell its owner: {_people(case)}.",
        ],
        [f"modelfleet mitigate {short_model(model)}"],
        "",
    )


def _meanwhile(case: Case, model: str) -> list[str]:
    """What becomes of the launch that is active on the route."""
    moving = _first(case, lambda launch: not _is_mitigation(launch) and _has_begun(launch))
    if moving is None:
        return []
    if _goes_back(moving) or moving.state == launcher_pb2.Launch.FINALIZING:
        return [f"{moving.name} is about to end on the route: the experiment ends right after it."]
    if model in (moving.candidate, moving.baseline):
        return [f"{moving.name} moves the same model: it goes back first, and the experiment ends right after it."]
    return [
        f"{moving.name}, which is in flight on the route, does not have to end first: it holds meanwhile, its "
        "candidate keeps its share, and then it goes on."
    ]


def _baseline(case: Case) -> _Decision:
    steps = [f"It is the baseline of {short(case.model_type.name)}: never simply turn it off.", _page(case)]
    commands = []
    # What waits behind it has moved nothing yet.
    moving = _first(case, lambda launch: _has_begun(launch) and not _goes_back(launch))
    if case.launches is None:
        steps.append("Whether a launch is in flight is not known.")
    elif moving is not None:
        steps.append(f"If it began with the launch that is in flight, {moving.name}, take that back:")
        commands.append(f'modelfleet launch abort {short(moving.name)} --reason "…"')
    elif (back := _first(case, _goes_back)) is not None:
        steps.append(f"{back.name} goes back already:")
        commands.append(f"modelfleet launch watch {short(back.name)}")
    return Action.PAGE_OWNER, steps, commands, ""


def _holdout(case: Case, model: str) -> _Decision:
    share = percent(ledger_share(case.model_type, model))
    step = f"It is a holdout: it keeps {share} of the traffic for comparison, and ending it spoils the comparison."
    return Action.PAGE_OWNER, [step, _page(case)], [], ""


def _candidate(case: Case, model: str) -> _Decision:
    bringing = _first(case, lambda launch: launch.candidate == model)
    if case.launches is None:
        return Action.PAGE_OWNER, ["Whether a launch is bringing it in is not known.", _page(case)], [], ""
    if bringing is not None and _goes_back(bringing):
        return _follow(bringing, f"{bringing.name} takes it back already.")
    if bringing is not None:
        steps = [
            f"{bringing.name} is bringing it in: abort that launch, and everything goes back to the baseline.",
            f"Then tell its owner: {_people(case)}.",
        ]
        return Action.ABORT_LAUNCH, steps, [f"modelfleet mitigate {short_model(model)}"], bringing.name
    return _without_role(case, "It is a candidate that no launch is bringing in")


def _without_role(case: Case, what: str) -> _Decision:
    if not case.serves:
        return Action.NOTHING, [f"{what}: it takes no traffic, so there is nothing to take from it."], [], ""
    steps = [f"{what}, and an agent reports that it has a share of the traffic: nobody should be serving it."]
    return Action.PAGE_OWNER, [*steps, _page(case)], [f"modelfleet registry status {short(case.model_type.name)}"], ""


def _follow(launch: launcher_pb2.Launch, step: str) -> _Decision:
    return Action.FOLLOW_LAUNCH, [step], [f"modelfleet launch watch {short(launch.name)}"], launch.name


def _first(case: Case, fits: Callable[[launcher_pb2.Launch], bool]) -> launcher_pb2.Launch | None:
    """The first launch that fits; one that has begun before those that wait in line behind it."""
    launches = sorted(case.launches or (), key=lambda launch: not _has_begun(launch))
    return next(filter(fits, launches), None)


def _has_begun(launch: launcher_pb2.Launch) -> bool:
    return launch.state != launcher_pb2.Launch.PENDING


def _ends(launch: launcher_pb2.Launch) -> bool:
    return launch.strategy == launcher_pb2.Launch.END_EXPERIMENT and not _goes_back(launch)


def _is_mitigation(launch: launcher_pb2.Launch) -> bool:
    return launch.strategy in (launcher_pb2.Launch.END_EXPERIMENT, launcher_pb2.Launch.ROLL_BACK)


def _goes_back(launch: launcher_pb2.Launch) -> bool:
    return launch.state == launcher_pb2.Launch.ROLLING_BACK or launch.HasField("abort")


def _page(case: Case) -> str:
    tier = case.criticality.counted
    when = "now, at any hour" if tier in _PAGED_AT_ANY_HOUR else "now" if tier == ASSUMED_TIER else "in working hours"
    verb = "Page" if tier <= ASSUMED_TIER else "Tell"
    return f"{verb} its owner {when}: {_people(case)}."


def _people(case: Case) -> str:
    """Whom to speak to, in the order to try."""
    team = short(case.model_type.team)
    if case.team is None:
        return f"team {team}, whose contacts are not known"
    asked = [each for each in (case.team.on_call, *case.team.contacts) if each]
    if not asked:
        return f"team {team}, which names neither an on-call nor contacts"
    if not case.team.on_call:
        return f"team {team}, which names no on-call; {', '.join(asked)}"
    return f"{asked[0]} (team {team}" + (f"; then {', '.join(asked[1:])})" if asked[1:] else ")")


async def find_case(client: AsyncClient, query: str, within: float) -> Case:
    """Reads what a response is decided from.

    Args:
        client: of the fleet.
        query: a model, or a model type for its baseline, as `investigate` takes them.
        within: seconds that it may take.

    Raises:
        NothingFound: nothing in the registry fits.
        Ambiguous: several entries do.
        ModelfleetError: the registry does not answer: nothing is decided without it.
    """
    asking = Asking(within)
    entry = await find_entry(client, asking, query)
    model_type = await asking.expect(client.registry.get_model_type, name=entry.model_type)
    name = entry.model or model_type.baseline
    model = await asking.expect(client.registry.get_model, name=name) if name else None
    statuses = partial(client.registry.list_serving_statuses, model_type=model_type.name, page_size=1000)
    active = partial(client.launcher.list_launches, model_type=model_type.name, active_only=True, page_size=10)
    async with asyncio.TaskGroup() as calls:
        team = calls.create_task(asking.ask(client.registry.get_team, name=model_type.team))
        launches = calls.create_task(asking.ask(active))
        reported = calls.create_task(asking.ask(statuses))
    found, seen, owner = launches.result(), reported.result(), team.result()
    return Case(
        model_type,
        model,
        None if isinstance(owner, Unknown) else owner,
        None if isinstance(found, Unknown) else list(found.launches),
        serves=not isinstance(seen, Unknown) and observed_share(seen.statuses, name) > 0,
    )


async def pool_of(client: AsyncClient, case: Case) -> str:
    """Returns the pool whose capacity the route takes: that of the model's or the baseline's last launch, else its
    team's only one.

    Raises:
        NothingFound: neither says.
    """
    assert case.model is not None
    recent = await client.launcher.list_launches(model_type=case.model_type.name, page_size=_RECENT_LAUNCHES)
    for model in (case.model.name, case.model_type.baseline):
        for launch in recent.launches:
            if launch.candidate == model:
                return launch.pool
    pools = await client.capacity.list_pools(page_size=1000)
    own = [pool.name for pool in pools.pools if pool.team == case.model_type.team]
    if len(own) == 1:
        return own[0]
    which = f"there are {', '.join(short(name) for name in own)}" if own else "there are none"
    raise NothingFound(
        f"whose capacity {short_model(case.model.name)} takes is not known: no launch tells, and of team "
        f"{short(case.model_type.team)}'s pools {which}; say which: --pool POOL"
    )


async def carry_out(
    client: AsyncClient, case: Case, response: Response, *, reason: str, pool: str = "", dry_run: bool = False
) -> launcher_pb2.Launch:
    """Does what a response says, as far as one call can: returns the launch that ends the experiment, or was aborted.

    Args:
        client: of the fleet.
        case: what was decided on.
        response: END_EXPERIMENT or ABORT_LAUNCH.
        reason: why; kept in the history.
        pool: whose capacity an experiment takes; empty: `pool_of`.
        dry_run: only plan; change nothing.

    Raises:
        NothingFound: whose capacity it takes is not known.
        ModelfleetError: it was refused.
    """
    assert case.model is not None
    if response.action is Action.ABORT_LAUNCH:
        if dry_run:
            return await client.launcher.get_launch(name=response.launch)
        return await client.launcher.abort_launch(name=response.launch, reason=reason)
    assert response.action is Action.END_EXPERIMENT, response.action
    return await client.launcher.create_launch(
        launch=launcher_pb2.Launch(
            model_type=case.model_type.name,
            candidate=case.model.name,
            strategy=launcher_pb2.Launch.END_EXPERIMENT,
            pool=pool or await pool_of(client, case),
            reason=reason,
        ),
        validate_only=dry_run,
    )
