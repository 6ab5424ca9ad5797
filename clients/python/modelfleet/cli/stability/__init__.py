"""`modelfleet stability`: are the predictions still right? A file per noun."""

from __future__ import annotations

import click

from modelfleet.cli.session import FleetGroup
from modelfleet.cli.stability.judge import judge
from modelfleet.cli.stability.replay import replay
from modelfleet.cli.stability.show import show


@click.group(cls=FleetGroup)
def group() -> None:
    """Are the predictions still right?"""


for command in (show, judge, replay):
    group.add_command(command)
