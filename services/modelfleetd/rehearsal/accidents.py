"""What goes wrong with a launch that is rehearsed, where a scenario has it so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from modelfleetd.platform.simulator import Simulator
from modelfleetd.rehearsal.chance import Trouble
from modelfleetd.rehearsal.fleet import Fleet
from modelfleetd.rehearsal.scenario import Accident

_CRASHES: Final = 0.1


def happens(fleet: Fleet, name: str, accident: Accident, regions: Sequence[str]) -> Callable[[], str]:
    """What an accident does to a launch in some regions, and what is said of it."""

    def happen() -> str:
        row = fleet.launches.rows[name]
        model = row.launch.candidate if accident.of == "new" else row.launch.baseline
        simulators = [fleet.simulator(row.launch.model_type, region) for region in regions]
        lasts = f"for {accident.seconds:g} s"

        def for_a_while(begin: Callable[[Simulator], object], end: Callable[[Simulator], object]) -> None:
            for simulator in simulators:
                begin(simulator)
            fleet.after(accident.seconds, lambda _: [end(simulator) for simulator in simulators])

        def troubled(change: Callable[[Trouble], Trouble], back: Callable[[Trouble], Trouble]) -> None:
            row.trouble = change(row.trouble)
            fleet.after(accident.seconds, lambda _: setattr(row, "trouble", back(row.trouble)))

        match accident.what:
            case "kill":
                killed = sum(simulator.kill(model, accident.replicas) for simulator in simulators)
                return f"{killed} replicas of the {accident.of} model are killed"
            case "starts-fail":
                for_a_while(lambda at: at.failing_models.add(model), lambda at: at.failing_models.discard(model))
                return f"replicas of the {accident.of} model fail to start, {lasts}"
            case "no-machines":
                for_a_while(lambda at: at.pending_models.add(model), lambda at: at.settle_starts())
                return f"no machine comes for the {accident.of} model, {lasts}"
            case "agent-away":
                for region in regions:
                    fleet.cut_off(row.launch.model_type, region, accident.seconds)
                return f"the agent does not answer, {lasts}"
            case "judge-away":
                troubled(
                    lambda trouble: replace(trouble, judge_away_rate=1.0),
                    lambda trouble: replace(trouble, judge_away_rate=0.0),
                )
                return f"the judge does not answer, {lasts}"
            case "launcher-crashes":
                troubled(
                    lambda trouble: replace(trouble, crash_rate=_CRASHES),
                    lambda trouble: replace(trouble, crash_rate=0.0),
                )
                return f"the launcher crashes at every tenth commit or call, {lasts}"
            case "candidate-fails":
                usual = simulators[0].error_rates.get(model, 0.0)
                for_a_while(
                    lambda at: at.error_rates.update({model: accident.rate}),
                    lambda at: at.error_rates.update({model: usual}),
                )
                return f"{accident.rate:.3g} of the {accident.of} model's requests fail, {lasts}"
            case _:
                usual = simulators[0].latencies.get(model, simulators[0].behaviour.latency_ms)
                slow = usual * accident.factor
                for_a_while(
                    lambda at: at.latencies.update({model: slow}), lambda at: at.latencies.update({model: usual})
                )
                return f"the {accident.of} model is {accident.factor:g} times as slow, {lasts}"

    return happen
