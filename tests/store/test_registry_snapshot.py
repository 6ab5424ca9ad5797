"""The snapshot, through stored bytes, against a ledger that looks at everything, for any sequence of changes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import FleetError
from modelfleetd.kit.auth import Principal, PrincipalKind, Role
from modelfleetd.registry import wire
from modelfleetd.registry.access import SnapshotRoles
from modelfleetd.registry.domain import entries
from modelfleetd.registry.domain.evidence import EvidenceHead
from modelfleetd.registry.domain.resources import FailoverShare, Model, ModelType, Region, RoleBinding, Team
from modelfleetd.registry.domain.resources import Role as DomainRole
from modelfleetd.registry.domain.revisions import Author, Edits, Stamp, StoredRevision, revise
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.snapshot import (
    MODEL_TYPES,
    MODELS_OF_ALL,
    REGIONS,
    TEAMS,
    Snapshot,
    SnapshotLedger,
    models_of,
)
from tests.support.registry import START, LedgerOf, model, model_type, region, team

KEYS = ["a", "b", "c"]
NO_EVIDENCE: dict[str, list[EvidenceHead]] = {f"modelTypes/{of}/models/{key}": [] for of in KEYS for key in KEYS}
keys = st.sampled_from(KEYS)
many = st.lists(keys, unique=True, max_size=2)
roles = st.sampled_from([DomainRole.OWNER, DomainRole.ONCALL, DomainRole.VIEWER])

teams = st.builds(
    lambda key, bound: team(key, role_bindings=tuple(RoleBinding(role=role, members=(who,)) for role, who in bound)),
    keys,
    st.lists(st.tuples(roles, keys), max_size=3),
)
regions = st.builds(
    lambda key, to: region(
        key, failover_shares=tuple(FailoverShare(region=f"regions/{t}", share_basis_points=1) for t in to if t != key)
    ),
    keys,
    many,
)
types = st.builds(
    lambda key, owner, where, up: model_type(
        key,
        team=f"teams/{owner}",
        regions=tuple(f"regions/{each}" for each in where),
        upstream_types=tuple(f"modelTypes/{each}" for each in up),
    ),
    keys,
    keys,
    many,
    many,
)
models = st.builds(lambda key, of, text: model(key, of, description=text), keys, keys, st.sampled_from(["", "x"]))
operations = st.lists(
    st.tuples(st.sampled_from(["create", "update", "delete"]), st.one_of(teams, regions, types, models)),
    min_size=10,
    max_size=40,
)
# Whatever is drawn finds something to work on.
BEGIN = [
    ("create", entry)
    for make in (team, region, lambda key: model_type(key, team=f"teams/{key}", regions=()))
    for entry in map(make, KEYS)
]


def decide(ledger: Any, verb: str, entry: Any) -> Edits:
    kind = {Team: "team", Region: "region", ModelType: "model_type", Model: "model"}[type(entry)]
    act: Any = getattr(entries, f"{verb}_{kind}")
    if verb == "create":
        return act(ledger, entry, "uid")  # type: ignore[no-any-return]
    if verb == "delete":
        return act(ledger, entry.name, "")  # type: ignore[no-any-return]
    more: dict[str, Any] = {"caller": "x", "is_admin": True} if kind == "team" else {}
    mask = ("role_bindings", "failover_shares", "team", "regions", "upstream_types", "description")
    known = [path for path in mask if hasattr(entry, path)]
    return act(ledger, entry, known, **more)  # type: ignore[no-any-return]


def revision_of(edits: Edits, number: int, previous: bytes) -> pb.Revision:
    stamp = Stamp(number, START)
    header = wire.header_of(Author("a"), stamp)
    changes = [wire.stored_change(change, number).change for change in revise(edits, stamp)]
    return wire.revision_of(StoredRevision.following(previous, number, header, changes))


@given(operations)
async def test_the_snapshot_knows_what_looking_at_everything_finds(steps: list[tuple[str, Any]]) -> None:
    plain, snapshot = LedgerOf(), Snapshot()
    for verb, entry in [*BEGIN, *steps]:
        outcomes: list[Any] = []
        for ledger in (plain, SnapshotLedger(snapshot, NO_EVIDENCE)):
            try:
                outcomes.append(decide(ledger, verb, entry))
            except FleetError as error:
                outcomes.append((type(error), error.metadata))
        decided, from_snapshot = outcomes
        if not decided or isinstance(decided[0], type):
            assert decided == from_snapshot
            continue
        assert [edit.name for edit in decided] == [edit.name for edit in from_snapshot]
        snapshot.apply(revision_of(from_snapshot, snapshot.revision + 1, snapshot.hash))
        plain.apply(decided)
    tables = (snapshot.teams, snapshot.regions, snapshot.model_types, snapshot.models)
    resources = [message for table in tables for message in table.values()]
    again = Snapshot.of(resources, snapshot.revision, snapshot.hash)
    for each in (snapshot, again):
        agrees(each, plain)
        await grants_what_is_bound(each, plain)


def agrees(snapshot: Snapshot, plain: LedgerOf) -> None:
    known = list(plain.entries)
    collections = {
        TEAMS: [key for key in known if key.startswith("teams/")],
        REGIONS: [key for key in known if key.startswith("regions/")],
        MODEL_TYPES: [key for key in known if key.startswith("modelTypes/") and key.count("/") == 1],
        MODELS_OF_ALL: [key for key in known if key.count("/") == 3],
        **{
            models_of(f"modelTypes/{key}"): [each for each in known if each.startswith(f"modelTypes/{key}/")]
            for key in KEYS
        },
    }
    for collection, expected in collections.items():
        assert snapshot.page(collection, None, 100) == sorted(expected)
        for position, after in enumerate(sorted(expected)):
            assert snapshot.page(collection, (after,), 1) == sorted(expected)[position + 1 : position + 2]
    for key in KEYS:
        for target in (f"teams/{key}", f"regions/{key}", f"modelTypes/{key}"):
            assert snapshot.referrers(target) == plain.referrers(target)
            assert (snapshot.find(target) is None) == (plain.find(target) is None)


async def grants_what_is_bound(snapshot: Snapshot, plain: LedgerOf) -> None:
    follower = Follower(None)  # type: ignore[arg-type]
    follower.snapshot = snapshot
    access = SnapshotRoles(follower)
    for who in KEYS:
        principal = Principal(who, PrincipalKind.PERSON)
        anywhere: set[Role] = set()
        for key in KEYS:
            found = plain.team(f"teams/{key}")
            bindings = () if found is None else found.role_bindings
            expected = {Role[each.role.name] for each in bindings if who in each.members and each.role is not None}
            assert await access.roles(principal, f"teams/{key}") == expected
            anywhere |= expected
        assert await access.roles_anywhere(principal) == anywhere
        assert await access.roles(principal, None) == frozenset()
    for name, entry in plain.entries.items():
        if isinstance(entry, ModelType):
            assert await access.team_of(name) == await access.team_of(f"{name}/models/any") == entry.team
    assert await access.team_of("modelTypes/nope") is None
    assert await access.team_of("regions/a") is None
    assert await access.team_of("") is None
