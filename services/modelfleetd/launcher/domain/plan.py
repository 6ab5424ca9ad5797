"""The plan of a launch: the steps of each region, what they hold, take and cost, and the regions wave by wave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby

from modelfleetd.launcher.domain.criteria import Declared
from modelfleetd.launcher.domain.sides import Side, both_of, cost_of, units_of


@dataclass(frozen=True, slots=True)
class Step:
    """One step. Times count from the beginning of the region's first step."""

    number: int
    share: int
    old_share: int
    new_replicas: int
    old_before: int
    old_after: int
    peak_units: int
    taken_units: int
    freed_units: int
    expected_end: timedelta
    worst_undo: timedelta


@dataclass(frozen=True, slots=True)
class FlavorHold:
    """Units of one flavor: free when the plan was made; held; of these moved from bookings, and extra."""

    flavor: str
    free_units: int
    hold_units: int
    moved_units: int

    @property
    def extra_units(self) -> int:
        return self.hold_units - self.moved_units


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """The plan of one region."""

    region: str
    candidate: Side
    baseline: Side | None
    holds: tuple[FlavorHold, ...]
    steps: tuple[Step, ...]
    # Regions of one wave are launched together, the waves one after another, from 1; 0 in plans of old: by itself.
    wave: int = 0
    # Peak requests a second that its replicas are planned for; 0: not known.
    demand: float = 0.0

    @property
    def both(self) -> int:
        return both_of(self.candidate, self.baseline)

    @property
    def goal(self) -> int:
        return self.steps[-1].share

    def share_at_end(self, model: str) -> int:
        """The share of one of the two models once every step is done."""
        return self.goal if model == self.candidate.model else self.both - self.goal

    def held(self, flavor: str) -> int:
        """Units of a flavor in the hold."""
        return next((hold.hold_units for hold in self.holds if hold.flavor == flavor), 0)

    @property
    def at_end(self) -> Mapping[str, int]:
        """Units by flavor that both sides use once every step is done."""
        last = self.steps[-1]
        return units_of(self.candidate, last.new_replicas, self.baseline, last.old_after)

    def own(self, hold: FlavorHold) -> tuple[int, int]:
        """Units of a flavor that it has to reserve, and how many of them it uses in the end."""
        new, end = self.candidate, self.at_end.get(hold.flavor, 0)
        if new.lent is None or new.flavor != hold.flavor:
            return hold.hold_units, end
        last = self.steps[-1]
        end += new.grows(last.new_replicas, last.share) - new.units * last.new_replicas
        return max(hold.hold_units - new.lent.units, end), end

    @property
    def for_rollback(self) -> Mapping[str, int]:
        """Units by flavor that the way back takes beyond what is used at the end.

        It is the same steps in reverse: before the new side loses the share that step i gave it, it has R_new(x_i), and
        the old side R_old(its share before step i). The most of these over all steps, less what is used at the end.
        """
        if self.baseline is None or self.candidate.lent is not None:
            # Where a launch goes on that lent its room, what is left is that launch's.
            return {}
        most: dict[str, int] = {}
        before = self.candidate.share
        for step in self.steps:
            new, old = self.candidate.needs(step.share), self.baseline.needs(self.both - before)
            for flavor, units in units_of(self.candidate, new, self.baseline, old).items():
                most[flavor] = max(most.get(flavor, 0), units)
            before = step.share
        end = self.at_end
        # Planned anew after a mitigation, its first step may be larger than any that it took.
        needed = {flavor: min(units, self.held(flavor)) - end.get(flavor, 0) for flavor, units in most.items()}
        return {flavor: units for flavor, units in needed.items() if units > 0}

    @property
    def old_at_start(self) -> int:
        """Replicas that the baseline has when everything is undone."""
        return max(self.steps[0].old_before, self.baseline.running if self.baseline else 0)

    @property
    def cost_before(self) -> float:
        return cost_of(self.candidate, self.candidate.running) + cost_of(self.baseline, self.old_at_start)

    @property
    def cost_after(self) -> float:
        last = self.steps[-1]
        return cost_of(self.candidate, last.new_replicas) + cost_of(self.baseline, last.old_after)

    @property
    def cost_peak(self) -> float:
        return max(self.cost_at(number) for number in range(1, len(self.steps) + 1))

    def cost_at(self, number: int) -> float:
        """The most of a step; after the last one what stays."""
        if number > len(self.steps):
            return self.cost_after
        step = self.steps[number - 1]
        new = max(self.candidate.running, step.new_replicas)
        return cost_of(self.candidate, new) + cost_of(self.baseline, step.old_before)

    def takes(self, number: int) -> timedelta:
        """How long a step is expected to take; nothing after the last one."""
        if number > len(self.steps):
            return timedelta(0)
        before = self.steps[number - 2].expected_end if number > 1 else timedelta(0)
        return self.steps[number - 1].expected_end - before

    @property
    def expected_duration(self) -> timedelta:
        return self.steps[-1].expected_end


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole plan, region by region in the order in which they are launched."""

    regions: tuple[RegionPlan, ...]
    candidate_estimate: str = ""
    baseline_estimate: str = ""
    # On what it waits before it can begin, as it looked when the plan was made; empty where it fits what is free.
    wait: str = ""
    # What the models of the type predict, as the registry declared it.
    predictions: tuple[Declared, ...] = ()

    @property
    def cost_before(self) -> float:
        return sum(region.cost_before for region in self.regions)

    @property
    def cost_after(self) -> float:
        return sum(region.cost_after for region in self.regions)

    @property
    def cost_peak(self) -> float:
        """The most at any moment: the regions of a wave are at the same step, those of the waves before are done, and
        those of the waves after have not begun.
        """
        most, done, others = 0.0, 0.0, self.cost_before
        for wave in self.waves:
            others -= sum(region.cost_before for region in wave)
            steps = range(1, max(len(region.steps) for region in wave) + 1)
            most = max(most, done + others + max(sum(region.cost_at(step) for region in wave) for step in steps))
            done += sum(region.cost_after for region in wave)
        return most

    @property
    def waves(self) -> tuple[tuple[RegionPlan, ...], ...]:
        """The regions, wave by wave."""
        waves = groupby(enumerate(self.regions), key=lambda found: (found[1].wave, found[1].wave or found[0]))
        return tuple(tuple(region for _, region in wave) for _, wave in waves)

    def ends(self, wave: int, number: int) -> timedelta:
        """When a step of a wave, by its position, is expected to end, after the beginning of the launch."""
        return self.expected_duration - self.left_after(wave, number)

    def left_after(self, wave: int, number: int) -> timedelta:
        """How long everything after a step of a wave, by its position, is expected to take."""
        rest = _wave_takes(self.waves[wave], number + 1)
        return rest + sum((_wave_takes(regions) for regions in self.waves[wave + 1 :]), timedelta(0))

    @property
    def expected_duration(self) -> timedelta:
        return sum((_wave_takes(regions) for regions in self.waves), timedelta(0))


def _wave_takes(regions: tuple[RegionPlan, ...], begin: int = 1) -> timedelta:
    """How long the rest of a wave is expected to take: each step as long as in the slowest of its regions."""
    steps = range(begin, max(len(region.steps) for region in regions) + 1)
    return sum((max(region.takes(step) for region in regions) for step in steps), timedelta(0))
