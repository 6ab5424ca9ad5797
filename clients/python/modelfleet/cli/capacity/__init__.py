"""`modelfleet capacity`: whose capacity it is, what a replica carries, what a model needs. A file per noun."""

from __future__ import annotations

import click

from modelfleet.cli.capacity.certificates import certificate
from modelfleet.cli.capacity.demand import demand
from modelfleet.cli.capacity.estimates import estimate, estimates
from modelfleet.cli.capacity.loadtests import loadtest
from modelfleet.cli.capacity.loans import loan
from modelfleet.cli.capacity.policies import decide, decision, policy
from modelfleet.cli.capacity.pools import flavor, pool
from modelfleet.cli.capacity.recordings import recording
from modelfleet.cli.capacity.reservations import reservation
from modelfleet.cli.session import FleetGroup


@click.group(cls=FleetGroup)
def group() -> None:
    """Whose capacity it is, and what a model needs.

    Also what a replica carries, and whether a launch is worth its cost.
    """


for command in (
    flavor, pool, loan, reservation, recording, loadtest, certificate, demand, estimate, estimates, policy,
    decide, decision,
):  # fmt: skip
    group.add_command(command)
