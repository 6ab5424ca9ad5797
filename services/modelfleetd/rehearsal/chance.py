"""What goes wrong, and how often: drawn from one seed, so that the same seed has the same accidents."""

from __future__ import annotations

import random
from dataclasses import dataclass

from modelfleetd.errors import PartUnavailable


class Crash(Exception):
    """The launcher's process dies here."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """How a launch is troubled. Rates are probabilities of one act or call.

    Attributes:
        crash_rate: the launcher's process dies before or after a commit or a call; another one goes on.
        stall_rate: a call to an agent hangs for longer than the lease; another launcher goes on, and then it gets
            through after all.
        lost_rate: a call to capacity or registry, or its answer, is lost.
        agent_lost_rate: the same for calls to agents.
        judge_away_rate: the judge cannot be asked.
        start_failure_rate: a replica ends before it is ready.
        mean_life_seconds: of a replica that is available; None: it does not die.
        slow_termination: how many times longer replicas take to end.
        failing: no replica of the candidate ever starts.
        calibration: of the candidate: what it predicts over what happens.
        error_rate: share of the candidate's requests that fail.
        latency: of the candidate over that of other models.
        labels: share of the positives whose labels arrive.
        label_delay_seconds: how much later than they are due.
    """

    crash_rate: float = 0.0
    stall_rate: float = 0.0
    lost_rate: float = 0.0
    agent_lost_rate: float = 0.0
    judge_away_rate: float = 0.0
    start_failure_rate: float = 0.0
    mean_life_seconds: float | None = None
    slow_termination: float = 1.0
    failing: bool = False
    calibration: float = 1.0
    error_rate: float = 0.0
    latency: float = 1.0
    labels: float = 1.0
    label_delay_seconds: float = 0.0

    @property
    def convinces(self) -> bool:
        """Whether no gate has anything to find in the candidate, whenever it is asked."""
        answers_well = not self.error_rate and self.latency == 1.0
        return answers_well and self.labels == 1.0 and 0.9 <= self.calibration <= 1.1 and not self.judge_away_rate


NO_TROUBLE = Trouble()


class Chance:
    """Draws what happens to the launch whose round it is. Nothing happens while nobody's is."""

    def __init__(self, seed: int | str) -> None:
        self.draw = random.Random(seed)
        self.trouble = NO_TROUBLE

    def crash(self) -> None:
        """The process may die here."""
        if self.trouble.crash_rate and self.draw.random() < self.trouble.crash_rate:
            raise Crash

    def call(self, part: str) -> None:
        """The process may die here, or the call or its answer be lost."""
        self.crash()
        if self.trouble.lost_rate and self.draw.random() < self.trouble.lost_rate:
            raise PartUnavailable(part)

    def stalls(self) -> bool:
        """Whether the call that is about to be made hangs."""
        return bool(self.trouble.stall_rate) and self.draw.random() < self.trouble.stall_rate

    def is_judge_away(self) -> bool:
        """Whether the judge cannot be asked now."""
        return bool(self.trouble.judge_away_rate) and self.draw.random() < self.trouble.judge_away_rate
