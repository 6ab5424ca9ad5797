"""Alerts reach people through a real Alertmanager: routed, once, kept alive, taken back, whatever restarts."""

from __future__ import annotations

import asyncio
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from modelfleetd.errors import PartUnavailable
from modelfleetd.stability.domain.alert import Alert, Kind, Severity
from modelfleetd.stability.domain.announcement import labels_of, notes
from modelfleetd.stability.domain.fleet import Metric, Role, Tier
from modelfleetd.stability.domain.silence import Silence
from modelfleetd.stability.domain.slices import Slice
from modelfleetd.stability.store import silences
from tests.support.alerting import alerting, fleet, watched
from tests.support.alertmanager import alertmanager
from tests.support.stability import CTR, NEW, OLD
from tests.support.wait import until

PAGE, TICKET, FIRING, RECOVERED = "PAGE", "TICKET", "FIRING", "RECOVERED"
UNSTABLE = "ModelUnstable"


async def test_pages_and_tickets_go_where_they_belong_and_what_is_over_is_taken_back(
    database_url: str, tmp_path: Path
) -> None:
    with alertmanager(tmp_path) as manager:
        async with alerting(database_url, manager, minutes=65) as running:
            running.view = fleet(watched(OLD), watched(NEW, Role.EXPERIMENT, Tier.TIER3))
            told = manager.receivers
            await running.pass_minutes(1)
            await running.evaluate(15, bad=[OLD])
            await running.evaluate(10, bad=[OLD, NEW])
            await running.derive()
            assert await running.alerts() == [(OLD, PAGE, FIRING), (NEW, TICKET, FIRING)]
            await running.deliver()
            await until(lambda: told.of("pager") and told.of("tickets"))
            _, _, labels, notes = next(one for one in told.notified if one[0] == "pager")
            assert {"model_type": "ctr", "team": "feed", "on_call": "ada"}.items() <= labels.items()
            assert notes["summary"].startswith("Calibration of click is 1.31")
            groups = [body["groupLabels"] for body in told.bodies if body["receiver"] == "pager"]
            assert groups == [{"model_type": "ctr", "model": "old"}]
            assert notes["dashboard"] == "https://grafana/d/models?var-type=ctr&var-model=old"

            # The baseline burned long enough for slower windows: it is over for the pager, and a ticket remains.
            await running.evaluate(30)
            await running.pass_minutes(6)
            assert await running.alerts() == [(OLD, TICKET, FIRING), (NEW, TICKET, RECOVERED)]
            await running.deliver()
            await until(lambda: told.of("pager") == [("firing", UNSTABLE), ("resolved", UNSTABLE)])
            await until(lambda: told.of("tickets").count(("resolved", UNSTABLE)) == 1)
            assert told.of("tickets").count(("firing", UNSTABLE)) == 2
            why = {
                (labels["model"], labels["severity"]): notes["summary"]
                for _, status, labels, notes in told.notified
                if status == "resolved"
            }
            assert why["old", "page"].startswith("It is a ticket now: it burns more slowly. Calibration of click")
            assert why["new", "ticket"].startswith("It has recovered. ")


async def test_two_replicas_make_each_transition_once_and_people_are_told_once(
    database_url: str, tmp_path: Path
) -> None:
    with alertmanager(tmp_path) as manager:
        async with alerting(database_url, manager, replicas=2) as running:
            await running.pass_minutes(6, bad=[OLD])
            assert await running.alerts() == [(OLD, PAGE, FIRING)]
            told = manager.receivers
            for _ in range(3):
                await asyncio.gather(*(replica.deliver() for replica in running.replicas))
            await until(lambda: told.of("pager") == [("firing", UNSTABLE)])
            await running.pass_minutes(12)
            assert await running.alerts() == [(OLD, PAGE, RECOVERED)]
            for _ in range(3):
                await asyncio.gather(*(replica.deliver() for replica in running.replicas))
            await until(lambda: len(told.of("pager")) == 2)
            assert manager.notifications("pager") == 2, "each was told once, by whichever replica"
            # A replica that saw less than another one does not go back behind it.
            newest, running.view = running.view, fleet(revision=0)
            await running.pass_minutes(1)
            assert await running.alerts() == [(OLD, PAGE, RECOVERED)]
            running.view = newest


async def test_an_alert_lives_as_long_as_it_is_repeated_and_not_longer(database_url: str, tmp_path: Path) -> None:
    with alertmanager(tmp_path) as manager:
        async with alerting(database_url, manager, resend=timedelta(seconds=0.4)) as running:
            await running.pass_minutes(6, bad=[OLD])
            delivery = running.replicas[0].deliveries[0]
            repeating = asyncio.create_task(delivery.run())
            (first,) = await until(manager.alerts)
            # Long after what it was told first would have run out, it is still the same alert, told once.
            await until(lambda: [one["updatedAt"] for one in manager.alerts()] > [first["endsAt"]])
            assert manager.receivers.of("pager") == [("firing", UNSTABLE)]
            assert manager.alerts()[0]["startsAt"] == first["startsAt"]
            rounds, last = running.metrics.collect()
            assert rounds.samples[0].labels == {"alertmanager": manager.address, "outcome": "taken"}
            assert last.samples[0].value > 0
            repeating.cancel()
            with suppress(asyncio.CancelledError):
                await repeating
            # Nobody repeats it: stability is away for good.
            await until(lambda: manager.receivers.of("pager") == [("firing", UNSTABLE), ("resolved", UNSTABLE)])


async def test_an_alertmanager_that_was_away_is_told_afterwards_and_one_that_restarts_tells_nobody_twice(
    database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with alertmanager(tmp_path) as manager, alertmanager(tmp_path / "other") as other:
        async with alerting(database_url, manager, other) as running:
            away, reached = running.replicas[0].deliveries
            manager.stop()
            await running.pass_minutes(6, bad=[OLD])
            with pytest.raises(PartUnavailable):
                await away.round()
            delivered = "SELECT deliver_time IS NOT NULL FROM alerts"
            assert not await running.database.fetchval(delivered)
            await reached.round()
            await until(lambda: other.receivers.of("pager"))
            assert await running.database.fetchval(delivered), "the others of a cluster are told all the same"

            manager.start()
            await away.round()
            await until(lambda: manager.receivers.of("pager") == [("firing", UNSTABLE)])
            manager.stop()
            manager.start()
            assert manager.alerts() == [], "it keeps no alerts itself"
            await away.round()
            await until(manager.alerts)
            await running.pass_minutes(12)
            await away.round()
            await until(lambda: len(manager.receivers.of("pager")) == 2)
            assert manager.notifications("pager") == 2


async def test_a_silence_keeps_quiet_and_what_still_goes_on_afterwards_is_told(
    database_url: str, tmp_path: Path
) -> None:
    with alertmanager(tmp_path) as manager:
        async with alerting(database_url, manager) as running:
            told = manager.receivers
            await running.pass_minutes(10)
            await running.pass_minutes(5, bad=[OLD])
            await running.deliver()
            await until(lambda: told.of("pager") == [("firing", UNSTABLE)])

            now = running.clock.now()
            silence = Silence("silences/s1", CTR, "migration", now, now + timedelta(hours=2), "ada", now)
            async with running.database.transaction() as conn:
                await silences.insert(conn, silence)
            await running.derive()
            await running.deliver()
            await until(lambda: told.of("pager") == [("firing", UNSTABLE), ("resolved", UNSTABLE)])
            assert told.notified[-1][3]["summary"].startswith("Kept quiet by silences/s1; it goes on.")
            await running.pass_minutes(2, bad=[OLD])
            assert await running.alerts() == [(OLD, PAGE, FIRING)], "it is derived none the less"

            async with running.database.transaction() as conn:
                await silences.end(conn, "silences/s1", "ada", running.clock.now())
            await running.derive()
            await running.deliver()
            await until(lambda: told.of("pager")[2:] == [("firing", UNSTABLE)])


async def test_many_alerts_go_in_bounded_pieces_and_what_is_refused_holds_up_nothing(
    database_url: str, tmp_path: Path
) -> None:
    with alertmanager(tmp_path) as manager:
        async with alerting(database_url, manager, minutes=60) as running:
            names = [f"{CTR}/models/m{number}" for number in range(250)]
            running.view = fleet(*(watched(name, Role.EXPERIMENT, Tier.TIER4) for name in names))
            await running.pass_minutes(1)
            await running.evaluate(50, bad=names)
            await running.derive()
            await running.deliver()
            assert len(manager.alerts()) == 250
            delivered = "SELECT count(*) FROM alerts WHERE deliver_time IS NOT NULL"
            assert await running.database.fetchval(delivered) == 250


async def test_without_an_alertmanager_the_log_says_each_transition_once(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with alerting(database_url, replicas=2) as running:
        caplog.set_level("INFO", logger="modelfleetd.stability.alerts")
        await running.pass_minutes(8, bad=[OLD])
        await running.pass_minutes(12)
        begun, ended = (record.getMessage() for record in caplog.records)
        assert re.match(rf"alerts/\w+ FIRING: PAGE UNSTABLE of {OLD}: Calibration of click is 1.31", begun)
        assert re.match(rf"alerts/\w+ RESOLVED, RECOVERED: PAGE UNSTABLE of {OLD}", ended)


async def test_an_experiment_that_becomes_the_baseline_takes_its_own_past_along_and_nobody_elses(
    database_url: str,
) -> None:
    async with alerting(database_url, minutes=40) as running:
        experiment = watched(NEW, Role.EXPERIMENT)
        running.view = fleet(watched(OLD), experiment)
        await running.pass_minutes(1)
        await running.evaluate(20, bad=[OLD])
        await running.pass_minutes(6, bad=[OLD, NEW])
        assert await running.alerts() == [(OLD, PAGE, FIRING), (NEW, PAGE, FIRING)]
        # Each answers for what it did itself: its alert ends with its old role and begins anew with the new one.
        running.view = fleet(watched(OLD, Role.HOLDOUT), watched(NEW), revision=2)
        await running.pass_minutes(1, bad=[NEW])
        (old, new, *more) = await running.alerts()
        assert (old, new) == ((OLD, PAGE, "HANDED_OVER"), (NEW, PAGE, "HANDED_OVER"))
        assert sorted(more) == [(NEW, PAGE, FIRING), (OLD, PAGE, FIRING)]
        rows = await running.database.fetch("SELECT model, role FROM alerts WHERE state = 1 ORDER BY model")
        assert [(row["model"], row["role"]) for row in rows] == [(NEW, Role.BASELINE.value), (OLD, Role.HOLDOUT.value)]


async def test_evidence_that_ceases_ends_nothing(database_url: str) -> None:
    async with alerting(database_url) as running:
        await running.pass_minutes(6, bad=[OLD])
        await running.pass_minutes(10, others=Slice.UNKNOWN)
        assert await running.alerts() == [(OLD, PAGE, FIRING)]


# --- the configuration that is offered --------------------------------------------------------------------------------

_OFFERED = Path(__file__).parents[2] / "deploy/alertmanager/alertmanager.yml"


def test_the_configuration_that_is_offered_is_taken_and_routes_by_severity_and_team() -> None:
    checked = subprocess.run(["amtool", "check-config", _OFFERED], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for labels, receiver in (
        (["severity=page", "team=feed"], "feed-pager"),
        (["severity=ticket", "team=feed"], "feed-tickets"),
        (["severity=page", "team=ads"], "everybody-pager"),
        (["severity=ticket", "team=ads"], "everybody-tickets"),
    ):
        command = ["amtool", "config", "routes", "test", f"--config.file={_OFFERED}", *labels]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == receiver


def test_what_it_says_of_labels_and_annotations_is_what_is_sent() -> None:
    sent = Alert(
        name="alerts/a1",
        kind=Kind.UNSTABLE,
        severity=Severity.PAGE,
        model_type=CTR,
        model=OLD,
        prediction="click",
        metric=Metric.CALIBRATION,
        role=Role.BASELINE,
        tier=Tier.TIER0,
        team="teams/feed",
        on_call="ada",
        summary="It is off.",
        response="Page its owner.",
        start_time=datetime.now(UTC),
        revision=1,
    )
    said = _OFFERED.read_text()
    told = set(re.findall(r"Annotations\.(\w+)", said))
    assert told <= notes(sent, "", "https://grafana/d/models").keys()
    (labels, annotations) = re.findall(r"Labels: (.*?)\. Annotations: (.*?)\.", said.replace("\n#", ""))[0]
    assert set(re.sub(r" \(.*?\)", "", labels).split(", ")) == labels_of(sent).keys()
    assert set(annotations.split(", ")) == notes(sent, "", "https://grafana/d/models").keys()
