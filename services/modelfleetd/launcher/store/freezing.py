"""Freeze windows in PostgreSQL."""

from __future__ import annotations

from typing import Any, Final

import asyncpg

from modelfleetd.errors import EtagMismatch, ResourceExists, ResourceNotFound, invalid
from modelfleetd.kit.db import Connection, Database, Record
from modelfleetd.launcher.documents import from_document, to_document
from modelfleetd.launcher.domain.freeze import FreezeWindow
from modelfleetd.names import FREEZE_WINDOW

# Everybody who looks at a launch reads all of them.
MAX_WINDOWS: Final = 1_000
_COLUMNS: Final = """id, uid::text, actor, body, create_time, update_time,
    substr(md5(uid::text || version::text), 1, 16) AS etag"""
_OWN: Final = ("name", "uid", "actor", "create_time", "update_time", "etag")


class Freezing:
    """The side of the store that knows freeze windows."""

    _database: Database

    async def freeze_windows(self, *, after: str = "") -> list[FreezeWindow]:
        """The windows after a name, in the order of their names."""
        start = FREEZE_WINDOW.parse(after)[0] if after else ""
        rows = await self._database.fetch(f"SELECT {_COLUMNS} FROM freeze_windows WHERE id > $1 ORDER BY id", start)
        return [_window(row) for row in rows]

    async def find_freeze_window(self, name: str) -> FreezeWindow | None:
        """A window; None where there is none of that name."""
        (id_,) = FREEZE_WINDOW.parse(name)
        row = await self._database.fetchrow(f"SELECT {_COLUMNS} FROM freeze_windows WHERE id = $1", id_)
        return None if row is None else _window(row)

    async def get_freeze_window(self, name: str) -> FreezeWindow:
        """Raises ResourceNotFound where there is none of that name."""
        found = await self.find_freeze_window(name)
        if found is None:
            raise ResourceNotFound(name)
        return found

    async def lock_freeze_window(self, conn: Connection, name: str, etag: str) -> FreezeWindow:
        """Reads a window and keeps others from changing it until the transaction ends.

        Raises:
            ResourceNotFound: there is none of that name.
            EtagMismatch: an etag is given that is not the current one.
        """
        (id_,) = FREEZE_WINDOW.parse(name)
        row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM freeze_windows WHERE id = $1 FOR UPDATE", id_)
        if row is None:
            raise ResourceNotFound(name)
        if etag and etag != row["etag"]:
            raise EtagMismatch(name, etag, row["etag"])
        return _window(row)

    async def insert_freeze_window(self, conn: Connection, window: FreezeWindow) -> FreezeWindow:
        """Stores a new window.

        Raises:
            ResourceExists: the name is taken.
            InvalidFields: there are as many as there may be.
        """
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('freeze windows', 0))")
        if await conn.fetchval("SELECT count(*) FROM freeze_windows") >= MAX_WINDOWS:
            raise invalid("freeze_window_id", f"there are {MAX_WINDOWS:,} windows, the most; delete one first")
        try:
            row = await conn.fetchrow(
                f"""INSERT INTO freeze_windows (id, uid, version, actor, body, create_time, update_time)
                    VALUES ($1, $2, 1, $3, $4, now(), now()) RETURNING {_COLUMNS}""",
                FREEZE_WINDOW.parse(window.name)[0],
                window.uid,
                window.actor,
                _body(window),
            )
        except asyncpg.UniqueViolationError as error:
            raise ResourceExists(window.name) from error
        assert row is not None
        return _window(row)

    async def update_freeze_window(self, conn: Connection, window: FreezeWindow) -> FreezeWindow:
        """Writes a locked window."""
        row = await conn.fetchrow(
            f"""UPDATE freeze_windows SET body = $2, version = version + 1, update_time = now()
                WHERE id = $1 RETURNING {_COLUMNS}""",
            FREEZE_WINDOW.parse(window.name)[0],
            _body(window),
        )
        assert row is not None
        return _window(row)

    async def look_at_frozen(self, conn: Connection, window: FreezeWindow) -> None:
        """Has the launches that a window holds back looked at now, since it may not do so any more. Whoever looks at
        one just now has seen the window as it was, and begins anew.
        """
        await conn.execute(
            """UPDATE launches SET version = version + 1, next_due_time = now()
               WHERE end_time IS NULL AND body -> 'frozen' ->> 'freeze_window' = $1""",
            window.name,
        )

    async def delete_freeze_window(self, conn: Connection, window: FreezeWindow) -> None:
        """Deletes a locked window: launches that it holds back go on."""
        await conn.execute("DELETE FROM freeze_windows WHERE id = $1", FREEZE_WINDOW.parse(window.name)[0])


def _body(window: FreezeWindow) -> dict[str, Any]:
    return {field: value for field, value in to_document(window).items() if field not in _OWN}


def _window(row: Record) -> FreezeWindow:
    own = {"name": FREEZE_WINDOW.format(row["id"])} | {field: row[field] for field in ("uid", "actor", "etag")}
    times = {field: row[field].isoformat() for field in ("create_time", "update_time")}
    return from_document(FreezeWindow, {**row["body"], **own, **times})
