"""Holds on models, and the launches that they stop."""

from __future__ import annotations

from datetime import datetime

import asyncpg

from modelfleetd.errors import ResourceExists, ResourceNotFound
from modelfleetd.kit.db import Connection, Database, Record
from modelfleetd.launcher.domain.holds_on_models import ModelHold
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.store.rows import COLUMNS, launch_of
from modelfleetd.names import HOLD, MODEL, MODEL_TYPE

_COLUMNS = "id, uid::text, model, reason, launch, actor, create_time, lifted_by, lift_reason, lift_time"
_IN_FORCE = f"SELECT {_COLUMNS} FROM holds WHERE model = $1 AND lift_time IS NULL"


def page_query(
    *, before: int | None, limit: int, model: str = "", include_lifted: bool = False
) -> tuple[str, list[object]]:
    """The statement of a page, with its arguments: what is not asked for is no condition, so each has its index."""
    conditions, arguments = ["true"], list[object]([limit])
    for condition, value in (("number <", before), ("model =", model or None)):
        if value is not None:
            arguments.append(value)
            conditions.append(f"{condition} ${len(arguments)}")
    if not include_lifted:
        conditions.append("lift_time IS NULL")
    where = " AND ".join(conditions)
    return f"SELECT number, {_COLUMNS} FROM holds WHERE {where} ORDER BY number DESC LIMIT $1", arguments


def _hold(row: Record) -> ModelHold:
    return ModelHold(
        name=HOLD.format(row["id"]),
        uid=row["uid"],
        model=row["model"],
        reason=row["reason"],
        launch=row["launch"],
        actor=row["actor"],
        create_time=row["create_time"],
        lifted_by=row["lifted_by"],
        lift_reason=row["lift_reason"],
        lift_time=row["lift_time"],
    )


class HoldsOnModels:
    """The side of the store that knows of holds on models."""

    _database: Database

    async def hold_on(self, model: str) -> ModelHold | None:
        """The hold that is in force on a model."""
        row = await self._database.fetchrow(_IN_FORCE, model)
        return None if row is None else _hold(row)

    async def lock_hold_on(self, conn: Connection, model: str) -> ModelHold | None:
        """The same, and until the transaction ends nobody else puts the model on hold, nor starts a launch of it.

        Locked is the whole route, so that whoever needs to know of two of its models never waits in a circle.
        """
        (type_id, _) = MODEL.parse(model)
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"holds on models of {type_id}")
        row = await conn.fetchrow(_IN_FORCE, model)
        return None if row is None else _hold(row)

    async def insert_hold(self, conn: Connection, hold: ModelHold) -> None:
        """Stores a new hold; whoever does has locked the model.

        Raises:
            ResourceExists: the id is taken.
        """
        try:
            await conn.execute(
                """INSERT INTO holds (id, uid, model, reason, launch, actor, create_time)
                   VALUES ($1, $2, $3, $4, $5, $6, $7)""",
                HOLD.parse(hold.name)[0],
                hold.uid,
                hold.model,
                hold.reason,
                hold.launch,
                hold.actor,
                hold.create_time,
            )
        except asyncpg.UniqueViolationError as error:
            raise ResourceExists(hold.name) from error

    async def hold(self, name: str) -> ModelHold:
        """Reads a hold.

        Raises:
            ResourceNotFound: there is none of that name.
        """
        (id_,) = HOLD.parse(name)
        row = await self._database.fetchrow(f"SELECT {_COLUMNS} FROM holds WHERE id = $1", id_)
        if row is None:
            raise ResourceNotFound(name)
        return _hold(row)

    async def lock_hold(self, conn: Connection, name: str) -> tuple[ModelHold, datetime]:
        """Reads a hold that nobody else changes until the transaction ends; and what time it is.

        Raises:
            ResourceNotFound: there is none of that name.
        """
        (id_,) = HOLD.parse(name)
        row = await conn.fetchrow(
            f"SELECT {_COLUMNS}, clock_timestamp() AS now FROM holds WHERE id = $1 FOR UPDATE", id_
        )
        if row is None:
            raise ResourceNotFound(name)
        return _hold(row), row["now"]

    async def put_lifted(self, conn: Connection, hold: ModelHold) -> None:
        """Writes that a locked hold was lifted."""
        await conn.execute(
            "UPDATE holds SET lifted_by = $2, lift_reason = $3, lift_time = $4 WHERE id = $1",
            HOLD.parse(hold.name)[0],
            hold.lifted_by,
            hold.lift_reason,
            hold.lift_time,
        )

    async def holds(
        self, *, before: int | None, limit: int, model: str = "", include_lifted: bool = False
    ) -> list[tuple[int, ModelHold]]:
        """Holds with their numbers, newest first, from a number downwards."""
        statement, arguments = page_query(before=before, limit=limit, model=model, include_lifted=include_lifted)
        rows = await self._database.fetch(statement, *arguments)
        return [(row["number"], _hold(row)) for row in rows]

    async def lock_launches_of(self, conn: Connection, model: str) -> list[Launch]:
        """The launches of a candidate that have not ended, kept from change until the transaction ends."""
        rows = await conn.fetch(
            f"""SELECT {COLUMNS} FROM launches WHERE model_type = $1 AND end_time IS NULL AND body ->> 'candidate' = $2
                ORDER BY number FOR UPDATE""",
            MODEL_TYPE.format(MODEL.parse(model)[0]),
            model,
        )
        return [launch_of(row) for row in rows]
