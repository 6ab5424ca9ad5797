"""The end of a launch in the ledger: once, for ever, and alerts' one revision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.registry.v1 import registry_pb2 as pb
from tests.support import registry_calls
from tests.support.registry_calls import CTR, NEW, OLD, Registry, populate, refused, split, swap

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
ROLLED_BACK = {"outcome": pb.FinalizeLaunchRequest.ROLLED_BACK, "role_changes": [], "splits": []}


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as found:
        await populate(found)
        yield found


def role(model: str, to: pb.Model.Role.ValueType) -> pb.RoleChange:
    return pb.RoleChange(model=model, role=to)


async def planned(registry: Registry) -> int:
    return int((await registry.GetModelType(name=CTR)).revision)


async def test_a_launch_ends_in_one_revision_from_which_all_follows(registry: Registry) -> None:
    before = await planned(registry)
    answer = await registry.FinalizeLaunch(**swap(before), reason="gates passed")
    assert answer.revision == before + 1
    assert (answer.model_type.baseline, list(answer.model_type.splits)) == (NEW, [split(new=10_000)])
    assert answer.model_type == await registry.GetModelType(name=CTR)
    assert answer.model_type.serving_revision == answer.revision
    revision = await registry.GetRevision(name=f"revisions/{answer.revision}")
    assert (revision.launch, revision.reason) == ("launches/l1", "gates passed")
    assert [change.resource for change in revision.changes] == [CTR, NEW, OLD]
    assert [change.model.role for change in revision.changes[1:]] == [pb.Model.BASELINE, pb.Model.RETIRED]
    assert (await registry.GetModel(name=OLD)).revision == answer.revision


async def test_it_answers_the_same_for_ever_and_never_ends_otherwise(registry: Registry) -> None:
    before = await planned(registry)
    first = await registry.FinalizeLaunch(**swap(before))
    # Other changes, and another launch, come after it.
    await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose="later"))
    back = swap(
        first.revision,
        "launches/l2",
        role_changes=[
            pb.RoleChange(model=OLD, role=pb.Model.BASELINE),
            pb.RoleChange(model=NEW, role=pb.Model.RETIRED),
        ],
        splits=[split(old=10_000)],
    )
    second = await registry.FinalizeLaunch(**back)
    assert await registry.FinalizeLaunch(**swap(before)) == first
    assert await planned(registry) == second.revision
    for other in (ROLLED_BACK, {"splits": [split(new=9_000, old=1_000)]}, {"model_type": "modelTypes/other"}):
        found = await refused(registry.FinalizeLaunch(**(swap(before) | other)), PRECONDITION, "LAUNCH_ENDED")
        assert dict(found.infos[0].metadata) == {"launch": "launches/l1", "outcome": "SUCCEEDED"}


async def test_a_launch_that_was_rolled_back_never_succeeds(registry: Registry) -> None:
    before = await planned(registry)
    answer = await registry.FinalizeLaunch(**(swap(before) | ROLLED_BACK))
    assert (answer.revision, answer.model_type.baseline) == (0, OLD)
    assert await registry.FinalizeLaunch(**(swap(before) | ROLLED_BACK)) == answer
    await refused(registry.FinalizeLaunch(**swap(before)), PRECONDITION, "LAUNCH_ENDED")
    assert await planned(registry) == before


async def test_of_two_endings_at_once_one_counts(registry: Registry) -> None:
    before = await planned(registry)
    calls = [registry.FinalizeLaunch(**swap(before)) for _ in range(5)]
    calls += [registry.FinalizeLaunch(**(swap(before) | ROLLED_BACK)) for _ in range(5)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    accepted = [answer for answer in answers if isinstance(answer, pb.FinalizeLaunchResponse)]
    assert len(accepted) == 5
    assert all(answer == accepted[0] for answer in accepted)
    assert len([each for each in (await registry.ListRevisions()).revisions if each.launch]) == bool(
        accepted[0].revision
    )


async def test_a_plan_is_old_once_another_launch_has_changed_the_type_and_only_then(registry: Registry) -> None:
    before = await planned(registry)
    await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, purpose="new"))
    await registry.FinalizeLaunch(**swap(before))
    found = await refused(
        registry.FinalizeLaunch(**swap(before, "launches/l2", splits=[])), PRECONDITION, "REVISION_MISMATCH"
    )
    assert found.infos[0].metadata["expected_revision"] == str(before)
    # The refused launch has no outcome: it may yet be rolled back.
    await registry.FinalizeLaunch(**(swap(before, "launches/l2") | ROLLED_BACK))


async def test_bad_finalisations_are_refused_and_leave_no_outcome(registry: Registry) -> None:
    before = await planned(registry)
    for wrong, path in (
        ({"splits": [split(new=9_999)]}, "splits[0].shares"),
        ({"role_changes": [pb.RoleChange(model=NEW, role=pb.Model.BASELINE)]}, "role_changes"),
        ({"expected_revision": 0}, "expected_revision"),
        ({"launch": "l1"}, "launch"),
        ({"outcome": 0}, "outcome"),
    ):
        found = await refused(registry.FinalizeLaunch(**(swap(before) | wrong)), INVALID, "INVALID_FIELDS")
        assert path in found.paths
    gone = registry.FinalizeLaunch(**swap(before, model_type="modelTypes/gone"))
    await refused(gone, grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert (await registry.FinalizeLaunch(**swap(before))).revision == before + 1


def status(seconds: int, region: str = "eu", model_type: str = CTR) -> pb.ServingStatus:
    models = [pb.ModelServing(model=OLD, available_replicas=1, total_replicas=2, share_basis_points=10_000)]
    return pb.ServingStatus(
        model_type=model_type,
        region=f"regions/{region}",
        models=models,
        observe_time=Timestamp(seconds=1_700_000_000 + seconds),
    )


async def test_the_newest_report_of_a_route_wins(registry: Registry) -> None:
    before = await planned(registry)
    assert (await registry.ReportServing(statuses=[status(10), status(5), status(7, "us")])).stored == 2
    assert (await registry.ReportServing(statuses=[status(10), status(9)])).stored == 0
    assert (await registry.ReportServing(statuses=[status(11), status(1, model_type="modelTypes/unknown")])).stored == 2
    found = await registry.ListServingStatuses()
    assert list(found.statuses) == [status(11), status(7, "us"), status(1, model_type="modelTypes/unknown")]
    assert list((await registry.ListServingStatuses(model_type=CTR)).statuses) == [status(11), status(7, "us")]
    first = await registry.ListServingStatuses(page_size=2)
    rest = await registry.ListServingStatuses(page_size=2, page_token=first.next_page_token)
    assert [*first.statuses, *rest.statuses] == list(found.statuses)
    assert await planned(registry) == before, "status is beside the ledger"


async def test_a_wrong_report_is_refused_as_a_whole(registry: Registry) -> None:
    wrong = status(20)
    wrong.models[0].errors = 1
    for statuses, path in (
        ([status(20), wrong], "statuses[1].models[0].errors"),
        ([status(2_000_000_000)], "statuses[0].observe_time"),
        ([pb.ServingStatus(model_type=CTR, region="regions/eu")], "statuses[0].observe_time"),
        ([], "statuses"),
    ):
        found = await refused(registry.ReportServing(statuses=statuses), INVALID, "INVALID_FIELDS")
        assert path in found.paths
    assert not (await registry.ListServingStatuses()).statuses
