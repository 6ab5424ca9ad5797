"""What a load test sends: its sample requests, or a recording, read while it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from modelfleet.recordings import Dataset, RecordingError, Replay
from modelfleetd.capacity.store import recordings
from modelfleetd.capacity.store.loadtests import Claim
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Database


@asynccontextmanager
async def replayed(database: Database, claim: Claim) -> AsyncIterator[Sequence[bytes] | AsyncIterator[bytes]]:
    """Gives sample requests, or a recording's in the order in which they came, over and over.

    Raises:
        RecordingError: it cannot be read, or is not there any more; also while it is read.
    """
    if claim.test.recording is None:
        yield claim.sample_requests
        return
    try:
        uri = (await recordings.get(database, claim.test.recording)).uri
    except ResourceNotFound:
        raise RecordingError("it is not there any more") from None
    async with Replay(await asyncio.to_thread(Dataset.open, uri)) as requests:
        yield requests
