"""What stability watches follows the registry: who serves, what is expected of it, all as of one revision."""

from __future__ import annotations

from datetime import timedelta

from modelfleet.common.v1.serving_pb2 import TIER2, TIER3, ModelShare, RegionSplit
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from modelfleetd.stability.domain.criteria import Limits
from modelfleetd.stability.domain.fleet import HealthyRange, Metric, Role, Tier
from modelfleetd.stability.fleet import Fleet
from tests.support.stability import CLICK, CTR, NEW, NOW, OLD, stability_fleet

CALIBRATION, NE, VOLUME = (
    monitoring_pb2.HealthyRange.CALIBRATION,
    monitoring_pb2.HealthyRange.NE,
    monitoring_pb2.HealthyRange.VOLUME,
)


def healthy(
    metric: monitoring_pb2.HealthyRange.Metric.ValueType, low: float, high: float
) -> monitoring_pb2.HealthyRange:
    return monitoring_pb2.HealthyRange(prediction=CLICK, metric=metric, low=low, high=high)


async def test_the_watched_fleet_is_who_serves_with_the_ranges_in_force(database_url: str) -> None:
    async with stability_fleet(database_url) as running, Fleet(running.client) as fleet:
        registry = running.client.registry
        await registry.update_team(team=registry_pb2.Team(name="teams/feed", on_call="pager-7"))
        await registry.update_model_type(
            model_type=registry_pb2.ModelType(
                name=CTR,
                tier=TIER3,
                healthy_ranges=[healthy(CALIBRATION, 0.8, 1.2), healthy(VOLUME, 1e3, 1e5)],
                service_level=monitoring_pb2.ServiceLevel(stability=0.97),
            )
        )
        own = registry_pb2.Model(name=NEW, healthy_ranges=[healthy(CALIBRATION, 0.9, 1.1)])
        await registry.update_model(model=own)
        shares = [ModelShare(model=NEW, share_basis_points=1000), ModelShare(model=OLD, share_basis_points=9000)]
        roles = [
            registry_pb2.RoleChange(model=OLD, role=registry_pb2.Model.BASELINE),
            registry_pb2.RoleChange(model=NEW, role=registry_pb2.Model.EXPERIMENT),
        ]
        adopted = await registry.adopt_serving(
            model_type=CTR, role_changes=roles, splits=[RegionSplit(region="regions/eu", shares=shares)]
        )
        await fleet.read_teams()
        await fleet.wait_ready(10, revision=adopted.revision)

        view = fleet.view()
        assert view.revision == adopted.revision
        assert set(view.models) == {OLD, NEW}  # nobody else serves
        old, new = view.models[OLD], view.models[NEW]
        assert (old.role, old.tier, old.on_call, old.share_basis_points) == (Role.BASELINE, Tier.TIER3, "pager-7", 9000)
        assert (old.slo, new.slo) == ("slos/ctr", "slos/ctr.new")
        assert (old.service_level.stability, old.service_level.availability) == (0.97, 0.98)
        assert old.ranges[CLICK, Metric.CALIBRATION].at(NOW) == Limits(0.8, 1.2)
        assert new.ranges[CLICK, Metric.CALIBRATION].at(NOW) == Limits(0.9, 1.1)
        assert new.ranges[CLICK, Metric.VOLUME].high == 1e5
        assert new.ranges["buy", Metric.CALIBRATION].at(NOW) == Limits(0.5, 2.0)
        assert (CLICK, Metric.NE) not in new.ranges
        assert fleet.view() is view

        raised = registry_pb2.Model(name=NEW, tier_override=TIER2)
        changed = await registry.update_model(model=raised)
        await fleet.wait_ready(10, revision=changed.revision)
        assert fleet.view().models[NEW].tier is Tier.TIER2
        assert fleet.view().models[OLD] == old


def test_a_range_by_hour_of_week_is_that_of_the_hour_that_ends() -> None:
    factors = tuple(1.0 + hour / 168 for hour in range(168))
    found = HealthyRange(CLICK, Metric.CALIBRATION, 0.5, 1.0, factors)
    monday = NOW.replace(year=2025, month=3, day=3, hour=1, minute=0, second=0)
    assert found.at(monday) == Limits(0.5, 1.0)
    assert found.at(monday + timedelta(minutes=1)) == Limits(0.5 * factors[1], factors[1])
