"""Which parts are ready, as the front door sees them: it checks the health of each over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Set as AbstractSet

from modelfleetd.kit.ports import HOST

_PAUSE = 0.1
_TIMEOUT = 2.0


async def wait_until_ready(admin_port: int, parts: AbstractSet[str]) -> None:
    """Returns when every part passes its health check."""
    while await unready(admin_port, parts):  # noqa: ASYNC110 - Envoy can only be asked
        await asyncio.sleep(_PAUSE)


async def unready(admin_port: int, parts: AbstractSet[str]) -> set[str]:
    """Returns the parts that do not pass their health check; all of them while the front door does not answer."""
    text = ""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        text = await asyncio.wait_for(_read_clusters(admin_port), _TIMEOUT)
    return set(parts) - healthy_parts(text)


def healthy_parts(clusters: str) -> set[str]:
    """Reads Envoy's /clusters: lines such as `registry::127.0.0.1:40001::health_flags::healthy`."""
    cells = (line.split("::") for line in clusters.splitlines())
    return {cell[0] for cell in cells if len(cell) == 4 and cell[2:] == ["health_flags", "healthy"]}


async def _read_clusters(admin_port: int) -> str:
    reader, writer = await asyncio.open_connection(HOST, admin_port)
    try:
        writer.write(f"GET /clusters HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.read()).decode(errors="replace")
    finally:
        writer.close()
