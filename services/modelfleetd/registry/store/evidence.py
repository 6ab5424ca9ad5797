"""Evidence: what there is of some models, which is read where it is asked for and not kept in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from modelfleetd.kit.db import Connection, Database
from modelfleetd.registry.domain.evidence import EvidenceHead

# Everything below a name is, in the C collation, between name/ and name0, which follows it.
_HEADS = """
SELECT model, found.name, found.revision, octet_length(found.state) AS size
FROM unnest($1::text[]) AS given (model)
CROSS JOIN LATERAL (
    SELECT name, revision, state FROM resources WHERE name > model || '/' AND name < model || '0' ORDER BY name
) AS found
"""
# As many as have about so many bytes together: states are measured without being read.
_STATES = """
SELECT name, kind, state FROM (
    SELECT name, kind, state, sum(octet_length(state)) OVER (ORDER BY name) - octet_length(state) AS before
    FROM (
        SELECT name, kind, state FROM resources WHERE name > $1 AND name < $2 ORDER BY name
    ) AS every
) AS measured WHERE before <= $3 ORDER BY name
"""


class EvidenceStore:
    """The registry's schema: what is below models."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def heads(
        self, models: Collection[str], conn: Connection | Database | None = None
    ) -> dict[str, list[EvidenceHead]]:
        """Returns what evidence some models have, by model and name."""
        found: dict[str, list[EvidenceHead]] = {model: [] for model in models}
        if models:
            for row in await (conn or self._database).fetch(_HEADS, list(found)):
                found[row["model"]].append(EvidenceHead(row["name"], row["revision"], row["size"]))
        return found

    async def states(self, models: Collection[str], most_bytes: int) -> AsyncIterator[tuple[str, str, bytes]]:
        """Yields the evidence of some models at one moment: model, kind and state, by name.

        Args:
            models: whose evidence.
            most_bytes: about as much is in memory at a time.
        """
        async with self._database.transaction(readonly=True) as conn:
            for model in models:
                after = f"{model}/"
                while rows := await conn.fetch(_STATES, after, f"{model}0", most_bytes):
                    for row in rows:
                        yield model, row["kind"], row["state"]
                    after = rows[-1]["name"]
