"""`modelfleet launch`: plan, start, watch and steer launches. A file per concern."""

from __future__ import annotations

import click

from modelfleet.cli.launch.create import create, plan
from modelfleet.cli.launch.freeze import freeze
from modelfleet.cli.launch.hold import group as hold
from modelfleet.cli.launch.notifications import notifications
from modelfleet.cli.launch.show import attempts, describe, events, list_launches, watch
from modelfleet.cli.launch.simulate import simulate
from modelfleet.cli.launch.stats import stats
from modelfleet.cli.launch.verbs import abort, approve, override, pause, promote, reject, resume, retry, rollback, skip
from modelfleet.cli.session import FleetGroup


@click.group(cls=FleetGroup)
def group() -> None:
    """Plan, start, watch and steer launches. LAUNCH is the id of one, such as l1, or its name, launches/l1."""


for command in (
    plan, simulate, create, list_launches, describe, watch, events, pause, resume, skip, abort, approve, reject,
    promote, retry, rollback, attempts, hold,
    override, freeze, stats, notifications,
):  # fmt: skip
    group.add_command(command)
