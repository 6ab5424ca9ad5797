"""The stories: what happens to a launch at some of its moments, each in a branch of its own; and what was wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from modelfleetd.errors import WrongState
from modelfleetd.launcher.domain.states import State
from modelfleetd.rehearsal.fleet import Fleet
from tests.support.steps.branches import Branches, branching
from tests.support.steps.cases import OLD, OTHER, Accident, Case, Incident
from tests.support.steps.course import Course
from tests.support.steps.oracle import what_is_wrong, what_is_wrong_after
from tests.support.steps.told import Does


async def undisturbed(case: Case, free: int, accident: Accident = Accident.NOTHING) -> Course:
    """A launch to which nobody does anything: it says which moments there are."""
    course = Course(case, free, accident)
    await course.prepare()
    await course.run()
    return course


async def aborted(
    case: Case, free: int, accident: Accident, moments: Iterable[int], *, again: bool = False
) -> list[str]:
    """People abort right after a change was written; and, where asked for, begin the launch once more."""

    async def story(branches: Branches) -> list[str]:
        course = Course(case, free, accident)
        _parting(branches, course, moments, "aborted after change", course.abort)
        wrong = await _to_the_end(course)
        if again and branches.name and not wrong and course.launch.state is not State.SUCCEEDED:
            course.retry()
            await course.run()
            wrong = what_is_wrong(course)
        return wrong

    return await branching(story)


async def aborted_once(case: Case, free: int, moment: int) -> str:
    """People abort right after a change was written: gives a digest of everything that was done."""
    course = Course(case, free)
    course.then[moment] = course.abort
    await _to_the_end(course)
    return course.fleet.trace()


async def paused(case: Case, free: int, accident: Accident, moments: Iterable[int]) -> list[str]:
    """People pause right after a change was written, and abort when they have thought about it."""

    async def story(branches: Branches) -> list[str]:
        course = Course(case, free, accident)
        _parting(branches, course, moments, "paused after change", course.pause)
        return await _to_the_end(course)

    return await branching(story)


async def promoted(case: Case, free: int, accident: Accident, moments: Iterable[int]) -> list[str]:
    """People have the bakes that remain skipped from some moment on."""

    async def story(branches: Branches) -> list[str]:
        course = Course(case, free, accident)

        async def promote() -> None:
            course.then = dict.fromkeys(range(course.moments + 1, course.moments + 100), course.promote)
            await course.promote()

        _parting(branches, course, moments, "promoted from change", promote)
        return await _to_the_end(course)

    return await branching(story)


async def gone_bad(case: Case, free: int, accident: Accident, moments: Iterable[int]) -> list[str]:
    """The candidate answers badly from some moment on: the gate of availability finds it, and leads back."""

    async def story(branches: Branches) -> list[str]:
        course = Course(case, free, accident)
        _parting(branches, course, moments, "bad after change", course.go_bad)
        return await _to_the_end(course)

    return await branching(story)


async def stalled(case: Case, free: int, calls: Iterable[int], *, aborts: bool) -> list[str]:
    """One call hangs past the lease: others end the launch, forwards or backwards, and then it comes through."""

    async def story(branches: Branches) -> list[str]:
        course = Course(case, free)

        async def hang() -> None:
            if branches.parts(f"call {course.calls} hangs"):
                course.before_call.clear()
                await course.hang(aborts=aborts)

        course.before_call = dict.fromkeys(calls, hang)
        return await _to_the_end(course)

    return await branching(story)


async def unanswered(case: Case, free: int, answers: Collection[int]) -> list[str]:
    """One answer of registry or capacity is lost."""

    async def story(branches: Branches) -> list[str]:
        course = Course(case, free)
        await course.prepare()
        course.world.loses = lambda answer: (
            not branches.name and answer in answers and branches.parts(f"answer {answer} is lost")
        )
        await course.run()
        return what_is_wrong(course)

    return await branching(story)


async def aborted_unanswered(case: Case, free: int, moments: Iterable[int], lost: Iterable[int]) -> list[str]:
    """People abort right after a change was written, and on the way back an answer of registry or capacity is lost.

    Args:
        case: the launch.
        free: units to spare.
        moments: after which changes people abort.
        lost: which answers after that are lost, each in a story of its own.
    """

    async def story(branches: Branches) -> list[str]:
        course = Course(case, free)

        async def abort() -> None:
            for number in lost:
                if branches.parts(
                    f"aborted after change {course.moments}, and answer {number} of the way back is lost"
                ):
                    course.then.clear()
                    course.world.loses = (course.world.answered + number).__eq__
                    await course.abort()
                    return

        course.then = dict.fromkeys(moments, abort)
        return await _to_the_end(course)

    return await branching(story)


async def with_another_baseline(case: Case, free: int, moments: Iterable[int]) -> list[str]:
    """While the launch is on its way the registry gets another baseline; people abort."""

    async def story(branches: Branches) -> list[str]:
        course = Course(replace(case, needs={**case.needs, OTHER: case.needs[OLD]}), free)
        _parting(branches, course, moments, "aborted after change", course.abort)
        await course.prepare()

        def another(fleet: Fleet) -> None:
            course.world.baseline = OTHER

        course.fleet.when(course.name, lambda launch: launch.touched, another)
        await course.run()
        if course.launch.state is State.SUCCEEDED:
            # The registry had it before people aborted.
            return [*course.wrong, *course.fleet.oracle.broken]
        return what_is_wrong(course)

    return await branching(story)


async def mitigated(
    incident: Incident,
    free: int,
    accident: Accident,
    moments: Iterable[int],
    aborts: Callable[[int], Iterable[tuple[str, int]]] = lambda moment: (),
) -> list[str]:
    """Right after a change a mitigation is created.

    Args:
        incident: the launch and its mitigation.
        free: units to spare.
        accident: of the replicas.
        moments: after which changes it is created.
        aborts: for each of them whom people abort, the launch or the mitigation, and so many changes later; each in a
            story of its own beside the one in which they abort nobody.
    """

    async def story(branches: Branches) -> list[str]:
        course = Course(incident.case, free, accident)

        async def mitigate() -> None:
            begun = course.moments
            # What has ended by then as another baseline is not taken back.
            with contextlib.suppress(WrongState):
                incident.mitigate(course)
                if course.launch.abort is not None and not course.launch.ended:
                    await course.fence(course.name)
            for name, later in aborts(begun):
                then = course.then.get(begun + later)
                course.then[begun + later] = _abort(name, then)

        def _abort(name: str, other: Does | None) -> Does:
            async def abort() -> None:
                if name in course.fleet.launches.rows and branches.parts(f"{name} aborted {course.moments}"):
                    course.then.clear()
                    await course.abort(name)
                elif other is not None:
                    await other()

            return abort

        _parting(branches, course, moments, "mitigated after change", mitigate)
        await course.prepare()
        await course.run()
        return what_is_wrong_after(course, incident)

    return await branching(story)


async def _to_the_end(course: Course) -> list[str]:
    await course.prepare()
    await course.run()
    return what_is_wrong(course)


def _parting(branches: Branches, course: Course, moments: Iterable[int], name: str, act: Does) -> None:
    """Has something happen after each of some changes, in a branch of its own in which nothing happens by itself."""

    async def parts() -> None:
        if branches.parts(f"{name} {course.moments}"):
            course.then.clear()
            await act()

    course.then = dict.fromkeys(moments, parts)
