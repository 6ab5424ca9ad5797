"""Batches: each is written once, and answered the same for ever after."""

from __future__ import annotations

from datetime import timedelta

from modelfleetd.kit.db import Connection, Database
from modelfleetd.stability.domain.batch import BatchId, Outcome, SequenceReused
from modelfleetd.stability.domain.columns import Reason, RejectedRows

_CLAIM = """
INSERT INTO batches (model_type, producer, sequence, digest) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING true
"""
_READ = "SELECT digest, accepted_rows, rejected FROM batches WHERE (model_type, producer, sequence) = ($1, $2, $3)"
_CONCLUDE = """
UPDATE batches SET accepted_rows = $4, rejected = $5 WHERE (model_type, producer, sequence) = ($1, $2, $3)
"""
_FORGET = """
DELETE FROM batches WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM batches WHERE create_time < now() - $1::interval ORDER BY create_time LIMIT 10000))
"""


async def claim(conn: Connection, batch: BatchId) -> Outcome | None:
    """Takes a batch for this transaction; returns its outcome where it was written before.

    A concurrent writer of the same batch is waited for.

    Raises:
        SequenceReused: it was written before with other content.
    """
    key = (batch.model_type, batch.producer, batch.sequence)
    if await conn.fetchval(_CLAIM, *key, batch.digest):
        return None
    known = await conn.fetchrow(_READ, *key)
    if known is None or known["digest"] != batch.digest:
        raise SequenceReused(batch.producer, batch.sequence)
    rejected = tuple(RejectedRows(Reason(reason), rows, first) for reason, rows, first in known["rejected"])
    return Outcome(known["accepted_rows"], rejected, duplicate=True)


async def conclude(conn: Connection, batch: BatchId, outcome: Outcome) -> None:
    """Keeps the outcome of a claimed batch."""
    rejected = [[entry.reason.value, entry.rows, entry.first_row] for entry in outcome.rejected]
    await conn.execute(_CONCLUDE, batch.model_type, batch.producer, batch.sequence, outcome.accepted_rows, rejected)


async def forget(database: Database, age: timedelta) -> None:
    """Forgets batches that no producer repeats any more, a few thousand a transaction."""
    while await database.execute(_FORGET, age) != "DELETE 0":
        pass
