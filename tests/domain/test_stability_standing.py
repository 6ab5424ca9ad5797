"""What a model's standing is: its verdict and culprit, its availability from counters, and the fleet counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.stability.domain.availability import (
    FRESH,
    Availability,
    AvailabilityState,
    Interval,
    Report,
    judged,
    since,
)
from modelfleetd.stability.domain.criteria import DeclaredPrediction, Limits
from modelfleetd.stability.domain.estimates import Estimate, State
from modelfleetd.stability.domain.fleet import FunnelStage, Metric, Role, ServiceLevel, Tier, WatchedModel
from modelfleetd.stability.domain.judging import WindowVerdict
from modelfleetd.stability.domain.rollup import Grouping, Row, roll_up
from modelfleetd.stability.domain.slices import Objective, Slice
from modelfleetd.stability.domain.standing import ModelState, Standing, stand
from modelfleetd.stability.domain.window_verdict import Demand, Reason, Stability
from tests.support.stability import NOW

MINUTE = timedelta(minutes=1)
LEVEL = ServiceLevel(0.99, 0.9, 0.99, min_success_share=0.99, max_latency_p99_ms=100.0)
CLICK = DeclaredPrediction("click", timedelta(minutes=10), False, Limits(0.5, 2.0), None, 10)
MODEL = WatchedModel(
    name="modelTypes/ctr/models/a",
    model_type="modelTypes/ctr",
    role=Role.BASELINE,
    tier=Tier.TIER2,
    team="teams/feed",
    on_call="",
    surface="home",
    product="app",
    funnel_stage=FunnelStage.LATE_STAGE_RANKING,
    share_basis_points=10_000,
    predictions={"click": CLICK},
    ranges={},
    service_level=LEVEL,
)
_AVAILABLE, _UNAVAILABLE = Availability(AvailabilityState.AVAILABLE), Availability(AvailabilityState.UNAVAILABLE)


def verdict(prediction: str, metric: Metric, state: Stability, value: float = 1.0) -> WindowVerdict:
    return WindowVerdict(
        prediction, metric, state, Reason.VALUE, Estimate(State.VALUE, value, value, value), Limits(0.5, 2.0),
        NOW - MINUTE, NOW, False, 1.0, 20, 100, Demand(10, 0.5),
    )  # fmt: skip


def stood(
    *metrics: WindowVerdict, before: Standing | None = None, now: datetime = NOW, model: WatchedModel = MODEL
) -> Standing:
    return stand(model, metrics, _AVAILABLE, {}, before, now)


@given(st.lists(st.sampled_from(Stability), max_size=6))
def test_a_model_is_unstable_by_any_metric_else_unknown_by_any_else_stable(states: list[Stability]) -> None:
    found = stood(*(verdict(f"p{index}", Metric.NE, state) for index, state in enumerate(states)))
    if Stability.UNSTABLE in states:
        assert found.state is ModelState.UNSTABLE
    elif Stability.UNKNOWN in states or not states:
        assert found.state is ModelState.UNKNOWN
    else:
        assert found.state is ModelState.STABLE
    decisive = found.decisive
    assert (decisive is None) == (found.state is ModelState.STABLE or not states)
    assert decisive is None or decisive.state.name == found.state.name


def test_the_culprit_is_what_lies_furthest_outside_and_stays_while_it_is_outside() -> None:
    near = verdict("like", Metric.CALIBRATION, Stability.UNSTABLE, 2.2)
    far = verdict("click", Metric.CALIBRATION, Stability.UNSTABLE, 5.0)
    first = stood(near, far)
    assert first.culprit == ("click", Metric.CALIBRATION)
    swapped = (replace(near, estimate=far.estimate), replace(far, estimate=near.estimate))
    later = stood(*swapped, before=first, now=NOW + MINUTE)
    assert later.culprit == first.culprit  # two of a kind do not take turns
    assert later.since == first.since
    gone = stood(near, replace(far, state=Stability.STABLE), before=later, now=NOW + 2 * MINUTE)
    assert gone.culprit == ("like", Metric.CALIBRATION)
    assert gone.since == first.since  # the model has been unstable all along
    well = stood(verdict("click", Metric.CALIBRATION, Stability.STABLE), before=gone, now=NOW + 3 * MINUTE)
    assert (well.since, well.culprit) == (NOW + 3 * MINUTE, None)


def test_a_minute_counts_by_what_the_model_is_and_not_at_all_where_stability_does_not_apply() -> None:
    bad = stood(verdict("click", Metric.NE, Stability.UNSTABLE))
    assert bad.slices("slos/ctr") == {
        ("slos/ctr", Objective.STABILITY): Slice.BAD,
        ("slos/ctr", Objective.AVAILABILITY): Slice.GOOD,
    }
    retrieval = stood(model=replace(MODEL, predictions={}))
    assert retrieval.state is ModelState.NOT_APPLICABLE
    assert retrieval.slices("slos/ctr") == {("slos/ctr", Objective.AVAILABILITY): Slice.GOOD}


# Availability.


def report(minutes: float, requests: int, errors: int = 0, latency: float | None = None) -> Report:
    return Report(requests, errors, latency, NOW + minutes * MINUTE)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.booleans()), min_size=1, max_size=20))
def test_differences_of_counters_add_up_to_what_was_served_also_when_they_begin_anew(
    steps: list[tuple[int, int, bool]],
) -> None:
    interval = since(None, report(0, 0))
    requests = errors = served = failed = 0
    for minute, (more, wrong, begins_anew) in enumerate(steps, start=1):
        wrong = min(wrong, more)
        # A restart is seen only where counters go back.
        if begins_anew and more < requests:
            requests = errors = 0
        requests, errors = requests + more, errors + wrong
        interval = since(interval, report(minute, requests, errors))
        served, failed = served + interval.requests, failed + interval.errors
        assert (interval.requests, interval.errors) == (more, wrong)
    assert served == sum(more for more, _, _ in steps)
    assert failed <= served


def test_the_same_report_again_changes_nothing_and_one_after_a_long_silence_begins_anew() -> None:
    first = since(None, report(0, 100))
    assert (first.requests, first.seconds) == (0, 0)
    second = since(first, report(1, 160, 3))
    assert (second.requests, second.errors, second.seconds) == (60, 3, 60)
    assert since(second, report(1, 160, 3)) is second
    assert since(second, report(0.5, 120)) is second  # late on its way
    assert since(second, report(10, 1000)).requests == 0


def test_a_model_is_available_by_success_and_latency_over_its_regions() -> None:
    def state(*intervals: Interval, now: datetime = NOW) -> AvailabilityState:
        return judged(intervals, LEVEL, now).state

    well = Interval(report(0, 0, latency=50.0), 1000, 5, 60.0)
    failing = Interval(report(0, 0, latency=50.0), 1000, 30, 60.0)
    slow = Interval(report(0, 0, latency=101.0), 1000, 0, 60.0)
    idle = Interval(report(0, 0, latency=500.0))
    assert state(well) is AvailabilityState.AVAILABLE
    assert state(well, failing) is AvailabilityState.UNAVAILABLE  # 35 of 2,000
    assert state(well, slow) is AvailabilityState.UNAVAILABLE  # one region suffices
    assert state(well, idle) is AvailabilityState.AVAILABLE  # no request of it was slow
    assert state(idle) is AvailabilityState.UNKNOWN
    assert state(failing, now=NOW + FRESH + MINUTE) is AvailabilityState.UNKNOWN
    assert judged([well, failing], LEVEL, NOW).request_rate == 2000 / 60


# Roll-ups.

_rows = st.builds(
    lambda name, state, available, rate, surface, tier: Row(
        replace(MODEL, name=f"modelTypes/ctr/models/m{name}", surface=surface, tier=tier),
        Standing(
            "m", state, NOW, availability=Availability(available, request_rate=rate, requests=round(rate * 60))
        ),
    ),
    st.integers(0, 10**6), st.sampled_from(ModelState), st.sampled_from(AvailabilityState),
    st.floats(0, 1e5), st.sampled_from(["home", "reels", ""]), st.sampled_from(Tier),
)  # fmt: skip


@given(st.lists(_rows, max_size=30), st.sampled_from(Grouping))
def test_groups_add_up_to_the_whole_fleet(rows: list[Row], by: Grouping) -> None:
    total, groups = roll_up(rows, by)
    assert total.models == len(rows) == sum(group.models for group in groups)
    for state in ModelState:
        assert total.states[state] == sum(group.states[state] for group in groups)
    for both in ((a, s) for a in AvailabilityState for s in ModelState):
        assert total.both[both] == sum(group.both[both] for group in groups)
    shares = [2.0 if group.stable_share is None else group.stable_share for group in groups]
    assert shares == sorted(shares)
    for group in (total, *groups):
        decided = group.states[ModelState.STABLE] + group.states[ModelState.UNSTABLE]
        assert (group.stable_share is None) == (decided == 0)
        assert group.stable_traffic_share is None or 0 <= group.stable_traffic_share <= 1
        assert len(group.worst) <= 5


def test_the_worst_come_first_by_what_is_wrong_then_tier_then_traffic() -> None:
    def row(name: str, state: ModelState, availability: Availability, tier: Tier, rate: float = 0.0) -> Row:
        made = replace(availability, request_rate=rate)
        return Row(replace(MODEL, name=name, tier=tier), Standing(name, state, NOW, availability=made))

    ordered = [
        row("both", ModelState.UNSTABLE, _UNAVAILABLE, Tier.TIER4),
        row("tier 1", ModelState.UNSTABLE, _AVAILABLE, Tier.TIER1),
        row("busy", ModelState.UNSTABLE, _AVAILABLE, Tier.TIER2, 500),
        row("calm", ModelState.UNSTABLE, _AVAILABLE, Tier.TIER2, 5),
        row("no tier", ModelState.UNSTABLE, _AVAILABLE, Tier.UNSTATED, 5000),
        row("down", ModelState.STABLE, _UNAVAILABLE, Tier.TIER0),
        row("unknown", ModelState.UNKNOWN, _AVAILABLE, Tier.TIER0),
        row("well", ModelState.STABLE, _AVAILABLE, Tier.TIER0),
        row("retrieval", ModelState.NOT_APPLICABLE, _AVAILABLE, Tier.TIER0),
    ]
    total, _ = roll_up(reversed(ordered), Grouping.TEAM)
    assert sorted(ordered, key=lambda row: row.rank) == ordered
    assert total.worst == ("both", "tier 1", "busy", "calm", "no tier")
