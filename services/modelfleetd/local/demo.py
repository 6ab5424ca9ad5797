"""A real model takes over real traffic, before your eyes, in about two minutes.

Brings everything up in a folder of its own, trains two click models on the first days of a fashion shop's log, serves
one of them, replays the following days as traffic, and launches the other one in a pool that is too small for both.

Scenarios:
  replace        the candidate is as good as the baseline and replaces it
  miscalibrated  the candidate predicts four times too many clicks: a gate fails and everything goes back
  crash          as replace, while the launcher is killed in the middle of each phase
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from modelfleet.errors import ModelfleetError
from modelfleetd.local.demo_screen import DemoScreen
from modelfleetd.local.demo_story import play
from modelfleetd.local.refusals import CannotRun

SCENARIOS = ("replace", "miscalibrated", "crash")


async def _main(scenario: str, data_dir: Path | None, screen: DemoScreen) -> dict[str, object]:
    story = asyncio.ensure_future(play(scenario, data_dir, screen))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, story.cancel)
    return (await story).as_dict()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def main(argv: Sequence[str] | None = None) -> int:
    """Plays a scenario; the exit status is 0 where everything went as it promises."""
    parser = argparse.ArgumentParser(
        prog="modelfleetd demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", choices=SCENARIOS, default="replace", help="default: replace")
    parser.add_argument("--data-dir", type=Path, help="keep the data there (default: a folder that goes with the demo)")
    parser.add_argument(
        "--output", choices=("text", "json"), default="text", help="json: the summary on standard output"
    )
    options = parser.parse_args(argv)
    as_json = options.output == "json"
    screen = DemoScreen(Console(stderr=as_json, highlight=False))
    try:
        summary = asyncio.run(_main(options.scenario, options.data_dir, screen))
    except asyncio.CancelledError:
        screen.say("Stopped. Nothing is left running.")
        return 130
    except (CannotRun, ModelfleetError) as error:
        print(f"modelfleetd demo: {error}", file=sys.stderr)
        return 1
    except BaseExceptionGroup as group:
        known, unknown = group.split((CannotRun, ModelfleetError))
        if known is None or unknown is not None:
            raise
        print(f"modelfleetd demo: {_first(known)}", file=sys.stderr)
        return 1
    if as_json:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(summary, indent=2))
    return 1 if summary["deviations"] else 0


if __name__ == "__main__":
    sys.exit(main())
