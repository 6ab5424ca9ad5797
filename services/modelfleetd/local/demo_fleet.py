"""Registers the demo's fleet through the public API: team, route, models, capacity, and the launches."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.registry.v1 import registry_pb2

TYPE = "modelTypes/zozo_fashion_main_ctr"
BASELINE = f"{TYPE}/models/campaign_and_position"
CANDIDATE = f"{TYPE}/models/with_item_and_user"
PREDICTION = "click"
TEAM, REGION, FLAVOR, POOL = "teams/fashion", "regions/local", "flavors/small_cpu", "pools/fashion"
FIRST_LAUNCH, LAUNCH = "launches/first", "launches/richer_features"

# The log is a week in under a minute, so a click has seconds and not hours to come.
ATTRIBUTION_WINDOW = timedelta(seconds=10)
# Replicas that the whole route needs, which the stated certificates are made to say; and what the pool has beyond.
BASELINE_REPLICAS, CANDIDATE_REPLICAS, SPARE = 6, 5, 2
# Defaults of capacity's estimate: highest utilisation, and machines that may be lost.
_UTILIZATION, _LOSS = 0.7, 0.02

# Long enough for whole minutes to mature while the launch goes on: NE is only judged on these. Where crashes make a
# launch long anyway, shorter.
BAKE, BAKE_WITH_CRASHES = timedelta(seconds=15), timedelta(seconds=8)
CALIBRATION_LOW, CALIBRATION_HIGH, CONFIDENCE, MIN_POSITIVES = 0.5, 2.0, 0.99, 10


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Where training wrote the models."""

    baseline: Path
    candidate: Path


def max_qps(peak: float, replicas: int) -> float:
    """Returns what one replica must be said to carry so that a peak needs so many replicas."""
    return math.ceil(peak / (_UTILIZATION * (1 - _LOSS) * (replicas - 0.4)) * 10) / 10


async def register(client: AsyncClient, artifacts: Artifacts, peak_qps: float) -> None:
    """Registers everything that the launches need."""
    await client.registry.create_team(
        team_id=_id(TEAM),
        team=registry_pb2.Team(
            display_name="Fashion recommendations", on_call="fashion-oncall@example.com", contacts=["mei@example.com"]
        ),
        reason="demo",
    )
    await client.capacity.create_flavor(
        flavor_id=_id(FLAVOR), flavor=capacity_pb2.Flavor(description="a share of this machine", unit_cost=0.05)
    )
    quota = capacity_pb2.Quota(flavor=FLAVOR, region=REGION, nominal_units=BASELINE_REPLICAS + SPARE)
    await client.capacity.create_pool(pool_id=_id(POOL), pool=capacity_pb2.Pool(team=TEAM, quotas=[quota]))
    await client.registry.create_model_type(
        model_type_id=_id(TYPE), model_type=_model_type(math.ceil(peak_qps)), reason="demo"
    )
    for model, artifact, description, replicas in (
        (BASELINE, artifacts.baseline, "campaign and position", BASELINE_REPLICAS),
        (CANDIDATE, artifacts.candidate, "and item, user, hour, affinity", CANDIDATE_REPLICAS),
    ):
        await client.registry.create_model(
            parent=TYPE,
            model_id=_id(model),
            model=registry_pb2.Model(
                description=f"Logistic regression over {description}", serving_spec=_spec(artifact)
            ),
            reason="demo",
        )
        await client.capacity.create_certificate(
            certificate=capacity_pb2.Certificate(
                model=model,
                flavor=FLAVOR,
                max_qps=max_qps(math.ceil(peak_qps), replicas),
                note=f"Stated for the demo, so that the route needs {replicas} replicas; nobody measured it.",
            )
        )


async def launch_first(client: AsyncClient) -> launcher_pb2.Launch:
    """Brings the baseline into service: a launch on a route that has none, in one step, with nothing to judge."""
    policy = launcher_pb2.LaunchPolicy(
        max_step_basis_points=10_000, stability_gate=launcher_pb2.StabilityGate(disabled=True)
    )
    policy.bake_duration.FromTimedelta(timedelta(0))
    policy.rollback_window.FromTimedelta(timedelta(0))
    return await client.launcher.create_launch(
        launch_id=_id(FIRST_LAUNCH), launch=_launch(BASELINE, policy, "the first model of the route")
    )


async def launch_candidate(client: AsyncClient, bake: timedelta) -> launcher_pb2.Launch:
    """Launches the candidate against the baseline, gated on calibration."""
    criterion = launcher_pb2.StabilityCriterion(
        prediction=PREDICTION,
        calibration_low=CALIBRATION_LOW,
        calibration_high=CALIBRATION_HIGH,
        confidence=CONFIDENCE,
        min_positives=MIN_POSITIVES,
        include_immature=True,
    )
    policy = launcher_pb2.LaunchPolicy(
        max_step_basis_points=3_000,
        stability_gate=launcher_pb2.StabilityGate(criteria=[criterion], max_extensions=20),
    )
    policy.bake_duration.FromTimedelta(bake)
    policy.step_deadline.FromTimedelta(timedelta(minutes=3))
    policy.rollback_window.FromTimedelta(timedelta(0))
    return await client.launcher.create_launch(
        launch_id=_id(LAUNCH), launch=_launch(CANDIDATE, policy, "richer features, trained on the same days")
    )


def _launch(candidate: str, policy: launcher_pb2.LaunchPolicy, reason: str) -> launcher_pb2.Launch:
    return launcher_pb2.Launch(
        model_type=TYPE,
        candidate=candidate,
        strategy=launcher_pb2.Launch.REPLACE_BASELINE,
        pool=POOL,
        policy=policy,
        reason=reason,
    )


def _model_type(peak_qps: int) -> registry_pb2.ModelType:
    prediction = registry_pb2.Prediction(
        id=PREDICTION,
        calibration_range=registry_pb2.Range(low=CALIBRATION_LOW, high=CALIBRATION_HIGH),
        min_positives=MIN_POSITIVES,
    )
    prediction.attribution_window.FromTimedelta(ATTRIBUTION_WINDOW)
    demand = registry_pb2.RegionDemand(region=REGION, peak_qps=peak_qps)
    return registry_pb2.ModelType(
        purpose="Chance that a visitor of the fashion shop clicks an item on the main page",
        team=TEAM,
        funnel_stage=registry_pb2.LATE_STAGE_RANKING,
        tier=serving_pb2.TIER2,
        regions=[REGION],
        predictions=[prediction],
        demand_source=registry_pb2.DemandSource(stated=[demand]),
    )


def _spec(artifact: Path) -> serving_pb2.ServingSpec:
    spec = serving_pb2.ServingSpec(
        artifact=str(artifact),
        command=[
            sys.executable, "-m", "modelfleetd.local.model_server",
            "--port", "{port}", "--model", "{model_type}", "--artifact", "{artifact}",
        ],
        flavor=FLAVOR,
        units_per_replica=1,
        # Many small processes on one machine: no thread pools for linear algebra.
        environment={"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    spec.startup_timeout.FromTimedelta(timedelta(seconds=30))
    spec.drain_timeout.FromTimedelta(timedelta(seconds=5))
    return spec


def _id(name: str) -> str:
    return name.rpartition("/")[2]
