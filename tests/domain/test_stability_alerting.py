"""Which alerts there are: severities, when they begin, rise, fall and end, and what a change of roles does to them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from modelfleetd.stability.domain.alert import Alert, Kind, Resolution, Severity, State
from modelfleetd.stability.domain.alerting import HOLD, Culprit, Known, Observed, derive, pages
from modelfleetd.stability.domain.announcement import Announcement, labels_of, notes, settle
from modelfleetd.stability.domain.fleet import FunnelStage, Metric, Role, ServiceLevel, Tier, WatchedModel
from modelfleetd.stability.domain.slices import Slice, Slices
from modelfleetd.stability.domain.slo import LONGEST_WINDOW, BurnRate, Response, burn_rates, burning, firing
from modelfleetd.stability.domain.tenure import Evaluated, Tenure, own_minutes, pass_on

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TARGET = 0.99
CLICK = Culprit("click", Metric.CALIBRATION, "calibration of click is 1.31, above its range of 0.9 to 1.1")
BUY = Culprit("buy", Metric.NE, "NE of buy is 1.02, above its range of 0.7 to 0.9")


def model(name: str = "old", role: Role = Role.BASELINE, tier: Tier = Tier.TIER1) -> WatchedModel:
    """A model of modelTypes/ctr."""
    return WatchedModel(
        name=f"modelTypes/ctr/models/{name}",
        model_type="modelTypes/ctr",
        role=role,
        tier=tier,
        team="teams/feed",
        on_call="ada",
        surface="feed",
        product="app",
        funnel_stage=FunnelStage.LATE_STAGE_RANKING,
        share_basis_points=10_000,
        predictions={},
        ranges={},
        service_level=ServiceLevel(TARGET, 0.9, TARGET, 0.99, 0.0),
    )


def minutes(*runs: tuple[int, Slice]) -> Slices:
    """Slices, run by run."""
    return np.concatenate([np.full(length, value, dtype=np.uint8) for length, value in runs])


def rates(*runs: tuple[int, Slice]) -> tuple[BurnRate, ...]:
    """Burn rates at the end of slices that were good before."""
    return burn_rates(minutes((LONGEST_WINDOW, Slice.GOOD), *runs), TARGET)


HEALTHY = rates((60, Slice.GOOD))
OUTAGE = rates((60, Slice.BAD))
SLOW = rates((100, Slice.BAD), (7 * 60, Slice.GOOD), (20, Slice.BAD), (40, Slice.GOOD))


@dataclass
class Course:
    """Alerts as time goes on."""

    firing: dict[str, Alert] = field(default_factory=dict)
    ended: list[Alert] = field(default_factory=list)
    now: datetime = NOW
    revision: int = 1
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def minute(self, *fleet: Observed) -> list[Alert]:
        """Derives once and lets a minute pass; returns what was written."""
        observed = {one.model.name: one for one in fleet}
        written = derive(
            self.firing.values(), observed, self.now, self.revision, lambda: f"alerts/a{next(self._numbers)}"
        )
        for alert in written:
            if alert.state is State.FIRING:
                self.firing[alert.name] = alert
            else:
                del self.firing[alert.name]
                self.ended.append(alert)
        self.now += MINUTE
        return written

    @property
    def only(self) -> Alert:
        """The only alert that fires."""
        (alert,) = self.firing.values()
        return alert


def unstable(
    burns: tuple[BurnRate, ...], *culprits: Culprit, of: WatchedModel | None = None, since: datetime = NOW
) -> Observed:
    """A model with burn rates of its stability."""
    return Observed(of or model(), {Kind.UNSTABLE: burns}, Known(culprits, since))


# --- severity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "baseline", "others"),
    [
        (Tier.TIER0, True, True),
        (Tier.TIER1, True, True),
        (Tier.TIER2, True, False),
        (Tier.UNSTATED, True, False),
        (Tier.TIER3, False, False),
        (Tier.TIER4, False, False),
    ],
)
def test_who_is_woken_follows_from_tier_and_role(tier: Tier, baseline: bool, others: bool) -> None:
    assert pages(tier, Role.BASELINE) is baseline
    assert pages(tier, Role.EXPERIMENT) is pages(tier, Role.HOLDOUT) is others
    for role, woken in ((Role.BASELINE, baseline), (Role.EXPERIMENT, others)):
        course = Course()
        course.minute(unstable(OUTAGE, CLICK, of=model(role=role, tier=tier)))
        assert course.only.severity is (Severity.PAGE if woken else Severity.TICKET)


def test_a_slow_burn_is_a_ticket_and_so_is_any_lack_of_evidence() -> None:
    course = Course()
    course.minute(unstable(SLOW, CLICK, of=model(tier=Tier.TIER0)))
    assert course.only.severity is Severity.TICKET
    blind = Observed(model(tier=Tier.TIER0), {Kind.NOT_OBSERVED: OUTAGE})
    course = Course()
    course.minute(blind)
    assert course.only.severity is Severity.TICKET
    assert course.only.kind is Kind.NOT_OBSERVED


def test_what_is_said_names_value_range_since_when_budget_whom_and_what_to_do() -> None:
    course = Course()
    course.minute(unstable(OUTAGE, CLICK, BUY, since=NOW - timedelta(hours=1)))
    alert = course.only
    assert (alert.prediction, alert.metric) == ("click", Metric.CALIBRATION)
    assert alert.summary == (
        "Calibration of click is 1.31, above its range of 0.9 to 1.1 (since 2025-03-01 11:00 UTC). ctr/old was "
        "unstable in 60 minutes of the last hour: 100 times what its objective of 99 % stability allows."
    )
    assert alert.response.startswith("It is the baseline: never turn it off. Page its owner: ada (team feed).")
    experiment = model("new", Role.EXPERIMENT)
    course.minute(unstable(OUTAGE, CLICK, of=experiment))
    told = next(alert for alert in course.firing.values() if alert.model == experiment.name)
    assert told.response.startswith("It is an experiment: end it in one action")
    assert "\n  modelfleet mitigate ctr/new\nThen tell its owner: ada (team feed).\n" in told.response


# --- one alert, no flapping -------------------------------------------------------------------------------------------


def test_a_ticket_that_becomes_a_page_is_the_same_alert() -> None:
    course = Course()
    course.minute(unstable(SLOW, CLICK))
    begun = course.only
    course.minute(unstable(OUTAGE, CLICK))
    assert replace(course.only, severity=begun.severity, summary=begun.summary) == begun
    assert course.only.severity is Severity.PAGE


def test_an_alert_ends_only_once_what_fired_has_been_over_for_a_while() -> None:
    course = Course()
    course.minute(unstable(OUTAGE, CLICK))
    for burns in (HEALTHY, HEALTHY, OUTAGE, HEALTHY, HEALTHY, HEALTHY, HEALTHY, HEALTHY):
        course.minute(unstable(burns, CLICK))
        assert len(course.firing) == 1, "it was not over for five minutes yet"
    course.minute(unstable(HEALTHY))
    (ended,) = course.ended
    assert ended.resolution is Resolution.RECOVERED
    assert ended.end_time is not None and ended.end_time - ended.start_time == timedelta(minutes=9)


def test_a_page_falls_to_a_ticket_while_the_slower_windows_still_burn() -> None:
    course = Course()
    course.minute(unstable(OUTAGE, CLICK))
    for _ in range(HOLD // MINUTE):
        course.minute(unstable(SLOW))
        assert course.only.severity is Severity.PAGE
    course.minute(unstable(SLOW))
    assert course.only.severity is Severity.TICKET
    assert "calibration of click".capitalize() in course.only.summary, "what was wrong is not forgotten"


def test_what_is_not_known_any_more_is_not_over() -> None:
    """The service was away, or labels ceased, in the middle of an outage."""
    blind = rates((55, Slice.BAD), (10, Slice.UNKNOWN))
    assert not any(rate.firing for rate in blind if rate.factor == 14.4)
    course = Course()
    course.minute(unstable(OUTAGE, CLICK))
    for _ in range(20):
        assert not [alert for alert in course.minute(unstable(blind)) if alert.state is State.RESOLVED]
    # … but not for ever: by then nobody knows of any bad minute.
    over = rates((60, Slice.BAD), (LONGEST_WINDOW, Slice.UNKNOWN))
    for _ in range(HOLD // MINUTE + 1):
        course.minute(unstable(over))
    assert not course.firing


def test_an_alert_keeps_its_culprit_until_that_has_been_well_for_a_while() -> None:
    course = Course()
    course.minute(unstable(OUTAGE, CLICK, BUY))
    course.minute(unstable(OUTAGE, BUY, CLICK))
    assert course.only.prediction == "click"
    course.minute(unstable(OUTAGE, BUY))
    assert {alert.prediction for alert in course.firing.values()} == {"click", "buy"}, "the other one is told at once"
    for _ in range(HOLD // MINUTE):
        course.minute(unstable(OUTAGE, BUY))
    assert course.only.prediction == "buy"
    assert [alert.prediction for alert in course.ended] == ["click"]


def test_who_is_on_call_now_is_told() -> None:
    course = Course()
    course.minute(unstable(OUTAGE, CLICK))
    course.revision = 2
    course.minute(unstable(OUTAGE, CLICK, of=replace(model(), on_call="grace")))
    assert (course.only.on_call, course.only.revision) == ("grace", 2)
    assert "grace (team feed)" in course.only.response


@settings(max_examples=40)
@given(
    runs=st.lists(st.tuples(st.integers(1, 90), st.sampled_from(list(Slice))), min_size=1, max_size=8),
    tier=st.sampled_from(list(Tier)),
)
def test_whatever_happens_there_is_one_alert_at_a_time_and_each_fires_for_a_reason(
    runs: list[tuple[int, Slice]], tier: Tier
) -> None:
    history = minutes((LONGEST_WINDOW, Slice.GOOD), *runs)[: LONGEST_WINDOW + 300]
    pages_at, tickets_at = (firing(history, TARGET, response) for response in Response)
    moments = sliding_window_view(history, LONGEST_WINDOW)
    burns = burning(moments, np.full(len(moments), TARGET))
    course = Course()
    for end in range(LONGEST_WINDOW, len(history) + 1):
        fires = bool(pages_at[end - 1] or tickets_at[end - 1])
        before = len(course.firing)
        written = course.minute(unstable(burns.of(end - LONGEST_WINDOW), CLICK, of=model(tier=tier)))
        assert len(course.firing) <= 1
        assert not fires or course.firing, "no gap: what fires has an alert in the same minute"
        assert fires or len(course.firing) <= before, "no alert begins without a reason"
        for alert in written:
            if alert.state is State.RESOLVED:
                last = slice(end - 1 - HOLD // MINUTE, end)
                assert not (pages_at[last] | tickets_at[last]).any(), "over for as long as HOLD says"
            elif alert.severity is Severity.PAGE:
                assert pages(alert.tier, alert.role)


# --- roles change -----------------------------------------------------------------------------------------------------


def test_when_a_launch_hands_over_the_old_baseline_s_alert_ends_and_only_its_own_minutes_count_for_the_new_one() -> (
    None
):
    old, new = model("old"), model("new")
    course = Course()
    course.minute(unstable(OUTAGE, CLICK, of=old))
    course.revision = 7
    course.minute(unstable(HEALTHY, of=new))
    (ended,) = course.ended
    assert (ended.resolution, ended.model, ended.revision) == (Resolution.HANDED_OVER, old.name, 7)
    assert not course.firing


def test_an_experiment_that_is_unstable_is_unstable_as_the_baseline_too() -> None:
    course = Course()
    course.minute(unstable(OUTAGE, CLICK, of=model("new", Role.EXPERIMENT)))
    course.minute(unstable(OUTAGE, CLICK, of=model("new", Role.BASELINE)))
    assert course.only.role is Role.BASELINE
    assert [alert.resolution for alert in course.ended] == [Resolution.HANDED_OVER]


OLD, NEW, TYPE = "modelTypes/ctr/models/old", "modelTypes/ctr/models/new", "slos/ctr"


def test_the_minutes_of_an_slo_are_those_of_whose_turn_it_was() -> None:
    """The old baseline was bad until minute 1000, the new one from minute 1030 on."""
    end = 1060
    first = end - LONGEST_WINDOW
    shared = np.full(LONGEST_WINDOW, Slice.GOOD, dtype=np.uint8)
    shared[900 - first : 1000 - first] = Slice.BAD
    shared[1030 - first :] = Slice.BAD
    slices = {TYPE: shared, f"{TYPE}.old": np.full(LONGEST_WINDOW, Slice.UNKNOWN, dtype=np.uint8)}
    of_new = own_minutes([Tenure(NEW, TYPE, 5, 1000)], slices, end)
    assert not (of_new[: 1000 - first] == Slice.BAD).any(), "no false alarm: what the old one did is not its own"
    assert (of_new[1030 - first :] == Slice.BAD).all()
    # No gap: it is found as soon as it would have been found on a model that was well before.
    assert any(rate.firing for rate in burn_rates(of_new[: 1030 - first + 9], TARGET) if rate.factor == 14.4)
    of_old = own_minutes([Tenure(OLD, TYPE, 1, 0, 1000), Tenure(OLD, f"{TYPE}.old", 5, 1000)], slices, end)
    assert (of_old[900 - first : 1000 - first] == Slice.BAD).all(), "as a holdout it still answers for what it did"
    assert (of_old[1000 - first :] == Slice.UNKNOWN).all()


def test_tenures_change_with_the_minute_that_was_evaluated_by_the_revision() -> None:
    known = {OLD: Tenure(OLD, TYPE, 1, 500)}
    after = {NEW: TYPE, OLD: f"{TYPE}.old"}
    changed = pass_on(known, after, 9, Evaluated(1000, 9), 999)
    assert changed == [
        Tenure(OLD, TYPE, 1, 500, 1000), Tenure(NEW, TYPE, 9, 1000), Tenure(OLD, f"{TYPE}.old", 9, 1000),
    ]  # fmt: skip
    assert pass_on({tenure.model: tenure for tenure in changed[1:]}, after, 9, Evaluated(1001, 9), 1000) == []


def test_minutes_of_an_evaluator_that_is_behind_count_for_nobody_new() -> None:
    known = {OLD: Tenure(OLD, TYPE, 1, 500)}
    ended, begun = pass_on(known, {NEW: TYPE}, 9, Evaluated(1000, 8), 999)
    assert (ended.end_minute, begun.start_minute) == (1000, 1001)
    (later,) = pass_on({NEW: begun}, {NEW: TYPE}, 9, Evaluated(1001, 8), 1000)
    assert later.start_minute == 1002
    assert pass_on({NEW: later}, {NEW: TYPE}, 9, Evaluated(1002, 9), 1001) == []


# --- what Alertmanager is told ----------------------------------------------------------------------------------------


def alert(**changes: object) -> Alert:
    """A page."""
    course = Course()
    course.minute(unstable(OUTAGE, CLICK))
    return replace(course.only, **changes)  # type: ignore[arg-type]


def test_labels_are_what_routes_and_silences_go_by() -> None:
    assert labels_of(alert()) == {
        "alertname": "ModelUnstable", "model_type": "ctr", "model": "old", "prediction": "click", "role": "BASELINE",
        "tier": "TIER1", "team": "feed", "on_call": "ada", "severity": "page",
    }  # fmt: skip
    assert (
        not {"prediction", "tier", "on_call"} & labels_of(alert(prediction="", tier=Tier.UNSTATED, on_call="")).keys()
    )


def test_notes_lead_on() -> None:
    told = notes(alert(), "", "https://grafana/d/models?orgId=1")
    assert told["investigate"] == "modelfleet investigate ctr/old"
    assert told["alert"] == "modelfleet stability alert get a0"
    assert told["dashboard"] == "https://grafana/d/models?orgId=1&var-type=ctr&var-model=old"
    assert "dashboard" not in notes(alert(), "", "")


def test_under_other_labels_it_is_another_alert_to_alertmanager() -> None:
    ticket, page = alert(severity=Severity.TICKET), alert()
    ended, (told,) = settle([ticket], [], NOW)
    assert not ended
    assert settle([ticket], [told], NOW) == ([], [])
    (over,), (begun,) = settle([page], [told], NOW + MINUTE)
    assert (over.end_time, over.ending) == (NOW + MINUTE, "It is a page now.")
    assert (over.labels["severity"], begun.labels["severity"]) == ("ticket", "page")
    assert begun.start_time == page.start_time, "since when it goes on does not change"


def test_a_silence_takes_back_what_was_told_and_its_end_tells_it_again() -> None:
    _, (told,) = settle([alert()], [], NOW)
    (over,), begun = settle([alert(silence="silences/s1")], [told], NOW)
    assert over.ending == "Kept quiet by silences/s1; it goes on." and not begun
    assert settle([alert(silence="silences/s1")], [], NOW) == ([], [])
    assert settle([alert()], [], NOW)[1] == [told]


def test_what_is_over_is_told_once_as_over() -> None:
    _, (told,) = settle([alert()], [], NOW)
    done = alert(state=State.RESOLVED, resolution=Resolution.HANDED_OVER, end_time=NOW)
    (over,), begun = settle([done], [told], NOW)
    assert (over, begun) == (
        Announcement(done.name, told.labels, told.start_time, NOW, "The model does not have its role any more."), [],
    )  # fmt: skip
    assert settle([done], [], NOW) == ([], [])
