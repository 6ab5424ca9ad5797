"""PostgreSQL's binary COPY format, written from numpy arrays without a loop over rows."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from modelfleetd.kit.db import Connection

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"


class _Copies(Protocol):
    async def copy_to_table(
        self,
        table_name: str,
        *,
        source: io.BytesIO,
        columns: Sequence[str],
        format: str,  # noqa: A002
    ) -> str: ...
    async def copy_from_query(self, query: str, *args: object, output: _Taker, format: str) -> str: ...  # noqa: A002


_Taker = Callable[[bytes], Awaitable[None]]


async def copy_rows(conn: Connection, table: str, columns: dict[str, tuple[str, npt.NDArray[Any]]]) -> None:
    """Copies rows into a table.

    Args:
        conn: with an open transaction.
        table: to copy into.
        columns: by name, the type as numpy writes it big-endian (`>i4`, `>i8`, `>f8`, `>i2`, `?`) and the values.
    """
    rows = len(next(iter(columns.values()))[1])
    if not rows:
        return
    layout: list[tuple[str, str]] = [("fields", ">i2")]
    for name, (kind, _) in columns.items():
        layout += [(f"size of {name}", ">i4"), (name, kind)]
    made = np.empty(rows, dtype=layout)
    made["fields"] = len(columns)
    for name, (kind, values) in columns.items():
        made[f"size of {name}"] = np.dtype(kind).itemsize
        made[name] = values
    source = io.BytesIO(b"".join((_HEADER, made.tobytes(), _TRAILER)))
    await cast(_Copies, conn).copy_to_table(table, source=source, columns=list(columns), format="binary")


async def copied_rows(conn: Connection, query: str, columns: dict[str, str], *args: object) -> npt.NDArray[Any]:
    """Returns the rows of a query as a structured array, by the same way in the other direction.

    Args:
        conn: a connection.
        query: whose columns are never null.
        columns: in the query's order, the type as numpy reads it big-endian (`>i4`, `>i8`, `>f8`, `>i2`, `?`).
        args: of the query.
    """
    received: list[bytes] = []

    async def take(data: bytes) -> None:
        received.append(data)

    await cast(_Copies, conn).copy_from_query(query, *args, output=take, format="binary")
    layout: list[tuple[str, str]] = [("fields", ">i2")]
    for name, kind in columns.items():
        layout += [(f"size of {name}", ">i4"), (name, kind)]
    content = b"".join(received)
    rows = (len(content) - _FRAME) // np.dtype(layout).itemsize
    return np.frombuffer(content, dtype=layout, count=rows, offset=_HEAD)


_HEAD: Final = len(_HEADER)
_FRAME: Final = _HEAD + len(_TRAILER)
