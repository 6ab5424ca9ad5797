"""Certificates in PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from modelfleetd.capacity.domain.certificate import Certificate, GeneratorHealth, Source
from modelfleetd.capacity.store.rows import Reads, stoppers_from_json
from modelfleetd.errors import ResourceNotFound
from modelfleetd.kit.db import Connection, Record

_NAMES = tuple(field.name for field in fields(Certificate))
_COLUMNS = ", ".join(_NAMES)


@dataclass(frozen=True, slots=True)
class Numbered:
    """A certificate and its place in the order of creation."""

    sequence: int
    certificate: Certificate


async def insert(conn: Connection, certificate: Certificate) -> None:
    places = ", ".join(f"${index}" for index in range(1, len(_NAMES) + 1))
    values = asdict(certificate) | {"source": certificate.source.value}
    await conn.execute(f"INSERT INTO certificates ({_COLUMNS}) VALUES ({places})", *values.values())


async def get(reads: Reads, name: str) -> Certificate:
    """Raises ResourceNotFound where there is no such certificate."""
    row = await reads.fetchrow(f"SELECT {_COLUMNS} FROM certificates WHERE name = $1", name)
    if row is None:
        raise ResourceNotFound(name)
    return _certificate(row)


async def model_of(reads: Reads, name: str) -> str | None:
    """Returns the model of a certificate; None where there is no such certificate."""
    found: str | None = await reads.fetchval("SELECT model FROM certificates WHERE name = $1", name)
    return found


async def page(reads: Reads, model: str, before: int, limit: int) -> list[Numbered]:
    """Returns certificates that were made before a sequence number, newest first; of one model, or of all if empty."""
    rows = await reads.fetch(
        f"""SELECT sequence, {_COLUMNS} FROM certificates WHERE sequence < $1 AND {_of_model(model)}
            ORDER BY sequence DESC LIMIT $2""",
        before,
        limit,
        *([model] if model else []),
    )
    return [Numbered(row["sequence"], _certificate(row)) for row in rows]


async def newest(reads: Reads, model: str, flavor: str) -> list[Certificate]:
    """Returns the newest certificates of a model on a flavor, at most ten."""
    rows = await reads.fetch(
        f"SELECT {_COLUMNS} FROM certificates WHERE model = $1 AND flavor = $2 ORDER BY sequence DESC LIMIT 10",
        model,
        flavor,
    )
    return [_certificate(row) for row in rows]


async def newest_of_type(reads: Reads, model_type: str, flavor: str) -> Certificate | None:
    """Returns the newest certificate of any model of a type on a flavor: where the search for the next begins."""
    row = await reads.fetchrow(
        f"""SELECT {_COLUMNS} FROM certificates WHERE starts_with(model, $1) AND flavor = $2
            ORDER BY sequence DESC LIMIT 1""",
        f"{model_type}/",
        flavor,
    )
    return None if row is None else _certificate(row)


def _of_model(model: str) -> str:
    return "model = $3" if model else "true"


def _certificate(row: Record) -> Certificate:
    values: dict[str, Any] = {name: row[name] for name in _NAMES} | {"source": Source(row["source"])}
    if row["stoppers"] is not None:
        values["stoppers"] = stoppers_from_json(row["stoppers"])
    if row["generator_health"] is not None:
        values["generator_health"] = GeneratorHealth(**row["generator_health"])
    return Certificate(**values)
