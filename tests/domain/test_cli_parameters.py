"""Ends as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from modelfleet.cli.parameters import END, SPAN, UNTIL


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-12-24", datetime(2026, 12, 24, 23, 59, 59, tzinfo=UTC)),
        ("2026-12-24T18:00Z", datetime(2026, 12, 24, 18, tzinfo=UTC)),
        ("2026-12-24T18:00+02:00", datetime(2026, 12, 24, 16, tzinfo=UTC)),
    ],
)
def test_an_end_is_a_day_or_a_time(text: str, meant: datetime) -> None:
    assert UNTIL.convert(text, None, None) == meant


def test_an_end_may_be_a_span_from_now() -> None:
    before = datetime.now(UTC)
    assert timedelta(days=30) <= UNTIL.convert("30d", None, None) - before < timedelta(days=30, minutes=1)


@pytest.mark.parametrize("text", ["soonish", "2026-13-24"])
def test_what_is_no_end_is_told_with_all_that_would_be_one(text: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        UNTIL.convert(text, None, None)
    for accepted in (f"'{text}'", "2026-12-24", "2026-12-24T18:00Z", "30d"):
        assert accepted in refused.value.message


@pytest.mark.parametrize("parameter", [SPAN, END, UNTIL])
@pytest.mark.parametrize("text", ["0m", "0s", "-2h"])
def test_a_span_that_has_to_last_is_above_0(parameter: click.ParamType[object], text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be above 0, for example 2h"):
        parameter.convert(text, None, None)
