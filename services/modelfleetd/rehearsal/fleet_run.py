"""Rehearses a whole fleet: its teams are spread over processes, and the outcome is the same whatever their number."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass

from modelfleetd.rehearsal.fleet_outcome import FleetOutcome, TeamOutcome, together
from modelfleetd.rehearsal.fleet_plan import FleetPlan
from modelfleetd.rehearsal.team_rehearsal import TeamRehearsal


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rehearsal has got."""

    teams: int
    teams_done: int
    launches: int
    launches_done: int
    broken: int
    seconds: float


def run_fleet(
    plan: FleetPlan, processes: int = 2, progress: Callable[[Progress], None] = lambda _: None
) -> FleetOutcome:
    """Rehearses a fleet.

    Args:
        plan: what is rehearsed.
        processes: that share the work; 1: this one does it.
        progress: told after each team that is done.
    """
    began = time.monotonic()
    done: list[TeamOutcome] = []
    for outcome in _teams(plan, processes):
        done.append(outcome)
        progress(
            Progress(
                teams=plan.teams,
                teams_done=len(done),
                launches=plan.launches,
                launches_done=sum(len(team.ended) for team in done),
                broken=sum(team.broken for team in done),
                seconds=time.monotonic() - began,
            )
        )
    return together(plan, sorted(done, key=lambda team: team.team), time.monotonic() - began)


def run_team(plan: FleetPlan, team: int) -> TeamOutcome:
    """Rehearses one team of a plan."""
    began, used = time.monotonic(), time.process_time()
    collects = gc.isenabled()
    # Nearly everything that is made is kept or is freed by its count: looking for circles would be in vain.
    gc.disable()
    # Losses are what is rehearsed: nobody needs to be warned of them.
    log = logging.getLogger("modelfleetd.launcher")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        rehearsal = TeamRehearsal(plan, team)
        asyncio.run(rehearsal.run())
    finally:
        log.setLevel(level)
        if collects:
            gc.enable()
    outcome = rehearsal.outcome(time.monotonic() - began, time.process_time() - used)
    del rehearsal
    # A team is full of circles once it is over.
    gc.collect()
    return outcome


def _teams(plan: FleetPlan, processes: int) -> Iterator[TeamOutcome]:
    if processes == 1:
        yield from (run_team(plan, team) for team in range(plan.teams))
        return
    # Not forked: a process that runs threads, as whoever calls this may, cannot be forked safely. Nor replaced after
    # some teams: with `max_tasks_per_child` the pool of Python 3.11 can wait for ever for one that it never starts.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        left: set[Future[TeamOutcome]] = {pool.submit(run_team, plan, team) for team in range(plan.teams)}
        while left:
            found, left = wait(left, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in found)
