"""How a launch looks while it goes on, and how it is explained, on terminals of different widths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console, RenderableType

from modelfleet.cli import render
from modelfleet.cli.launch import advice, explain, live, view
from modelfleet.cli.launch.freeze_view import again
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import freeze_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb

NOW = datetime(2026, 3, 2, 14, 5, tzinfo=UTC)


def launch(**fields: object) -> pb.Launch:
    """A launch in the middle of its third step of five, in the second of two regions."""
    made = pb.Launch(
        name="launches/l1",
        model_type="modelTypes/ctr",
        candidate="modelTypes/ctr/models/new",
        baseline="modelTypes/ctr/models/old",
        strategy=pb.Launch.REPLACE_BASELINE,
        state=pb.Launch.SHIFTING,
        actor="alice",
        attempt=1,
        current_step=3,
        summary="Step 3 of 5 in us (60 % for the candidate). Bakes step 3 until 14:08:00 (since 14:03:00).",
        allowed_verbs=["PauseLaunch (engineer, owner, oncall)", "SkipLaunchStep (owner, oncall)"],
        trace_id="0" * 32,
    )
    made.create_time.FromDatetime(NOW - timedelta(minutes=40))
    made.phase_times.add(state=pb.Launch.SHIFTING).start_time.FromDatetime(NOW - timedelta(minutes=39))
    condition = made.conditions.add(type="Waiting", status=1, reason="Baking", message="bakes step 3 until 14:08:00")
    condition.since.FromDatetime(NOW - timedelta(minutes=2))
    for region in ("regions/eu", "regions/us"):
        plan = made.plan.regions.add(region=region, new_replicas_full=42, old_replicas_full=50, hold_units=60)
        for number in range(1, 6):
            plan.steps.add(number=number, share_basis_points=2_000 * number, new_replicas=9 * number)
    done = made.progress.add(region="regions/eu", step=5)
    done.candidate.CopyFrom(pb.SideProgress(intended_basis_points=10_000, available_replicas=42, desired_replicas=42))
    at = made.progress.add(region="regions/us", step=3, free_units=5)
    at.candidate.CopyFrom(
        pb.SideProgress(
            intended_basis_points=6_000,
            observed_basis_points=5_920,
            desired_replicas=26,
            available_replicas=24,
            total_replicas=26,
            requests=5_920,
        )
    )
    at.baseline.CopyFrom(
        pb.SideProgress(
            intended_basis_points=4_000,
            observed_basis_points=4_080,
            desired_replicas=20,
            available_replicas=20,
            total_replicas=29,
            requests=4_080,
            errors=3,
        )
    )
    at.bake_end_time.FromDatetime(NOW + timedelta(minutes=3))
    verdict = made.gate_verdicts.add(
        gate="stability",
        region="regions/us",
        step=3,
        verdict=serving_pb2.PASS,
        explanation="click: calibration 1.01 lies within 0.95 to 1.05 by 420 positives.",
        figures={"click.calibration": 1.01, "click.positives": 420},
    )
    verdict.time.FromDatetime(NOW - timedelta(seconds=30))
    made.step_deadline_time.FromDatetime(NOW + timedelta(minutes=13))
    made.expected_end_time.FromDatetime(NOW + timedelta(minutes=31))
    made.deadline_time.FromDatetime(NOW + timedelta(days=6))
    made.MergeFrom(pb.Launch(**fields))  # type: ignore[arg-type]
    return made


def drawn(part: RenderableType, width: int = 160, *, colour: bool = False) -> str:
    console = Console(width=width, force_terminal=colour, highlight=False, color_system="standard" if colour else None)
    with console.capture() as captured:
        console.print(part)
    return captured.get()


@pytest.mark.parametrize("width", [80, 160])
def test_a_picture_says_where_it_is_what_it_waits_for_and_what_is_left(width: int) -> None:
    picture = drawn(live.Frame(launch(), NOW), width)
    lines = [line.rstrip() for line in picture.splitlines()]
    assert all(len(line) <= width for line in lines)
    words = " ".join(picture.split())
    assert lines[0].startswith("new replaces old of ctr  SHIFTING  40m")
    assert "waits Baking for 2m, since 14:03:00; ends by itself, or by modelfleet launch skip l1 --step 3" in words
    assert "eu ✓20% ✓40% ✓60% ✓80% ✓100%" in words, "the region before is done"
    assert "us ✓20% ✓40% ▶60% ·80% ·100%" in words
    assert "60% for the candidate" in words and "59.2%; 10,000 requests so far, 3 failed" in words
    assert "24 of 26 available, 26 exist" in words and "20 of 20 available, 29 exist, 9 to end" in words
    assert "5 of 60 units are free" in words
    assert "✓ stability in us PASS at step 3, 30s ago: click: calibration 1.01" in words
    assert "click.calibration 1.01, click.positives 420" in words
    assert "bake 3m (14:08:00) · step at most 13m (14:18:00)" in words
    assert "expected end 31m (14:36:00)" in words and "launch at most 6d (2026-03-08 14:05)" in words


def test_bars_are_as_long_as_what_they_show() -> None:
    picture = drawn(live.Frame(launch(), NOW), 160)
    intended, observed = (
        next(line for line in picture.splitlines() if line.startswith(word) and number in line)
        for word, number in (("intended", "60%"), ("observed", "59.2%"))
    )
    assert (intended.count("█"), intended.count("·")) == (30, 20)
    assert observed.count("█") == round(50 * 0.592)
    candidate = next(line for line in picture.splitlines() if "24 of 26" in line)
    assert (candidate.count("█"), candidate.count("▒"), candidate.count("░")) == (24, 2, 0)
    baseline = next(line for line in picture.splitlines() if "20 of 20" in line)
    assert (baseline.count("█"), baseline.count("▒"), baseline.count("░")) == (20, 0, 9)


def test_colours_are_for_terminals_alone() -> None:
    assert "\x1b[" not in drawn(live.Frame(launch(), NOW))
    assert "\x1b[" in drawn(live.Frame(launch(), NOW), colour=True)


def test_pauses_name_their_authors_and_the_command_that_ends_them() -> None:
    paused = launch(pause_reasons=[pb.PauseReason(author="gate/stability", reason="no verdict after 3 extensions")])
    paused.pause_reasons[0].time.FromDatetime(NOW - timedelta(hours=2))
    for field in ("deadline_time", "step_deadline_time", "expected_end_time"):
        paused.ClearField(field)
    words = " ".join(drawn(live.Frame(paused, NOW)).split())
    assert "paused by gate/stability for 2h, since 12:05:00: no verdict after 3 extensions" in words
    assert "modelfleet launch resume l1 --any-author" in words
    assert "expected end and deadlines stand still while it is paused" in words
    described = " ".join("".join(drawn(part) for part in explain.describe_parts(paused, ())).split())
    assert "deadline stands still while it is paused, and so does the expected end" in described


def test_a_pause_of_a_mitigation_ends_with_that_and_not_by_resuming() -> None:
    gate = pb.PauseReason(author="gate/stability", reason="no verdict")
    held = launch(pause_reasons=[pb.PauseReason(author="mitigation/m1", reason="ends an experiment"), gate])
    words = " ".join(drawn(live.Frame(held, NOW)).split())
    assert "ends an experiment; ends by the end of launches/m1, not by resume" in words
    assert "no verdict; ends by modelfleet launch resume l1 --any-author" in words


def test_an_override_names_the_window_that_is_in_the_way() -> None:
    override = "OverrideLaunchFreeze (approver, owner)"
    frozen = launch(allowed_verbs=[override])
    frozen.conditions[0].reason = "Frozen"
    assert "--window WINDOW" in " ".join(drawn(live.Frame(frozen, NOW)).split())
    frozen.plan.freeze_conflicts.add(freeze_window="freezeWindows/old", overridden=True)
    assert not any("override" in command for command, _ in advice.commands(frozen)), "nothing is in the way"
    frozen.plan.freeze_conflicts.add(freeze_window="freezeWindows/holidays")
    for parts in ([live.Frame(frozen, NOW)], explain.describe_parts(frozen, ())):
        words = " ".join("".join(drawn(part) for part in parts).split())
        assert "modelfleet launch override l1 --window holidays --reason WHY" in words


def test_a_plan_that_waits_says_that_its_duration_begins_after_the_wait_and_that_nothing_bakes() -> None:
    plan = launch()
    plan.plan.wait = "waits for 1 unit of cpu in eu that launches/x frees at about 14:30"
    plan.plan.expected_duration.FromTimedelta(timedelta(seconds=9))
    words = " ".join("".join(drawn(part) for part in view.plan_parts(plan)).split())
    assert "expected to take 9s once it need not wait any more" in words
    assert "no step bakes" in words and "no time" not in words


def test_units_of_two_flavors_are_not_added_up() -> None:
    swap = launch()
    for plan in swap.plan.regions:
        plan.new_model, plan.old_model = swap.candidate, swap.baseline
    said = "".join(drawn(part) for part in view.plan_parts(swap))
    assert "PEAK  FREE" in said and "flavors together" not in drawn(live.Frame(swap, NOW))
    for plan in swap.plan.regions:
        for flavor, units in (("cpu", 20), ("gpu", 8)):
            plan.holds.add(flavor=f"flavors/{flavor}", hold_units=units)
    said = "".join(drawn(part) for part in view.plan_parts(swap))
    assert "PEAK" not in said and "CANDIDATE  BASELINE  COST/H" in said and "holds 8 units of gpu" in said
    assert "units are free, of 2 flavors together" in drawn(live.Frame(swap, NOW), 120)


def test_a_plan_in_which_the_baseline_grows_says_whose_share_it_shows() -> None:
    down = launch(strategy=pb.Launch.RAMP, target_share_basis_points=1_000)
    whose = "the share of a step is the baseline's"
    for plan in down.plan.regions:
        plan.new_model, plan.old_model = down.candidate, down.baseline
    assert whose not in "".join(drawn(part) for part in view.plan_parts(down))
    for plan in down.plan.regions:
        plan.new_model, plan.old_model = down.baseline, down.candidate
    assert whose in "".join(drawn(part) for part in view.plan_parts(down))


def test_the_way_back_is_shown_at_the_step_that_it_is_at() -> None:
    back = launch(state=pb.Launch.ROLLING_BACK, abort=pb.Abort(author="bob", reason="wrong checkpoint"))
    back.progress[1].candidate.intended_basis_points = 2_000
    words = " ".join(drawn(live.Frame(back, NOW)).split())
    assert "us ✓20% ◀40% ◀60% ·80%" in words and "goes back by bob: wrong checkpoint" in words


def test_without_a_terminal_only_what_is_new_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def updates() -> Iterator[pb.Launch]:
        for minutes in (2, 3, 4):
            yield launch(summary=f"Step 3 of 5 in us. Bakes step 3, look {minutes}.")
        yield launch(current_step=4, summary="Step 4 of 5 in us.")
        yield launch(state=pb.Launch.SUCCEEDED, summary="Succeeded after 1 h.")

    last = live.follow(updates())
    assert last is not None and last.state == pb.Launch.SUCCEEDED
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "SHIFTING Step 3 of 5 in us. Bakes step 3, look 2.",
        "SHIFTING Step 4 of 5 in us.",
        "SUCCEEDED Succeeded after 1 h.",
    ]


@pytest.mark.parametrize("width", [80, 160])
def test_an_explanation_begins_with_the_sentence_and_has_its_sections(width: int) -> None:
    event = pb.LaunchEvent(sequence=1, type="WeightShifted", message="shifts 60 %", step=3)
    parts = [drawn(part, width) for part in explain.describe_parts(launch(), [event] * 31)]
    shown = "".join(parts)
    assert shown.startswith("Step 3 of 5 in us (60 % for the candidate).")
    assert "The wait ends by itself, or by modelfleet launch skip l1 --step 3 --reason WHY." in " ".join(shown.split())
    titles = [line for line in shown.splitlines() if re.fullmatch(r"[A-Z][a-z ]+", line)]
    assert titles == ["What people may do", "What serves", "Plan", "Gates", "Time", "What happened"]
    words = " ".join(shown.split())
    assert "modelfleet launch skip l1 --step 3 --reason WHY" in words and "owner, oncall" in words
    assert "1 more before: modelfleet launch events l1" in words


def test_a_launch_whose_baseline_is_not_pinned_yet_does_not_say_that_it_replaces_nothing() -> None:
    waiting = pb.Launch(model_type="modelTypes/ctr", candidate="modelTypes/ctr/models/new")
    assert view.headline(waiting) == "new replaces the baseline of ctr"
    waiting.plan.regions.add(region="regions/eu")
    assert view.headline(waiting) == "new replaces nothing of ctr", "its plan says that it is the first"


def test_in_a_pipe_no_line_of_a_launch_is_filled_up_with_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    for part in explain.describe_parts(launch(), ()):
        render.console().print(part)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10 and [line for line in lines if line != line.rstrip()] == []


def test_the_first_model_of_a_route_has_no_row_of_a_baseline_and_promises_no_rollback() -> None:
    first = launch(state=pb.Launch.SHIFTING)
    for plan in first.plan.regions:
        plan.old_replicas_full = 0
    first.baseline = ""
    assert "20 of 20 available" not in drawn(live.Frame(first, NOW))
    assert "baseline" not in drawn(live.Frame(first, NOW))
    assert "rollback" not in "".join(drawn(part) for part in view.plan_parts(first))
    for plan in first.plan.regions:
        plan.old_model = "modelTypes/ctr/models/old"
    assert "no capacity is kept for a rollback" in "".join(drawn(part) for part in view.plan_parts(first))


def test_a_picture_that_is_higher_than_the_terminal_leaves_out_the_figures_of_its_gates() -> None:
    def at(height: int) -> str:
        console = Console(width=80, height=height, force_terminal=True, color_system=None)
        with console.capture() as captured:
            console.print(live.Frame(launch(), NOW))
        return captured.get()

    assert "click.positives 420" in at(40)
    low = at(20)
    assert "click.positives 420" not in low and low.startswith("new replaces old of ctr") and "stability" in low


def test_what_a_computation_leaves_of_zero_is_told_as_zero() -> None:
    assert live.figures_of(pb.GateVerdict(figures={"low": 6.9e-18, "high": 0.012})) == "high 0.012, low 0"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("", "once"),
        ("FREQ=YEARLY", "every year (Europe/Berlin)"),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=FR,SA;COUNT=8", "every 2 weeks on FR, SA 8 times (Europe/Berlin)"),
        ("FREQ=YEARLY;BYMONTH=12;BYMONTHDAY=24", "every year in month 12 on day 24 of the month (Europe/Berlin)"),
        ("FREQ=MONTHLY;BYDAY=MO;BYSETPOS=-1", "every month on MO BYSETPOS=-1 (Europe/Berlin)"),
        ("FREQ=DAILY;UNTIL=20271224T180000", "every day until 2027-12-24 (Europe/Berlin)"),
    ],
)
def test_how_a_freeze_window_recurs_is_said_in_words(rule: str, said: str) -> None:
    assert again(freeze_pb2.FreezeWindow(rrule=rule, time_zone="Europe/Berlin")) == said
