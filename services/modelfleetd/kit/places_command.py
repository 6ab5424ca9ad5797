"""`modelfleetd failpoints`: the places where a process can be made to die, stop, fail or lose its connections."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from modelfleetd.kit.places import OTHER_PLACES, PLACES

_EXAMPLES = """\
A process passes a place of its own when it has been started with MODELFLEET_FAILPOINT_FILE=FILE in its environment:

  echo launcher.after_act.shift:kill > FILE    whoever comes to the place first dies there (kill -9), once
  ACTION is kill, stop (SIGSTOP), drop (loses every connection) or error (the part does not answer)

For tests and rehearsals of accidents only: a service that proves its callers refuses to start with one.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the names, by part."""
    parser = argparse.ArgumentParser(
        prog="modelfleetd failpoints",
        description="Lists the failpoints by part: before and after every commit and every outgoing call.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="?", default="", help="only those of launcher, capacity, registry, …")
    parser.add_argument("--launch", action="store_true", help="only those that launches pass, and which launches do")
    options = parser.parse_args(argv)
    names = sorted(PLACES if options.launch else {*PLACES, *OTHER_PLACES})
    parts = sorted({_part(name) for name in names})
    if options.part and options.part not in parts:
        parser.error(f"there is no part {options.part}; there are: {', '.join(parts)}")
    shown = _lines(name for name in names if options.part in ("", _part(name)))
    try:
        print("\n".join([*shown, "", _EXAMPLES]), end="", flush=True)  # noqa: T201
    except BrokenPipeError:
        # Whoever reads it has seen enough; nor is there anybody to write the rest to when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _lines(names: Iterable[str]) -> Iterator[str]:
    for part, of_part in groupby(names, _part):
        yield part
        for name in of_part:
            way = PLACES.get(name)
            yield f"  {name:<46}  {f'a launch that {way.value}' if way else OTHER_PLACES[name]}"


def _part(name: str) -> str:
    return name.partition(".")[0]
