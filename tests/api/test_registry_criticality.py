"""Requests for TIER0 and TIER1, through a real channel: who may do what, and what becomes of it in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import criticality_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.clock import ManualClock
from modelfleetd.kit.db import Database
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.lapses import Lapses
from modelfleetd.registry.store import Store
from modelfleetd.registry.writer import Writer
from tests.support import registry_calls
from tests.support.registry_calls import (
    CTR,
    EVIDENCE,
    NEW,
    OLD,
    Registry,
    bind,
    populate,
    raise_tier,
    refused,
    request_id,
    spec,
)
from tests.support.wait import until

DENIED = grpc.StatusCode.PERMISSION_DENIED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
REQUESTS = criticality_pb2.CriticalityRequest
TIER1, TIER2, TIER3 = serving_pb2.TIER1, serving_pb2.TIER2, serving_pb2.TIER3
DAY = timedelta(days=1)


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url, admins=("root",)) as found:
        await populate(found)
        await bind(found, ENGINEER="alice", APPROVER="bob")
        yield found


def asking(**fields: Any) -> dict[str, Any]:
    return {"resource": CTR, "tier": TIER1, "evidence": EVIDENCE} | fields


def for_(registry: Registry, service: str, person: str = "") -> Registry:
    """The registry as a service sees it that calls for somebody."""
    return registry.as_(service, *([("x-modelfleet-on-behalf-of", person)] if person else []))


async def newest(registry: Registry) -> pb.Revision:
    revision: pb.Revision = (await registry.ListRevisions(page_size=1)).revisions[0]
    return revision


async def test_one_person_asks_another_approves_and_the_tier_holds_for_a_time(registry: Registry) -> None:
    asked = await registry.as_("alice").RequestCriticality(**asking(reason="it grew"))
    assert (asked.state, asked.requester, asked.lifetime.seconds) == (REQUESTS.PENDING, "alice", 365 * 86400)
    assert asked.name.startswith("criticalityRequests/ctr-")
    assert (await registry.GetModelType(name=CTR)).tier == serving_pb2.TIER_UNSPECIFIED
    approved = await registry.as_("bob").ApproveCriticality(name=asked.name, etag=asked.etag, reason="it did")
    assert (approved.state, approved.decided_by, approved.decide_reason) == (REQUESTS.APPROVED, "bob", "it did")
    ctr = await registry.GetModelType(name=CTR)
    assert (ctr.tier, ctr.tier_grant.request, ctr.tier_grant.falls_to) == (TIER1, asked.name, TIER2)
    assert ctr.tier_grant.expire_time == approved.expire_time
    revision = await newest(registry)
    assert (revision.actor, revision.reason) == ("bob", "it did")
    assert [change.resource for change in revision.changes] == [asked.name, CTR]
    assert await registry.GetCriticalityRequest(name=asked.name) == approved
    assert (await registry.ListCriticalityRequests()).criticality_requests == [approved]


async def test_a_raise_by_an_update_is_refused_with_the_command_and_a_lowering_is_not(registry: Registry) -> None:
    mask = FieldMask(paths=["tier"])
    raised = registry.UpdateModelType(model_type=pb.ModelType(name=CTR, tier=TIER1), update_mask=mask)
    found = await refused(raised, PRECONDITION, "CRITICALITY_NEEDS_APPROVAL")
    assert found.infos[0].metadata["command"].startswith(f"modelfleet registry criticality request {CTR} --tier TIER1")
    model = pb.Model(serving_spec=spec(), tier_override=TIER1)
    await refused(
        registry.CreateModel(parent=CTR, model_id="x", model=model), PRECONDITION, "CRITICALITY_NEEDS_APPROVAL"
    )
    request = await raise_tier(registry, CTR, TIER1)
    lowered = await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, tier=TIER3), update_mask=mask)
    assert (lowered.tier, lowered.HasField("tier_grant")) == (TIER3, False)
    assert (await registry.GetCriticalityRequest(name=request.name)).state == REQUESTS.SUPERSEDED


async def test_only_an_approver_who_did_not_ask_approves(registry: Registry) -> None:
    await bind(registry, ENGINEER="alice", APPROVER="alice", OWNER="carol")
    asked = await registry.as_("alice").RequestCriticality(**asking())
    approve = {"name": asked.name}
    await refused(registry.as_("alice").ApproveCriticality(**approve), DENIED, "SELF_APPROVAL")
    await refused(registry.as_("carol").ApproveCriticality(**approve), DENIED, "ROLE_MISSING")
    await refused(registry.as_("bob").ApproveCriticality(**approve), DENIED, "ROLE_MISSING")
    # Whoever sits at the machine may do everything, but not both.
    assert (await registry.ApproveCriticality(**approve)).decided_by == "local"
    own = await registry.RequestCriticality(**asking(resource=OLD))
    await refused(registry.ApproveCriticality(name=own.name), DENIED, "SELF_APPROVAL")
    assert (await registry.as_("root").ApproveCriticality(name=own.name)).decided_by == "root"


async def test_a_service_approves_for_a_person_and_never_for_the_one_who_asked_or_for_nobody(
    registry: Registry,
) -> None:
    await bind(registry, ENGINEER="service/console", APPROVER="service/console")
    asked = await for_(registry, "service/console", "alice").RequestCriticality(**asking())
    assert asked.requester == "alice"
    approve = {"name": asked.name}
    await refused(for_(registry, "service/console").ApproveCriticality(**approve), DENIED, "ROLE_MISSING")
    await refused(for_(registry, "service/console", "alice").ApproveCriticality(**approve), DENIED, "SELF_APPROVAL")
    approved = await for_(registry, "service/console", "bob").ApproveCriticality(**approve)
    assert (approved.decided_by, (await newest(registry)).on_behalf_of) == ("bob", "bob")
    # What a service asked for itself is not approved through it either.
    alone = await for_(registry, "service/console").RequestCriticality(**asking(resource=OLD))
    call = for_(registry, "service/console", "bob").ApproveCriticality(name=alone.name)
    await refused(call, DENIED, "SELF_APPROVAL")


async def test_a_request_is_rejected_or_taken_back_and_then_closed(registry: Registry) -> None:
    first = await registry.as_("alice").RequestCriticality(**asking())
    pending = registry.as_("alice").RequestCriticality(**asking())
    found = await refused(pending, PRECONDITION, "REQUEST_PENDING")
    assert found.infos[0].metadata["request"] == first.name
    rejected = await registry.as_("bob").RejectCriticality(name=first.name, reason="no metric")
    assert (rejected.state, rejected.decided_by, rejected.decide_reason) == (REQUESTS.REJECTED, "bob", "no metric")
    second = await registry.as_("alice").RequestCriticality(**asking())
    assert (await registry.as_("alice").WithdrawCriticality(name=second.name)).state == REQUESTS.WITHDRAWN
    for verb in ("ApproveCriticality", "RejectCriticality"):
        call = getattr(registry.as_("bob"), verb)(name=second.name)
        await refused(call, PRECONDITION, "WRONG_STATE")
    assert (await registry.GetModelType(name=CTR)).tier == serving_pb2.TIER_UNSPECIFIED


async def test_a_repeated_call_answers_the_same_and_a_trial_changes_nothing(registry: Registry) -> None:
    tried = await registry.as_("alice").RequestCriticality(**asking(validate_only=True))
    assert tried.state == REQUESTS.PENDING
    assert not (await registry.ListCriticalityRequests()).criticality_requests
    again = request_id()
    first = await registry.as_("alice").RequestCriticality(**asking(request_id=again))
    assert await registry.as_("alice").RequestCriticality(**asking(request_id=again)) == first
    trial = await registry.as_("bob").ApproveCriticality(name=first.name, validate_only=True)
    assert trial.state == REQUESTS.APPROVED
    assert (await registry.GetCriticalityRequest(name=first.name)).state == REQUESTS.PENDING
    stale = registry.as_("bob").ApproveCriticality(name=first.name, etag="r1")
    await refused(stale, grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


async def test_requests_are_listed_in_pages(registry: Registry) -> None:
    for resource in (CTR, OLD, NEW):
        await registry.as_("alice").RequestCriticality(**asking(resource=resource))
    names: list[str] = []
    token = ""
    while True:
        page = await registry.ListCriticalityRequests(page_size=2, page_token=token)
        names += [each.name for each in page.criticality_requests]
        token = page.next_page_token
        if not token:
            break
    assert len(set(names)) == len(names) == 3
    assert names == sorted(names)
    await registry.as_("bob").RejectCriticality(name=names[0])
    waiting = await registry.ListCriticalityRequests(filter="state = PENDING")
    assert [each.name for each in waiting.criticality_requests] == names[1:]
    before = await registry.ListCriticalityRequests(as_of_revision=waiting.revision - 1)
    assert [each.state for each in before.criticality_requests] == [REQUESTS.PENDING] * 3


async def test_the_requests_of_a_deleted_entry_are_closed_with_it(registry: Registry) -> None:
    asked = await registry.as_("alice").RequestCriticality(**asking(resource=NEW))
    await registry.DeleteModel(name=NEW)
    assert (await registry.GetCriticalityRequest(name=asked.name)).state == REQUESTS.WITHDRAWN
    await registry.CreateModel(parent=CTR, model_id="new", model=pb.Model(serving_spec=spec()))
    await refused(registry.ApproveCriticality(name=asked.name), PRECONDITION, "WRONG_STATE")


async def own_reasons(registry: Registry, resource: str = CTR) -> list[str]:
    """Reasons of the revisions that the registry has made of itself, the newest first."""
    revisions = (await registry.ListRevisions(resource=resource)).revisions
    return [each.reason for each in revisions if each.actor == "service/registry"]


async def granted(registry: Registry) -> criticality_pb2.CriticalityRequest:
    """The type `ctr`, TIER3, consumes `leaf` and is raised to TIER1 for ten days."""
    await populate(registry)
    await bind(registry, ENGINEER="alice", APPROVER="bob")
    await registry.CreateModelType(model_type_id="leaf", model_type=pb.ModelType(team="teams/feed"))
    consumes = pb.ModelType(name=CTR, tier=TIER3, upstream_types=["modelTypes/leaf"])
    await registry.UpdateModelType(model_type=consumes, update_mask=FieldMask(paths=["tier", "upstream_types"]))
    return await raise_tier(registry, CTR, TIER1, lifetime=Duration(seconds=10 * 86400))


async def test_time_marks_a_tier_as_overdue_and_lowers_it_by_revisions_that_say_so(database_url: str) -> None:
    clock = ManualClock(datetime.now(UTC))
    async with registry_calls.registry(database_url, clock=clock) as registry:
        request = await granted(registry)

        async def reasons(count: int) -> list[str]:
            found = await own_reasons(registry)
            return found if len(found) == count else []

        clock.set(10.1 * 86400)
        (marked,) = await until(lambda: reasons(1))
        assert marked.endswith("or it is lowered")
        ctr = await registry.GetModelType(name=CTR)
        assert (ctr.tier, ctr.tier_grant.overdue) == (TIER1, True)
        clock.set(24.1 * 86400)
        lowered, _ = await until(lambda: reasons(2))
        assert lowered.endswith("nobody renewed it within 14 days: lowered to TIER3")
        ctr = await registry.GetModelType(name=CTR)
        assert (ctr.tier, ctr.HasField("tier_grant")) == (TIER3, False)
        leaf = await registry.GetModelType(name="modelTypes/leaf")
        assert (leaf.required_tier, list(leaf.required_tier_path)) == (TIER3, [CTR, "modelTypes/leaf"])
        assert leaf.revision == ctr.revision
        assert (await registry.GetCriticalityRequest(name=request.name)).state == REQUESTS.EXPIRED
        await raise_tier(registry, CTR, TIER1, lifetime=Duration(seconds=10 * 86400))
    # Nobody was there to mark it.
    clock.set(100 * 86400)
    async with registry_calls.registry(database_url, clock=clock) as registry:
        await until(lambda: reasons(3))
        assert (await registry.GetModelType(name=CTR)).tier == TIER3


async def test_replicas_that_look_at_the_same_time_write_what_is_due_once(database_url: str) -> None:
    async with registry_calls.registry(database_url) as registry:
        await granted(registry)
        async with AsyncExitStack() as stack:
            replicas = []
            for days in (11, 11, 30, 30):
                database = await Database.open(database_url, "registry")
                stack.push_async_callback(database.close)
                store = Store(database)
                follower = Follower(store)
                await follower.load()
                later = ManualClock(datetime.now(UTC) + days * DAY)
                replicas.append(Lapses(follower, Writer(store, follower), later))
            await asyncio.gather(*(replica.round() for replica in replicas[:2]))
            assert len(await own_reasons(registry)) == 1
            # A replica that has not heard of it, and that looks again.
            await asyncio.gather(*(replica.round() for replica in replicas[2:]))
            for replica in replicas:
                await replica.round()
        await registry.GetModelType(name=CTR, min_revision=(await newest(registry)).number)
        assert [each.rpartition(" ")[2] for each in await own_reasons(registry)] == ["TIER3", "lowered"]
        assert (await registry.GetModelType(name=CTR)).tier == TIER3
