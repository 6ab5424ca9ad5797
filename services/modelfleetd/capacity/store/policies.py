"""Launch policies in PostgreSQL."""

from __future__ import annotations

from typing import Any

from modelfleetd.capacity.domain.policy import (
    FreeWithinQuota,
    GainAgainstCost,
    LaunchPolicy,
    NoRegression,
    PolicyApprover,
    Role,
)
from modelfleetd.capacity.store.rows import Reads
from modelfleetd.errors import EtagMismatch, ResourceExists, ResourceInUse, ResourceNotFound, invalid
from modelfleetd.kit.db import Connection, Record

_WRITTEN = (
    "team", "description", "team_default", "rule", "max_cost_ratio", "tolerance_basis_points", "metric",
    "min_gain_per_doubling", "max_loss", "max_evidence_age", "approver_roles", "approver_teams", "rollback_window",
)  # fmt: skip
_COLUMNS = f"""name, uid::text, {", ".join(_WRITTEN)}, create_time, update_time,
    substr(md5(uid::text || version::text), 1, 16) AS etag"""


async def find(reads: Reads, name: str) -> LaunchPolicy | None:
    """Returns a policy; None where there is no such policy."""
    row = await reads.fetchrow(f"SELECT {_COLUMNS} FROM launch_policies WHERE name = $1", name)
    return None if row is None else _policy(row)


async def get(reads: Reads, name: str) -> LaunchPolicy:
    """Raises ResourceNotFound where there is no such policy."""
    found = await find(reads, name)
    if found is None:
        raise ResourceNotFound(name)
    return found


async def default_of(reads: Reads, team: str) -> LaunchPolicy | None:
    """Returns the policy that is a team's default; None where none is."""
    row = await reads.fetchrow(f"SELECT {_COLUMNS} FROM launch_policies WHERE team = $1 AND team_default", team)
    return None if row is None else _policy(row)


async def team(reads: Reads, name: str) -> str | None:
    """Returns the team of a policy; None where there is no such policy."""
    found: str | None = await reads.fetchval("SELECT team FROM launch_policies WHERE name = $1", name)
    return found


async def teams_of_pool(reads: Reads, pool: str) -> list[str]:
    """Returns the teams of a pool and of its parent; none where there is no such pool."""
    rows = await reads.fetch(
        """SELECT pools.team FROM pools
           WHERE name = $1 OR name = (SELECT parent FROM pools AS child WHERE child.name = $1)
           ORDER BY name = $1 DESC""",
        pool,
    )
    return [row["team"] for row in rows]


async def page(reads: Reads, of_team: str, after: str, limit: int) -> list[LaunchPolicy]:
    """Returns policies after a name, in the order of names; of one team, or of all if empty."""
    rows = await reads.fetch(
        f"""SELECT {_COLUMNS} FROM launch_policies WHERE name > $1 AND {"team = $3" if of_team else "true"}
            ORDER BY name LIMIT $2""",
        after,
        limit,
        *([of_team] if of_team else []),
    )
    return [_policy(row) for row in rows]


async def insert(conn: Connection, policy: LaunchPolicy) -> LaunchPolicy:
    """Raises ResourceExists where the name is taken, InvalidFields where the team has a default already."""
    await _check_default(conn, policy)
    places = ", ".join(f"${index}" for index in range(2, len(_WRITTEN) + 2))
    row = await conn.fetchrow(
        f"""INSERT INTO launch_policies (name, {", ".join(_WRITTEN)}) VALUES ($1, {places})
            ON CONFLICT (name) DO NOTHING RETURNING {_COLUMNS}""",
        policy.name,
        *_values(policy),
    )
    if row is None:
        raise ResourceExists(policy.name)
    return _policy(row)


async def lock(conn: Connection, name: str, etag: str) -> LaunchPolicy:
    """Returns a policy that nobody else changes before the transaction ends.

    Raises:
        ResourceNotFound: it does not exist.
        EtagMismatch: an etag is given that is not the current one.
    """
    row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM launch_policies WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise ResourceNotFound(name)
    if etag and etag != row["etag"]:
        raise EtagMismatch(name, etag, row["etag"])
    return _policy(row)


async def update(conn: Connection, policy: LaunchPolicy) -> LaunchPolicy:
    """Writes a locked policy. Raises InvalidFields where its team has another default already."""
    await _check_default(conn, policy)
    assignments = ", ".join(f"{column} = ${index}" for index, column in enumerate(_WRITTEN, start=2))
    row = await conn.fetchrow(
        f"""UPDATE launch_policies SET {assignments}, version = version + 1, update_time = now()
            WHERE name = $1 RETURNING {_COLUMNS}""",
        policy.name,
        *_values(policy),
    )
    if row is None:
        raise ResourceNotFound(policy.name)
    return _policy(row)


async def delete(conn: Connection, policy: LaunchPolicy) -> None:
    """Deletes a locked policy. Raises ResourceInUse where it is the default of its team."""
    if policy.team_default:
        raise ResourceInUse(policy.name, [f"{policy.team} as its default (team_default)"])
    await conn.execute("DELETE FROM launch_policies WHERE name = $1", policy.name)


async def _check_default(conn: Connection, policy: LaunchPolicy) -> None:
    if not policy.team_default:
        return
    # Whoever else makes a default for the team waits until this transaction has ended.
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 6))", policy.team)
    other = await conn.fetchval(
        "SELECT name FROM launch_policies WHERE team = $1 AND team_default AND name <> $2", policy.team, policy.name
    )
    if other is not None:
        raise invalid("launch_policy.team_default", f"must be false: {policy.team} has a default already, {other}")


def _values(policy: LaunchPolicy) -> list[object]:
    free, same, gain = policy.free_within_quota, policy.no_regression, policy.gain_against_cost
    kind = "FREE_WITHIN_QUOTA" if free else "NO_REGRESSION" if same else "GAIN_AGAINST_COST"
    return [
        policy.team,
        policy.description,
        policy.team_default,
        kind,
        free.max_cost_ratio if free else None,
        same.tolerance_basis_points if same else None,
        gain.metric if gain else None,
        gain.min_gain_per_doubling if gain else None,
        gain.max_loss if gain else None,
        gain.max_evidence_age if gain else None,
        [approver.role.value for approver in policy.approvers if approver.role],
        [approver.team for approver in policy.approvers],
        policy.rollback_window,
    ]


def _policy(row: Record) -> LaunchPolicy:
    approvers = zip(row["approver_roles"], row["approver_teams"], strict=True)
    return LaunchPolicy(
        name=row["name"],
        uid=row["uid"],
        etag=row["etag"],
        team=row["team"],
        description=row["description"],
        team_default=row["team_default"],
        approvers=tuple(PolicyApprover(Role(role), team) for role, team in approvers),
        rollback_window=row["rollback_window"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        **_rule(row),
    )


def _rule(row: Record) -> dict[str, Any]:
    if row["rule"] == "FREE_WITHIN_QUOTA":
        return {"free_within_quota": FreeWithinQuota(row["max_cost_ratio"])}
    if row["rule"] == "NO_REGRESSION":
        return {"no_regression": NoRegression(row["tolerance_basis_points"])}
    names = ("metric", "min_gain_per_doubling", "max_loss", "max_evidence_age")
    return {"gain_against_cost": GainAgainstCost(**{name: row[name] for name in names})}
