"""Holds on models → how they are shown."""

from __future__ import annotations

from modelfleet.launcher.v1 import holds_pb2
from modelfleetd.kit.codec import to_proto
from modelfleetd.launcher.domain.holds_on_models import ModelHold


def hold_to_proto(hold: ModelHold) -> holds_pb2.Hold:
    """A hold as it is shown."""
    return to_proto(hold, holds_pb2.Hold)
