"""What people were told, as it is shown."""

from __future__ import annotations

from modelfleet.launcher.v1 import notifications_pb2 as pb
from modelfleetd.kit.codec import to_proto
from modelfleetd.launcher.domain.notifications import Outgoing


def notification_to_proto(sent: Outgoing) -> pb.Notification:
    """A notification to one receiver."""
    return to_proto(sent, pb.Notification)
