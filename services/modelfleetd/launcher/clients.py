"""The other services over gRPC, as `ports.py` wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from modelfleet.capacity.v1 import capacity_pb2, policies_pb2
from modelfleet.common.v1 import permission_pb2, serving_pb2
from modelfleet.errors import NotFound
from modelfleet.registry.v1 import evidence_pb2, registry_pb2
from modelfleet.services import AsyncCapacity, AsyncPlatform, AsyncRegistry, AsyncStability
from modelfleet.stability.v1 import stability_pb2
from modelfleetd.errors import FleetError, ReferenceNotFound
from modelfleetd.kit.codec import (
    duration_from_proto,
    duration_to_proto,
    from_proto,
    timestamp_from_proto,
    timestamp_to_proto,
)
from modelfleetd.launcher.domain.criteria import Declared
from modelfleetd.launcher.domain.decision import Approver, Decision, Outcome
from modelfleetd.launcher.domain.hold import HeldPlace, Hold, HoldState, Promise
from modelfleetd.launcher.domain.planning import Room
from modelfleetd.launcher.domain.policy import Criterion, StabilityGate
from modelfleetd.launcher.domain.record import ModelFacts, Share, Verdict
from modelfleetd.launcher.ports import (
    Estimate,
    HeldUnits,
    HoldRequest,
    Judgement,
    PoolFacts,
    SizedModel,
    TypeFacts,
    UsedUnits,
    request_id,
)
from modelfleetd.launcher.remote import timeout, translated
from modelfleetd.launcher.serving import spec_to_document
from modelfleetd.platform.base import Platform
from modelfleetd.platform.client import PlatformClient
from modelfleetd.platform.model import ServingObservation, ServingSpec, TargetKind

_REPORTED = 1_000
# Whoever only asks what is booked asks for no launch.
_NO_LAUNCH = "launches/none"
# What a prediction is held to where the registry says nothing of it.
_CALIBRATION = registry_pb2.Range(low=0.5, high=2.0)
_MIN_POSITIVES = 10
_ATTRIBUTION_WINDOW = timedelta(hours=1)


@contextmanager
def _referring(path: str, name: str) -> Any:
    try:
        yield
    except NotFound as error:
        raise ReferenceNotFound(path, name) from error


class RegistryClient:
    """Implements `Registry`."""

    def __init__(self, stub: AsyncRegistry) -> None:
        self._stub = stub

    async def model_type(self, name: str) -> TypeFacts:
        with translated("registry"), _referring("launch.model_type", name):
            found = await self._stub.get_model_type(name=name, timeout=timeout())
        return TypeFacts(
            name=found.name,
            team=found.team,
            tier=serving_pb2.Tier.Name(found.tier),
            baseline=found.baseline,
            revision=found.revision,
            regions=tuple(found.regions),
            predicts=bool(found.predictions),
            predictions=tuple(map(_declared, found.predictions)),
            shares=_regions_of_shares(found.splits),
            evidence_rules=len(found.evidence_rules),
            surface=found.naming.get("surface", ""),
        )

    async def model(self, name: str, path: str) -> SizedModel:
        with translated("registry"), _referring(path, name):
            found = await self._stub.get_model(name=name, timeout=timeout())
        spec = from_proto(found.serving_spec, ServingSpec)
        facts = ModelFacts(found.name, spec.digest, spec_to_document(found.serving_spec))
        role = registry_pb2.Model.Role.Name(found.role)
        return SizedModel(facts, spec.flavor, spec.units, spec.startup_limit, spec.drain_limit, role)

    async def agent_address(self, region: str) -> str:
        with translated("registry"), _referring("launch.regions", region):
            return (await self._stub.get_region(name=region, timeout=timeout())).agent_address

    async def finalize(
        self,
        model_type: str,
        launch: str,
        key: str,
        *,
        succeeded: bool,
        expected_revision: int = 0,
        roles: Mapping[str, str] | None = None,
        splits: Mapping[str, Sequence[Share]] | None = None,
        reason: str = "",
        attempt: int = 1,
    ) -> int:
        outcomes = registry_pb2.FinalizeLaunchRequest.Outcome
        request = registry_pb2.FinalizeLaunchRequest(
            model_type=model_type,
            launch=launch,
            outcome=outcomes.Value("SUCCEEDED" if succeeded else "ROLLED_BACK"),
            expected_revision=expected_revision,
            role_changes=[
                registry_pb2.RoleChange(model=model, role=registry_pb2.Model.Role.Value(role))
                for model, role in (roles or {}).items()
            ],
            splits=[
                serving_pb2.RegionSplit(
                    region=region,
                    shares=[serving_pb2.ModelShare(model=s.model, share_basis_points=s.share) for s in shares],
                )
                for region, shares in (splits or {}).items()
            ],
            request_id=request_id(key),
            reason=reason,
            attempt=attempt,
        )
        with translated("registry"):
            return (await self._stub.finalize_launch(request, timeout=timeout())).revision

    async def check_team(self, team: str, field: str) -> None:
        with translated("registry"), _referring(field, team):
            await self._stub.get_team(name=team, timeout=timeout())

    async def regions(self) -> Mapping[str, str]:
        with translated("registry"):
            found = [region async for region in self._stub.list_regions_all(page_size=1000, timeout=timeout())]
        return {region.name: region.agent_address for region in found}

    async def report(self, observations: Sequence[ServingObservation]) -> None:
        statuses = [_status(seen) for seen in observations if seen.kind is TargetKind.ROUTE]
        for start in range(0, len(statuses), _REPORTED):
            with translated("registry"):
                await self._stub.report_serving(statuses=statuses[start : start + _REPORTED], timeout=timeout())

    async def evaluate_evidence(self, model: str, baseline: str) -> Judgement:
        with translated("registry"):
            found = await self._stub.evaluate_evidence(model=model, baseline=baseline, timeout=timeout())
        return evidence_judgement(found)


def evidence_judgement(found: evidence_pb2.EvaluateEvidenceResponse) -> Judgement:
    """Returns what the registry found of the evidence, as a gate says it."""
    verdict = Verdict.__members__.get(evidence_pb2.EvidenceVerdict.Name(found.verdict), Verdict.ERROR)
    return Judgement(verdict, found.explanation, _evidence_figures(found.judgements))


def _evidence_figures(judgements: Iterable[evidence_pb2.RuleJudgement]) -> dict[str, float]:
    """What each rule held against its bound, by the rule's id; and how many rules there are and say what."""
    figures = dict.fromkeys(("rules", "rules.pass", "rules.fail", "rules.inconclusive"), 0.0)
    for judgement in judgements:
        figures["rules"] += 1
        figures[f"rules.{evidence_pb2.EvidenceVerdict.Name(judgement.verdict).lower()}"] += 1
        if judgement.rows:
            figures[f"{judgement.rule}.judged"] = judgement.rows[0].judged
            figures[f"{judgement.rule}.bound"] = judgement.rows[0].bound
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _regions_of_shares(splits: Iterable[serving_pb2.RegionSplit]) -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for split in splits:
        for share in split.shares:
            if share.share_basis_points > 0:
                found.setdefault(share.model, set()).add(split.region)
    return {model: frozenset(regions) for model, regions in found.items()}


def _declared(prediction: registry_pb2.Prediction) -> Declared:
    calibration = prediction.calibration_range if prediction.HasField("calibration_range") else _CALIBRATION
    window = prediction.attribution_window
    return Declared(
        prediction.id,
        calibration.low,
        calibration.high,
        prediction.min_positives or _MIN_POSITIVES,
        duration_from_proto(window) if prediction.HasField("attribution_window") else _ATTRIBUTION_WINDOW,
    )


def _status(seen: ServingObservation) -> registry_pb2.ServingStatus:
    return registry_pb2.ServingStatus(
        model_type="modelTypes/" + seen.target.removeprefix("targets/"),
        region=seen.region,
        models=[
            registry_pb2.ModelServing(
                model=model.model,
                available_replicas=model.available_replicas,
                total_replicas=model.existing_replicas,
                share_basis_points=model.acknowledged_basis_points,
                requests=model.requests,
                errors=model.errors,
                latency_p99_ms=model.latency_p99_ms,
            )
            for model in seen.models
        ],
        observe_time=None if seen.observe_time is None else timestamp_to_proto(seen.observe_time),
    )


class CapacityClient:
    """Implements `Capacity`."""

    def __init__(self, stub: AsyncCapacity) -> None:
        self._stub = stub

    async def estimate(self, model: str, key: str, *, keep: bool) -> Estimate:
        request = capacity_pb2.CreateEstimateRequest(
            estimate=capacity_pb2.Estimate(model=model), validate_only=not keep, request_id=request_id(key)
        )
        with translated("capacity"):
            found = await self._stub.create_estimate(request, timeout=timeout())
        regions = {region.region: (region.replicas, region.min_replicas) for region in found.regions}
        demand = {region.region: region.demand_qps for region in found.regions}
        return Estimate(found.name if keep else "", regions, demand)

    async def decide(self, launch: str, candidate: str, pool: str, share: int, key: str, *, keep: bool) -> Decision:
        asked = policies_pb2.CreateLaunchDecisionRequest(
            launch_decision=policies_pb2.LaunchDecision(
                launch=launch, candidate=candidate, pool=pool, share_basis_points=share
            ),
            validate_only=not keep,
            request_id=request_id(key),
        )
        with translated("capacity"):
            found = await self._stub.create_launch_decision(asked, timeout=timeout())
        window = found.policy.rollback_window if found.policy.HasField("rollback_window") else None
        return Decision(
            name=found.name,
            outcome=Outcome[policies_pb2.LaunchDecision.Outcome.Name(found.outcome)],
            explanation=found.explanation,
            approvers=tuple(
                Approver(permission_pb2.Role.Name(approver.role), approver.team) for approver in found.approvers
            ),
            policy=found.policy.name,
            rollback_window=None if window is None else duration_from_proto(window),
        )

    async def unit_cost(self, flavor: str) -> float:
        with translated("capacity"):
            return (await self._stub.get_flavor(name=flavor, timeout=timeout())).unit_cost

    async def pool(self, name: str) -> PoolFacts:
        with translated("capacity"), _referring("launch.pool", name):
            found = await self._stub.get_pool(name=name, timeout=timeout())
            parent = await self._stub.get_pool(name=found.parent, timeout=timeout()) if found.parent else None
        return PoolFacts(found.team, parent.team if parent else "")

    async def booked_elsewhere(self, model: str, pool: str, flavor: str, regions: Sequence[str]) -> str:
        with translated("capacity"), _referring("launch.pool", pool):
            own = await self._stub.get_pool(name=pool, timeout=timeout())
        missing = set(regions) - await self._booked(model, own, flavor, regions)
        if not missing:
            return ""
        with translated("capacity"):
            pools = [found async for found in self._stub.list_pools_all(page_size=1000, timeout=timeout())]
        for found in pools:
            if found.name != pool and await self._booked(model, found, flavor, missing):
                return found.name
        return ""

    async def _booked(self, model: str, pool: capacity_pb2.Pool, flavor: str, regions: Iterable[str]) -> frozenset[str]:
        """The regions in which a model has something booked in a pool: what a launch that replaces it would move."""
        serving = {usage.region for usage in pool.usages if usage.flavor == flavor and usage.serving_units > 0}
        items = [HeldUnits(flavor, region, 0) for region in sorted(serving.intersection(regions))]
        if not items:
            return frozenset()
        room = await self.room(pool.name, _NO_LAUNCH, items, [model])
        return frozenset(region for (_, region), found in room.items() if found.booked > 0)

    async def room(
        self, pool: str, launch: str, wanted: Sequence[HeldUnits], replaced: Sequence[str], *, takes_over: str = ""
    ) -> Mapping[tuple[str, str], Room]:
        with translated("capacity"), _referring("launch.pool", pool):
            found = await self._stub.simulate_reservation(
                reservation=_reservation(HoldRequest(pool, launch, wanted, replaced, takes_over=takes_over)),
                timeout=timeout(),
            )
        return {
            (fit.item.flavor, fit.item.region): Room(
                booked=fit.item.moved_units, free=fit.available_units, end_excess=fit.end_excess_units
            )
            for fit in found.items
        }

    async def foresee(self, request: HoldRequest) -> Hold | None:
        answers = capacity_pb2.SimulateReservationResponse
        with translated("capacity"), _referring("launch.pool", request.pool):
            found = await self._stub.simulate_reservation(reservation=_reservation(request), timeout=timeout())
        if not found.fits and found.answer != answers.LATER:
            return None
        return Hold(
            reservation="",
            state=HoldState.HELD if found.fits else HoldState.PENDING,
            promises=tuple(map(_promise, found.promises)),
            time=_time(found, "expected_hold_time"),
            message=found.explanation,
        )

    async def reserve(self, request: HoldRequest, key: str) -> Hold:
        asked = capacity_pb2.CreateReservationRequest(
            reservation=_reservation(request), may_wait=True, request_id=request_id(key)
        )
        with translated("capacity"):
            return _hold(await self._stub.create_reservation(asked, timeout=timeout()))

    async def hold(self, reservation: str) -> Hold:
        with translated("capacity"):
            return _hold(await self._stub.get_reservation(name=reservation, timeout=timeout()))

    async def renew(self, reservation: str, release: datetime | None, key: str) -> None:
        request = capacity_pb2.RenewReservationRequest(name=reservation, request_id=request_id(key))
        if release is not None:
            request.expected_release_time.CopyFrom(timestamp_to_proto(release))
        with translated("capacity"):
            await self._stub.renew_reservation(request, timeout=timeout())

    async def activate(self, reservation: str, key: str) -> None:
        with translated("capacity"):
            await self._stub.activate_reservation(name=reservation, request_id=request_id(key), timeout=timeout())

    async def cancel(self, reservation: str, key: str) -> None:
        with translated("capacity"):
            await self._stub.cancel_reservation(name=reservation, request_id=request_id(key), timeout=timeout())

    async def settle(
        self,
        reservation: str,
        usages: Iterable[UsedUnits],
        kept: Iterable[HeldUnits],
        retain: timedelta,
        key: str,
    ) -> None:
        request = capacity_pb2.SettleReservationRequest(
            name=reservation,
            outcome=capacity_pb2.SettleReservationRequest.SUCCEEDED,
            usages=[
                capacity_pb2.ModelUnits(model=used.model, flavor=used.flavor, region=used.region, units=used.units)
                for used in usages
            ],
            retain_duration=duration_to_proto(retain),
            retain=[capacity_pb2.RetainItem(flavor=item.flavor, region=item.region, units=item.units) for item in kept],
            request_id=request_id(key),
        )
        with translated("capacity"):
            await self._stub.settle_reservation(request, timeout=timeout())

    async def release(self, reservation: str, key: str) -> None:
        request = capacity_pb2.SettleReservationRequest(
            name=reservation,
            outcome=capacity_pb2.SettleReservationRequest.ROLLED_BACK,
            request_id=request_id(key),
        )
        with translated("capacity"):
            await self._stub.settle_reservation(request, timeout=timeout())


def _reservation(request: HoldRequest) -> capacity_pb2.Reservation:
    return capacity_pb2.Reservation(
        pool=request.pool,
        launch=request.launch,
        items=[
            capacity_pb2.HoldItem(flavor=item.flavor, region=item.region, hold_units=item.units, end_units=item.end)
            for item in request.items
        ],
        replaced_models=list(request.replaced),
        tier=serving_pb2.Tier.Value(request.tier or "TIER_UNSPECIFIED"),
        expected_release_time=None if request.release is None else timestamp_to_proto(request.release),
        expected_retain_duration=duration_to_proto(request.retain) if request.retain else None,
        attempt=request.attempt,
        takes_over=request.takes_over,
    )


def _hold(found: capacity_pb2.Reservation) -> Hold:
    return Hold(
        reservation=found.name,
        state=HoldState[capacity_pb2.Reservation.State.Name(found.state)],
        places=tuple(HeldPlace(item.flavor, item.region, item.hold_units, item.moved_units) for item in found.items),
        promises=tuple(map(_promise, found.promises)),
        time=_time(found, "expected_hold_time"),
        position=found.position,
        message=found.message,
    )


def _promise(found: capacity_pb2.Promise) -> Promise:
    return Promise(found.launch, found.flavor, found.region, found.units, _time(found, "expected_time"))


def _time(message: Any, field: str) -> datetime | None:
    return timestamp_from_proto(getattr(message, field)) if message.HasField(field) else None


class StabilityClient:
    """Implements `Stability`."""

    def __init__(self, stub: AsyncStability) -> None:
        self._stub = stub

    async def judge(self, model: str, baseline: str, since: datetime, gate: StabilityGate) -> Judgement:
        request = stability_pb2.JudgeModelRequest(
            model=model,
            baseline=baseline,
            start_time=timestamp_to_proto(since),
            criteria=[_criterion(criterion) for criterion in gate.criteria],
        )
        try:
            with translated("stability"):
                found = await self._stub.judge_model(request, timeout=timeout())
        except FleetError as error:
            # The judge's silence, or its refusal, is no verdict on the model.
            return Judgement(Verdict.ERROR, f"the judge could not be asked: {error.message}")
        return stability_judgement(found)


def stability_judgement(found: stability_pb2.Judgement) -> Judgement:
    """Returns what the judge found, as a gate says it."""
    verdict = Verdict.__members__.get(serving_pb2.Verdict.Name(found.verdict), Verdict.ERROR)
    return Judgement(verdict, found.explanation, _figures(found))


def _criterion(criterion: Criterion) -> stability_pb2.Criterion:
    """A criterion whose range is whole: it was resolved when the plan was made."""
    made = stability_pb2.Criterion(
        prediction=criterion.prediction,
        max_ne_regression=criterion.max_ne_regression,
        max_calibration_difference=criterion.max_calibration_difference,
        min_positives=criterion.min_positives,
        confidence=criterion.confidence,
        include_immature=criterion.include_immature,
    )
    low, high = criterion.calibration_low, criterion.calibration_high
    if low is not None and high is not None:
        made.calibration.low, made.calibration.high = low, high
    return made


def _figures(found: stability_pb2.Judgement) -> dict[str, float]:
    """Figures by name, such as `click.calibration.low`; what is not a finite number is left out."""
    figures: dict[str, float] = {}
    for finding in found.findings:
        for side in ("candidate", "baseline"):
            if not finding.HasField(side):
                continue
            point: stability_pb2.Point = getattr(finding, side)
            prefix = finding.prediction if side == "candidate" else f"{finding.prediction}.baseline"
            figures[f"{prefix}.examples"] = float(point.examples)
            figures[f"{prefix}.positives"] = float(point.positives)
            for metric in ("calibration", "ne"):
                estimate: stability_pb2.Estimate = getattr(point, metric)
                if estimate.state == stability_pb2.Estimate.VALUE:
                    figures[f"{prefix}.{metric}"] = estimate.value
                    figures[f"{prefix}.{metric}.low"] = estimate.low
                    figures[f"{prefix}.{metric}.high"] = estimate.high
    return {name: value for name, value in figures.items() if math.isfinite(value)}


class AgentClients:
    """Implements `Platforms`; connections are kept by whoever opens them."""

    def __init__(self, open_: Any) -> None:
        self._open = open_
        self._clients: dict[str, Platform] = {}

    def at(self, address: str) -> Platform:
        found = self._clients.get(address)
        if found is None:
            stub: AsyncPlatform = self._open(address)
            found = self._clients[address] = PlatformClient(stub, name=f"the agent at {address}", timeout=timeout)
        return found
