"""What every platform agent has to do: the simulator and real agents pass the same suite."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from modelfleetd.errors import (
    FieldImmutable,
    InvalidFields,
    NoAvailableReplica,
    ReplicaCannotStart,
    RequestIdReused,
    ResourceNotFound,
    StaleEpoch,
)
from modelfleetd.platform.ledger import Promise, peak, violations
from modelfleetd.platform.model import (
    DesiredServing,
    EffectKind,
    Fence,
    ModelShare,
    RecordingStatus,
    ServingSpec,
    TargetKind,
)
from tests.platform.conftest import Subject
from tests.support.serving import CPU, NEW, OLD, TARGET, serving
from tests.support.wait import until


async def test_an_agent_describes_itself(subject: Subject) -> None:
    agent = await subject.platform.agent()
    assert agent.region.startswith("regions/")
    assert agent.version
    assert agent.traffic_address
    assert agent.start_time is not None


async def test_an_unknown_target_is_empty(subject: Subject) -> None:
    seen = await subject.platform.observe(TARGET)
    assert (seen.kind, seen.desired, seen.models, seen.generation, seen.epoch_floor) == (None, None, (), 0, 0)
    assert await subject.platform.list() == ()


async def test_replicas_start_become_available_and_take_the_share(subject: Subject) -> None:
    seen = await subject.reach(serving({OLD: 2}, spec=subject.spec))
    assert seen.model(OLD).available_replicas == 2
    assert seen.model(OLD).acknowledged_basis_points == 0
    seen = await subject.reach(serving({OLD: 2}, {OLD: 10_000}, subject.spec))
    assert seen.model(OLD).acknowledged_basis_points == 10_000
    assert seen.split_time is not None
    assert seen.kind is TargetKind.ROUTE
    assert seen.desired == serving({OLD: 2}, {OLD: 10_000}, subject.spec)
    assert [target.target for target in await subject.platform.list()] == [TARGET]


async def test_a_model_that_is_left_out_is_drained_and_gone(subject: Subject) -> None:
    await subject.reach(serving({OLD: 1, NEW: 1}, spec=subject.spec))
    await subject.reach(serving({OLD: 1, NEW: 1}, {OLD: 10_000}, subject.spec))
    await subject.reach(serving({NEW: 1, OLD: 1}, {NEW: 10_000}, subject.spec))
    seen = await subject.reach(serving({NEW: 1}, {NEW: 10_000}, subject.spec))
    assert [model.model for model in seen.models] == [NEW]


async def test_nothing_desired_leaves_nothing(subject: Subject) -> None:
    await subject.reach(serving({OLD: 1}, spec=subject.spec))
    seen = await subject.reach(DesiredServing())
    assert seen.models == ()
    kinds = [effect.kind for effect in await subject.ledger() if effect.replica]
    assert kinds == [
        EffectKind.REPLICA_STARTED,
        EffectKind.REPLICA_AVAILABLE,
        EffectKind.REPLICA_DRAINING,
        EffectKind.REPLICA_TERMINATED,
    ]


async def test_generations_grow_by_one_and_are_acknowledged(subject: Subject) -> None:
    first = await subject.apply(serving({OLD: 0}, spec=subject.spec))
    second = await subject.apply(serving({OLD: 0, NEW: 0}, spec=subject.spec))
    assert (first.generation, second.generation) == (1, 2)
    assert second.effect > first.effect


async def test_observing_with_an_epoch_shuts_out_older_holders(subject: Subject) -> None:
    await subject.apply(serving({OLD: 0}, spec=subject.spec), epoch=5)
    seen = await subject.platform.observe(TARGET, 7)
    assert seen.epoch_floor == 7
    with pytest.raises(StaleEpoch):
        await subject.apply(serving({OLD: 0, NEW: 0}, spec=subject.spec), epoch=6)
    with pytest.raises(StaleEpoch):
        await subject.platform.observe(TARGET, 6)
    await subject.apply(serving({OLD: 0, NEW: 0}, spec=subject.spec), epoch=7)
    assert (await subject.platform.observe(TARGET)).epoch_floor == 7


async def test_the_floor_of_a_target_that_nobody_has_described_holds(subject: Subject) -> None:
    await subject.platform.observe(TARGET, 9)
    with pytest.raises(StaleEpoch):
        await subject.apply(serving({OLD: 0}, spec=subject.spec), epoch=8)
    assert (await subject.platform.observe(TARGET)).desired is None


async def test_looking_with_epoch_zero_moves_no_floor(subject: Subject) -> None:
    await subject.apply(serving({OLD: 0}, spec=subject.spec), epoch=5)
    assert (await subject.platform.observe(TARGET)).epoch_floor == 5


async def test_floors_belong_to_targets(subject: Subject) -> None:
    await subject.platform.observe(TARGET, 9)
    other = "modelTypes/other/models/m"
    await subject.apply(serving({other: 0}, spec=subject.spec), epoch=1, target="targets/other")


async def test_a_key_is_answered_the_same_for_ever(subject: Subject) -> None:
    desired = serving({OLD: 0}, spec=subject.spec)
    first = await subject.apply(desired, key="swap/1/1/grow")
    await subject.apply(serving({NEW: 0}, spec=subject.spec))
    assert await subject.apply(desired, key="swap/1/1/grow") == first
    # A holder that took over repeats what it cannot know to be done, with its own epoch.
    assert await subject.apply(desired, key="swap/1/1/grow", epoch=3) == first
    seen = await subject.platform.observe(TARGET)
    assert (seen.generation, seen.epoch_floor) == (2, 3)
    assert seen.desired == serving({NEW: 0}, spec=subject.spec)
    keys = [effect.key for effect in await subject.ledger() if effect.kind is EffectKind.ACCEPTED]
    assert len(keys) == len(set(keys)) == 2


async def test_a_key_with_other_content_is_refused(subject: Subject) -> None:
    await subject.apply(serving({OLD: 0}, spec=subject.spec), key="same")
    with pytest.raises(RequestIdReused):
        await subject.apply(serving({OLD: 0, NEW: 0}, spec=subject.spec), key="same")


async def test_a_stale_holder_is_refused_for_a_known_key_too(subject: Subject) -> None:
    desired = serving({OLD: 0}, spec=subject.spec)
    await subject.apply(desired, key="same", epoch=1)
    await subject.platform.observe(TARGET, 2)
    with pytest.raises(StaleEpoch):
        await subject.apply(desired, key="same", epoch=1)


async def test_no_share_rises_without_an_available_replica(subject: Subject) -> None:
    with pytest.raises(NoAvailableReplica) as refused:
        await subject.apply(serving({OLD: 1}, {OLD: 10_000}, subject.spec))
    assert refused.value.metadata == {"target": TARGET, "model": OLD}
    seen = await subject.platform.observe(TARGET)
    assert (seen.generation, seen.desired) == (0, None)


async def test_a_refused_key_may_be_used_again(subject: Subject) -> None:
    desired = serving({OLD: 1}, {OLD: 10_000}, subject.spec)
    with pytest.raises(NoAvailableReplica):
        await subject.apply(desired, key="shift")
    await subject.reach(serving({OLD: 1}, spec=subject.spec))
    assert (await subject.apply(desired, key="shift")).generation == 2


async def test_a_target_keeps_its_kind(subject: Subject) -> None:
    await subject.apply(serving({OLD: 0}, spec=subject.spec))
    with pytest.raises(FieldImmutable):
        await subject.platform.apply(
            TARGET, TargetKind.LOAD_TEST, Fence(1, "other"), serving({OLD: 0}, spec=subject.spec)
        )


async def test_a_load_test_runs_models_of_other_types_and_has_no_shares(subject: Subject) -> None:
    target, desired = "targets/loadtest-1", serving({OLD: 1}, spec=subject.spec)
    await subject.platform.apply(target, TargetKind.LOAD_TEST, Fence(1, "begin"), desired)
    with pytest.raises(InvalidFields):
        shares = serving({OLD: 1}, {OLD: 10_000}, subject.spec)
        await subject.platform.apply(target, TargetKind.LOAD_TEST, Fence(1, "shares"), shares)
    with pytest.raises(InvalidFields):
        await subject.platform.apply("targets/elsewhere", TargetKind.ROUTE, Fence(1, "route"), desired)


SENSELESS: list[tuple[str, int, str, DesiredServing]] = [
    ("fence.epoch", 0, "k", serving({OLD: 1})),
    ("fence.key", 1, "k" * 201, serving({OLD: 1})),
    ("desired.models[0].replicas", 1, "k", serving({OLD: -1})),
    ("desired.models[0].replicas", 1, "k", serving({OLD: 10_001})),
    ("desired.models[0].model", 1, "k", serving({"models/v1": 1})),
    ("desired.models[0].model", 1, "k", serving({"modelTypes/other/models/v1": 1})),
    ("desired.models[0].serving_spec.flavor", 1, "k", serving({OLD: 1}, spec=ServingSpec(command=("x",)))),
    ("desired.models[0].serving_spec.command", 1, "k", serving({OLD: 1}, spec=ServingSpec(flavor=CPU))),
    ("desired.shares", 1, "k", serving({OLD: 1}, {OLD: 9_999})),
    ("desired.shares[0].model", 1, "k", serving({OLD: 0}, {OLD: 10_000})),
    ("desired.shares[0].share_basis_points", 1, "k", serving({OLD: 1}, {OLD: 10_001})),
]


async def test_senseless_requests_are_refused_by_field(subject: Subject, subtests: pytest.Subtests) -> None:
    for field, epoch, key, desired in SENSELESS:
        with subtests.test(f"{field} of {desired}"):
            with pytest.raises(InvalidFields) as refused:
                await subject.platform.apply(TARGET, TargetKind.ROUTE, Fence(epoch, key), desired)
            assert field in [violation.path for violation in refused.value.violations]
            assert await subject.ledger() == []


async def test_a_malformed_target_is_refused(subject: Subject) -> None:
    with pytest.raises(InvalidFields):
        await subject.platform.observe("ranker")


async def test_effects_are_listed_in_order_in_pages_and_by_target(subject: Subject) -> None:
    for index in range(3):
        other = f"modelTypes/type{index}/models/m"
        await subject.apply(serving({other: 0}, spec=subject.spec), target=f"targets/type{index}")
    first = await subject.platform.effects(limit=2)
    assert first.more
    rest = await subject.platform.effects(after=first.effects[-1].sequence)
    numbers = [effect.sequence for effect in (*first.effects, *rest.effects)]
    assert numbers == list(range(1, len(numbers) + 1))
    only = await subject.platform.effects(target="targets/type1")
    assert {effect.target for effect in only.effects} == {"targets/type1"}


async def test_share_zero_may_name_a_model_that_does_not_run(subject: Subject) -> None:
    await subject.reach(serving({OLD: 1}, spec=subject.spec))
    seen = await subject.reach(serving({OLD: 1}, {NEW: 0, OLD: 10_000}, subject.spec))
    assert seen.model(OLD).acknowledged_basis_points == 10_000


async def test_a_swap_in_steps_keeps_every_promise(subject: Subject) -> None:
    """Three replicas are replaced by three others with one spare: grow, shift, shrink, three times."""
    full, steps = 3, (3_400, 6_700, 10_000)

    def needed(share: int) -> int:
        return math.ceil(full * share / 10_000)

    await subject.reach(serving({OLD: full}, spec=subject.spec))
    await subject.reach(serving({OLD: full}, {OLD: 10_000}, subject.spec))
    began, before = len(await subject.ledger()), 0
    for share in steps:
        new, old = needed(share), needed(10_000 - before)
        await subject.reach(serving({NEW: new, OLD: old}, {NEW: before, OLD: 10_000 - before}, subject.spec))
        await subject.reach(serving({NEW: new, OLD: old}, {NEW: share, OLD: 10_000 - share}, subject.spec))
        after = {NEW: new, OLD: needed(10_000 - share)}
        seen = await subject.reach(serving(after, {NEW: share, OLD: 10_000 - share}, subject.spec))
        assert seen.model(NEW).acknowledged_basis_points == share
        before = share
    ledger = await subject.ledger()
    promise = Promise(TARGET, lambda _, share: needed(share), {CPU: full + 2}, after=began)
    assert violations(ledger, [promise]) == []
    assert peak(ledger, TARGET) <= full + 2
    acknowledged = [effect.shares for effect in ledger if effect.kind is EffectKind.SHARES_ACKNOWLEDGED]
    assert acknowledged[-1] == (ModelShare(NEW, 10_000),)


async def test_replicas_go_only_after_the_weight_has_gone(subject: Subject) -> None:
    await subject.reach(serving({OLD: 1, NEW: 1}, spec=subject.spec))
    await subject.reach(serving({OLD: 1, NEW: 1}, {OLD: 10_000}, subject.spec))
    # One act that takes share and replicas at once.
    await subject.reach(serving({NEW: 1}, {NEW: 10_000}, subject.spec))
    ledger = await subject.ledger()
    shifted = next(e for e in ledger if e.shares == (ModelShare(NEW, 10_000),))
    drained = next(e for e in ledger if e.kind is EffectKind.REPLICA_DRAINING)
    assert shifted.sequence < drained.sequence


async def test_an_image_or_a_missing_command_cannot_start_on_a_machine(subject: Subject) -> None:
    """An agent that knows at once that it cannot run a replica says so; one that can run anything accepts it."""
    spec = ServingSpec(command=("no-such-command-anywhere",), flavor=CPU)
    if (await subject.platform.agent()).version.startswith("node"):
        with pytest.raises(ReplicaCannotStart):
            await subject.apply(serving({OLD: 1}, spec=spec))
    else:
        await subject.apply(serving({OLD: 1}, spec=spec))


async def expect_recording(subject: Subject) -> None:
    """Agents need not record; those that say so have to do it right."""
    if not (await subject.platform.agent()).records:
        pytest.skip("this agent does not record")


async def test_recordings_begin_once_end_once_and_are_told_of_for_ever(subject: Subject) -> None:
    await expect_recording(subject)
    await subject.apply(serving({OLD: 0}, spec=subject.spec))
    wanted = subject.plan()
    begun = await subject.platform.start_recording(wanted)
    assert (begun.recording, begun.active, begun.failed, begun.message) == (wanted.recording, True, False, "")
    assert (await subject.platform.start_recording(wanted)).active
    with pytest.raises(RequestIdReused):
        await subject.platform.start_recording(replace(wanted, sample_permille=11))
    assert (await subject.platform.observe_recording(wanted.recording)).active
    ended = await subject.platform.stop_recording(wanted.recording)
    assert (ended.active, ended.requests, ended.failed) == (False, 0, False)
    assert ended.message
    assert await subject.platform.stop_recording(wanted.recording) == ended
    assert await subject.platform.observe_recording(wanted.recording) == ended
    assert await subject.platform.start_recording(wanted) == ended


async def test_what_cannot_be_recorded_is_refused(subject: Subject) -> None:
    await expect_recording(subject)
    with pytest.raises(ResourceNotFound):
        await subject.platform.start_recording(subject.plan())
    for call in (subject.platform.observe_recording, subject.platform.stop_recording):
        with pytest.raises(ResourceNotFound):
            await call("recordings/nope")
    await subject.apply(serving({OLD: 0}, spec=subject.spec))
    nonsense = replace(subject.plan(), sample_permille=0, max_bytes=0, max_requests=-1)
    with pytest.raises(InvalidFields) as refused:
        await subject.platform.start_recording(nonsense)
    wrong = {violation.path for violation in refused.value.violations}
    assert wrong == {"sample_permille", "max_bytes", "max_requests"}


async def test_a_recording_ends_when_its_time_is_over(subject: Subject) -> None:
    await expect_recording(subject)
    await subject.apply(serving({OLD: 0}, spec=subject.spec))
    wanted = subject.plan(seconds=1)
    await subject.platform.start_recording(wanted)

    async def over() -> RecordingStatus | None:
        await subject.pass_time()
        status = await subject.platform.observe_recording(wanted.recording)
        return None if status.active else status

    ended = await until(over, timeout=30)
    assert ended is not None
    assert ended.message == "Its time is over."
