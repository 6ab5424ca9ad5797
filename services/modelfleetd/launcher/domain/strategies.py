"""What launches can bring about. Each strategy is described once, as data; whoever has to know asks the description."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from modelfleetd.errors import FieldViolation, invalid
from modelfleetd.launcher.domain.plan import Plan, RegionPlan
from modelfleetd.launcher.domain.planning import Inputs
from modelfleetd.launcher.domain.shares import FULL
from modelfleetd.launcher.domain.words import listed, percent

# The most that an old baseline may keep as HOLDOUT.
MOST_HELD_OUT: Final = 5_000


class Strategy(enum.Enum):
    """What a launch is to bring about."""

    REPLACE_BASELINE = 1
    START_EXPERIMENT = 2
    RAMP = 3
    END_EXPERIMENT = 4
    RESIZE = 5
    ROLL_BACK = 6

    @functools.cached_property
    def rule(self) -> Rule:
        return RULES[self]


class Goal(enum.Enum):
    """The candidate's share in the end."""

    # Everything that it and the baseline have together, less what the baseline keeps as HOLDOUT.
    WHOLE = 1
    # What the launch asks for.
    TARGET = 2
    NOTHING = 3
    # What it has already.
    SAME = 4


@dataclass(frozen=True, slots=True)
class Rule:
    """One strategy.

    Attributes:
        does: for the history: "launches", "ends" …
        goal: the candidate's share in the end; the baseline has the rest of what both had.
        takes: roles that the candidate may have when the plan is made; empty: any but BASELINE.
        becomes: the candidate's role in the end; empty: it stays.
        baseline_becomes: the baseline's role in the end; empty: it stays.
        called: what candidate and baseline are called.
        needs_baseline: whether there has to be one.
        swaps: whether share passes between candidate and baseline; else only the candidate's replicas change.
        gated: whether the candidate's predictions are judged while its share grows.
        mitigation: takes traffic away from what does harm: on-call may create it, it goes everywhere, as fast as
            capacity allows, without gates, bakes, or a certificate.
        may_hold_out: whether the baseline may keep a share as HOLDOUT.
        where_it_serves: whether its regions are by default those in which the candidate serves; else all of the type's.
    """

    does: str
    goal: Goal
    takes: frozenset[str]
    becomes: str = ""
    baseline_becomes: str = ""
    called: tuple[str, str] = ("candidate", "baseline")
    needs_baseline: bool = True
    swaps: bool = True
    gated: bool = True
    mitigation: bool = False
    may_hold_out: bool = False
    where_it_serves: bool = False

    @property
    def has_target(self) -> bool:
        """Whether the launch has to say its target share."""
        return self.goal is Goal.TARGET


RULES: Final[Mapping[Strategy, Rule]] = {
    Strategy.REPLACE_BASELINE: Rule(
        does="launches",
        goal=Goal.WHOLE,
        takes=frozenset(),
        becomes="BASELINE",
        baseline_becomes="RETIRED",
        needs_baseline=False,
        may_hold_out=True,
    ),
    Strategy.START_EXPERIMENT: Rule(
        does="starts the experiment",
        goal=Goal.TARGET,
        takes=frozenset({"CANDIDATE", "RETIRED"}),
        becomes="EXPERIMENT",
    ),
    Strategy.RAMP: Rule(
        does="ramps the experiment",
        goal=Goal.TARGET,
        takes=frozenset({"EXPERIMENT"}),
        called=("experiment", "baseline"),
        where_it_serves=True,
    ),
    # An old baseline that was kept as HOLDOUT ends like an experiment: nothing else would ever take its share.
    Strategy.END_EXPERIMENT: Rule(
        does="ends",
        goal=Goal.NOTHING,
        takes=frozenset({"EXPERIMENT", "HOLDOUT"}),
        becomes="RETIRED",
        called=("experiment", "baseline"),
        gated=False,
        mitigation=True,
    ),
    Strategy.RESIZE: Rule(
        does="resizes",
        goal=Goal.SAME,
        takes=frozenset({"BASELINE", "EXPERIMENT", "HOLDOUT"}),
        needs_baseline=False,
        swaps=False,
        gated=False,
        where_it_serves=True,
    ),
    Strategy.ROLL_BACK: Rule(
        does="rolls back to",
        goal=Goal.WHOLE,
        takes=frozenset({"RETIRED", "HOLDOUT", "EXPERIMENT"}),
        becomes="BASELINE",
        baseline_becomes="RETIRED",
        gated=False,
        mitigation=True,
    ),
}


def check_asked(strategy: Strategy, *, target: int, holdout: int, regions: int) -> list[FieldViolation]:
    """Says which fields of a new launch its strategy does not allow, or lacks.

    Args:
        strategy: the strategy.
        target: `target_share_basis_points`.
        holdout: `holdout_share_basis_points`.
        regions: how many regions are named.
    """
    rule, name = strategy.rule, strategy.name
    found: list[FieldViolation] = []
    path = "launch.target_share_basis_points"
    if rule.has_target and not 1 <= target < FULL:
        found.append(FieldViolation(path, f"must be 1 to {FULL - 1:,} with {name}: the candidate's share in the end"))
    if not rule.has_target and target:
        found.append(FieldViolation(path, f"must be unset with {name}, which says itself what the candidate gets"))
    path = "launch.holdout_share_basis_points"
    if rule.may_hold_out and not 0 <= holdout <= MOST_HELD_OUT:
        found.append(FieldViolation(path, f"must be 0 to {MOST_HELD_OUT:,}"))
    if not rule.may_hold_out and holdout:
        found.append(
            FieldViolation(path, f"must be unset with {name}: only REPLACE_BASELINE holds out the old baseline")
        )
    if rule.mitigation and regions:
        everywhere = (
            "an experiment or holdout ends everywhere" if rule.goal is Goal.NOTHING else "a baseline goes everywhere"
        )
        found.append(FieldViolation("launch.regions", f"must be empty: {everywhere}"))
    return found


def check_change(strategy: Strategy, plan: Plan, candidate: str) -> None:
    """Checks that a new launch has something to do.

    Args:
        strategy: the strategy.
        plan: what it would do.
        candidate: the model that it is about.

    Raises:
        InvalidFields: everything is as it is to be; says what there is.
    """
    rule, name = strategy.rule, candidate.rpartition("/")[2]
    regions = plan.regions
    if rule.has_target and all(region.goal == region.candidate.share for region in regions):
        has = f"the {percent(regions[0].goal)} that {name} has already"
        below = percent(min(region.both for region in regions))
        raise invalid(
            "launch.target_share_basis_points", f"must be another share than {has}: more or less, and below {below}"
        )
    if not rule.swaps and all(_is_sized(region) for region in regions):
        has = listed([f"{region.candidate.running} in {region.region.rpartition('/')[2]}" for region in regions])
        words = f"must need more or fewer replicas than it has; {name} has those that its share needs already: {has}"
        raise invalid("launch.candidate", f"{words}; another demand or certificate would change that")


def _is_sized(region: RegionPlan) -> bool:
    """Whether a model that is resized has its replicas, and they are what is booked for it."""
    model = region.candidate
    booked = sum(hold.moved_units for hold in region.holds)
    return region.steps[-1].new_replicas == model.running and booked == model.running * model.units


def final_share(strategy: Strategy, *, both: int, present: int, target: int, holdout: int) -> int:
    """The candidate's share in a region once the launch has succeeded.

    Args:
        strategy: the strategy.
        both: what candidate and baseline have together.
        present: what the candidate has now.
        target: what the launch asks for, where its strategy wants to know.
        holdout: what the old baseline is to keep.
    """
    match strategy.rule.goal:
        case Goal.WHOLE:
            return both - holdout
        case Goal.TARGET:
            return target
        case Goal.NOTHING:
            return 0
        case Goal.SAME:
            return present


def inputs_of(strategy: Strategy, sides: Inputs, *, raises: bool, target: int, holdout: int) -> Inputs:
    """What the plan of a region is made from: both sides, and how far the one that grows is to go.

    Args:
        strategy: the strategy.
        sides: the side that grows and the one that gives, and what the launch can have.
        raises: whether the one that grows is the candidate.
        target: what the launch asks for, where its strategy wants to know.
        holdout: what the old baseline is to keep.
    """
    if not strategy.rule.swaps:
        return replace(sides, target=sides.candidate.share, resizes=True)
    if sides.baseline is None:
        # The first model of a route takes everything.
        return sides
    present = (sides.candidate if raises else sides.baseline).share
    share = final_share(strategy, both=sides.both, present=present, target=target, holdout=holdout)
    return replace(sides, target=share if raises else sides.both - share)
