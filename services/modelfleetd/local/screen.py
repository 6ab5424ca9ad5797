"""What `up` shows: where it answers, where its data lies, what to type next."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modelfleet.transport import DEFAULT_ADDRESS

_READY = """\
modelfleet is up, after {seconds:.1f} s.

  address   {address}   every service, and every model (gRPC and gRPC-Web)
  data      {data_dir}   (what each process says: logs/)
  database  {database}
  services  {services}
  region    regions/local: replicas run on this machine

In another terminal:

{hints}

Ctrl-C stops everything; the data stays.
"""
# What to type next, and what it is good for.
_HINTS = (
    ("modelfleet", "registry region list", "what is registered: one region"),
    ("modelfleet", "--help", "what else there is"),
    ("modelfleetd", "demo", "a real launch on real traffic, apart from this"),
)
_PARTS = ("registry", "capacity", "launcher", "stability", "node")


class Screen:
    """Words for a person on a terminal, lines for a log, or one line of JSON for a program."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet = quiet
        self._json = as_json
        if not quiet and not as_json:
            self._say("Starting modelfleet …")

    def ready(self, status: Mapping[str, Any]) -> None:
        """Says that everything answers."""
        if self._json:
            print(json.dumps({"event": "ready", **status}), flush=True)
            return
        ports = status["ports"]
        self._say(
            _READY.format(
                seconds=status["ready_seconds"],
                address=status["address"],
                data_dir=status["data_dir"],
                database="embedded PostgreSQL" if status["embedded_database"] else "PostgreSQL, as given",
                services=", ".join(f"{part} :{ports[part]}" for part in _PARTS),
                hints="\n".join(_hints(status["address"])),
            )
        )

    def note(self, line: str) -> None:
        """Says what happened meanwhile."""
        if not self._quiet:
            print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    def stopping(self) -> None:
        """Says that the end has begun."""
        self._say("\nStopping …")

    def stopped(self) -> None:
        """Says that nothing runs any more."""
        self._say("Stopped. Nothing is left running.")

    def _say(self, text: str) -> None:
        if not self._quiet and not self._json:
            print(text, flush=True)


def _hints(address: str) -> Iterator[str]:
    """Lines that work when they are typed as they stand: with path and address where they are needed."""
    if address != DEFAULT_ADDRESS:
        yield f"  export MODELFLEET_ADDRESS={address}"
    commands = [(f"{_program(program)} {arguments}", what) for program, arguments, what in _HINTS]
    width = max(len(command) for command, _ in commands)
    for command, what in commands:
        yield f"  {command:<{width}}   {what}"


def _program(name: str) -> str:
    """What to type for a program: its name where that finds ours, else its path."""
    ours = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and Path(found) == ours:
        return name
    with contextlib.suppress(ValueError):
        return str(ours.relative_to(Path.cwd()))
    return str(ours)
