"""The launches of the sweep: of each strategy with room and without it, and those in whose way a mitigation comes."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from modelfleetd.launcher.domain.policy import Policy, RegionOrder, StabilityGate
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.strategies import Strategy
from modelfleetd.rehearsal.routes import REGION

if TYPE_CHECKING:
    from tests.support.steps.course import Course

TYPE = "modelTypes/ranker"
OLD, NEW, OTHER = f"{TYPE}/models/old", f"{TYPE}/models/new", f"{TYPE}/models/other"
A, B = "regions/a", "regions/b"
# Units to spare: for the whole candidate, and so few that what it takes has to be freed first.
ROOM, RECYCLING = 14, 2

_GATE = StabilityGate(disabled=True)
_QUICK = Policy(
    bake_duration=timedelta(seconds=1),
    max_step_basis_points=5_000,
    stability_gate=_GATE,
    step_deadline=timedelta(seconds=40),
)
_AT_ONCE = replace(_QUICK, bake_duration=timedelta(0), max_step_basis_points=10_000, rollback_window=timedelta(0))
# Replicas that a model has however little it serves.
LEAST = 2


class Accident(enum.Enum):
    """What goes wrong with replicas meanwhile."""

    NOTHING = "nothing fails"
    CANDIDATES_DIE = "candidate's replicas die"
    BASELINES_DIE = "baseline's replicas die"
    STARTS_FAIL = "starts fail"


@dataclass(frozen=True)
class Case:
    """A launch, and what serves and what is what once it has succeeded.

    Attributes:
        begin: creates the launch, and gives its name.
        shares: what serves in the end.
        roles: what has got another role by then.
        needs: of each model, what it needs in each region for the whole route.
        before: what happened on the route before.
        regions: of the route.
        at_first: what the old model needed before it was measured anew; 0: what it needs now.
        least: units to spare with which it fits at all, where these are more than others need.
    """

    begin: Callable[[Course], str]
    shares: Mapping[str, int]
    roles: Mapping[str, str]
    needs: Mapping[str, Sequence[int]] = field(default_factory=lambda: {OLD: (12,), NEW: (10,)})
    before: Callable[[Course], Awaitable[None]] | None = None
    regions: Sequence[str] = (REGION,)
    at_first: int = 0
    least: int = 0

    def needed(self, model: str, region: str, share: int) -> int:
        """Replicas that a model has for a share."""
        full = self.needs[model][self.regions.index(region)]
        return max(LEAST, -(-full * share // 10_000)) if share else 0


def creates(strategy: Strategy, model: str = NEW, policy: Policy = _QUICK, **given: Any) -> Callable[[Course], str]:
    """A launch of a strategy, with what else `Fleet.create` takes."""

    def begin(course: Course) -> str:
        return course.fleet.create("l", TYPE, model, strategy=strategy, policy=policy, **given)

    return begin


def _after(
    model: str, strategy: Strategy, policy: Policy = _AT_ONCE, **given: Any
) -> Callable[[Course], Awaitable[None]]:
    """What happened on the route before: another launch, which has succeeded."""

    async def before(course: Course) -> None:
        name = course.fleet.create("before", TYPE, model, strategy=strategy, policy=policy, **given)
        await course.run()
        assert course.launch_of(name).state is State.SUCCEEDED, course.history(name)

    return before


def _experiment(share: int, model: str = NEW) -> Callable[[Course], Awaitable[None]]:
    return _after(model, Strategy.START_EXPERIMENT, target_share=share)


def _takes_back(course: Course) -> str:
    return course.fleet.roll_back("launches/before", "l")


_EVEN: Mapping[str, Sequence[int]] = {OLD: (12,), NEW: (12,)}
_SWAPPED = {NEW: "BASELINE", OLD: "RETIRED"}
_BACK = {OLD: "BASELINE", NEW: "RETIRED"}
_KEPT = replace(_AT_ONCE, rollback_window=timedelta(hours=1))
# Nobody waits for long for what is kept for a rollback.
_BRIEF = replace(_QUICK, rollback_window=timedelta(minutes=2))
_REGIONS: Mapping[str, Sequence[int]] = {OLD: (9, 5), NEW: (8, 5)}

CASES: Mapping[str, Case] = {
    "replacing the baseline": Case(creates(Strategy.REPLACE_BASELINE), {NEW: 10_000}, _SWAPPED),
    "replacing with a holdout": Case(
        creates(Strategy.REPLACE_BASELINE, holdout_share=1_000),
        {NEW: 9_000, OLD: 1_000},
        {NEW: "BASELINE", OLD: "HOLDOUT"},
    ),
    "replacing by an experiment": Case(
        creates(Strategy.REPLACE_BASELINE), {NEW: 10_000}, _SWAPPED, before=_experiment(2_000)
    ),
    "starting an experiment": Case(
        creates(Strategy.START_EXPERIMENT, target_share=3_000), {NEW: 3_000, OLD: 7_000}, {NEW: "EXPERIMENT"}
    ),
    "ramping up": Case(
        creates(Strategy.RAMP, target_share=5_000), {NEW: 5_000, OLD: 5_000}, {}, _EVEN, _experiment(2_000)
    ),
    "ramping down": Case(
        creates(Strategy.RAMP, target_share=2_000), {NEW: 2_000, OLD: 8_000}, {}, _EVEN, _experiment(5_000)
    ),
    "ending an experiment": Case(
        creates(Strategy.END_EXPERIMENT, policy=_AT_ONCE), {OLD: 10_000}, {NEW: "RETIRED"}, _EVEN, _experiment(3_000)
    ),
    "ending a holdout": Case(
        creates(Strategy.END_EXPERIMENT, OLD, _AT_ONCE),
        {NEW: 10_000},
        {OLD: "RETIRED"},
        before=_after(NEW, Strategy.REPLACE_BASELINE, holdout_share=2_000),
    ),
    "growing": Case(creates(Strategy.RESIZE, OLD), {OLD: 10_000}, {}, {OLD: (12,)}, at_first=9, least=3),
    "shrinking": Case(creates(Strategy.RESIZE, OLD), {OLD: 10_000}, {}, {OLD: (9,)}, at_first=12),
    "rolling back": Case(_takes_back, {OLD: 10_000}, _BACK, before=_after(NEW, Strategy.REPLACE_BASELINE, _KEPT)),
    "rolling back when the window is over": Case(
        _takes_back, {OLD: 10_000}, _BACK, before=_after(NEW, Strategy.REPLACE_BASELINE), least=4
    ),
    "replacing region by region": Case(
        creates(Strategy.REPLACE_BASELINE, policy=replace(_QUICK, region_order=RegionOrder.ONE_BY_ONE)),
        {NEW: 10_000},
        _SWAPPED,
        _REGIONS,
        regions=(A, B),
    ),
    "replacing in all regions together": Case(
        creates(Strategy.REPLACE_BASELINE, policy=replace(_QUICK, region_order=RegionOrder.TOGETHER)),
        {NEW: 10_000},
        _SWAPPED,
        _REGIONS,
        regions=(A, B),
    ),
}


@dataclass(frozen=True)
class Incident:
    """A launch during which a mitigation becomes necessary.

    Attributes:
        case: the launch.
        mitigate: creates the mitigation, and gives its name.
        ends: what serves in the end, by who has succeeded: the launch, the mitigation.
    """

    case: Case
    mitigate: Callable[[Course], str]
    ends: Mapping[tuple[bool, bool], Mapping[str, int]]


def _ends_other(course: Course) -> str:
    return course.fleet.create("m", TYPE, OTHER, strategy=Strategy.END_EXPERIMENT, policy=_AT_ONCE)


def _takes_back_too(course: Course) -> str:
    return course.fleet.roll_back("launches/before", "m")


_THREE: Mapping[str, Sequence[int]] = {OLD: (12,), NEW: (10,), OTHER: (12,)}
_BESIDE = {
    (False, False): {OLD: 8_000, OTHER: 2_000},
    (True, False): {NEW: 8_000, OTHER: 2_000},
    (False, True): {OLD: 10_000},
    (True, True): {NEW: 10_000},
}

INCIDENTS: Mapping[str, Incident] = {
    "an experiment ends while the baseline is replaced": Incident(
        Case(creates(Strategy.REPLACE_BASELINE, policy=_BRIEF), {}, {}, _THREE, _experiment(2_000, OTHER)),
        _ends_other,
        _BESIDE,
    ),
    "an experiment ends while the baseline is replaced region by region": Incident(
        Case(
            creates(Strategy.REPLACE_BASELINE, policy=replace(_BRIEF, region_order=RegionOrder.ONE_BY_ONE)),
            {},
            {},
            {**_REGIONS, OTHER: (8, 5)},
            _experiment(2_000, OTHER),
            regions=(A, B),
            least=3,
        ),
        _ends_other,
        _BESIDE,
    ),
    "the last launch is taken back while the next one is on its way": Incident(
        Case(
            creates(Strategy.REPLACE_BASELINE, OTHER, _BRIEF),
            {},
            {},
            _THREE,
            _after(NEW, Strategy.REPLACE_BASELINE, _KEPT),
            least=8,
        ),
        _takes_back_too,
        # Where the next one could not be held up any more, what people wanted back serves after it.
        {
            (False, False): {NEW: 10_000},
            (True, False): {OTHER: 10_000},
            (False, True): {OLD: 10_000},
            (True, True): {OLD: 10_000},
        },
    ),
    "the last launch is taken back while an experiment starts": Incident(
        Case(
            creates(Strategy.START_EXPERIMENT, OTHER, _BRIEF, target_share=2_000),
            {},
            {},
            _THREE,
            _after(NEW, Strategy.REPLACE_BASELINE, _KEPT),
        ),
        _takes_back_too,
        {
            (False, False): {NEW: 10_000},
            (True, False): {OTHER: 2_000, NEW: 8_000},
            (False, True): {OLD: 10_000},
            (True, True): {OTHER: 2_000, OLD: 8_000},
        },
    ),
}
