"""What launches wait for, added up: every moment counts once, for one cause at most."""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelfleetd.launcher
from modelfleetd.launcher.documents import from_document, to_document
from modelfleetd.launcher.domain import waits
from modelfleetd.launcher.domain.figures import Figures, cause_of, figures_of
from modelfleetd.launcher.domain.launch import Launch, Strategy, enter
from modelfleetd.launcher.domain.policy import Policy
from modelfleetd.launcher.domain.record import Abort, Condition, GateVerdict, PhaseTime, Status, Verdict
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.domain.summary import sentence

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
REASONS = ("AwaitingApproval", "CapacityPromised", "ReplicasStarting", "Baking", "Paused")
# What is true of a launch at a look: what it waits for, whether it is paused, and what is no wait at all.
_looks = st.tuples(st.sampled_from([None, *REASONS]), st.booleans(), st.booleans())
_histories = st.lists(st.tuples(_looks, st.integers(0, 5_000)), max_size=30)


def launch(**fields: object) -> Launch:
    made = Launch(
        name="launches/l1",
        uid="u",
        model_type="modelTypes/ctr",
        candidate="modelTypes/ctr/models/new",
        strategy=Strategy.REPLACE_BASELINE,
        pool="pools/p",
        regions=("regions/eu",),
        policy=Policy(),
        actor="alice",
        trace_id="0" * 32,
        create_time=BEGAN,
        update_time=BEGAN,
        phase_times=(PhaseTime(State.PENDING, BEGAN),),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def conditions(reason: str | None, paused: bool, degraded: bool, now: datetime) -> tuple[Condition, ...]:
    found = [("Waiting", reason)] if reason else []
    found += [("Paused", "PauseReasons")] if paused else []
    found += [("BaselineDegraded", "ReplicasMissing")] if degraded else []
    return tuple(Condition(kind, Status.TRUE, why, "", now) for kind, why in found)


def lived(history: list[tuple[tuple[str | None, bool, bool], int]]) -> tuple[Launch, datetime]:
    """A launch that was recorded with these conditions, each so many seconds before the next, and then ended."""
    now, made = BEGAN, launch()
    for look, seconds in history:
        made = waits.kept(replace(made, conditions=conditions(*look, now)), (), now)
        now += timedelta(seconds=seconds)
    return waits.kept(enter(made, State.CANCELLED, now), (), now), now


def naive(history: list[tuple[tuple[str | None, bool, bool], int]]) -> dict[str, timedelta]:
    """The same, second by second, in another way."""
    causes = itertools.chain.from_iterable(
        itertools.repeat("Paused" if paused else reason, seconds) for (reason, paused, _), seconds in history
    )
    return {cause: timedelta(seconds=seconds) for cause, seconds in Counter(causes).items() if cause}


@given(_histories)
def test_every_second_counts_once_for_what_it_was_waited_for(
    history: list[tuple[tuple[str | None, bool, bool], int]],
) -> None:
    ended, _ = lived(history)
    counted = {cause: time for cause, time in ended.waits.times.items() if time}
    assert counted == naive(history)
    assert ended.waits.since is None and ended.waits.cause == ""


@given(_histories)
def test_the_waits_and_the_rest_are_the_whole_duration(
    history: list[tuple[tuple[str | None, bool, bool], int]],
) -> None:
    ended, now = lived(history)
    found = figures_of(ended)
    assert found.duration == now - BEGAN == sum(found.phases.values(), timedelta(0))
    waited = sum(found.waits.values(), timedelta(0))
    idle = sum(seconds for (reason, paused, _), seconds in history if not paused and not reason)
    assert waited + timedelta(seconds=idle) == found.duration
    assert found.people_wait == found.waits.get("AwaitingApproval", timedelta(0)) <= waited


@given(_histories)
def test_what_it_waits_for_survives_the_row(history: list[tuple[tuple[str | None, bool, bool], int]]) -> None:
    ended, _ = lived(history)
    assert from_document(Launch, to_document(ended)).waits == ended.waits


@given(_histories, st.integers(0, 10))
def test_looking_more_often_changes_no_figure(
    history: list[tuple[tuple[str | None, bool, bool], int]], more: int
) -> None:
    often = [(look, part) for look, seconds in history for part in (*[0] * more, seconds // 2, seconds - seconds // 2)]
    assert _without_nothing(figures_of(lived(often)[0])) == _without_nothing(figures_of(lived(history)[0]))


def _without_nothing(found: Figures) -> Figures:
    return replace(found, waits={cause: time for cause, time in found.waits.items() if time})


def test_a_row_of_before_there_were_figures_is_read() -> None:
    document = to_document(launch())
    del document["waits"]
    assert from_document(Launch, document) == launch()


def test_only_verdicts_that_were_enforced_fail_a_gate() -> None:
    def verdict(gate: str, found: Verdict, dry_run: bool = False) -> GateVerdict:
        return GateVerdict(gate, "regions/eu", 1, found, "", BEGAN, dry_run=dry_run)

    kept = launch()
    for said in (
        verdict("stability", Verdict.PASS),
        verdict("stability", Verdict.FAIL),
        verdict("availability", Verdict.FAIL, dry_run=True),
        verdict("availability", Verdict.ERROR),
    ):
        kept = waits.kept(kept, [said], BEGAN)
    assert kept.waits.failed == {"stability": 1}


@pytest.mark.parametrize(
    ("author", "cause"),
    [
        ("gate/stability", "gate/stability"),
        ("deadline", "deadline"),
        ("availability", "availability"),
        ("mitigation/launches/l2", "mitigation"),
        ("holds/h-1", "hold"),
        ("alice", "person"),
        ("spiffe://fleet/alice", "person"),
    ],
)
def test_a_rollback_is_counted_by_the_kind_of_who_asked_for_it(author: str, cause: str) -> None:
    assert cause_of(launch(abort=Abort(author, "because", BEGAN))) == cause
    assert cause_of(launch()) == ""


def test_no_rollback_that_the_launcher_itself_begins_is_counted_as_a_persons() -> None:
    authors: set[str] = set()
    for file in Path(modelfleetd.launcher.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "going_back":
                words = (part.value for part in ast.walk(node.args[1]) if isinstance(part, ast.Constant))
                authors |= {word for word in words if isinstance(word, str)}
    assert {"plan", "capacity", "registry", "gate/"} <= authors
    for author in authors:
        assert cause_of(launch(abort=Abort(author, "because", BEGAN))) == author


def test_a_state_that_was_entered_again_is_one_phase() -> None:
    moments = [BEGAN + timedelta(minutes=minute) for minute in (1, 2, 4, 7)]
    states = (State.ESTIMATING, State.AWAITING_APPROVAL, State.ESTIMATING, State.CANCELLED)
    made = launch()
    for state, moment in zip(states, moments, strict=True):
        made = enter(made, state, moment)
    assert figures_of(made).phases == {
        State.PENDING: timedelta(minutes=1),
        State.ESTIMATING: timedelta(minutes=4),
        State.AWAITING_APPROVAL: timedelta(minutes=2),
    }


def test_a_sentence_names_the_moment_since_which_so_it_stays_true_wherever_it_is_kept() -> None:
    waiting = launch(conditions=(Condition("Waiting", Status.TRUE, "Queued", "waits for launches/l0 to end", BEGAN),))
    soon, tomorrow = BEGAN + timedelta(seconds=70), BEGAN + timedelta(days=1)
    assert sentence(launch(), soon) == "Is about to begin; since 00:00:00."
    assert sentence(waiting, BEGAN) == sentence(waiting, soon)
    assert sentence(waiting, soon).endswith("Waits for launches/l0 to end (since 00:00:00).")
    assert sentence(waiting, tomorrow).endswith("Waits for launches/l0 to end (since 2026-03-01 00:00).")
