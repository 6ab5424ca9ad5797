"""`modelfleet stability`: are the predictions still right? A file per noun."""

from __future__ import annotations

import click

from modelfleet.cli.session import FleetGroup
from modelfleet.cli.stability.alerts import alert, silence
from modelfleet.cli.stability.ingest import ingest
from modelfleet.cli.stability.judge import judge
from modelfleet.cli.stability.ranges import ranges
from modelfleet.cli.stability.replay import replay
from modelfleet.cli.stability.show import show
from modelfleet.cli.stability.slo import rules, slo
from modelfleet.cli.stability.status import get, list_, status
from modelfleet.cli.stability.top import top


@click.group(cls=FleetGroup)
def group() -> None:
    """Are the predictions still right?"""


for command in (
    status, list_, get, top, show, judge, replay, ranges, slo, rules, alert, silence, ingest,
):  # fmt: skip
    group.add_command(command)
