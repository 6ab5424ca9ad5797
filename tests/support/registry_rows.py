"""Ledgers that are written directly, by the store's own statements: for what no method makes, or not quickly enough."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from modelfleetd.kit.db import Database
from modelfleetd.registry import wire
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import AnyResource, FunnelStage, Model, ModelRole, ModelType
from modelfleetd.registry.domain.revisions import Author, Edit, Stamp, StoredRevision, revise
from modelfleetd.registry.store import Store
from modelfleetd.registry.store.ledger import Written
from tests.support.registry import model_type, region, spec, team

_A_REVISION = 500


async def write(url: str, resources: Iterable[AnyResource], per_revision: int = _A_REVISION) -> int:
    """Creates resources, so many a revision, as calls would have; returns the number of the last revision."""
    database = await Database.open(url, "registry")
    store = Store(database)
    remaining, last = iter(resources), 0
    try:
        while batch := tuple(itertools.islice(remaining, per_revision)):
            async with store.transaction() as conn:
                head = await store.lock_head(conn)
                stamp = Stamp(head.number + 1, head.now)
                header = wire.header_of(Author("loader"), stamp)
                edits = revise([Edit(None, each) for each in batch], stamp)
                changes = [wire.stored_change(change, stamp.revision) for change in edits]
                parts = [each.change for each in changes]
                revision = StoredRevision.following(head.hash, stamp.revision, header, parts)
                await store.append(conn, [Written(revision, stamp.time, changes)])
                last = revision.number
    finally:
        await database.close()
    return last


MODELS_A_TYPE = 20
_STAGES = tuple(FunnelStage)
_TIERS = tuple(Tier)
_ROLES: Sequence[ModelRole] = (ModelRole.BASELINE, ModelRole.HOLDOUT, *[ModelRole.EXPERIMENT] * 3, ModelRole.CANDIDATE)


def types_and_models(begin: int, end: int) -> Iterator[ModelType | Model]:
    """Gives the model types with these numbers, and the models of each: every field as different as in a real fleet."""
    complete = spec().complete()
    for number in range(begin, end):
        key = f"app{number % 7}_surface{number % 40}_{number:05d}"
        labels = {"surface": f"surface{number % 40}", "site": f"site{number % 11}"}
        yield model_type(
            key,
            team=f"teams/team{number % 50}",
            purpose=f"Ranks what surface {number % 40} shows, by the signals of stage {number % 3}.",
            funnel_stage=_STAGES[number % 3],
            tier=_TIERS[number % 5],
            labels=labels,
            uid=f"00000000-0000-4000-8000-{number:012d}",
        )
        for version in range(MODELS_A_TYPE):
            role = _ROLES[version] if version < len(_ROLES) else ModelRole.RETIRED
            flavor = f"flavors/gpu{(number + version) % 6}"
            yield Model(
                name=f"modelTypes/{key}/models/v{version:03d}",
                description=f"Version {version}, trained on the week before.",
                role=role,
                serving_spec=replace(complete, flavor=flavor, artifact=f"s3://models/{key}/{version}/export"),
                training_flow=f"flows/{key}",
                checkpoint=f"s3://checkpoints/{key}/{version}",
                labels=labels | {"owner": f"person{(number * 7 + version) % 400}"},
                uid=f"00000000-0000-4000-9000-{number:08d}{version:04d}",
            )


def around() -> Iterator[AnyResource]:
    """Gives what the types refer to."""
    yield region()
    for number in range(50):
        yield team(f"team{number}", on_call=f"pager-{number}")
