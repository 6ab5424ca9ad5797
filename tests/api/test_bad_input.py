"""Bad input gets a clear error and changes nothing: every method of every service."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.support.contracts import arbitrary, name_fields, refused, required_fields, rpcs
from tests.support.fleet import Fleet, fleet

SERVICES = ["registry", "capacity", "stability", "launcher"]
UUID = "5a3b9d62-8c1f-4e77-9b0a-0123456789ab"


@pytest.fixture
async def empty(database_url: str) -> AsyncIterator[Fleet]:
    """A fleet in which nothing exists."""
    async with fleet(database_url) as running:
        yield running


async def revision(running: Fleet) -> int:
    async with running.client() as client:
        return (await client.registry.list_teams()).revision


@pytest.mark.parametrize("service", SERVICES)
async def test_an_empty_request_is_told_every_field_that_it_lacks(empty: Fleet, service: str) -> None:
    async with empty.channel(service) as channel:
        for rpc in rpcs(service):
            required = required_fields(rpc)
            found = await refused(rpc, channel, rpc.request())
            if not required:
                assert found is None or found.code is not grpc.StatusCode.INTERNAL, f"{rpc.name}: {found}"
                continue
            assert found is not None and found.code is grpc.StatusCode.INVALID_ARGUMENT, f"{rpc.name}: {found}"
            assert found.reason == "INVALID_FIELDS"
            # Inside a message that is missing as a whole, its own fields may be named instead.
            named = {path.split(".")[0] for path in found.paths}
            assert set(required) <= named, f"{rpc.name} lacks {set(required) - named} of {found.paths}"
            assert all(found.paths.values()), "each says what would be accepted"
    assert await revision(empty) == 0


@pytest.mark.parametrize("service", SERVICES)
async def test_a_malformed_name_is_refused_with_its_path_and_the_accepted_form(empty: Fleet, service: str) -> None:
    async with empty.channel(service) as channel:
        for rpc in rpcs(service):
            for descriptor, _ in name_fields(rpc):
                found = await refused(rpc, channel, rpc.request(**{descriptor.name: "Not A Name"}))
                assert found is not None and found.code is grpc.StatusCode.INVALID_ARGUMENT, f"{rpc.name}: {found}"
                assert found.reason == "INVALID_FIELDS"
                assert "/" in found.paths[descriptor.name], f"{rpc.name}.{descriptor.name}: {found.paths}"


@pytest.mark.parametrize("service", SERVICES)
async def test_a_name_of_nothing_is_not_found(empty: Fleet, service: str) -> None:
    names = {
        "modelfleet.dev/Team": "teams/nope",
        "modelfleet.dev/Region": "regions/nope",
        "modelfleet.dev/ModelType": "modelTypes/nope",
        "modelfleet.dev/Model": "modelTypes/nope/models/nope",
        "modelfleet.dev/CriticalityRequest": "criticalityRequests/nope",
        "modelfleet.dev/EvaluationReport": "modelTypes/nope/models/nope/evaluationReports/nope",
        "modelfleet.dev/RiskAssessment": "modelTypes/nope/models/nope/riskAssessments/nope",
        "modelfleet.dev/Revision": "revisions/99",
        "modelfleet.dev/Asset": "assets/nope",
        "modelfleet.dev/ExtensionSchema": "extensionSchemas/nope",
        "modelfleet.dev/NamingScheme": "namingSchemes/nope",
        "modelfleet.dev/Flavor": "flavors/nope",
        "modelfleet.dev/Pool": "pools/nope",
        "modelfleet.dev/Reservation": "reservations/nope",
        "modelfleet.dev/Loan": "loans/nope",
        "modelfleet.dev/LoadTest": "loadTests/nope",
        "modelfleet.dev/Recording": "recordings/nope",
        "modelfleet.dev/Certificate": "certificates/nope",
        "modelfleet.dev/Estimate": "estimates/nope",
        "modelfleet.dev/LaunchPolicy": "launchPolicies/nope",
        "modelfleet.dev/LaunchDecision": "launchDecisions/nope",
        "modelfleet.dev/Launch": "launches/nope",
        "modelfleet.dev/Attempt": "launches/nope/attempts/1",
        "modelfleet.dev/Hold": "holds/nope",
        "modelfleet.dev/FreezeWindow": "freezeWindows/nope",
        "modelfleet.dev/Slo": "slos/nope",
        "modelfleet.dev/Alert": "alerts/nope",
        "modelfleet.dev/Silence": "silences/nope",
    }
    async with empty.channel(service) as channel:
        seen = 0
        for rpc in rpcs(service):
            fields = {descriptor.name: kind for descriptor, kind in name_fields(rpc)}
            if "name" not in fields:
                continue
            request = rpc.request(name=names[fields["name"]])
            extra = {
                "reason": "because",
                "envelope_digest": "sha256:0",
                "expected_step": 1,
                "freeze_window": "freezeWindows/nope",
                "outcome": 1,
                "request_id": UUID,
            }
            for key, value in extra.items():
                if key in rpc.request.DESCRIPTOR.fields_by_name:
                    setattr(request, key, value)
            found = await refused(rpc, channel, request)
            assert found is not None and found.code is grpc.StatusCode.NOT_FOUND, f"{rpc.name}: {found}"
            assert found.reason == "RESOURCE_NOT_FOUND"
            assert found.infos[0].metadata["resource"] == request.name  # type: ignore[attr-defined]
            seen += 1
    assert seen or service == "stability"


@pytest.mark.parametrize("service", SERVICES)
async def test_no_message_whatever_makes_a_service_fail(empty: Fleet, service: str) -> None:
    chance = random.Random(20_260)
    async with empty.channel(service) as channel:
        for rpc in rpcs(service):
            for _ in range(30):
                request = arbitrary(rpc.request(), chance)
                found = await refused(rpc, channel, request)
                if found is not None:
                    assert found.reason not in {"INTERNAL_ERROR", "METHOD_UNKNOWN"}, f"{rpc.name}({request}): {found}"
                    assert found.message and "Traceback" not in found.message and "asyncpg" not in found.message
