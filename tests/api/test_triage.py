"""The incidents of a fleet, ranked, from real services."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet import AsyncClient, columns
from modelfleet.cli import main
from modelfleet.common.v1 import serving_pb2
from modelfleet.incidents import Kind
from modelfleet.lookup import NothingFound
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.transport import Options
from modelfleet.triage import Triage, triage
from modelfleetd.clock import ManualClock
from tests.support.fleet import Fleet, fleet
from tests.support.front_door import door
from tests.support.wait import until

SPEC = serving_pb2.ServingSpec(command=["serve"], flavor="flavors/cpu")


async def _add(
    client: AsyncClient, key: str, tier: serving_pb2.Tier.ValueType, *, upstream: str = "", predicts: bool = False
) -> None:
    """A type whose baseline `old` has 90 % of the traffic, beside an experiment `new`."""
    name, registry = f"modelTypes/{key}", client.registry
    made = pb.ModelType(
        team="teams/feed",
        regions=["regions/eu"],
        tier=tier,
        upstream_types=[f"modelTypes/{upstream}"] if upstream else [],
        predictions=[pb.Prediction(id="click")] if predicts else [],
    )
    await registry.create_model_type(model_type_id=key, model_type=made)
    for model in ("old", "new"):
        await registry.create_model(parent=name, model_id=model, model=pb.Model(serving_spec=SPEC))
    shares = {f"{name}/models/old": 9_000, f"{name}/models/new": 1_000}
    await registry.adopt_serving(
        model_type=name,
        role_changes=[
            pb.RoleChange(model=f"{name}/models/old", role=pb.Model.BASELINE),
            pb.RoleChange(model=f"{name}/models/new", role=pb.Model.EXPERIMENT),
        ],
        splits=[
            serving_pb2.RegionSplit(
                region="regions/eu",
                shares=[serving_pb2.ModelShare(model=m, share_basis_points=s) for m, s in shares.items()],
            )
        ],
    )


async def _report(
    client: AsyncClient, key: str, old: dict[str, int], new: dict[str, int], minutes: float = 0.0
) -> None:
    """What an agent reports of a type; healthy unless told otherwise."""
    observed = Timestamp()
    observed.FromDatetime(datetime.now(UTC) - timedelta(minutes=minutes))
    healthy = {"available_replicas": 10, "total_replicas": 10, "requests": 1_000}
    models = [
        pb.ModelServing(model=f"modelTypes/{key}/models/{model}", **(healthy | {"share_basis_points": share} | given))
        for model, share, given in (("old", 9_000, old), ("new", 1_000, new))
    ]
    status = pb.ServingStatus(model_type=f"modelTypes/{key}", region="regions/eu", models=models, observe_time=observed)
    assert (await client.registry.report_serving(statuses=[status])).stored == 1


async def _write_wrong_predictions(client: AsyncClient, key: str) -> None:
    """Five times as many clicks predicted as happened, some minutes ago."""
    count = 2_000
    request = columns.examples(
        model_type=f"modelTypes/{key}",
        producer="test",
        sequence=1,
        model=f"modelTypes/{key}/models/new",
        prediction="click",
        event_time=[datetime.now(UTC) - timedelta(minutes=5)] * count,
        score=np.full(count, 0.5),
        label=(np.arange(count) % 10 == 0).astype(np.uint8),
    )
    await client.stability.write_examples(request)


async def _evaluated(client: AsyncClient, clock: ManualClock) -> None:
    """Returns once stability has evaluated what was written."""
    await clock.advance(60)

    async def unstable() -> Any:
        await clock.advance(0.05)
        return (await client.stability.list_model_stabilities(filter="state = UNSTABLE")).models

    await until(unstable, timeout=30)


@asynccontextmanager
async def troubled(database_url: str) -> AsyncIterator[tuple[Fleet, AsyncClient]]:
    """A fleet in which five routes are in trouble, and one is not."""
    clock = ManualClock(datetime.now(UTC))
    async with fleet(database_url, clock=clock) as running, running.client() as client:
        await client.registry.create_team(team_id="feed", team=pb.Team(on_call="pager-feed"))
        await client.registry.create_region(region_id="eu", region=pb.Region(agent_address="127.0.0.1:1"))
        await _add(client, "well", serving_pb2.TIER2)
        await _add(client, "dark", serving_pb2.TIER2)
        await _add(client, "failing", serving_pb2.TIER4)
        await _add(client, "needs_failing", serving_pb2.TIER3, upstream="failing")
        await _add(client, "wrong", serving_pb2.TIER2, predicts=True)
        await _add(client, "silent", serving_pb2.TIER2)
        for key in ("well", "needs_failing", "wrong"):
            await _report(client, key, {}, {})
        await _report(client, "dark", {"available_replicas": 0}, {})
        await _report(client, "failing", {"errors": 100}, {})
        await _report(client, "silent", {}, {}, minutes=30)
        await _write_wrong_predictions(client, "wrong")
        await _evaluated(client, clock)
        yield running, client


def _ranks(found: Triage) -> list[tuple[str, Kind]]:
    return [(each.model.removeprefix("modelTypes/"), each.worst.kind) for each in found.incidents]


async def test_incidents_are_ranked_by_what_they_can_do_with_the_reason_of_each_rank(database_url: str) -> None:
    async with troubled(database_url) as (_, client):
        found = await triage(client)
        assert _ranks(found) == [
            ("dark/models/old", Kind.UNAVAILABLE),
            ("failing/models/old", Kind.FAILING),
            ("wrong/models/new", Kind.IRRELEVANT),
            ("silent/models/old", Kind.NOT_REPORTED),
        ]
        assert [incident.level for incident in found.incidents] == [2, 4, 4, 5]
        dark, failing, wrong, silent = found.incidents
        assert dark.reason == "can be a SEV2 (TIER2; the baseline with 90% of the traffic)"
        assert failing.reason.startswith("can be a SEV4 (TIER3, since ")
        assert failing.reason.endswith("; the baseline with 90% of the traffic; 1 model type downstream)")
        assert (wrong.role, wrong.share_basis_points) == ("EXPERIMENT", 1_000)
        assert silent.worst.since is not None
        assert found.teams["teams/feed"].on_call == "pager-feed"
        # What is not known is said.
        assert (found.routes, found.judged) == (6, 1)
        assert found.not_seen == (
            "stability of 1 model: the evidence does not suffice; modelfleet stability list --filter 'state = UNKNOWN'",
        )

        # Some of it only.
        some = await triage(client, ["silent", "wrong/new"])
        assert _ranks(some) == [("wrong/models/new", Kind.IRRELEVANT), ("silent/models/old", Kind.NOT_REPORTED)]
        assert _ranks(await triage(client, ["wrong/old"])) == []
        with pytest.raises(NothingFound):
            await triage(client, ["No such thing"])


async def test_a_models_own_tier_counts_and_without_other_services_the_rest_is_ranked(database_url: str) -> None:
    async with troubled(database_url) as (running, client):
        critical = pb.Model(name="modelTypes/silent/models/old", tier_override=serving_pb2.TIER4)
        await client.registry.update_model(model=critical)
        addresses: dict[str, Any] = {"registry": running.services["registry"].address}
        async with AsyncClient("127.0.0.1:1", options=Options(attempts=1), **addresses) as alone:
            found = await triage(alone)
        assert [name for name, _ in _ranks(found)] == ["dark/models/old", "failing/models/old", "silent/models/old"]
        assert [incident.level for incident in found.incidents] == [2, 4, 7]
        assert found.not_seen == (
            "alerts: stability does not answer",
            "launches in flight: launcher does not answer",
            "stability: stability does not answer",
        )


async def test_the_command_prints_the_queue_or_the_same_as_data(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = await asyncio.to_thread(main, ["triage", *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    async with troubled(database_url) as (running, _):
        async with door(tmp_path, {name: each.address for name, each in running.services.items()}) as address:
            status, out, err = await run("--limit", "2", "--address", address)
            assert (status, err) == (0, "")
            assert out.startswith("4 incidents; 6 model types looked at, 1 model judged"), out
            first, second = out.index("1. dark/old  page pager-feed"), out.index("2. failing/old")
            assert first < out.index("unavailable eu: no replica of 10 is available for 90% of the traffic") < second
            assert "and 2 less important ones: --limit 4" in out
            status, out, err = await run("-o", "json", "--address", address)
            data = json.loads(out)
            assert (status, err) == (0, "")
            assert data["incidents"][0]["on_call"] == "pager-feed" and data["incidents"][0]["level"] == 2
            assert data["incidents"][0]["problems"][0]["kind"] == "UNAVAILABLE"
            status, out, err = await run("nope/nope", "--address", address)
            assert (status, out) == (1, "") and "modelTypes/nope does not exist" in err and err.count("\n") == 1
        status, out, err = await run("--address", "127.0.0.1:1")
        assert (status, out) == (1, "") and "registry does not answer" in err and err.count("\n") == 1
