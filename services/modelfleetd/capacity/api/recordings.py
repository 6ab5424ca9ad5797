"""Recordings of live traffic."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from modelfleet.capacity.v1 import recordings_pb2 as pb
from modelfleet.recordings import RecordingError
from modelfleetd import names
from modelfleetd.capacity.api.base import Base, Context, actor, before, new_name
from modelfleetd.capacity.domain.recording import ENDED, Source, Wanted
from modelfleetd.capacity.store import recordings
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import recordings as wire
from modelfleetd.errors import NotConfigured, RecordingUnreadable, ResourceInUse, WrongState, invalid
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection


class Recordings(Base):
    """Implements the methods of recordings."""

    async def CreateRecording(self, request: pb.CreateRecordingRequest, context: Context) -> pb.Recording:
        wanted = wire.wanted_from_proto(request.recording)
        await self._check_references(wanted)
        name, by = new_name(names.RECORDING, "r"), actor()
        uri = self._datasets.place(name, wanted.path)
        if wanted.source is Source.CLIENT:
            await self._check_dataset(wanted, uri)

        async def act(conn: Connection) -> pb.Recording:
            if wanted.source is Source.CLIENT:
                await recordings.lock_places(conn)
                if holder := await recordings.holder_of(conn, uri):
                    raise invalid("recording.path", f"must be of a dataset that no recording has: {holder} has it")
            return wire.recording_to_proto(await recordings.insert(conn, name, wanted, uri, by))

        return await change(self._database, request, pb.Recording, act)

    async def _check_references(self, wanted: Wanted) -> None:
        await self._registry.check_model_type(wanted.model_type, "recording.model_type")
        if wanted.region is not None and not await self._registry.agent_address(wanted.region, "recording.region"):
            raise NotConfigured(wanted.region, "agent_address")

    async def _check_dataset(self, wanted: Wanted, uri: str) -> None:
        """The type's team may record it; so it must be of that type, and not of another team's."""
        try:
            await self._datasets.check(uri, wanted.model_type)
        except RecordingError as error:
            raise RecordingUnreadable(wanted.path, str(error)) from error

    async def GetRecording(self, request: pb.GetRecordingRequest, context: Context) -> pb.Recording:
        return wire.recording_to_proto(await recordings.get(self._database, request.name))

    async def ListRecordings(self, request: pb.ListRecordingsRequest, context: Context) -> pb.ListRecordingsResponse:
        page = paging.read(request, int)
        found = await recordings.page(self._database, request.model_type, before(page), page.size + 1)
        shown, token = page.answer(
            found, lambda row: (row.sequence,), lambda row: wire.recording_to_proto(row.recording)
        )
        return pb.ListRecordingsResponse(recordings=shown, next_page_token=token)

    async def StopRecording(self, request: pb.StopRecordingRequest, context: Context) -> pb.Recording:
        by = actor()

        async def act(conn: Connection) -> pb.Recording:
            found = await recordings.lock(conn, request.name)
            stopped = found if found.state in ENDED else await recordings.stop(conn, found.name, by)
            return wire.recording_to_proto(stopped)

        return await change(self._database, request, pb.Recording, act)

    async def DeleteRecording(self, request: pb.DeleteRecordingRequest, context: Context) -> Empty:
        async def act(conn: Connection) -> Empty:
            found = await recordings.lock(conn, request.name)
            if found.state not in ENDED:
                raise WrongState(found.name, found.state.name, ("StopRecording",))
            if replaying := await recordings.replayed_by(conn, found.name):
                raise ResourceInUse(found.name, replaying)
            await recordings.delete(conn, found.name)
            return Empty()

        return await change(self._database, request, Empty, act)
