"""What is rehearsed of one launch: where it begins, what it is to do, what goes wrong, and who answers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from modelfleetd.launcher.domain.launch import Strategy
from modelfleetd.launcher.domain.policy import Policy
from modelfleetd.platform.simulator import Behaviour
from modelfleetd.rehearsal.answers import Answer
from modelfleetd.rehearsal.chance import Trouble
from modelfleetd.rehearsal.stability import USUAL, Predicted
from modelfleetd.rehearsal.standing import Standing

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
ACTS: Final = ("pause", "resume", "skip", "promote", "abort", "retry")
STRATEGIES: Final = {strategy.name.lower().replace("_", "-"): strategy for strategy in Strategy}
USUAL_TIER: Final = "TIER2"
# What people are asked for, and what they may say.
PEOPLE: Final = ("approval", "people")
REPLIES: Final = ("approve", "reject", "nothing")
# Whoever is asked answers so many seconds later, unless the scenario says otherwise.
USUAL_REPLY: Final = 1_800.0


@dataclass(frozen=True, slots=True)
class Moment:
    """When something happens.

    Attributes:
        seconds: so many seconds after the launch was created.
        step: or once it is at a step; 0: not so.
        region: of that region; empty: of the first that comes to it.
        is_end: or once it has ended without success.
    """

    seconds: float = 0.0
    step: int = 0
    region: str = ""
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class Accident:
    """What goes wrong: `what` is one of ACCIDENTS; in `region`, or everywhere."""

    at: Moment
    what: str
    replicas: int = 1
    of: str = "new"
    seconds: float = 300.0
    factor: float = 2.0
    rate: float = 0.05
    region: str = ""


@dataclass(frozen=True, slots=True)
class PersonsAct:
    """What somebody does: `do` is one of ACTS."""

    at: Moment
    do: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What people answer who are asked: `asked` is one of PEOPLE, `says` one of REPLIES, so many seconds later."""

    asked: str
    says: str = "approve"
    after: tuple[float, float] = (USUAL_REPLY, USUAL_REPLY)


@dataclass(frozen=True, slots=True)
class Freeze:
    """A freeze window that opens so many seconds after the launch was created."""

    name: str
    seconds: float
    lasts: float
    reason: str


@dataclass(frozen=True, slots=True)
class Replicas:
    """How a model is run: units of a flavor for each replica."""

    flavor: str = "flavors/cpu"
    units: int = 1


@dataclass(frozen=True, slots=True)
class Place:
    """A region of the route as it is before the launch. What both models do not have of the traffic another one has.

    Attributes:
        region: its name.
        old: replicas that the baseline needs for the whole route; 0: there is none but the candidate itself, or the
            candidate is the first model of the route.
        new: replicas that the candidate needs for it.
        spare: units that are free, by flavor.
        old_share: of the baseline, in basis points.
        new_share: of the candidate.
        old_running: replicas of the baseline.
        new_running: replicas of the candidate.
    """

    region: str
    old: int
    new: int
    spare: Mapping[str, int]
    old_share: int
    new_share: int
    old_running: int
    new_running: int
    # Requests a second, where they are known; 0: as the machines have them.
    demand: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing serves there yet."""
        return not (self.old or self.old_share or self.new_share or self.old_running or self.new_running)


@dataclass(frozen=True, slots=True)
class Note:
    """What a plan does not know, or a rehearsal does not have, and what it does instead.

    Attributes:
        about: the part of a second file that says otherwise, or the gate that answers.
        text: what it does.
        instead: what may be said instead, as a second file has it; empty where nothing can.
    """

    about: str
    text: str
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.text}; --with says otherwise: {self.instead}" if self.instead else self.text


@dataclass(frozen=True, slots=True)
class Scenario:
    """A launch to rehearse. Shares are basis points."""

    places: tuple[Place, ...]
    old_model: Replicas = field(default_factory=Replicas)
    new_model: Replicas = field(default_factory=Replicas)
    seed: int = 0
    strategy: Strategy = Strategy.REPLACE_BASELINE
    share: int = 0
    holdout: int = 0
    tier: str = USUAL_TIER
    policy: Policy = field(default_factory=Policy)
    evidence_rules: int = 0
    machines: Behaviour = field(default_factory=Behaviour)
    trouble: Trouble = field(default_factory=Trouble)
    predictions: tuple[Predicted, ...] = USUAL
    accidents: tuple[Accident, ...] = ()
    people: tuple[PersonsAct, ...] = ()
    answers: tuple[Answer, ...] = ()
    replies: tuple[Reply, ...] = ()
    freezes: tuple[Freeze, ...] = ()
    # Where it stands, of a launch in flight; None: it begins.
    standing: Standing | None = None
    # When it is created, or stands there; None: some day.
    begins: datetime | None = None
    # Told before anything else.
    notes: tuple[Note, ...] = ()
