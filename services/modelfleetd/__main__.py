"""`modelfleetd`: starts one of the daemons, or all of them on this machine."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """A command: the module whose `main(argv)` runs it, and what it does in a few words."""

    module: str
    summary: str


# Modules are only imported when their command is called: a service does not pay for another.
COMMANDS: Mapping[str, Command] = {
    "up": Command("modelfleetd.local.up", "everything on this machine: database, front door, services, node agent"),
    "demo": Command("modelfleetd.local.demo", "watch a real model take over real traffic"),
    "registry": Command("modelfleetd.registry.app", "the ledger of what is live, what for, whose and how critical"),
    "capacity": Command("modelfleetd.capacity.app", "quota, reservations, load tests, estimates"),
    "launcher": Command("modelfleetd.launcher.app", "launches: from approval to the new baseline, or back"),
    "stability": Command("modelfleetd.stability.app", "calibration and normalized entropy, and verdicts on them"),
    "node": Command("modelfleetd.node.app", "platform agent of one machine: replicas as processes behind Envoy"),
    "simulate": Command("modelfleetd.rehearsal.command", "rehearse a launch or a fleet in virtual time"),
    "failpoints": Command("modelfleetd.kit.places_command", "places where tests let a process die, by name"),
    "migrate": Command("modelfleetd.migrate", "bring the database's schemas up to date"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _say(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        _say(f"modelfleetd {version('modelfleet')}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"modelfleetd: no command '{arguments[0]}'; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(command.module).main(arguments[1:])
    return status


def _help() -> str:
    lines = [
        "usage: modelfleetd COMMAND [OPTION...]",
        "",
        "The daemons of modelfleet, a control plane for fleets of machine-learning models.",
        "",
        *(f"  {name:<11}{command.summary}" for name, command in COMMANDS.items()),
        "",
        "`modelfleetd COMMAND --help` lists the options of a command. Each is also an environment variable:",
        "--database-url is MODELFLEET_DATABASE_URL. To begin with: modelfleetd up",
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text)


if __name__ == "__main__":
    sys.exit(main())
