"""Roll-ups: the fleet counted by team, surface, funnel stage, product or tier; available beside relevant."""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleetd.stability.domain.availability import AvailabilityState
from modelfleetd.stability.domain.fleet import FunnelStage, Tier, WatchedModel
from modelfleetd.stability.domain.standing import ModelState, Standing

MOST_WORST: Final = 5
MOST_GROUPS: Final = 1000


class Grouping(enum.Enum):
    """By what models are put together. The numbers are those of the protos."""

    TEAM = 1
    SURFACE = 2
    FUNNEL_STAGE = 3
    PRODUCT = 4
    TIER = 5


@dataclass(frozen=True, slots=True)
class Row:
    """A model that serves with its standing; None: it has not been evaluated yet."""

    model: WatchedModel
    standing: Standing | None

    @property
    def state(self) -> ModelState:
        if self.standing is not None:
            return self.standing.state
        return ModelState.UNKNOWN if self.model.predictions else ModelState.NOT_APPLICABLE

    @property
    def availability(self) -> AvailabilityState:
        return AvailabilityState.UNKNOWN if self.standing is None else self.standing.availability.state

    @property
    def request_rate(self) -> float:
        return 0.0 if self.standing is None else self.standing.availability.request_rate

    @property
    def is_bad(self) -> bool:
        """Whether it is unstable or unavailable."""
        return self.state is ModelState.UNSTABLE or self.availability is AvailabilityState.UNAVAILABLE

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """Orders models, the worst first: by what is wrong, then by tier, then by traffic."""
        tier = self.model.tier.value if self.model.tier is not Tier.UNSTATED else len(Tier)
        return self._badness, tier, -round(self.request_rate * 1000), self.model.name

    @property
    def _badness(self) -> int:
        if self.is_bad:
            both = self.state is ModelState.UNSTABLE and self.availability is AvailabilityState.UNAVAILABLE
            return 0 if both else 1 if self.state is ModelState.UNSTABLE else 2
        return _BADNESS[self.state]


_BADNESS: Final = {ModelState.UNKNOWN: 3, ModelState.STABLE: 4, ModelState.NOT_APPLICABLE: 5}


@dataclass(frozen=True, slots=True)
class Group:
    """Figures of a part of the fleet."""

    name: str
    models: int
    states: Mapping[ModelState, int]
    both: Mapping[tuple[AvailabilityState, ModelState], int]
    # Of the models that are stable or unstable; None where there is none, or no request to any.
    stable_share: float | None
    stable_traffic_share: float | None
    worst: tuple[str, ...]


def group(name: str, rows: Sequence[Row]) -> Group:
    """Returns the figures of some models, which stand worst first."""
    states = Counter(row.state for row in rows)
    stable, unstable = states[ModelState.STABLE], states[ModelState.UNSTABLE]
    on_stable = sum(row.request_rate for row in rows if row.state is ModelState.STABLE)
    on_unstable = sum(row.request_rate for row in rows if row.state is ModelState.UNSTABLE)
    decided, traffic = stable + unstable, on_stable + on_unstable
    return Group(
        name=name,
        models=len(rows),
        states=states,
        both=Counter((row.availability, row.state) for row in rows),
        stable_share=stable / decided if decided else None,
        stable_traffic_share=on_stable / traffic if traffic else None,
        worst=tuple(row.model.name for row in rows if row.is_bad)[:MOST_WORST],
    )


def roll_up(rows: Iterable[Row], by: Grouping) -> tuple[Group, tuple[Group, ...]]:
    """Returns the figures of all models and of each group, the smallest share of stable models first.

    Groups in which nothing is decided come last; at most 1000.
    """
    ordered = sorted(rows, key=lambda row: row.rank)
    parts: defaultdict[str, list[Row]] = defaultdict(list)
    for row in ordered:
        parts[_GROUP_OF[by](row.model)].append(row)
    groups = sorted((group(name, part) for name, part in parts.items()), key=_order)
    return group("", ordered), tuple(groups[:MOST_GROUPS])


def _order(one: Group) -> tuple[float, int, str]:
    # Of equal shares the larger group first; 2 is more than any share.
    return 2.0 if one.stable_share is None else one.stable_share, -one.models, one.name


def _stage(model: WatchedModel) -> str:
    return "" if model.funnel_stage is FunnelStage.UNSTATED else model.funnel_stage.name


def _tier(model: WatchedModel) -> str:
    return "" if model.tier is Tier.UNSTATED else model.tier.name


_GROUP_OF: Final[Mapping[Grouping, Callable[[WatchedModel], str]]] = {
    Grouping.TEAM: lambda model: model.team,
    Grouping.SURFACE: lambda model: model.surface,
    Grouping.FUNNEL_STAGE: _stage,
    Grouping.PRODUCT: lambda model: model.product,
    Grouping.TIER: _tier,
}
