"""What the node decides, without a process: routing, drains, starts, pauses, and what it tells."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from modelfleetd.node import domain
from modelfleetd.node.domain import Count, Crashes, Phase, Replica, Target
from modelfleetd.node.routing import routing_of
from modelfleetd.platform.model import (
    DesiredModel,
    DesiredServing,
    ModelShare,
    ServingObservation,
    ServingSpec,
    TargetKind,
)
from modelfleetd.platform.rules import effective_shares
from tests.support.serving import CPU, NEW, OLD, SPEC, TARGET, serving

NOW = datetime(2025, 1, 1, tzinfo=UTC)


def _replica(index: int, model: str, phase: Phase, spec: ServingSpec = SPEC) -> Replica:
    created = NOW + timedelta(seconds=index)
    return Replica(f"r{index}", TARGET, model, spec, 20_000 + index, phase, created, created)


def _target(desired: DesiredServing, *, acknowledged: bool = True) -> Target:
    return Target(
        TARGET, TargetKind.ROUTE, desired=desired, generation=3, acknowledged_generation=3 if acknowledged else 2
    )


replicas_of_two_models = st.lists(st.tuples(st.sampled_from([OLD, NEW]), st.sampled_from(Phase)), max_size=12).map(
    lambda drawn: [_replica(index, model, phase) for index, (model, phase) in enumerate(drawn)]
)


@given(replicas_of_two_models, st.integers(0, 6), st.integers(0, 6))
def test_drained_and_started_replicas_come_out_at_what_is_desired(replicas: list[Replica], old: int, new: int) -> None:
    target = _target(serving({OLD: old, NEW: new}))
    drained = {replica.uid for replica in domain.surplus(target, replicas)}
    for model in target.wanted.models:
        kept = [r for r in replicas if r.model == model.model and r.phase.counts and r.uid not in drained]
        assert len(kept) + domain.missing(target, replicas, model) == model.replicas
        gone = [r for r in replicas if r.model == model.model and r.uid in drained]
        # An available one goes only where no other is left to go.
        if any(r.phase is Phase.AVAILABLE for r in gone):
            assert all(r.phase is Phase.AVAILABLE for r in kept)


@given(replicas_of_two_models)
def test_nothing_is_drained_before_the_newest_shares_are_acknowledged(replicas: list[Replica]) -> None:
    assert domain.surplus(_target(serving({}), acknowledged=False), replicas) == []


@given(replicas_of_two_models, st.integers(0, 10_000))
def test_envoy_never_gives_weight_to_a_model_without_an_available_replica(replicas: list[Replica], share: int) -> None:
    target = _target(serving({NEW: 1, OLD: 1}, {NEW: share, OLD: 10_000 - share}))
    routing = routing_of([target], replicas)
    (split,) = routing.splits
    assert sum(s.share_basis_points for s in split.shares) in (0, 10_000)
    for given_share in split.shares:
        assert given_share.share_basis_points > 0
        assert domain.available(TARGET, given_share.model, replicas) > 0
    ports = {e.port: e.draining for backend in routing.backends for e in backend.endpoints}
    for replica in replicas:
        known = replica.phase in (Phase.READY, Phase.AVAILABLE, Phase.DRAINING)
        assert (replica.port in ports) is known
        if known:
            assert ports[replica.port] is (replica.phase is Phase.DRAINING)


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=6), st.sets(st.integers(0, 6)))
def test_shares_of_unavailable_models_go_to_the_others_in_proportion_and_order(
    parts: list[int], unavailable: set[int]
) -> None:
    parts = [*parts[:1], *(part // len(parts) for part in parts[1:])]
    parts.append(10_000 - sum(parts))
    shares = tuple(ModelShare(f"m{index}", part) for index, part in enumerate(parts))
    able = [s for s in shares if int(s.model[1:]) not in unavailable and s.share_basis_points]
    found = effective_shares(shares, lambda model: int(int(model[1:]) not in unavailable))
    assert [s.model for s in found] == [s.model for s in able]
    total = sum(s.share_basis_points for s in able)
    if able:
        assert sum(s.share_basis_points for s in found) == 10_000
        for before, after in zip(able, found, strict=True):
            assert abs(after.share_basis_points - before.share_basis_points * 10_000 / total) < 1


def test_a_load_test_has_backends_and_no_split() -> None:
    target = replace(_target(serving({OLD: 1})), kind=TargetKind.LOAD_TEST)
    routing = routing_of([target], [_replica(1, OLD, Phase.AVAILABLE)])
    assert len(routing.backends) == 1
    assert routing.splits == ()


def test_terminating_replicas_still_take_their_units() -> None:
    big = replace(SPEC, units_per_replica=2)
    replicas = [_replica(1, OLD, Phase.STOPPING, big), _replica(2, OLD, Phase.DRAINING, big)]
    assert not domain.fits(big, replicas, {CPU: 5})
    assert domain.fits(big, replicas, {CPU: 6})
    assert domain.fits(big, replicas, {})
    assert not domain.fits(big, [], {"flavors/other": 9})


def test_commands_are_filled_in_once_and_by_no_shell() -> None:
    spec = ServingSpec(
        command=("serve", "--port={port}", "{model_type}/{model}", "{artifact}", "$HOME"), artifact="{port}"
    )
    filled = domain.command_of(_replica(1, OLD, Phase.STARTING, spec))
    assert filled == ["serve", "--port=20001", f"ranker/{OLD}", "{port}", "$HOME"]


def test_what_cannot_start_is_known_where_it_can_be() -> None:
    def find(command: str) -> str | None:
        return f"/bin/{command}" if command == "serve" else None

    assert domain.cannot_start(SPEC, {}, find) is None
    assert domain.cannot_start(SPEC, {CPU: 1}, find) is None
    assert domain.cannot_start(replace(SPEC, command=("gone",)), {}, find) == "gone is no command of this machine"
    assert "images" in str(domain.cannot_start(ServingSpec(image="x@sha256:0"), {}, find))
    assert "0 units" in str(domain.cannot_start(SPEC, {"flavors/gpu": 1}, find))
    assert "takes 3" in str(domain.cannot_start(replace(SPEC, units_per_replica=3), {CPU: 2}, find))


def test_the_first_crash_is_repaired_at_once_and_further_ones_ever_later() -> None:
    crashes, pauses = Crashes(), []
    for _ in range(9):
        crashes = crashes.after(100.0, "why", lived=1.0)
        pauses.append(crashes.next_start - 100.0)
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert crashes.after(100.0, "why", lived=3_600.0).next_start == 100.0


def _observe(target: Target, replicas: list[Replica], counts: dict[str, Count]) -> ServingObservation:
    return domain.observe(
        target,
        replicas,
        region="regions/r",
        now=NOW,
        counts=counts,
        latencies={},
        crashes={},
        capacity={},
        statistics_age=timedelta(0),
    )


@given(replicas_of_two_models)
def test_every_replica_is_counted_once(replicas: list[Replica]) -> None:
    seen = _observe(_target(serving({OLD: 0, NEW: 0})), replicas, {})
    assert sum(model.existing_replicas for model in seen.models) == len(replicas)


def test_observed_shares_count_from_the_last_split() -> None:
    counts = {OLD: Count(1_000, 5, 900, 5), NEW: Count(400, 40, 100, 10)}
    seen = _observe(_target(serving({OLD: 1, NEW: 1})), [], counts)
    assert (seen.model(OLD).observed_basis_points, seen.model(NEW).observed_basis_points) == (2_500, 7_500)
    assert (seen.model(NEW).requests_since_split, seen.model(NEW).errors_since_split) == (300, 30)
    assert DesiredModel(OLD, SPEC, 1) in (seen.desired.models if seen.desired else ())
