"""`modelfleet stability judge|replay|show`, as people type it and as it is printed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet import columns
from modelfleet.cli import main
from modelfleet.common.v1.serving_pb2 import ServingSpec
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from tests.support.fleet import fleet
from tests.support.front_door import door

FEED = "modelTypes/feed"
HealthyRange = monitoring_pb2.HealthyRange
Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def run(database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Run]:
    """Four hours of two models, the newer of which predicts three times too much since an hour."""
    async with fleet(database_url, ["registry", "stability"]) as running, running.client() as client:
        await client.registry.create_team(team_id="feed", team=registry_pb2.Team())
        await client.registry.create_region(region_id="eu", region=registry_pb2.Region(agent_address="127.0.0.1:1"))
        like = registry_pb2.Prediction(
            id="like", attribution_window=Duration(seconds=600), ne_range=registry_pb2.Range(low=0.1, high=1.0)
        )
        healthy = HealthyRange(prediction="like", metric=HealthyRange.CALIBRATION, low=0.5, high=1.5)
        model_type = registry_pb2.ModelType(
            team="teams/feed", regions=["regions/eu"], predictions=[like], healthy_ranges=[healthy]
        )
        await client.registry.create_model_type(model_type_id="feed", model_type=model_type)
        spec = ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
        now, rng = datetime.now(UTC), np.random.default_rng(1)
        for number, model in enumerate(("v6", "v7"), 1):
            await client.registry.create_model(parent=FEED, model_id=model, model=registry_pb2.Model(serving_spec=spec))
            ago = np.arange(240, 0, -1).repeat(100)
            odds = rng.uniform(0.02, 0.06, len(ago))
            score = np.where((model == "v7") & (ago <= 60), 3.0, 1.0) * odds
            await client.stability.write_examples(
                columns.examples(
                    model_type=FEED,
                    producer="test",
                    sequence=number,
                    model=f"{FEED}/models/{model}",
                    prediction="like",
                    event_time=[now - timedelta(minutes=int(minutes)) for minutes in ago],
                    score=score,
                    label=(rng.random(len(ago)) < odds).astype(int),
                )
            )
        addresses = {name: found.address for name, found in running.services.items()}
        async with door(tmp_path, addresses) as address:

            async def runs(*arguments: str) -> tuple[int, str, str]:
                capsys.readouterr()
                status = await asyncio.to_thread(main, ["stability", *arguments, "--address", address])
                printed = capsys.readouterr()
                return status, printed.out, printed.err

            yield runs


async def test_a_model_is_judged_by_criteria_or_by_the_ranges_in_force(run: Run) -> None:
    # The healthy range of the model type is in force, not the prediction's default of 0.5 to 2.
    status, printed, _ = await run("judge", "feed/v7", "--last", "50m")
    assert (status, printed.split(":")[0]) == (1, "FAIL")
    assert "wholly above 0.5 to 1.5" in printed
    assert (await run("judge", "feed/v6", "--last", "50m"))[0] == 0
    given = ("--calibration", "..4", "--max-ne-regression", "50%", "--max-calibration-difference", "20%")
    status, printed, _ = await run("judge", "feed/v7", "--baseline", "v6", "--last", "50m", *given)
    assert status == 1
    found = r"^FAIL: calibration of like is [\d.]+ against [\d.]+ of the baseline, a change of \+\d+ %"
    assert re.search(found + r".* where -16.7 % to \+20 % is allowed\.$", printed, re.MULTILINE)
    assert re.search(r"^  PASS: calibration of like is .* within 0 to 4\.$", printed, re.MULTILINE)
    _, printed, _ = await run("judge", "feed/v7", "--baseline", "v6", "--last", "50m")
    assert "Not compared with the baseline: give --max-ne-regression 1%" in printed
    status, _, complaint = await run("judge", "feed/v7", "--calibration", "3")
    assert (status, "write LOW..HIGH, such as 0.95..1.05" in complaint) == (1, True)
    status, _, complaint = await run("judge", "feed/v7", "--prediction", "like")
    assert (status, "--prediction says what criteria are for" in complaint) == (1, True)
    status, _, complaint = await run("judge", "feed/v7", "--prediction", "buy", "--ne", "..1")
    assert (status, "must be one that the model type declares: like" in complaint) == (1, True)


async def test_a_replay_says_when_it_would_have_failed_and_draws_the_course(run: Run) -> None:
    asked = ("feed/v7", "--baseline", "v6", "--from", "2h", "--step", "10m")
    status, printed, _ = await run("replay", *asked)
    assert status == 0
    head, _, said, _, course, legend, _, header, *rows = printed.splitlines()
    assert re.fullmatch(r"feed/v7 against v6, .* UTC, every 10m, 12 moments", head)
    assert re.match(r"Would have failed at \d{4}-\d\d-\d\d \d\d:\d\d UTC, 1 h \d+ min after the start: ", said)
    # Good for an hour, too high since then: the mean leaves the range some minutes later. Over midnight with the day.
    assert re.fullmatch(r"(\d\d \w{3} )?\d\d:\d\d  [?+]{5,8}x{4,7}", course)
    assert legend.startswith("+ passes  x fails")
    assert header.split() == ["FROM", "(UTC)", "AFTER", "VERDICT", "WHY"]
    assert "PASS" in rows[0] + rows[1] and "FAIL" in rows[-1]
    data = json.loads((await run("replay", *asked, "--calibration", "..9", "-o", "json"))[1])
    assert [moment["verdict"] for moment in data["moments"]] == ["PASS"] * 12
    assert "first_fail_time" not in data and "Would not have failed, and passed at" in data["explanation"]
    status, _, complaint = await run("replay", "feed/v7")
    assert (status, "give TYPE/MODEL and --from, or --launch" in complaint) == (1, True)


async def test_a_model_is_shown_as_drawings_as_numbers_and_as_a_picture(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, printed, _ = await run("show", "feed/v7", "--last", "4h", "--resolution", "5m")
    assert status == 0
    lines = printed.splitlines()
    assert re.fullmatch(r"feed/v7 · like, \d{4}-\d\d-\d\d \d\d:\d\d to \d{4}-\d\d-\d\d \d\d:\d\d UTC", lines[0])
    figures = r"calibration 1\.\d+ \[[\d., ]+\], NE [01]\.\d+ \[[\d., ]+\], [\d,]+ positives among 2\d,\d+ examples"
    assert re.fullmatch(figures, lines[1])
    for title in ("Calibration of feed/v7 · like", "Normalized entropy of feed/v7 · like", "Volume"):
        assert title in lines
    assert max(map(len, lines[3:])) <= 80
    _, printed, _ = await run("show", "feed/v7", "--last", "4h", "--resolution", "1h", "--table")
    header, *rows, total = printed[printed.index("SINCE (UTC)") :].splitlines()
    assert header.split()[2:5] == ["CALIBRATION", "CORRECTED", "NE"]
    assert len(rows) in {4, 5} and total.startswith("total")
    picture = tmp_path / "show.svg"
    _, printed, _ = await run("show", "feed/v7", "--last", "4h", "--prediction", "all", "--plot", str(picture))
    assert printed.splitlines()[-1] == f"wrote {picture}"
    assert "Calibration of feed/v7 · like" in picture.read_text()
    data = json.loads((await run("show", "feed/v7", "--last", "4h", "-o", "json"))[1])
    # Some four positives a minute are too few for points of a minute.
    assert 45 <= len(data["points"]) <= 49 or 4 <= len(data["points"]) <= 5
    status, _, complaint = await run("show", "feed/v7", "--plot", "show.jpg")
    assert (status, "ends in .png or .svg" in complaint) == (1, True)
    _, printed, _ = await run("show", "feed/v6", "--last", "1m", "--resolution", "1m")
    assert "feed/v6 · like" in printed


async def test_what_is_wrong_is_told_in_the_words_of_the_command_line(run: Run) -> None:
    for words, said in (
        ("judge feed/v7 --last 0m", "must be above 0, for example 2h"),
        ("judge feed/v7 --ne ..0.9 --confidence 0.2", "--confidence: must be above 0.5 and below 1"),
        ("judge feed/v7 --baseline zz", "--baseline refers to modelTypes/feed/models/zz, which does not exist"),
        ("judge feed/v7 --max-ne-regression 1%", "--max-ne-regression: needs a baseline to compare with"),
        ("ranges propose feed/v7 --prediction zz", "--prediction: number 1 must be one that modelTypes/feed declares"),
        ("ranges clear feed/v7 --prediction zz --reason x", "modelTypes/feed declares no 'zz'; there are: like"),
        ("show feed/v7 --last 500d", "--last: must be at most 416 days before the end"),
        ("show feed/v7 --plot /nonexistent/x.png", "there is no folder /nonexistent"),
        ("silence list nope", "modelTypes/nope does not exist"),
        ("slo get nope", "modelTypes/nope does not exist"),
        ("slo get feed", "modelTypes/feed has no baseline that serves, so it has no objectives"),
        ("get feed", "'feed' is not a model; give TYPE/MODEL or modelTypes/ID/models/ID"),
    ):
        status, _, err = await run(*words.split())
        assert status == 1 and said in err, (words, err)
