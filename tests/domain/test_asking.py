"""Why a question was not answered, in the words that people read."""

from __future__ import annotations

import pytest

from modelfleet.asking import Asking, Unknown
from modelfleet.errors import DeadlineExceeded, ModelfleetError, PermissionDenied, Unavailable, Unimplemented

_METHOD = "/modelfleet.stability.v1.StabilityService/JudgeModel"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DeadlineExceeded("too late", method=_METHOD), "stability did not answer within 0.25 s"),
        (Unavailable("failed to connect", method=_METHOD), "stability does not answer"),
        (
            Unavailable("The registry does not answer.", reason="PART_UNAVAILABLE", method=_METHOD),
            "The registry does not",
        ),
        (Unimplemented("no such method", method=_METHOD), "stability does not offer JudgeModel here"),
        (PermissionDenied("bob may not call JudgeModel.", method=_METHOD), "bob may not call JudgeModel"),
    ],
)
async def test_what_is_not_answered_is_unknown_with_the_reason(error: ModelfleetError, said: str) -> None:
    async def refuse(**fields: object) -> str:
        raise error

    found = await Asking(0.25).ask(refuse)
    assert isinstance(found, Unknown) and found.reason.startswith(said)


async def test_every_call_ends_when_the_question_does_and_what_others_need_ends_earlier() -> None:
    given: list[float] = []

    async def note(*, timeout: float) -> None:
        given.append(timeout)

    asking = Asking(1000.0)
    await asking.ask(note)
    await asking.ask(note, part=0.5)
    over = Asking(0.0)
    await over.ask(note)
    assert 999.0 < given[0] <= 1000.0 and 499.0 < given[1] <= 500.0 and given[2] == 0.001
