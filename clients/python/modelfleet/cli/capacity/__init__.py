"""`modelfleet capacity`: whose capacity it is, what a replica carries, what a model needs. A file per noun."""

from __future__ import annotations

import click

from modelfleet.cli.capacity.certificates import certificate
from modelfleet.cli.capacity.demand import demand
from modelfleet.cli.capacity.estimates import estimate
from modelfleet.cli.capacity.loadtests import loadtest
from modelfleet.cli.capacity.policies import decide, decision, policy
from modelfleet.cli.capacity.pools import flavor, pool
from modelfleet.cli.capacity.reservations import reservation
from modelfleet.cli.session import FleetGroup


@click.group(cls=FleetGroup)
def group() -> None:
    """Flavors, pools, reservations, load tests, certificates, demand, estimates and launch policies."""


for command in (flavor, pool, reservation, certificate, demand, estimate, policy, decide, decision, loadtest):
    group.add_command(command)
