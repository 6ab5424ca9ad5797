"""`modelfleet stability status`, `list`, `get` and `top`, as people and programs read them."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from modelfleet.cli.stability import standing_view as view
from modelfleet.cli.stability.top import Board, live_board
from modelfleet.common.v1.serving_pb2 import TIER2
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleet.stability.v1 import stability_pb2 as pb
from tests.api.test_cli import runner
from tests.support.fleet import fleet
from tests.support.standings import adopt
from tests.support.wait import until

CALIBRATION = monitoring_pb2.HealthyRange.CALIBRATION


async def test_the_commands_show_the_fleet_and_programs_get_it_as_data(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with fleet(database_url, ["registry", "stability"]) as running, running.client() as client:
        await adopt(client)
        run = runner(running, "stability", capsys)

        async def is_listed() -> bool:
            return "ctr/main" in (await run("stability", "list")).out

        await until(is_listed)
        got = await run("stability", "get", "ctr/main")
        assert got.out.startswith("ctr/main  NOT_APPLICABLE\n")
        assert "BASELINE" in got.out
        status = json.loads((await run("stability", "status", "--by", "tier", "-o", "json")).out)
        assert (status["total"]["models"], status["total"]["not_applicable"]) == (1, 1)
        assert status["worst"] == []
        assert "(no tier)" in (await run("stability", "status", "--by", "tier")).out
        top = await run("stability", "top")
        assert top.status == 0
        assert top.out.startswith("0 unstable, 0 unavailable, 0 unknown of 1  ")
        refused = await run("stability", "list", "--filter", "colour = red")
        assert refused.status == 1
        assert "cannot be filtered by 'colour'" in refused.err
        assert "No model fits" in (await run("stability", "list", "--filter", "state = UNSTABLE")).out


def model(name: str, **fields: object) -> pb.ModelStability:
    given: dict[str, object] = {
        "model": f"modelTypes/ig_stories_tray_mtml/models/{name}",
        "state": pb.ModelStability.STABLE,
        "role": registry_pb2.Model.EXPERIMENT,
        "tier": TIER2,
        "team": "teams/feed",
        "availability": pb.Availability(state=pb.Availability.AVAILABLE, requests=100, success_share=1),
    }
    return pb.ModelStability(**given | fields)  # type: ignore[arg-type]


UNSTABLE = model(
    "v8",
    state=pb.ModelStability.UNSTABLE,
    culprit_prediction="like",
    culprit_metric=CALIBRATION,
    metrics=[
        pb.MetricStability(
            prediction="like",
            metric=CALIBRATION,
            value=pb.Estimate(state=pb.Estimate.VALUE, value=1.314),
            range=pb.Limits(low=0.94, high=1.06),
        )
    ],
)


@pytest.mark.parametrize("width", [80, 200])
def test_a_narrow_screen_shows_a_line_a_model_and_a_wide_one_all_of_it(width: int) -> None:
    board = Board()
    board.take(pb.WatchStabilityResponse(models=[model("v7"), UNSTABLE]))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(board.picture(10, width))
    lines = [line for line in console.export_text().splitlines() if line]
    assert lines[0].startswith("1 unstable, 0 unavailable, 0 unknown of 2")
    assert len(lines) == 4
    assert "ig_stories_tray_mtml/v8" in lines[2] and "like calibration" in lines[2]
    assert "1.31" in lines[2] and "0.94 to 1.06" in lines[2]
    assert ("feed" in lines[2]) == (width == 200)


def test_what_serves_no_more_leaves_the_board_and_down_is_told_from_irrelevant() -> None:
    down = pb.Availability(state=pb.Availability.UNAVAILABLE, requests=1000, success_share=0.99996)
    failing = model("v9", availability=down)
    assert (view.what(failing), view.measured(failing)) == ("requests", "99.99% succeed")  # never rounded up to all
    board = Board()
    board.take(pb.WatchStabilityResponse(models=[UNSTABLE, failing]))
    board.take(pb.WatchStabilityResponse(removed=[UNSTABLE.model]))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(board.picture(10, 120))
    text = console.export_text()
    assert "v8" not in text and "UNAVAILABLE" in text


def test_what_to_do_says_which_action_fits_the_role() -> None:
    [first, second] = view.what_to_do(UNSTABLE)
    assert "modelfleet mitigate ig_stories_tray_mtml/v8" in first
    assert "modelfleet stability show ig_stories_tray_mtml/v8 --prediction like" in second
    baseline = pb.ModelStability()
    baseline.CopyFrom(UNSTABLE)
    baseline.role = registry_pb2.Model.BASELINE
    assert "never simply turned off" in next(view.what_to_do(baseline))


def test_an_interrupted_board_leaves_its_last_table_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    def changes() -> Iterator[pb.WatchStabilityResponse]:
        yield pb.WatchStabilityResponse(
            models=[pb.ModelStability(model="modelTypes/feed/models/v7", state=pb.ModelStability.STABLE)]
        )
        raise KeyboardInterrupt

    keyboard, terminal = os.openpty()
    written = io.StringIO()
    with os.fdopen(keyboard), os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(KeyboardInterrupt):
            live_board(Board(), changes(), Console(file=written, force_terminal=True, width=80, height=24), None)
    leaves_its_own_screen = "\x1b[?1049l"
    assert "feed/v7" in written.getvalue().rpartition(leaves_its_own_screen)[2]
