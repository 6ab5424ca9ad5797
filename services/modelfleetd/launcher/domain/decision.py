"""What the team's launch policy says of a launch's capacity: whether somebody is to be asked, and whom."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta


class Outcome(enum.Enum):
    """What was decided, in capacity's words."""

    ACCEPTED = 1
    NEEDS_APPROVAL = 2
    EVIDENCE_MISSING = 3


@dataclass(frozen=True, slots=True)
class Approver:
    """Somebody who may approve: whoever has a role on a team."""

    role: str
    team: str

    def __str__(self) -> str:
        return f"{self.role} of {self.team}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a launch policy said.

    Attributes:
        name: of the decision that capacity keeps; empty where it keeps none.
        explanation: why, in a sentence or two with the figures.
        approvers: any one of them may approve; empty where nobody need be asked.
        policy: the launch policy; empty for the one that is built in, free within quota.
        rollback_window: how long a successful launch keeps what a rollback needs.
    """

    name: str
    outcome: Outcome
    explanation: str
    approvers: tuple[Approver, ...] = ()
    policy: str = ""
    rollback_window: timedelta | None = None

    @property
    def needs_approval(self) -> bool:
        return self.outcome is not Outcome.ACCEPTED

    @property
    def said(self) -> str:
        """Which policy says what, for people."""
        asked = self.policy or "free within quota, since the team has no launch policy"
        said = f"{self.outcome.name} by {asked}: {self.explanation}"
        return f"{said} {self.who} may approve it." if self.needs_approval else said

    @property
    def who(self) -> str:
        """Who may approve, for people."""
        return " or ".join(map(str, self.approvers))
