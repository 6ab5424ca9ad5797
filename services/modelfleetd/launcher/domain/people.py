"""People's gates: where a launch stands until somebody other than its creator lets it on. Pure.

A gate holds the launch before its candidate's share exceeds the gate's: at the end of the last step that does not,
after its bake and its gates, before anything of the old side is given up. Gates go on being measured meanwhile. Only
the gate's own deadline counts on.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from modelfleetd.launcher.domain import waves
from modelfleetd.launcher.domain.actions import Action, Advance, Wait
from modelfleetd.launcher.domain.changes import replace
from modelfleetd.launcher.domain.deadlines import accounted
from modelfleetd.launcher.domain.launch import Launch, going_back
from modelfleetd.launcher.domain.policy import PeopleGate
from modelfleetd.launcher.domain.record import PeopleApproval, PeopleWait
from modelfleetd.launcher.domain.shares import FULL
from modelfleetd.launcher.domain.states import State

# How often people's answers are looked for; verbs wake the launch at once.
_LOOK: Final = 60.0


def next_share(launch: Launch) -> int:
    """The largest share that a region goes to next; beyond every share where no region has a further step."""
    if launch.plan is None:
        return 0
    done = launch.step.number if launch.state is State.SHIFTING else 0
    wave = [launch.plan.regions[at].steps for at in waves.shifted(launch)]
    return max((steps[done].share for steps in wave if done < len(steps)), default=FULL + 1)


def gate_before(launch: Launch, share: int) -> int | None:
    """The first gate, by its position, that nobody has passed and that holds before a share is exceeded."""
    if not launch.is_judged:
        return None
    passed = {approval.gate for approval in launch.people_approvals}
    gates = enumerate(launch.policy.people_gates)
    return next((at for at, gate in gates if at not in passed and gate.after_share_basis_points < share), None)


def stand(launch: Launch, now: datetime) -> Action | None:
    """What a launch does that is about to go on to the next share; None where no gate holds it."""
    at = gate_before(launch, next_share(launch))
    if at is None:
        return None
    gate = launch.policy.people_gates[at]
    waiting = launch.people_wait
    if waiting is None or waiting.gate != at:
        begun = replace(launch, people_wait=PeopleWait(at, now, now + gate.deadline, now))
        return Advance("AwaitingPeople", f"stands until somebody lets it on: {gate.reason}", begun, progress=False)
    if now >= waiting.deadline and not launch.paused:
        nobody = f"nobody let it on within {gate.deadline}: {gate.reason}"
        return Advance("Rejected", nobody, going_back(launch, "deadline", nobody, now), progress=False)
    return Wait("AwaitingPeople", _waits(launch, gate, waiting), _LOOK)


def _waits(launch: Launch, gate: PeopleGate, waiting: PeopleWait) -> str:
    launch_id = launch.name.rpartition("/")[2]
    return (
        f"waits for somebody other than {launch.actor} to look, until {waiting.deadline:%F %R}: "
        f"{gate.reason.rstrip('.')}; they let it on with: modelfleet launch approve {launch_id}"
    )


def let_on(launch: Launch, author: str, now: datetime) -> Launch:
    """Somebody passes the gate at which the launch stands."""
    assert launch.people_wait is not None
    passed = PeopleApproval(launch.people_wait.gate, author, now)
    launch = accounted(launch, now)
    return replace(launch, people_wait=None, people_approvals=(*launch.people_approvals, passed))
