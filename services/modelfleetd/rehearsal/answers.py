"""What gates say in a rehearsal that are asked elsewhere: the registry's evidence rules, and webhooks."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelfleetd.launcher.domain.gates import WEBHOOK
from modelfleetd.launcher.domain.record import Verdict
from modelfleetd.launcher.ports import Judgement


@dataclass(frozen=True, slots=True)
class Answer:
    """What a gate says for a while; where nothing is said of it, and before and after that, it passes.

    Attributes:
        gate: `evidence`, or `webhook/NAME`.
        says: the verdict.
        since: from when on, in seconds after the launch was created.
        lasts: for how many seconds.
        chance: with what probability it says so each time that it is asked anew.
    """

    gate: str
    says: Verdict
    since: float = 0.0
    lasts: float = float("inf")
    chance: float = 1.0


class Answers:
    """Implements `Webhooks`, and says what the registry finds of the evidence.

    Attributes:
        evidence_rules: how many rules the model type has.
        given: what gates say; of several that say something now, the first.
    """

    def __init__(self) -> None:
        self.evidence_rules = 0
        self.given: Sequence[Answer] = ()
        self._seconds: Callable[[], float] = _at_once
        self._draw = random.Random(0)
        self._answered: dict[str, Judgement] = {}

    def expect(self, given: Sequence[Answer], evidence_rules: int, seed: int, seconds: Callable[[], float]) -> None:
        """Says what gates will answer.

        Args:
            given: their answers.
            evidence_rules: how many rules the model type has.
            seed: of what is drawn.
            seconds: how long ago the launch was created.
        """
        self.given, self.evidence_rules, self._seconds = given, evidence_rules, seconds
        self._draw = random.Random(f"{seed} answers")

    @property
    def gates(self) -> frozenset[str]:
        return frozenset(one.gate.removeprefix(WEBHOOK) for one in self.given if one.gate.startswith(WEBHOOK))

    async def ask(self, name: str, key: str, document: Mapping[str, Any]) -> Judgement:
        """What is asked again with the same key is answered as before."""
        if key not in self._answered:
            said = self.of(f"{WEBHOOK}{name}")
            if said.verdict is Verdict.ERROR:
                return said
            self._answered[key] = said
        return self._answered[key]

    def of(self, gate: str) -> Judgement:
        """What a gate says now."""
        now = self._seconds()
        for one in self.given:
            there = one.gate == gate and one.since <= now < one.since + one.lasts
            if there and (one.chance >= 1 or self._draw.random() < one.chance):
                return Judgement(one.says, f"the scenario has it say {one.says.name}")
        return Judgement(Verdict.PASS, "the scenario has nothing against it")


def _at_once() -> float:
    return 0.0
