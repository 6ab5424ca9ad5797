"""What is told of one launch that was rehearsed: what happened when, what served, and whether a promise was broken."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.platform.model import Effect, EffectKind
from modelfleetd.rehearsal.scenario import Replicas


@dataclass(frozen=True, slots=True)
class Point:
    """What serves from a moment on: shares in basis points as the proxy has them, and replicas that exist."""

    seconds: float
    new_share: int
    old_share: int
    new_replicas: int
    old_replicas: int


@dataclass(frozen=True, slots=True)
class Units:
    """Units of a flavor: the most that both models took at once, and what the launch held."""

    flavor: str
    peak: int
    hold: int


@dataclass(frozen=True, slots=True)
class There:
    """What a region was given."""

    region: str
    wave: int
    points: Sequence[Point]
    units: Sequence[Units]


@dataclass(frozen=True, slots=True)
class Line:
    """Something that happened: an event of the launch, an accident, what somebody did, or what people were told."""

    seconds: float
    kind: str
    step: int
    text: str
    region: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What has become of a launch."""

    seed: int
    state: str
    ended: bool
    sentence: str
    # Why it was not followed to its end.
    left: str
    # Where a launch in flight was taken over; empty where it begins.
    begun: str
    seconds: float
    phases: Sequence[tuple[str, float]]
    lines: Sequence[Line]
    regions: Sequence[There]
    events: int
    broken: Sequence[str]
    trace: str

    @property
    def peak(self) -> int:
        """Units over all regions and flavors."""
        return sum(units.peak for region in self.regions for units in region.units)

    @property
    def hold(self) -> int:
        """Units over all regions and flavors."""
        return sum(units.hold for region in self.regions for units in region.units)


def there_of(
    region: str, launch: Launch, models: Mapping[str, Replicas], ledger: Iterable[Effect], began: datetime
) -> There:
    """What a region was given from a moment on.

    Args:
        region: its name.
        launch: as it is in the end.
        models: the candidate, and what it takes over from, by their names.
        ledger: effects of the region's agent on the route, from the first.
        began: the moment.
    """
    planned = next((one for one in launch.plan.regions if one.region == region), None) if launch.plan else None
    points: dict[float, Point] = {}
    shares, replicas = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
    peaks: dict[str, int] = {model.flavor: 0 for model in models.values()}
    new, old = models
    for effect in ledger:
        if not _count(effect, shares, replicas):
            continue
        seconds = max(0.0, (effect.time - began).total_seconds())
        for flavor, peak in peaks.items():
            used = sum(models[model].units * n for model, n in replicas.items() if models[model].flavor == flavor)
            # What it took before it began here is not told.
            peaks[flavor] = max(peak, used) if seconds else used
        points[seconds] = Point(seconds, shares[new], shares[old], replicas[new], replicas[old])
    units = [Units(flavor, peak, planned.held(flavor) if planned else 0) for flavor, peak in sorted(peaks.items())]
    used_at_all = [one for one in units if one.peak or one.hold]
    return There(region, planned.wave if planned else 0, list(points.values()), used_at_all)


def _count(effect: Effect, shares: dict[str, int], replicas: dict[str, int]) -> bool:
    """Notes what an effect changed of both models; whether it did."""
    match effect.kind:
        case EffectKind.REPLICA_STARTED | EffectKind.REPLICA_TERMINATED if effect.model in replicas:
            replicas[effect.model] += 1 if effect.kind is EffectKind.REPLICA_STARTED else -1
        case EffectKind.SHARES_ACKNOWLEDGED:
            taken = {share.model: share.share_basis_points for share in effect.shares}
            for model in shares:
                shares[model] = taken.get(model, 0)
        case _:
            return False
    return True


def phases_of(launch: Launch, begin: datetime, end: datetime) -> list[tuple[str, float]]:
    """How long the launch was in each state since then, in the order in which it came to them."""
    times = [*((phase.state.name, max(phase.start_time, begin)) for phase in launch.phase_times), ("", end)]
    return [
        (state, (until - since).total_seconds())
        for (state, since), (_, until) in itertools.pairwise(times)
        if until > since
    ]


def as_data(report: Report) -> dict[str, Any]:
    """A report as plain data."""
    return {
        "seed": report.seed,
        "state": report.state,
        "ended": report.ended,
        "outcome": report.sentence,
        "left": report.left,
        "begun": report.begun,
        "seconds": round(report.seconds, 3),
        "phases": [{"state": state, "seconds": round(seconds, 3)} for state, seconds in report.phases],
        "timeline": [
            {
                "seconds": round(line.seconds, 3),
                "kind": line.kind,
                "region": line.region,
                "step": line.step,
                "text": line.text,
            }
            for line in report.lines
        ],
        "regions": [
            {
                "region": there.region,
                "wave": there.wave,
                "units": [
                    {"flavor": units.flavor, "peak_units": units.peak, "hold_units": units.hold}
                    for units in there.units
                ],
                "served": [
                    {
                        "seconds": round(point.seconds, 3),
                        "new_share_basis_points": point.new_share,
                        "old_share_basis_points": point.old_share,
                        "new_replicas": point.new_replicas,
                        "old_replicas": point.old_replicas,
                    }
                    for point in there.points
                ],
            }
            for there in report.regions
        ],
        "peak_units": report.peak,
        "hold_units": report.hold,
        "effects": report.events,
        "broken_promises": list(report.broken),
        "trace": report.trace,
    }
