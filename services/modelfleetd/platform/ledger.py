"""Checks a ledger of effects against what a launch promises (LAUNCH.md, properties 1 to 3). Pure; the oracle of tests.

Two kinds of rules. Those of the ledger itself hold for every agent, always: positions without gaps, nothing twice,
epochs that never go back, weight given only to models that have an available replica. Those of a launch need its
figures (`Promise`): each side keeps the replicas that its share needs, and everything that exists fits the hold. Only
acts are charged: replicas that died by themselves are credited to their side until others replace them or until
somebody raises the weight knowing that they are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from modelfleetd.platform.model import DesiredServing, Effect, EffectKind

_NO_SERVING = DesiredServing()
_BEGINS_LIFE = EffectKind.REPLICA_STARTED
_ENDS_LIFE = EffectKind.REPLICA_TERMINATED


@dataclass(frozen=True, slots=True)
class Promise:
    """What a launch on one target promised.

    Attributes:
        target: the target.
        required: R_m(x): replicas that a model needs to carry a share of x basis points.
        hold: units of each flavor that may exist on the target at any instant, terminating ones counted.
        after: effects up to this sequence number are history: they build the state and are not judged.
        until: effects after this one belong to somebody else; 0 means all.
        reaction: a replica lost so shortly before an act is not held against the act: nobody can have known.
    """

    target: str
    required: Callable[[str, int], int]
    hold: Mapping[str, int]
    after: int = 0
    until: int = 0
    reaction: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule, at one effect."""

    effect: Effect
    rule: str
    detail: str

    def __str__(self) -> str:
        at = f"#{self.effect.sequence} {self.effect.kind.name} of {self.effect.target}"
        return f"{at}: {self.rule}: {self.detail}"


@dataclass(slots=True)
class _State:
    """A target as its ledger says."""

    floor: int = 0
    generation: int = 0
    desired: DesiredServing = _NO_SERVING
    weights: dict[str, int] = field(default_factory=dict)
    # Of the weights, what somebody asked for: a model that took over from a dead one is not charged for the rest.
    asked: dict[str, int] = field(default_factory=dict)
    # Shares that models had when they were given more because the others had no replica left: no side without replicas
    # keeps weight, whatever the one that takes it can carry.
    taken_over: dict[str, int] = field(default_factory=dict)
    living: dict[str, str] = field(default_factory=dict)
    units: dict[str, tuple[str, int]] = field(default_factory=dict)
    available: set[str] = field(default_factory=set)
    lost: dict[str, list[datetime]] = field(default_factory=dict)

    def available_of(self, model: str) -> int:
        return sum(1 for replica in self.available if self.living.get(replica) == model)

    def credit_of(self, model: str) -> int:
        """Replicas that died by themselves and that nobody has replaced yet."""
        missing = self.desired.replicas_of(model) - self.available_of(model)
        return max(0, min(len(self.lost.get(model, ())), missing))

    def rescues(self, desired: DesiredServing) -> bool:
        """Whether weight is only taken from models that have no replica available."""
        losing = [s.model for s in self.desired.shares if desired.share_of(s.model) < s.share_basis_points]
        return bool(losing) and all(self.available_of(model) == 0 for model in losing)

    def take_over(self, desired: DesiredServing) -> None:
        """Remembers from which share on a model is not charged, before another desired state takes the place."""
        rescued = self.rescues(desired)
        for share in desired.shares:
            before = self.desired.share_of(share.model)
            if share.share_basis_points > before and rescued:
                self.taken_over.setdefault(share.model, before)
            elif share.share_basis_points != before:
                self.taken_over.pop(share.model, None)

    def used(self) -> dict[str, int]:
        """Units of each flavor that exist, terminating ones counted."""
        sums: dict[str, int] = {}
        for replica in self.living:
            flavor, units = self.units[replica]
            sums[flavor] = sums.get(flavor, 0) + units
        return sums


def violations(effects: Iterable[Effect], promises: Iterable[Promise] = ()) -> list[Violation]:
    """Walks a whole ledger, from its first effect, and returns every broken rule in order."""
    by_target: dict[str, list[Promise]] = {}
    for promise in promises:
        by_target.setdefault(promise.target, []).append(promise)
    walk = Walk()
    for effect in effects:
        walk.go_on(effect, [p for p in by_target.get(effect.target, ()) if _covers(p, effect)])
    return walk.found


def _covers(promise: Promise, effect: Effect) -> bool:
    return promise.after < effect.sequence and (promise.until == 0 or effect.sequence <= promise.until)


class Walk:
    """The state of every target, effect by effect, and what was found.

    For whoever cannot wait for the end of a ledger, or whose promises change on the way.
    """

    def __init__(self) -> None:
        self.found: list[Violation] = []
        self._targets: dict[str, _State] = {}
        self._keys: set[str] = set()
        self._started: set[str] = set()
        self._sequence = 0
        self._time: datetime | None = None

    def go_on(self, effect: Effect, in_force: Iterable[Promise] = ()) -> None:
        """Judges the next effect, by the rules of every ledger and by the promises that are in force."""
        self.ledger_rules(effect)
        for promise in in_force:
            self.act_rules(effect, promise)
        self.apply(effect)
        for promise in in_force:
            self.instant_rules(effect, promise)

    def _state(self, effect: Effect) -> _State:
        return self._targets.setdefault(effect.target, _State())

    def _check(self, holds: bool, effect: Effect, rule: str, detail: str) -> None:
        if not holds:
            self.found.append(Violation(effect, rule, detail))

    def ledger_rules(self, effect: Effect) -> None:
        """What holds of every ledger, before the effect is applied."""
        state = self._state(effect)
        expected = self._sequence + 1
        self._check(effect.sequence == expected, effect, "no gap in the ledger", f"expected #{expected}")
        self._sequence = effect.sequence
        self._check(self._time is None or effect.time >= self._time, effect, "time never goes back", str(effect.time))
        self._time = effect.time
        match effect.kind:
            case EffectKind.ACCEPTED:
                self._check(effect.key not in self._keys, effect, "no act happens twice", effect.key)
                self._keys.add(effect.key)
                grown = effect.generation == state.generation + 1
                self._check(grown, effect, "generations grow by one", f"{state.generation} to {effect.generation}")
                self._epoch(effect, state)
            case EffectKind.FLOOR_RAISED:
                self._epoch(effect, state)
            case EffectKind.REPLICA_STARTED:
                self._check(effect.replica not in self._started, effect, "no replica starts twice", effect.replica)
                self._started.add(effect.replica)
            case EffectKind.SHARES_ACKNOWLEDGED:
                for share in effect.shares:
                    able = share.share_basis_points == 0 or state.available_of(share.model) > 0
                    detail = f"{share.model} has none for {share.share_basis_points} basis points"
                    self._check(able, effect, "weight only where a replica is available", detail)
            case _:
                self._check(effect.replica in state.living, effect, "only replicas that exist", effect.replica)

    def _epoch(self, effect: Effect, state: _State) -> None:
        self._check(effect.epoch >= state.floor, effect, "epochs never go back", f"{effect.epoch} < {state.floor}")
        state.floor = max(state.floor, effect.epoch)

    def act_rules(self, effect: Effect, promise: Promise) -> None:
        """What a launch may ask for, given what it could know when it asked."""
        if effect.kind is not EffectKind.ACCEPTED or effect.desired is None:
            return
        state = self._state(effect)
        for model in {m.model for m in effect.desired.models} | {m.model for m in state.desired.models}:
            wanted, had = effect.desired.replicas_of(model), state.desired.replicas_of(model)
            share, shared = effect.desired.share_of(model), state.desired.share_of(model)
            if wanted >= had and share <= shared:
                continue
            # Where the act takes no replica away, what the proxy gives until it has heard of it is not its doing.
            weight = max(share, state.weights.get(model, 0)) if wanted < had else share
            unknowable = sum(1 for at in state.lost.get(model, ()) if effect.time - at <= promise.reaction)
            has = min(wanted, state.available_of(model) + unknowable)
            # A share that does not rise is charged only for the replicas that the act itself takes away: those that
            # start or are lost end before any that is available.
            if share <= shared:
                has = wanted
            elif wanted >= had and state.rescues(effect.desired):
                continue
            needs = promise.required(model, weight)
            detail = f"{model} would keep {has} replicas and needs {needs} for {weight} basis points"
            self._check(has >= needs, effect, "each side has what its share needs (act)", detail)

    def apply(self, effect: Effect) -> None:
        """Lets the effect happen."""
        state = self._state(effect)
        model = effect.model
        match effect.kind:
            case EffectKind.ACCEPTED:
                state.generation = effect.generation
                if effect.desired is not None:
                    state.take_over(effect.desired)
                state.desired = effect.desired or _NO_SERVING
            case EffectKind.SHARES_ACKNOWLEDGED:
                state.weights = {share.model: share.share_basis_points for share in effect.shares}
                shares = {model: state.taken_over.get(model, state.desired.share_of(model)) for model in state.weights}
                state.asked = {model: min(weight, shares[model]) for model, weight in state.weights.items()}
            case EffectKind.REPLICA_STARTED:
                spec = next((m.serving_spec for m in state.desired.models if m.model == model), None)
                state.living[effect.replica] = model
                state.units[effect.replica] = (spec.flavor, spec.units) if spec else ("", 1)
            case EffectKind.REPLICA_AVAILABLE:
                state.available.add(effect.replica)
                if state.lost.get(model):
                    state.lost[model].pop(0)
            case EffectKind.REPLICA_LOST:
                state.available.discard(effect.replica)
                state.lost.setdefault(model, []).append(effect.time)
            case EffectKind.REPLICA_DRAINING | EffectKind.REPLICA_FAILED:
                state.available.discard(effect.replica)
            case EffectKind.REPLICA_TERMINATED:
                state.available.discard(effect.replica)
                state.living.pop(effect.replica, None)
            case EffectKind.FLOOR_RAISED:
                pass

    def instant_rules(self, effect: Effect, promise: Promise) -> None:
        """What holds at every instant of a launch, after the effect was applied."""
        state = self._state(effect)
        if effect.kind in (EffectKind.REPLICA_DRAINING, EffectKind.SHARES_ACKNOWLEDGED):
            for model, weight in state.asked.items():
                has = state.available_of(model) + state.credit_of(model)
                needs = promise.required(model, weight)
                detail = f"{model} has {has} replicas and needs {needs} for {weight} basis points"
                self._check(has >= needs, effect, "each side has what its share needs", detail)
        if effect.kind is _BEGINS_LIFE:
            for flavor, used in state.used().items():
                held = promise.hold.get(flavor, 0)
                detail = f"{used} units of {flavor} exist, {held} are held"
                self._check(used <= held, effect, "what exists fits the hold", detail)


def peak(effects: Iterable[Effect], target: str) -> int:
    """The most replicas of a target that ever existed at once, terminating ones counted."""
    most = now = 0
    for effect in effects:
        if effect.target == target and effect.kind in (_BEGINS_LIFE, _ENDS_LIFE):
            now += 1 if effect.kind is _BEGINS_LIFE else -1
            most = max(most, now)
    return most
