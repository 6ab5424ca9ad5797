"""What is to be rehearsed, as people write it: a scenario, or what `modelfleet launch plan -o json` prints. Pure.

A scenario is a launch with its accidents and what people do, or a `fleet:`. Whatever is wrong with it is said at once,
each with its line and what would be accepted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

import yaml
from google.protobuf import json_format

from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.errors import FleetError, InvalidFields
from modelfleetd.launcher.domain.launch import Strategy
from modelfleetd.launcher.domain.policy import (
    Approval,
    AvailabilityGate,
    Policy,
    StabilityGate,
    check,
    default_rollback_window,
)
from modelfleetd.launcher.wire.policy import policy_from_proto
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.chance import Trouble
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.stability import CRITERION_WORDS

ACCIDENTS: Final = (
    "kill",
    "starts-fail",
    "no-machines",
    "agent-away",
    "judge-away",
    "launcher-crashes",
    "candidate-fails",
    "candidate-slow",
)
ACTS: Final = ("pause", "resume", "skip", "abort")
STRATEGIES: Final = {
    "replace-baseline": Strategy.REPLACE_BASELINE,
    "start-experiment": Strategy.START_EXPERIMENT,
}
# Fields of the policy that a scenario has under another name.
_FIELDS: Final = {
    "max_step_basis_points": "step",
    "bake_duration": "bake",
    "launch_deadline": "deadline",
}
_USUAL_TIER: Final = "TIER2"
_TIERS: Final = ("TIER0", "TIER1", "TIER2", "TIER3", "TIER4")
_MOST: Final = 1_000_000
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_STEP: Final = re.compile(r"step\s+(\d{1,3})")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a file."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class ScenarioInvalid(Exception):
    """A file says nothing that can be rehearsed; every problem of it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Moment:
    """When something happens: so many seconds after the launch was created, or once it is at a step."""

    seconds: float = 0.0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Accident:
    """What goes wrong: `what` is one of ACCIDENTS."""

    at: Moment
    what: str
    replicas: int = 1
    of: str = "new"
    seconds: float = 300.0
    factor: float = 2.0
    rate: float = 0.05


@dataclass(frozen=True, slots=True)
class PersonsAct:
    """What somebody does: `do` is one of ACTS."""

    at: Moment
    do: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """A launch to rehearse. Shares are basis points."""

    old: int
    new: int
    spare: int
    seed: int = 0
    strategy: Strategy = Strategy.REPLACE_BASELINE
    share: int = 0
    holdout: int = 0
    tier: str = _USUAL_TIER
    policy: Policy = field(default_factory=Policy)
    machines: Behaviour = field(default_factory=Behaviour)
    trouble: Trouble = field(default_factory=Trouble)
    accidents: tuple[Accident, ...] = ()
    people: tuple[PersonsAct, ...] = ()
    # What it was made from says, and the rehearsal does otherwise; told before anything else.
    notes: tuple[str, ...] = ()


def parse(text: str, seed: int | None = None) -> Scenario | FleetPlan:
    """Reads a scenario, or a plan.

    Args:
        text: YAML or JSON.
        seed: instead of that in the file.

    Raises:
        ScenarioInvalid: names everything that is wrong, line by line.
    """
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
    if "candidate" in found and isinstance(found.get("plan"), dict):
        return _of_plan(found, seed)
    reader = _Reader(node)
    scenario = _read_fleet(reader, seed) if "fleet" in found else _read_launch(reader, seed)
    if reader.problems:
        raise ScenarioInvalid(reader.problems)
    return scenario


class _Reader:
    """A mapping of the file: takes fields one by one, and collects what is wrong."""

    def __init__(self, node: yaml.MappingNode, problems: list[Problem] | None = None, path: str = "") -> None:
        self.problems: list[Problem] = [] if problems is None else problems
        self.line = node.start_mark.line + 1
        self._path = path
        self._fields: dict[str, yaml.Node] = {}
        self._known: list[str] = []
        for key, value in node.value:
            name = str(key.value)
            if name in self._fields:
                self.problems.append(Problem(key.start_mark.line + 1, f"{path}{name} is there twice"))
            self._fields[name] = value

    def complain(self, message: str, name: str = "") -> None:
        """Something is wrong with a field, or with the whole."""
        node = self._fields.get(name)
        self.problems.append(Problem(node.start_mark.line + 1 if node else self.line, message))

    def take(
        self, name: str, read: Callable[[str], Any], accepted: str, default: Any = None, *, must: bool = False
    ) -> Any:
        """A scalar; `read` raises ValueError where it is none that is accepted."""
        self._known.append(name)
        node = self._fields.get(name)
        if node is None:
            if must:
                self.complain(f"{self._path}{name} is missing; it is {accepted}")
            return default
        if isinstance(node, yaml.ScalarNode):
            try:
                return read(str(node.value).strip())
            except ValueError:
                pass
        said = f"'{node.value}'" if isinstance(node, yaml.ScalarNode) else "this"
        self.complain(f"{self._path}{name}: {said} is not accepted; it is {accepted}", name)
        return default

    def section(self, name: str) -> _Reader:
        """A mapping within; empty where it is not there."""
        self._known.append(name)
        node = self._fields.get(name)
        if isinstance(node, yaml.MappingNode):
            return _Reader(node, self.problems, f"{self._path}{name}.")
        if node is not None:
            self.complain(f"{self._path}{name} must be a mapping", name)
        mark = yaml.Mark("", 0, self.line - 1, 0, None, 0)
        return _Reader(yaml.MappingNode("tag:yaml.org,2002:map", [], mark, mark), self.problems, f"{self._path}{name}.")

    def each(self, name: str) -> list[_Reader]:
        """The mappings of a list; none where it is not there."""
        self._known.append(name)
        node = self._fields.get(name)
        if node is None:
            return []
        items = node.value if isinstance(node, yaml.SequenceNode) else [node.value]
        if len(items) <= 1_000 and all(isinstance(item, yaml.MappingNode) for item in items):
            return [_Reader(item, self.problems, f"{self._path}{name}[{number}].") for number, item in enumerate(items)]
        self.complain(f"{self._path}{name} must be a list of at most 1,000 mappings", name)
        return []

    @property
    def is_empty(self) -> bool:
        """Whether it has no field."""
        return not self._fields

    def knows(self, name: str) -> None:
        """A field may be there although nobody takes it."""
        if name not in self._known:
            self._known.append(name)

    def end(self) -> None:
        """What nobody asked for is not known."""
        for name in self._fields:
            if name not in self._known:
                self.complain(f"{self._path}{name} is not known; there are: {', '.join(self._known)}", name)


def _read_launch(reader: _Reader, seed: int | None) -> Scenario:
    launch = reader.section("launch")
    if launch.is_empty:
        reader.complain("there must be `launch:` with at least `old` and `new`, or `fleet:`")
    replicas = f"a number of replicas, 2 to {10_000:,}"
    old = launch.take("old", _whole(2, 10_000), replicas, 2, must=True)
    new = launch.take("new", _whole(2, 10_000), replicas, 2, must=True)
    spare = launch.take("spare", _whole(0, _MOST), "units beyond what serves, 0 or more", max(1, old // 5))
    strategy = launch.take("strategy", _one_of(STRATEGIES), f"one of {', '.join(STRATEGIES)}", "replace-baseline")
    share = launch.take("share", share_of, "a share, such as 20%", 0)
    holdout = launch.take("holdout", share_of, "a share, such as 2%", 0)
    tier = launch.take("tier", _one_of(_TIERS), f"one of {', '.join(_TIERS)}", _USUAL_TIER)
    if strategy == "start-experiment" and not share:
        launch.complain("launch.share is missing; an experiment ends at a share, such as 20%", "strategy")
    if strategy == "replace-baseline" and share:
        launch.complain(
            "launch.share is only for start-experiment; a new baseline takes everything but the holdout", "share"
        )
    policy = Policy(
        max_step_basis_points=max(1, launch.take("step", share_of, "a share, such as 20%", 2_000)),
        max_steps=launch.take("max_steps", _whole(1, 100), "1 to 100", 20),
        bake_duration=timedelta(seconds=launch.take("bake", seconds_of, "a time, such as 5m", 300.0)),
        step_deadline=timedelta(seconds=launch.take("step_deadline", seconds_of, "a time, such as 10m", 600.0)),
        launch_deadline=timedelta(seconds=launch.take("deadline", seconds_of, "a time, such as 7d", 7 * 86_400.0)),
        rollback_window=default_rollback_window(tier),
        stability_gate=StabilityGate(disabled=not launch.take("stability_gate", _flag, "true or false", True)),
        availability_gate=AvailabilityGate(disabled=not launch.take("availability_gate", _flag, "true or false", True)),
    )
    try:
        check(policy)
    except InvalidFields as error:
        for violation in error.violations:
            field = violation.path.rpartition(".")[2]
            name = _FIELDS.get(field, field)
            launch.complain(f"launch.{name} {violation.description}", name)
    launch.end()
    machines = _read_machines(reader.section("machines"))
    trouble = _read_candidate(reader.section("candidate"), machines)
    scenario = Scenario(
        old=old,
        new=new,
        spare=spare,
        seed=reader.take("seed", _whole(0, 2**63), "a whole number", 0) if seed is None else seed,
        strategy=STRATEGIES[strategy],
        share=share,
        holdout=holdout,
        tier=tier,
        policy=policy,
        machines=machines[0],
        trouble=trouble,
        accidents=tuple(_accident(each) for each in reader.each("accidents")),
        people=tuple(_persons_act(each) for each in reader.each("people")),
    )
    reader.knows("seed")
    reader.end()
    return scenario


def _read_machines(reader: _Reader) -> tuple[Behaviour, float, float | None]:
    between = "a time or a range of times, such as 60s or 30s-90s"
    rate = "a share of them, such as 2%"
    behaviour = Behaviour(
        start_seconds=reader.take("start", _range, between, (20.0, 60.0)),
        terminate_seconds=reader.take("drain", _range, between, (5.0, 30.0)),
        acknowledge_seconds=reader.take("acknowledge", _range, between, (0.5, 3.0)),
        retry_seconds=5.0,
        pending_rate=reader.take("no_machine", _rate, rate, 0.0),
        pending_seconds=reader.take("machine_comes_after", _range, between, None),
        lost_effect_rate=reader.take("lost_effects", _rate, rate, 0.0),
        looks_every_seconds=reader.take("looks_every", seconds_of, "a time, such as 5s", 0.0),
        measures_every_seconds=reader.take("measures_every", seconds_of, "a time, such as 10s", 0.0),
        requests_per_second=reader.take("requests_per_second", _number(0, 1e7), "a number", 100.0),
        replica_requests_per_second=reader.take("replica_carries", _number(1e-3, 1e7), "requests per second", None),
        traffic_lag_seconds=reader.take("traffic_lag", seconds_of, "a time, such as 30s", 0.0),
    )
    failing = reader.take("start_failures", _rate, rate, 0.0)
    life = reader.take("mean_life", seconds_of, "a time, such as 12h", None)
    reader.end()
    return behaviour, failing, life


def _read_candidate(reader: _Reader, machines: tuple[Behaviour, float, float | None]) -> Trouble:
    trouble = Trouble(
        start_failure_rate=machines[1],
        mean_life_seconds=machines[2],
        calibration=reader.take("calibration", _number(0.01, 100), "predicted over what happens, such as 1.3", 1.0),
        error_rate=reader.take("errors", _rate, "a share of its requests, such as 2%", 0.0),
        latency=reader.take("latency", _number(0.01, 1_000), "times that of the old model, such as 1.5", 1.0),
        labels=reader.take("labels", _rate, "the share of the labels that arrive, such as 80%", 1.0),
        label_delay_seconds=reader.take("labels_late", seconds_of, "how much later they arrive, such as 10m", 0.0),
    )
    reader.end()
    return trouble


def _accident(reader: _Reader) -> Accident:
    found = Accident(
        at=reader.take("at", _moment, "a time, such as 10m, or a step, such as step 3", Moment(), must=True),
        what=reader.take("what", _one_of(ACCIDENTS), f"one of {', '.join(ACCIDENTS)}", "kill", must=True),
        replicas=reader.take("replicas", _whole(1, 10_000), "how many, such as 2", 1),
        of=reader.take("of", _one_of(("old", "new")), "old or new", "new"),
        seconds=reader.take("for", seconds_of, "a time, such as 5m", 300.0),
        factor=reader.take("factor", _number(0.01, 1_000), "how many times as slow, such as 2", 2.0),
        rate=reader.take("rate", _rate, "a share, such as 5%", 0.05),
    )
    reader.end()
    return found


def _persons_act(reader: _Reader) -> PersonsAct:
    found = PersonsAct(
        at=reader.take("at", _moment, "a time, such as 10m, or a step, such as step 3", Moment(), must=True),
        do=reader.take("do", _one_of(ACTS), f"one of {', '.join(ACTS)}", "pause", must=True),
    )
    reader.end()
    return found


def _read_fleet(reader: _Reader, seed: int | None) -> FleetPlan:
    fleet = reader.section("fleet")
    usual = FleetPlan()
    plan = FleetPlan(
        types=fleet.take("types", _whole(1, 10_000), "1 to 10,000", 20),
        launches=fleet.take("launches", _whole(1, 100_000), "1 to 100,000", 100),
        days=fleet.take("days", _number(0.01, 365), "0.01 to 365", 1.0),
        seed=fleet.take("seed", _whole(0, 2**63), "a whole number", 0) if seed is None else seed,
        types_of_team=fleet.take("types_of_team", _whole(1, 1_000), "1 to 1,000", usual.types_of_team),
        spare=fleet.take("spare", _rate, "a share of what serves, such as 12%", usual.spare),
        faults=fleet.take("faults", _number(0, 10), "0 (none) to 10 (times as many as usual)", usual.faults),
        recycling=fleet.take("recycling", _flag, "true or false", True),
        future_reservations=fleet.take("future_reservations", _flag, "true or false", True),
    )
    fleet.knows("seed")
    fleet.end()
    reader.end()
    return plan


def _of_plan(found: Mapping[str, Any], seed: int | None) -> Scenario:
    """What a plan of the launcher knows; of machines and labels it knows nothing, so those are as usual."""
    regions = found["plan"].get("regions") or []
    strategy = str(found.get("strategy", "REPLACE_BASELINE")).lower().replace("_", "-")
    problems: list[Problem] = []
    if len(regions) != 1:
        problems.append(
            Problem(1, f"the plan has {len(regions)} regions; a rehearsal is of one: plan it with --region REGION")
        )
    if strategy not in STRATEGIES:
        problems.append(Problem(1, f"plans of {strategy} cannot be rehearsed; those of {', '.join(STRATEGIES)} can"))
    if problems:
        raise ScenarioInvalid(problems)
    try:
        launch = json_format.ParseDict(dict(found), pb.Launch())
        policy = policy_from_proto(launch.policy, _USUAL_TIER, STRATEGIES[strategy])
        check(policy)
    except (json_format.ParseError, FleetError, ValueError) as error:
        said = f"the plan cannot be read ({error}); give what `modelfleet launch plan … -o json` prints"
        raise ScenarioInvalid([Problem(1, said)]) from None
    (region,) = launch.plan.regions
    if min(region.old_replicas_full, region.new_replicas_full) < 1:
        raise ScenarioInvalid([Problem(1, "the plan has no replicas of one of its models: there is nothing to swap")])
    return Scenario(
        old=region.old_replicas_full,
        new=region.new_replicas_full,
        spare=region.free_units // _units(region),
        seed=seed or 0,
        strategy=STRATEGIES[strategy],
        share=launch.target_share_basis_points,
        holdout=launch.holdout_share_basis_points,
        policy=replace(policy, approval=Approval.AUTOMATIC, webhook_gates=(), people_gates=()),
        machines=Behaviour(start_seconds=(20.0, 60.0), terminate_seconds=(5.0, 30.0)),
        notes=tuple(_left_out(launch, region, policy)),
    )


def _units(region: pb.RegionPlan) -> int:
    """Units that a replica takes, of the model whose replicas take more."""
    found = (step.peak_units / max(1, step.old_replicas_before + step.new_replicas) for step in region.steps)
    return max(1, math.ceil(max(found, default=1.0)))


def _left_out(launch: pb.Launch, region: pb.RegionPlan, policy: Policy) -> Iterator[str]:
    """What a plan demands that a rehearsal does not have, and what it does instead."""
    yield "machines, traffic and labels are as usual: a plan does not know them"
    if launch.plan.needs_approval or policy.approval is Approval.REQUIRED:
        yield "the approval is not waited for"
    for people in policy.people_gates:
        share = f"{people.after_share_basis_points / 100:g} %"
        yield f"people are not waited for who are asked before more than {share} ({people.reason})"
    for webhook in policy.webhook_gates:
        yield f"the webhook {webhook.webhook} is not asked ({webhook.when.name.lower().replace('_', ' ')})"
    if not policy.evidence_gate.disabled:
        yield "the evidence gate passes: no evidence is looked at"
    if not policy.stability_gate.disabled and policy.stability_gate.criteria:
        yield f"the stability gate does not judge by the plan's criteria, but {CRITERION_WORDS}"
    if len(region.holds) > 1:
        yield "both models run on one flavor, with the room of both of the plan's"
    if _units(region) > 1:
        yield f"a replica takes one unit, and the room is that of replicas of {_units(region)} units"
    if launch.plan.freeze_conflicts or launch.freeze_overrides:
        yield "no freeze window holds"


def seconds_of(text: str) -> float:
    """Seconds of a time such as 90s, 5m, 1h 30m or 2d."""
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise ValueError(text)
    found = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if found > 365 * 86_400:
        raise ValueError(text)
    return found


def share_of(text: str) -> int:
    """Basis points of a share such as 20% or 0.5%."""
    found = _percent(text) * 100
    if found != round(found):
        raise ValueError(text)
    return round(found)


def _percent(text: str) -> float:
    if not text.endswith("%"):
        raise ValueError(text)
    found = float(text[:-1])
    if not 0 <= found <= 100:
        raise ValueError(text)
    return round(found, 6)


def _rate(text: str) -> float:
    return _percent(text) / 100


def _range(text: str) -> tuple[float, float]:
    least, _, most = text.partition("-")
    found = seconds_of(least), seconds_of(most or least)
    if found[0] > found[1]:
        raise ValueError(text)
    return found


def _moment(text: str) -> Moment:
    step = _STEP.fullmatch(text)
    return Moment(step=int(step[1])) if step else Moment(seconds=seconds_of(text))


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        found = int(text.replace(",", "").replace("_", ""))
        if not least <= found <= most:
            raise ValueError(text)
        return found

    return read


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        found = float(text)
        if not math.isfinite(found) or not least <= found <= most:
            raise ValueError(text)
        return found

    return read


def _one_of(words: Iterable[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return read
