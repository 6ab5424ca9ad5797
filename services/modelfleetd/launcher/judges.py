"""Asks the gates of a launch. Whatever keeps a gate from answering is an ERROR of it, and no verdict on the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelfleetd.errors import FleetError
from modelfleetd.launcher.domain import availability, gates
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.observed import Seen
from modelfleetd.launcher.domain.record import STABILITY, Verdict
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.ports import Judgement, World


class Judges:
    """Whoever says PASS or FAIL."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def ask(self, launch: Launch, gate: str, seen: Seen | None, *, final: bool) -> Judgement:
        """Asks one gate.

        Args:
            launch: at a point at which the gate is asked.
            gate: its name.
            seen: the region that is being shifted; None where nothing is.
            final: whether the bake is over.
        """
        try:
            return await self._ask(launch, gate, seen, final=final)
        except FleetError as error:
            return Judgement(Verdict.ERROR, f"{gate} could not be asked: {error.message}")

    async def _ask(self, launch: Launch, gate: str, seen: Seen | None, *, final: bool) -> Judgement:
        if gate == gates.AVAILABILITY:
            assert seen is not None
            found = availability.judge(launch, seen, final=final)
            return Judgement(found.verdict, found.explanation, found.figures)
        if gate == gates.EVIDENCE:
            return await self._world.registry.evaluate_evidence(launch.candidate, launch.baseline)
        if gate == STABILITY:
            assert launch.weight_time is not None
            return await self._world.stability.judge(
                launch.candidate, launch.baseline, launch.weight_time, launch.policy.stability_gate
            )
        return await self._ask_webhook(launch, gate)

    async def _ask_webhook(self, launch: Launch, gate: str) -> Judgement:
        webhooks = self._world.webhooks
        if webhooks is None:
            return Judgement(Verdict.ERROR, f"{gate} could not be asked: this launcher has no webhooks configured")
        return await webhooks.ask(gate.removeprefix(gates.WEBHOOK), gates.key_of(launch, gate), question(launch, gate))


def question(launch: Launch, gate: str) -> Mapping[str, Any]:
    """What a webhook is asked: which launch, and where it is."""
    shifting = launch.state is State.SHIFTING
    return {
        "gate": gate,
        "asked": gates.point_of(launch).name,
        "launch": launch.name,
        "attempt": launch.attempt,
        "model_type": launch.model_type,
        "candidate": launch.candidate,
        "baseline": launch.baseline,
        "strategy": launch.strategy.name,
        "actor": launch.actor,
        "reason": launch.reason,
        "region": launch.region_plan.region if shifting else "",
        "step": launch.step.number if shifting else 0,
        "share_basis_points": launch.step_plan.share if shifting else 0,
        "trace_id": launch.trace_id,
    }
