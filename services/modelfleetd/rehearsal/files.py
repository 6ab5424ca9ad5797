"""What is to be rehearsed, as people write it: a scenario, or what `modelfleet launch plan -o json` prints. Pure.

A scenario is a launch with its accidents and what people do, or a `fleet:`. Whatever is wrong with it is said at once,
each with its line and what would be accepted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import yaml

from modelfleetd.errors import InvalidFields
from modelfleetd.launcher.domain.gates import EVIDENCE, WEBHOOK
from modelfleetd.launcher.domain.policy import (
    Approval,
    AvailabilityGate,
    PeopleGate,
    Policy,
    RegionOrder,
    StabilityGate,
    WebhookGate,
    When,
    check,
    default_rollback_window,
)
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.domain.replicas import replicas_for
from modelfleetd.launcher.domain.shares import FULL
from modelfleetd.launcher.domain.strategies import MOST_HELD_OUT, Strategy
from modelfleetd.names import is_id
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.answers import Answer
from modelfleetd.rehearsal.chance import Trouble
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.planned import of_plan
from modelfleetd.rehearsal.reading import (
    Problem,
    Reader,
    ScenarioInvalid,
    flag_of,
    number,
    one_of,
    range_of,
    rate_of,
    seconds_of,
    share_of,
    whole,
)
from modelfleetd.rehearsal.scenario import (
    ACCIDENTS,
    ACTS,
    PEOPLE,
    REPLIES,
    STRATEGIES,
    USUAL_TIER,
    Accident,
    Freeze,
    Moment,
    PersonsAct,
    Place,
    Replicas,
    Reply,
    Scenario,
)
from modelfleetd.rehearsal.stability import USUAL, Predicted
from modelfleetd.stability.domain.criteria import Limits

# Fields of the policy that a scenario has under another name.
_FIELDS: Final = {
    "max_step_basis_points": "step",
    "bake_duration": "bake",
    "launch_deadline": "deadline",
}
_TIERS: Final = ("TIER0", "TIER1", "TIER2", "TIER3", "TIER4")
_ORDERS: Final = {order.name.lower().replace("_", "-"): order for order in RegionOrder}
_WHENS: Final = {when.name.lower().replace("_", "-"): when for when in When}
_VERDICTS: Final = {verdict.name.lower(): verdict for verdict in Verdict}
_MOST: Final = 1_000_000
_LEAST: Final = 2
_STEP: Final = re.compile(r"step\s+(\d{1,3})")
_REPLICAS: Final = f"a number of replicas, 2 to {10_000:,}"
_OLD_REPLICAS: Final = f"{_REPLICAS}, or 0 for the first model of a route"
# How a baseline and the models beside it begin: what a strategy takes that has a share already.
_TAKES_SHARE: Final = frozenset({Strategy.RAMP, Strategy.END_EXPERIMENT})
_WHOLE_ROUTE: Final = frozenset({Strategy.RESIZE})


def parse(text: str, seed: int | None = None, beside: str = "") -> Scenario | FleetPlan:
    """Reads a scenario, or a plan.

    Args:
        text: YAML or JSON.
        seed: instead of that in the file.
        beside: of a plan: a scenario without `launch:`, with what it does not know.

    Raises:
        ScenarioInvalid: names everything that is wrong, line by line.
    """
    node, found = _load(text)
    if "candidate" in found and isinstance(found.get("plan"), dict):
        scenario = of_plan(found)
        if beside:
            return _with(scenario, beside, seed)
        return replace(scenario, seed=seed or 0)
    if beside:
        raise ScenarioInvalid([Problem(1, "this is no plan of the launcher: a scenario says everything itself")])
    reader = Reader(node)
    read = _read_fleet(reader, seed) if "fleet" in found else _read_launch(reader, seed)
    if reader.problems:
        raise ScenarioInvalid(reader.problems)
    return read


def _load(text: str) -> tuple[yaml.MappingNode, Mapping[str, Any]]:
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or "cannot be read"
        raise ScenarioInvalid([Problem(mark.line + 1 if mark else 1, f"this is no YAML: {said}")]) from None
    if not isinstance(node, yaml.MappingNode) or not isinstance(found, dict):
        raise ScenarioInvalid(
            [Problem(1, "must be a mapping with `launch:` or `fleet:`, or what `launch plan` prints")]
        )
    return node, found


def _with(scenario: Scenario, beside: str, seed: int | None) -> Scenario:
    """A plan's launch with what another file says of machines, models, accidents and people."""
    reader = Reader(_load(beside)[0])
    read = _read_rest(reader, seed, scenario)
    reader.end()
    if reader.problems:
        raise ScenarioInvalid(reader.problems)
    known = {name for name in ("machines", "predictions", "candidate") if reader.has(name)}
    if reader.section("machines").has("requests_per_second"):
        read = replace(read, places=tuple(replace(place, demand=0.0) for place in read.places))
    known |= {one.gate for one in read.answers} | {one.asked for one in read.replies}
    return replace(read, notes=tuple(note for note in read.notes if note.about not in known))


# The launch


def _read_launch(reader: Reader, seed: int | None) -> Scenario:
    launch = reader.section("launch")
    if launch.is_empty:
        reader.complain("there must be `launch:` with at least `old` and `new`, or `fleet:`")
    asked = launch.take("strategy", one_of(STRATEGIES), f"one of {', '.join(STRATEGIES)}", "replace-baseline")
    strategy = STRATEGIES[asked]
    share = launch.take("share", share_of, "a share, such as 20%", 0)
    holdout = launch.take("holdout", share_of, "a share, such as 2%", 0)
    present = launch.take("from", share_of, "the share that it has before, such as 5%", 0)
    tier = launch.take("tier", one_of(_TIERS), f"one of {', '.join(_TIERS)}", USUAL_TIER)
    _check_shares(launch, strategy, share, holdout, present)
    old_model, new_model = _read_models(launch, strategy)
    places = _read_places(launch, strategy, present, old_model, new_model)
    policy = _read_policy(launch, tier, strategy)
    launch.end()
    gates = _read_gates(reader, strategy)
    policy = replace(
        policy,
        approval=Approval.REQUIRED if gates.approval else Approval.AUTOMATIC,
        webhook_gates=gates.webhooks,
        people_gates=gates.people,
    )
    _check_policy(launch, policy)
    scenario = Scenario(
        places=places,
        old_model=old_model,
        new_model=new_model,
        strategy=strategy,
        share=share,
        holdout=holdout,
        tier=tier,
        policy=policy,
        evidence_rules=1 if gates.evidence else 0,
    )
    scenario = _read_rest(reader, seed, scenario)
    reader.end()
    return scenario


def _check_shares(launch: Reader, strategy: Strategy, share: int, holdout: int, present: int) -> None:
    name = strategy.name.lower().replace("_", "-")
    if strategy.rule.has_target and not 0 < share < FULL:
        launch.complain(f"launch.share is missing; {name} ends at a share, such as 20%", "share")
    if not strategy.rule.has_target and share:
        launch.complain(f"launch.share is only for start-experiment and ramp; {name} says itself what it gets", "share")
    if holdout and not strategy.rule.may_hold_out:
        launch.complain("launch.holdout is only for replace-baseline", "holdout")
    if holdout > MOST_HELD_OUT:
        launch.complain(f"launch.holdout must be at most {MOST_HELD_OUT / 100:g}%", "holdout")
    if strategy in _TAKES_SHARE and not 0 < present < FULL:
        launch.complain(f"launch.from is missing; {name} is of an experiment that has a share, such as 5%", "from")
    if strategy not in _TAKES_SHARE and present:
        launch.complain(f"launch.from is only for {' and '.join(sorted(map(_word, _TAKES_SHARE)))}", "from")


def _word(strategy: Strategy) -> str:
    return strategy.name.lower().replace("_", "-")


def _read_models(launch: Reader, strategy: Strategy) -> tuple[Replicas, Replicas]:
    def one(which: str) -> Replicas:
        flavor = launch.take(f"{which}_flavor", _id, "the name of a flavor, such as gpu", "cpu")
        units = launch.take(f"{which}_units", whole(1, 1_000), "units of each replica, 1 to 1,000", 1)
        return Replicas(f"flavors/{flavor}", units)

    old, new = one("old"), one("new")
    if strategy is Strategy.RESIZE and old != new:
        launch.complain("launch.old_flavor and old_units are not for resize, which is of one model: say new_…")
    return old, new


def _id(text: str) -> str:
    if not is_id(text):
        raise ValueError(text)
    return text


def _read_places(launch: Reader, strategy: Strategy, present: int, old: Replicas, new: Replicas) -> tuple[Place, ...]:
    regions = launch.each("regions")
    if not regions:
        return (_read_place(launch, "local", strategy, present, old, new),)
    for name in ("old", "new", "spare", "spare_old"):
        if launch.has(name):
            launch.complain(f"launch.{name} is said for each of the regions", name)
        launch.knows(name)
    places = []
    for region in regions:
        name = region.take("name", _id, "the name of a region, such as eu", "", must=True)
        places.append(_read_place(region, name, strategy, present, old, new))
        if name in [place.region.rpartition("/")[2] for place in places[:-1]]:
            region.complain(f"{name} is there twice", "name")
        region.end()
    return tuple(places)


def _read_place(
    reader: Reader, region: str, strategy: Strategy, present: int, old_model: Replicas, new_model: Replicas
) -> Place:
    read, accepted = whole(2, 10_000), _REPLICAS
    if strategy is Strategy.REPLACE_BASELINE:
        read, accepted = _replicas_or_none, _OLD_REPLICAS
    old = reader.take("old", read, accepted, 2, must=True)
    new = reader.take("new", whole(2, 10_000), _REPLICAS, 2, must=True)
    free = "units beyond what serves, 0 or more"
    # A fifth of what serves; what the first model of a route takes.
    spare_if_unsaid = max(1, old * old_model.units // 5) if old else new * new_model.units
    spare = {new_model.flavor: reader.take("spare", whole(0, _MOST), free, spare_if_unsaid)}
    if old_model.flavor != new_model.flavor:
        spare[old_model.flavor] = reader.take("spare_old", whole(0, _MOST), f"the same of {old_model.flavor}", 0)
    if strategy in _WHOLE_ROUTE:
        # One model, that runs on so many replicas and needs another number of them.
        return Place(f"regions/{region}", 0, new, spare, 0, FULL, 0, old)
    if not old:
        return Place(f"regions/{region}", 0, new, spare, 0, 0, 0, 0)
    return Place(
        region=f"regions/{region}",
        old=old,
        new=new,
        spare=spare,
        old_share=FULL - present,
        new_share=present,
        old_running=replicas_for(old, FULL - present, _LEAST),
        new_running=replicas_for(new, present, _LEAST),
    )


def _replicas_or_none(text: str) -> int:
    """Of a model that serves, or 0: nothing does yet, so that the other one is the first of its route."""
    return 0 if text == "0" else whole(2, 10_000)(text)


def _read_policy(launch: Reader, tier: str, strategy: Strategy) -> Policy:
    usual = Policy(rollback_window=default_rollback_window(tier))
    if strategy.rule.mitigation:
        usual = replace(
            usual, max_step_basis_points=FULL, bake_duration=timedelta(0), region_order=RegionOrder.TOGETHER
        )
    order = _word_of(usual.region_order)

    def time(name: str, such: str, default: timedelta) -> timedelta:
        return timedelta(seconds=launch.take(name, seconds_of, f"a time, such as {such}", default.total_seconds()))

    stability = launch.take("stability_gate", flag_of, "true or false", True)
    availability = launch.take("availability_gate", flag_of, "true or false", True)
    judged = strategy.rule.gated
    return replace(
        usual,
        max_step_basis_points=max(
            1, launch.take("step", share_of, "a share, such as 20%", usual.max_step_basis_points)
        ),
        max_steps=launch.take("max_steps", whole(1, 100), "1 to 100", 20),
        bake_duration=time("bake", "5m", usual.bake_duration),
        step_deadline=time("step_deadline", "10m", usual.step_deadline),
        launch_deadline=time("deadline", "7d", usual.launch_deadline),
        stability_gate=StabilityGate(disabled=not (judged and stability)),
        availability_gate=AvailabilityGate(disabled=not (judged and availability)),
        region_order=_ORDERS[launch.take("region_order", one_of(_ORDERS), f"one of {', '.join(_ORDERS)}", order)],
    )


def _word_of(order: RegionOrder) -> str:
    return order.name.lower().replace("_", "-")


def _check_policy(launch: Reader, policy: Policy) -> None:
    try:
        check(policy)
    except InvalidFields as error:
        for violation in error.violations:
            field = violation.path.removeprefix("launch.policy.")
            name = _FIELDS.get(field, field)
            launch.complain(f"launch.{name} {violation.description}", name)


@dataclass(frozen=True, slots=True)
class _Gates:
    """Those that a scenario has beside availability and stability."""

    approval: bool = False
    evidence: bool = False
    webhooks: tuple[WebhookGate, ...] = ()
    people: tuple[PeopleGate, ...] = ()


def _read_gates(reader: Reader, strategy: Strategy) -> _Gates:
    found = _Gates()
    for each in reader.each("gates"):
        gate = each.take("gate", _gate, _GATES, "", must=True)
        dry_run = False
        if gate.startswith(WEBHOOK):
            dry_run = each.take("dry_run", flag_of, "true or false", False)
            when = each.take("when", one_of(_WHENS), f"one of {', '.join(_WHENS)}", "before-start")
            webhook = WebhookGate(gate.removeprefix(WEBHOOK), _WHENS[when], dry_run)
            found = replace(found, webhooks=(*found.webhooks, webhook))
        elif gate == "people":
            after = each.take("after_share", share_of, "a share, such as 20%", 0)
            reason = each.take("reason", str, "some words", "somebody is to look")
            waits = timedelta(seconds=each.take("deadline", seconds_of, "a time, such as 7d", 7 * 86_400.0))
            found = replace(found, people=(*found.people, PeopleGate(reason, after, waits)))
        elif gate == "approval":
            found = replace(found, approval=True)
        elif gate == EVIDENCE:
            found = replace(found, evidence=True)
        if gate and not strategy.rule.gated and gate != "approval":
            each.complain(f"{gate} is not for {_word(strategy)}, which waits for nobody's judgement", "gate")
        each.end()
    return found


_GATES: Final = "approval, evidence, people or webhook/NAME"


def _gate(text: str) -> str:
    if text not in (*PEOPLE, EVIDENCE) and not (text.startswith(WEBHOOK) and is_id(text.removeprefix(WEBHOOK))):
        raise ValueError(text)
    return text


# Everything else


def _read_rest(reader: Reader, seed: int | None, launch: Scenario) -> Scenario:
    """What a launch meets: machines, the candidate, accidents, people, answers and windows."""
    machines = _read_machines(reader.section("machines"))
    regions = [place.region.rpartition("/")[2] for place in launch.places]
    answers, replies = _read_answers(reader, launch)
    taken = reader.take("seed", whole(0, 2**63), "a whole number", 0)
    return replace(
        launch,
        seed=taken if seed is None else seed,
        machines=machines[0],
        trouble=_read_candidate(reader.section("candidate"), machines),
        predictions=_read_predictions(reader, launch.predictions),
        accidents=tuple(_accident(each, regions) for each in reader.each("accidents")),
        people=tuple(_persons_act(each, regions) for each in reader.each("people")),
        answers=answers,
        replies=replies,
        freezes=(*launch.freezes, *(_freeze(each, at) for at, each in enumerate(reader.each("freezes"), start=1))),
    )


def _read_machines(reader: Reader) -> tuple[Behaviour, float, float | None]:
    between = "a time or a range of times, such as 60s or 30s-90s"
    rate = "a share of them, such as 2%"
    behaviour = Behaviour(
        start_seconds=reader.take("start", range_of, between, (20.0, 60.0)),
        terminate_seconds=reader.take("drain", range_of, between, (5.0, 30.0)),
        acknowledge_seconds=reader.take("acknowledge", range_of, between, (0.5, 3.0)),
        retry_seconds=5.0,
        pending_rate=reader.take("no_machine", rate_of, rate, 0.0),
        pending_seconds=reader.take("machine_comes_after", range_of, between, None),
        lost_effect_rate=reader.take("lost_effects", rate_of, rate, 0.0),
        looks_every_seconds=reader.take("looks_every", seconds_of, "a time, such as 5s", 0.0),
        measures_every_seconds=reader.take("measures_every", seconds_of, "a time, such as 10s", 0.0),
        requests_per_second=reader.take("requests_per_second", number(0, 1e7), "a number", 100.0),
        replica_requests_per_second=reader.take("replica_carries", number(1e-3, 1e7), "requests per second", None),
        traffic_lag_seconds=reader.take("traffic_lag", seconds_of, "a time, such as 30s", 0.0),
    )
    failing = reader.take("start_failures", rate_of, rate, 0.0)
    life = reader.take("mean_life", seconds_of, "a time, such as 12h", None)
    reader.end()
    return behaviour, failing, life


def _read_candidate(reader: Reader, machines: tuple[Behaviour, float, float | None]) -> Trouble:
    trouble = Trouble(
        start_failure_rate=machines[1],
        mean_life_seconds=machines[2],
        calibration=reader.take("calibration", number(0.01, 100), "predicted over what happens, such as 1.3", 1.0),
        error_rate=reader.take("errors", rate_of, "a share of its requests, such as 2%", 0.0),
        latency=reader.take("latency", number(0.01, 1_000), "times that of the old model, such as 1.5", 1.0),
        labels=reader.take("labels", rate_of, "the share of the labels that arrive, such as 80%", 1.0),
        label_delay_seconds=reader.take("labels_late", seconds_of, "how much later they arrive, such as 10m", 0.0),
    )
    reader.end()
    return trouble


def _read_predictions(reader: Reader, known: tuple[Predicted, ...]) -> tuple[Predicted, ...]:
    """What a plan demands stays; of what it does not know, window and rate, the file may say more."""
    found = {} if known == USUAL else {prediction.id: prediction for prediction in known}
    planned = bool(found)
    for each in reader.each("predictions"):
        id_ = each.take("id", _id, "the name of a prediction, such as click", "", must=True)
        if planned and id_ not in found:
            each.complain(f"{id_} is not judged by the plan; it judges {', '.join(found)}", "id")
        before = found.get(id_, Predicted(id_))
        found[id_] = replace(
            before,
            window=timedelta(
                seconds=each.take("window", seconds_of, "a time, such as 30m", before.window.total_seconds())
            ),
            rate=each.take("positives", rate_of, "a share, such as 5%", before.rate),
        )
        if not planned:
            found[id_] = replace(
                found[id_],
                calibration=each.take("calibration", _limits, "a range, such as 0.8-1.25", before.calibration),
                min_positives=each.take("min_positives", whole(1, _MOST), "how many, such as 100", 100),
            )
        each.end()
    return tuple(found.values()) or known


def _limits(text: str) -> Limits:
    low, _, high = text.partition("-")
    found = Limits(float(low), float(high))
    if not 0 <= found.low <= found.high:
        raise ValueError(text)
    return found


def _moment(reader: Reader, regions: list[str]) -> Moment:
    step = "a time, such as 10m, or a step, such as step 3"
    found: Moment = reader.take("at", _moment_of, step, Moment(), must=True)
    region = _region(reader, regions)
    return replace(found, region=region if found.step else "")


def _moment_of(text: str) -> Moment:
    if text == "end":
        return Moment(is_end=True)
    step = _STEP.fullmatch(text)
    return Moment(step=int(step[1])) if step else Moment(seconds=seconds_of(text))


def _region(reader: Reader, regions: list[str]) -> str:
    found = reader.take("region", one_of(regions), f"one of {', '.join(regions)}", "")
    return f"regions/{found}" if found else ""


def _accident(reader: Reader, regions: list[str]) -> Accident:
    found = Accident(
        at=_moment(reader, regions),
        what=reader.take("what", one_of(ACCIDENTS), f"one of {', '.join(ACCIDENTS)}", "kill", must=True),
        replicas=reader.take("replicas", whole(1, 10_000), "how many, such as 2", 1),
        of=reader.take("of", one_of(("old", "new")), "old or new", "new"),
        seconds=reader.take("for", seconds_of, "a time, such as 5m", 300.0),
        factor=reader.take("factor", number(0.01, 1_000), "how many times as slow, such as 2", 2.0),
        rate=reader.take("rate", rate_of, "a share, such as 5%", 0.05),
        region=_region(reader, regions),
    )
    if found.at.is_end:
        reader.complain("only people wait for the end", "at")
    reader.end()
    return found


def _persons_act(reader: Reader, regions: list[str]) -> PersonsAct:
    found = PersonsAct(
        at=_moment(reader, regions),
        do=reader.take("do", one_of(ACTS), f"one of {', '.join(ACTS)}", "pause", must=True),
    )
    if found.at.is_end is not (found.do == "retry"):
        reader.complain("`at: end` is for `do: retry`, and that for no other time", "at")
    reader.end()
    return found


def _read_answers(reader: Reader, launch: Scenario) -> tuple[tuple[Answer, ...], tuple[Reply, ...]]:
    policy = launch.policy
    there = [f"{WEBHOOK}{one.webhook}" for one in policy.webhook_gates]
    there += [EVIDENCE] if launch.evidence_rules and not policy.evidence_gate.disabled else []
    there += ["approval"] if policy.approval is Approval.REQUIRED else []
    there += ["people"] if policy.people_gates else []
    answers, replies = list[Answer](), list[Reply]()
    for each in reader.each("answers"):
        gate = each.take("gate", _gate, _GATES, "", must=True)
        if gate and gate not in there:
            each.complain(f"the launch has no gate {gate}; it has: {', '.join(there) or 'none that answers'}", "gate")
        if gate in PEOPLE:
            says = each.take("says", one_of(REPLIES), f"one of {', '.join(REPLIES)}", "approve")
            after = each.take("after", range_of, "a time or a range of times, such as 10m-2h", Reply("").after)
            replies.append(Reply(gate, says, after))
        else:
            verdict = each.take("says", one_of(_VERDICTS), f"one of {', '.join(_VERDICTS)}", "pass")
            answers.append(
                Answer(
                    gate=gate,
                    says=_VERDICTS[verdict],
                    since=each.take("at", seconds_of, "a time, such as 10m", 0.0),
                    lasts=each.take("for", seconds_of, "a time, such as 5m", float("inf")),
                    chance=each.take("chance", rate_of, "how often, such as 20%", 1.0),
                )
            )
        each.end()
    return tuple(answers), tuple(replies)


def _freeze(reader: Reader, number_: int) -> Freeze:
    found = Freeze(
        name=f"freezeWindows/f{number_}",
        seconds=reader.take("at", seconds_of, "a time, such as 10m", 0.0, must=True),
        lasts=reader.take("for", seconds_of, "a time, such as 2h", 0.0, must=True),
        reason=reader.take("reason", str, "some words", "nothing is launched"),
    )
    reader.end()
    return found


# A fleet


def _read_fleet(reader: Reader, seed: int | None) -> FleetPlan:
    fleet = reader.section("fleet")
    usual = FleetPlan()
    plan = FleetPlan(
        types=fleet.take("types", whole(1, 10_000), "1 to 10,000", 20),
        launches=fleet.take("launches", whole(1, 100_000), "1 to 100,000", 100),
        days=fleet.take("days", number(0.01, 365), "0.01 to 365", 1.0),
        seed=fleet.take("seed", whole(0, 2**63), "a whole number", 0) if seed is None else seed,
        types_of_team=fleet.take("types_of_team", whole(1, 1_000), "1 to 1,000", usual.types_of_team),
        spare=fleet.take("spare", rate_of, "a share of what serves, such as 12%", usual.spare),
        faults=fleet.take("faults", number(0, 10), "0 (none) to 10 (times as many as usual)", usual.faults),
        recycling=fleet.take("recycling", flag_of, "true or false", True),
        future_reservations=fleet.take("future_reservations", flag_of, "true or false", True),
    )
    fleet.knows("seed")
    fleet.end()
    reader.end()
    return plan
