"""Gates as people type them, and as they are shown."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import click

from modelfleet.cli.parameters import SHARE
from modelfleet.launcher.v1 import gates_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb

_WHEN = {
    "before-start": gates_pb2.WebhookGate.BEFORE_START,
    "every-step": gates_pb2.WebhookGate.EVERY_STEP,
    "before-finalize": gates_pb2.WebhookGate.BEFORE_FINALIZE,
}


class WebhookParameter(click.ParamType[gates_pb2.WebhookGate]):
    """A webhook and when it is asked: `change-board`, `load-test@every-step`."""

    name = "name[@when]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> gates_pb2.WebhookGate:
        """The gate."""
        if isinstance(value, gates_pb2.WebhookGate):
            return value
        webhook, at, when = str(value).strip().partition("@")
        if not webhook or (at and when not in _WHEN):
            self.fail(f"'{value}' is no webhook; write NAME, or NAME@ with one of {', '.join(_WHEN)}", param, ctx)
        return gates_pb2.WebhookGate(webhook=webhook, when=_WHEN[when or "before-start"])


class PeopleParameter(click.ParamType[gates_pb2.PeopleGate]):
    """A share and what people are to look at before it is exceeded: `20%:the dashboards of the feed`."""

    name = "share:reason"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> gates_pb2.PeopleGate:
        """The gate."""
        if isinstance(value, gates_pb2.PeopleGate):
            return value
        share, _, reason = str(value).strip().partition(":")
        if not reason.strip():
            self.fail(f"'{value}' says not what to look at; write SHARE:REASON, such as 20%:latency", param, ctx)
        points = 0 if share.strip() in ("0", "0%") else SHARE.convert(share, param, ctx)
        return gates_pb2.PeopleGate(after_share_basis_points=points, reason=reason.strip())


def latest(launch: pb.Launch) -> list[pb.GateVerdict]:
    """The last verdict of each run of equal ones, oldest first: a gate is asked often, and mostly says the same."""
    by_gate = sorted(launch.gate_verdicts, key=lambda v: (v.gate, v.region))
    runs = groupby(by_gate, key=lambda v: (v.gate, v.region, v.step, v.verdict))
    return sorted((list(run)[-1] for _, run in runs), key=lambda v: v.time.ToNanoseconds())
