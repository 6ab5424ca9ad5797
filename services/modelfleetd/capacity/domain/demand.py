"""How much traffic a route must carry: where the peak of each region comes from, and what comes over when one fails."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction

from modelfleetd.capacity.domain.exact import BASIS_POINTS, exact

# Rates are those of a minute, asked for minute by minute.
STEP = timedelta(minutes=1)
# Points that are asked for at a time: Prometheus refuses more than 11,000 of a series.
MAX_POINTS = 10_000
# What makes a peak doubtful.
_LEAST_COVERAGE = 0.9
_OLDEST_POINT = timedelta(hours=1)
_OLDEST_STATED = timedelta(days=90)


class Source(enum.Enum):
    """Where a peak comes from."""

    STATED = "STATED"
    PROMETHEUS = "PROMETHEUS"


@dataclass(frozen=True, slots=True)
class Stated:
    """A peak that somebody stated, in requests a second; where from and when, as far as they said."""

    region: str
    peak_qps: float
    source: str = ""
    measure_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """How Prometheus is asked for the 1-minute rates of a region.

    Attributes:
        template: PromQL with `{model_type}` and `{region}` where their ids go.
        window: how far back.
        quantile: of the rates, which is the peak.
    """

    template: str
    window: timedelta
    quantile: float

    def text(self, model_type: str, region: str) -> str:
        """Returns the query for a region. Ids hold letters, digits, - and _ only: they cannot end a string in it."""
        ids = {"{model_type}": model_type.rpartition("/")[2], "{region}": region.rpartition("/")[2]}
        made = self.template
        for placeholder, id_ in ids.items():
            made = made.replace(placeholder, id_)
        return made

    def points(self) -> int:
        """Returns how many minutes the window has."""
        return self.window // STEP


@dataclass(frozen=True, slots=True)
class Rates:
    """What Prometheus knows of a region.

    Attributes:
        values: 1-minute rates in requests a second.
        newest: the time of the last one; None where there is none.
        dropped: samples that were no rates: NaN, infinite or below 0.
    """

    values: Sequence[float]
    newest: datetime | None
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class MeasuredDemand:
    """The peak of one region, and why it may be believed.

    Attributes:
        detail: the query as it was sent, or who stated it from what.
        time: when it was measured or stated; None where nobody said.
        warning: what is odd about it; empty where nothing is.
    """

    region: str
    peak_qps: float
    source: Source = Source.STATED
    detail: str = ""
    time: datetime | None = None
    window_start_time: datetime | None = None
    quantile: float = 0.0
    points: int = 0
    coverage: float = 0.0
    warning: str = ""


def minutes(query: Query, now: datetime) -> tuple[datetime, datetime]:
    """Returns the first and the last full minute of the window that ends now."""
    end = now.replace(second=0, microsecond=0)
    return end - STEP * (query.points() - 1), end


def pieces(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Gives the spans, first and last minute included, that are asked for one after the other."""
    while start <= end:
        last = min(end, start + STEP * (MAX_POINTS - 1))
        yield start, last
        start = last + STEP


def quantile_of(values: Sequence[float], quantile: float) -> float:
    """Returns a quantile as one of the values: the ceil(q × n)-th smallest. Nothing is interpolated."""
    rank = max(1, math.ceil(exact(quantile) * len(values)))
    return sorted(values)[rank - 1]


def measured(region: str, query: Query, text: str, rates: Rates, start: datetime, end: datetime) -> MeasuredDemand:
    """Returns the peak from at least one rate of Prometheus, between the first and the last minute of the window."""
    points = len(rates.values)
    coverage = points / query.points()
    return MeasuredDemand(
        region=region,
        peak_qps=quantile_of(rates.values, query.quantile),
        source=Source.PROMETHEUS,
        detail=text,
        time=end,
        window_start_time=start,
        quantile=query.quantile,
        points=points,
        coverage=coverage,
        warning="; ".join(_doubts(query, rates, coverage, end)),
    )


def _doubts(query: Query, rates: Rates, coverage: float, end: datetime) -> Iterator[str]:
    points = len(rates.values)
    if coverage < _LEAST_COVERAGE:
        yield f"only {points:,} of {query.points():,} minutes are known ({coverage:.0%})"
    if query.quantile < 1 and points * (1 - query.quantile) < 1:
        yield f"the {query.quantile:g} quantile of {points:,} points is their maximum"
    if rates.dropped:
        yield f"{rates.dropped:,} samples were no rates (NaN, infinite or negative) and do not count"
    if rates.newest is not None and end - rates.newest > _OLDEST_POINT:
        yield f"the newest point is of {rates.newest:%Y-%m-%d %H:%M} UTC"


def stated(peak: Stated, now: datetime) -> MeasuredDemand:
    """Returns the peak that somebody stated."""
    warning = ""
    if peak.measure_time is not None and now - peak.measure_time > _OLDEST_STATED:
        warning = f"stated {(now - peak.measure_time).days} days ago"
    return MeasuredDemand(peak.region, peak.peak_qps, detail=peak.source, time=peak.measure_time, warning=warning)


@dataclass(frozen=True, slots=True)
class Demand:
    """How much traffic a route must carry.

    Attributes:
        model_type: the route.
        measured: region by region, in the order of the route.
        growth_basis_points: expected growth of the peaks.
        fanout_basis_points: requests to the model for each request of the peak; 10,000 is one.
        failover: basis points of a region's demand that go to another when it fails, by (failed, taking) region.
    """

    model_type: str
    measured: tuple[MeasuredDemand, ...]
    growth_basis_points: int = 0
    fanout_basis_points: int = BASIS_POINTS
    failover: Mapping[tuple[str, str], int] = field(default_factory=dict)
    peaks: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "peaks", {each.region: each.peak_qps for each in self.measured})

    @property
    def regions(self) -> tuple[str, ...]:
        return tuple(self.peaks)

    def in_region(self, region: str) -> Fraction:
        """Returns D = peak × (1 + growth) × fanout, in requests a second."""
        growth = Fraction(BASIS_POINTS + self.growth_basis_points, BASIS_POINTS)
        return exact(self.peaks[region]) * growth * Fraction(self.fanout_basis_points, BASIS_POINTS)

    def on_failover(self, region: str) -> Fraction:
        """Returns F = D + the most that comes over from any one failed region, in requests a second."""
        worst = self.worst_failed(region)
        return self.in_region(region) + (self.coming_from(worst, region) if worst else 0)

    def coming_from(self, failed: str, region: str) -> Fraction:
        """Returns what a region takes over, in requests a second, when another one fails."""
        if failed == region or failed not in self.peaks:
            return Fraction(0)
        return self.in_region(failed) * Fraction(self.failover.get((failed, region), 0), BASIS_POINTS)

    def worst_failed(self, region: str) -> str:
        """Returns the region whose failure sends the most to this one; empty where none sends anything."""
        most, worst = Fraction(0), ""
        for other in self.peaks:
            coming = self.coming_from(other, region)
            if coming > most:
                most, worst = coming, other
        return worst

    def warnings(self) -> Iterator[str]:
        """Gives what is odd about it, in sentences."""
        for each in self.measured:
            if each.warning:
                yield f"Demand of {each.region}: {each.warning}."
        for (failed, taking), share in sorted(self.failover.items()):
            if failed in self.peaks and taking not in self.peaks:
                yield (
                    f"When {failed} fails, {share / 100:g} % of its demand goes to {taking}, where the model type is"
                    " not served."
                )
