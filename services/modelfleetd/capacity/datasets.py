"""The datasets of recordings, beneath one root: read and deleted in threads, so that nothing waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from modelfleet.recordings import Dataset, RecordingError, Summary, is_beneath
from modelfleet.recordings.layout import locate
from modelfleetd import names
from modelfleetd.errors import NotConfigured

# Rows between two looks at whether to go on.
_LOOK_ROWS = 4096


class _Stopped(Exception):
    """Nobody waits for the summary any more."""


class Datasets:
    """Everything that capacity does to datasets.

    Args:
        root: a local folder or a URI; empty: none is configured.
    """

    def __init__(self, root: str) -> None:
        # Agents have another working directory.
        self._root = root.rstrip("/") if "://" in root or not root else str(Path(root).absolute())

    def place(self, name: str, path: str) -> str:
        """Returns where the dataset of a recording is: at a client's path, else at one of its own.

        Raises:
            NotConfigured: there is no root.
        """
        if not self._root:
            raise NotConfigured("capacity", "root of recordings (--recordings-uri)")
        return f"{self._root}/{path or names.RECORDING.parse(name)[0]}"

    async def check(self, uri: str, model_type: str) -> None:
        """Raises RecordingError where there is no dataset that might be replayed, or it is not of that type alone."""
        self._expect_inside(uri)
        dataset = await asyncio.to_thread(Dataset.open, uri)
        (wanted,) = names.MODEL_TYPE.parse(model_type)
        if others := sorted(dataset.model_types - {wanted}):
            raise RecordingError(f"it holds requests of {others[0] or 'no model type'}, not of {wanted} alone")

    async def summarize(self, uri: str, alive: Callable[[], Awaitable[bool]], every: float) -> Summary | None:
        """Reads a whole dataset; None where `alive`, which is asked every so many seconds meanwhile, says to stop.

        Raises:
            RecordingError: it cannot be read.
        """
        self._expect_inside(uri)
        stop = threading.Event()
        reading = asyncio.create_task(asyncio.to_thread(_summarize, uri, stop))
        try:
            while not (await asyncio.wait({reading}, timeout=every))[0]:
                if not await alive():
                    return None
            return reading.result()
        finally:
            # A thread cannot be cancelled: it looks.
            stop.set()
            await asyncio.gather(reading, return_exceptions=True)

    async def delete(self, uri: str) -> None:
        """Deletes a dataset; nothing where there is none.

        Raises:
            RecordingError: it cannot be deleted.
        """
        self._expect_inside(uri)
        await asyncio.to_thread(_delete, uri)

    def _expect_inside(self, uri: str) -> None:
        """Nothing else is read, let alone deleted, whatever a row or a link in the folder says."""
        if not self._root or not is_beneath(self._root, uri):
            raise RecordingError(f"{uri} is not beneath the root of recordings")


def _summarize(uri: str, stop: threading.Event) -> Summary:
    def look(requests: int) -> None:
        if requests % _LOOK_ROWS == 0 and stop.is_set():
            raise _Stopped

    return Dataset.open(uri).summarize(look)


def _delete(uri: str) -> None:
    from pyarrow import ArrowException, fs

    filesystem, path = locate(uri)
    try:
        if filesystem.get_file_info(path).type is not fs.FileType.NotFound:
            filesystem.delete_dir(path)
    except (OSError, ArrowException) as error:
        raise RecordingError(f"{uri} cannot be deleted: {error}") from error
