"""The oracle of what there may be once a launch has ended, whatever happened to it on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelfleetd.capacity.domain.reservation import LIVE
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.states import State
from tests.support.steps.cases import LEAST, ROOM, TYPE, Incident
from tests.support.steps.course import Course


def what_is_wrong(course: Course) -> list[str]:
    """What must not be, at any event and in the end."""
    wrong, launch = _settle(course), course.launch
    if launch.state not in (State.SUCCEEDED, State.ROLLED_BACK, State.CANCELLED):
        return [*wrong, f"it is {launch.state.name}: {[c.message for c in launch.conditions]}"]
    if not course.disturbed and launch.state is not State.SUCCEEDED:
        wrong.append(f"nothing went wrong, and it is {launch.state.name}: {launch.abort}")
    if course.name in course.aborted and launch.state is State.SUCCEEDED:
        wrong.append("aborted before the registry had it, and it has succeeded")
    if course.fails_a_bake and (launch.state is State.SUCCEEDED or launch.abort is None):
        wrong.append(f"a bake was to find it bad, and it is {launch.state.name}: {launch.abort}")
    return [*wrong, *_disagreements(course, launch)]


def what_is_wrong_after(course: Course, incident: Incident) -> list[str]:
    """The same of a launch and the mitigation that came in its way."""
    wrong = _settle(course)
    rows = [row for row in course.fleet.launches.rows.values() if row.name != "launches/before"]
    succeeded = {row.name: row.launch.state is State.SUCCEEDED for row in rows}
    for row in rows:
        if not row.launch.ended:
            return [*wrong, f"{row.name} is {row.launch.state.name}: {[c.message for c in row.launch.conditions]}"]
        if row.name in course.aborted and succeeded[row.name]:
            wrong.append(f"{row.name} was aborted before the registry had it, and it has succeeded")
        wrong += _outcomes(course, row.launch)
    ends = succeeded[course.name], succeeded.get("launches/m", False)
    if "launches/m" in succeeded and not ends[1] and "launches/m" not in course.aborted | course.late:
        refused = course.launch_of("launches/m").abort
        # What finds no room beside what the launch holds says so, instead of waiting for it.
        if course.free >= ROOM or refused is None or refused.author != "capacity":
            wrong.append(f"the mitigation is {course.launch_of('launches/m').state.name}: {refused}")
    for region in course.case.regions:
        shares, has = incident.ends.get(ends, {}), course.desired(region)
        needs = {model: course.case.needed(model, region, share) for model, share in shares.items()}
        # Where the launch has gone back its baseline keeps what it was given meanwhile, for a part R_min at least.
        more = LEAST if ends == (False, True) else 0
        if all(needs[model] <= has.get(model, 0) <= needs[model] + more for model in needs):
            needs = has
        wrong += _serves(course, f"in the end in {region}", region, shares, needs)
    return wrong


def _settle(course: Course) -> list[str]:
    """Lets what has failed heal. Gives what was wrong at any event, and where everybody does not agree."""
    clock = course.fleet.clock
    course.heal()
    clock.set(clock.monotonic() + 90)
    course.fleet.check()
    return [*course.wrong, *course.fleet.oracle.broken]


def _disagreements(course: Course, launch: Launch) -> list[str]:
    """Where launch, registry, capacity and platform do not say the same."""
    succeeded = launch.state is State.SUCCEEDED
    return [
        *(each for region in course.case.regions for each in _different(course, region, launch)),
        *_differ(
            "roles",
            course.roles(),
            [{**course.roles_before, **course.case.roles} if succeeded else course.roles_before],
        ),
        *_outcomes(course, launch),
    ]


def _different(course: Course, region: str, launch: Launch) -> list[str]:
    where = f"{launch.state.name} in {region}"
    if launch.state is State.SUCCEEDED:
        return _serves(course, where, region, course.case.shares)
    return _serves(course, where, region, course.shares_before[region], course.replicas_before[region])


def _serves(
    course: Course, where: str, region: str, shares: Mapping[str, int], replicas: Mapping[str, int] | None = None
) -> list[str]:
    if replicas is None:
        replicas = {model: course.case.needed(model, region, share) for model, share in shares.items()}
    found = {
        "its shares": (course.shares(region), shares),
        "its replicas": (course.desired(region), replicas),
        "what exists": (course.living(region), replicas),
        "what is booked": (course.booked(region), replicas),
        "the registry's split": (course.fleet.registry.split(TYPE, region), shares),
    }
    return [wrong for what, (have, wanted) in found.items() for wrong in _differ(f"{where}: {what}", have, [wanted])]


def _outcomes(course: Course, launch: Launch) -> list[str]:
    """How registry and capacity have seen a launch end."""
    registry = course.fleet.registry.outcome(launch.name, launch.attempt)
    found = course.fleet.capacity.found(launch.name, launch.attempt)
    ends = {State.SUCCEEDED: ("SUCCEEDED",), State.ROLLED_BACK: ("ROLLED_BACK",)}
    has = registry.name if registry is not None else ""
    wrong = _differ("how the registry has it", has, ends.get(launch.state, ("", "ROLLED_BACK")))
    if found is not None and found.state in LIVE:
        return [*wrong, f"{launch.state.name}, and its reservation is {found.state.name}"]
    said = "" if found is None or found.outcome is None else found.outcome.name
    outcomes = {State.SUCCEEDED: ("SUCCEEDED",), State.ROLLED_BACK: ("ROLLED_BACK", "")}
    return [*wrong, *_differ("how capacity has it", said, outcomes.get(launch.state, ("",)))]


def _differ(what: str, found: object, wanted: Sequence[object]) -> list[str]:
    return [] if found in wanted else [f"{what}: {found}, not {' or '.join(map(str, wanted))}"]
