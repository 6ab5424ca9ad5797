"""What people were told of launches."""

from __future__ import annotations

from modelfleet.launcher.v1 import notifications_pb2
from modelfleetd.kit import paging
from modelfleetd.launcher.api.base import Base, Context
from modelfleetd.launcher.wire.notifications import notification_to_proto


class Notifications(Base):
    """What people were told of launches."""

    async def ListNotifications(
        self, request: notifications_pb2.ListNotificationsRequest, context: Context
    ) -> notifications_pb2.ListNotificationsResponse:
        page = paging.read(request, int)
        rows = await self._store.notifications(
            launch=request.launch,
            pending_only=request.pending_only,
            before=int(page.position[0]) if page.position else None,
            limit=page.size + 1,
        )
        shown, token = page.answer(rows, lambda row: (row.number,), notification_to_proto)
        return notifications_pb2.ListNotificationsResponse(notifications=shown, next_page_token=token)
