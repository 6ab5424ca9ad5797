"""What the code holds beside the protos is what the protos say."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from google.api import resource_pb2

from modelfleet.common.v1 import error_reason_pb2, permission_pb2
from modelfleetd import errors, names
from modelfleetd.kit import status
from modelfleetd.kit.auth import Role
from modelfleetd.kit.method import find_method
from modelfleetd.kit.validation import plan_of

SERVICES = ("registry", "capacity", "launcher", "stability", "platform")
PROTOS = Path(__file__).parents[2] / "protos" / "modelfleet"
FILES = [importlib.import_module(f"modelfleet.{name}.v1.{name}_pb2").DESCRIPTOR for name in SERVICES]
METHODS: list[Any] = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]
REASONS = [name for name in error_reason_pb2.ErrorReason.keys() if name != "ERROR_REASON_UNSPECIFIED"]  # noqa: SIM118
# One of each error.
EXAMPLES = [
    errors.invalid("team_id", "must match"),
    errors.InvalidPageToken(),
    errors.FieldImmutable("serving_spec", "register a new model instead"),
    errors.ResourceNotFound("teams/a"),
    errors.ResourceExists("teams/a"),
    errors.RequestIdReused("0b6de3c4-0f1c-4f0e-9d1a-0f6f0e6f0a01"),
    errors.EtagMismatch("teams/a", "1", "2"),
    errors.UriTaken("s3://a", "assets/a"),
    errors.EntriesInvalidated("extensionSchemas/a", {"modelTypes/a": "attributes.owner is required"}, 1),
    errors.RouteBusy("modelTypes/a", "launches/b"),
    errors.RevisionOutOfRange(1, 2, 3),
    errors.IdentityMissing(),
    errors.RoleMissing("alice", "CreateTeam", ["ADMIN"], "teams/a"),
    errors.SelfApproval("alice"),
    errors.DelegationDenied("alice"),
    errors.ResourceInUse("teams/a", ["modelTypes/b"]),
    errors.FieldOwnedByLaunches("baseline", "modelfleet launch create"),
    errors.ReferenceNotFound("model_type.team", "teams/a"),
    errors.CriticalityNeedsApproval("modelTypes/a", "TIER1", "modelfleet registry criticality request modelTypes/a"),
    errors.RequestPending("modelTypes/a", "criticalityRequests/a-1"),
    errors.RevisionMismatch(1, 2),
    errors.WrongState("launches/a", "SUCCEEDED", ["RollBackLaunch"]),
    errors.StepMovedOn("launches/a", 2, 3),
    errors.PlanInfeasible("it never finishes", missing_units=4, flavor="flavors/a", region="regions/b"),
    errors.NotConfigured("modelTypes/a", "demand_source"),
    errors.LaunchEnded("launches/a", "ROLLED_BACK"),
    errors.ModelOnHold("modelTypes/a/models/b", "holds/c", "it crashed"),
    errors.CertificateMissing("modelTypes/a/models/b"),
    errors.SettlementExceedsHold("reservations/a", 1, 2),
    errors.CertificateExpired("modelTypes/a/models/b", "certificates/c", "2026-11-26 12:00 UTC"),
    errors.EndStateExceedsQuota("pools/a", "flavors/b", "regions/c", 120, 100),
    errors.LoanExceedsLending("pools/a", "flavors/b", "regions/c", 100, 20),
    errors.DemandUnmeasurable("modelTypes/a", "regions/b", "the query gives 2 series"),
    errors.RecordingUnreadable("recordings/a", "it still records"),
    errors.StaleEpoch("targets/a", 1, 2),
    errors.NoAvailableReplica("targets/a", "modelTypes/a/models/b"),
    errors.ReplicaCannotStart("targets/a", "modelTypes/a/models/b", "no such command"),
    errors.QuotaExceeded(
        [errors.QuotaShortage("pools/a", "flavors/b", "regions/c", 84, 60, remedy="launches/d holds 30")],
    ),
    errors.Overloaded(),
    errors.PartUnavailable("database"),
    errors.DeadlinePassed(),
    errors.CallCancelled(),
    errors.MethodUnknown("/x/y"),
    errors.InternalError("0af7651916cd43dd8448eb211c80319c"),
]


def _documented() -> dict[str, tuple[str, set[str]]]:
    """Returns the code and the metadata of each reason, as its comment in the proto names them."""
    found: dict[str, tuple[str, set[str]]] = {}
    comment = ""
    for line in (PROTOS / "common/v1/error_reason.proto").read_text().splitlines():
        line = line.strip()
        if line.startswith("//"):
            comment += line.removeprefix("//")
        elif value := re.match(r"([A-Z_]+) = [1-9]", line):
            metadata = re.search(r"Metadata: (.*?)(\. |\.$)", comment)
            keys = set(re.findall(r"`(\w+)`", metadata[1])) if metadata else set()
            found[value[1]] = (comment.strip().partition(".")[0], keys)
            comment = ""
        else:
            comment = ""
    return found


def test_every_reason_has_exactly_one_error() -> None:
    assert sorted(example.reason for example in EXAMPLES) == sorted(REASONS)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.reason)
def test_errors_have_the_code_and_the_metadata_that_their_reason_documents(example: errors.FleetError) -> None:
    code, metadata = _documented()[example.reason]
    assert example.code.name == code
    assert metadata <= example.metadata.keys()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.reason)
def test_the_answer_of_an_error_has_exactly_one_error_info(example: errors.FleetError) -> None:
    made = status.to_status(example)
    kinds = [detail.TypeName().rpartition(".")[2] for detail in made.details]
    assert kinds.count("ErrorInfo") == 1
    assert ("BadRequest" in kinds) == (example.code is errors.Code.INVALID_ARGUMENT)
    assert ("PreconditionFailure" in kinds) == (example.code is errors.Code.FAILED_PRECONDITION)
    assert ("QuotaFailure" in kinds) == (example.reason == "QUOTA_EXCEEDED")
    assert ("RetryInfo" in kinds) == (example.reason == "OVERLOADED")
    # Every variable of the message is in the metadata.
    assert len(made.message) < 200


def test_the_tree_of_errors_is_drawn_in_full() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    assert drawn == {type(example).__name__ for example in EXAMPLES} | {"RefusedElsewhere", "EntriesRefused"}


def test_answers_stay_small_however_much_is_wrong() -> None:
    violations = [errors.FieldViolation(f"items[{index}].name", "must be something" * 20) for index in range(10_000)]
    error = errors.InvalidFields(violations)
    assert len(status.to_status(error).SerializeToString()) < 7000
    assert len(error.message) < 1200
    problems = {f"modelTypes/{'x' * 50}{index}": "must be something" * 20 for index in range(1000)}
    invalidated = errors.EntriesInvalidated("extensionSchemas/x", problems, 1000)
    made = status.to_status(invalidated)
    assert len(made.SerializeToString()) < 7000
    assert any(detail.TypeName().endswith("PreconditionFailure") for detail in made.details)


def test_names_are_the_patterns_of_the_protos() -> None:
    declared: dict[str, str] = {}
    for file in FILES:
        resources = list(file.GetOptions().Extensions[resource_pb2.resource_definition])
        for message in file.message_types_by_name.values():
            if message.GetOptions().HasExtension(resource_pb2.resource):
                resources.append(message.GetOptions().Extensions[resource_pb2.resource])  # noqa: PERF401
        declared |= {resource.type: resource.pattern[0] for resource in resources}
    assert declared.keys() <= names.BY_TYPE.keys()
    assert declared == {kind: names.BY_TYPE[kind].template for kind in declared}


def test_every_reference_is_to_a_known_resource() -> None:
    for method in METHODS:
        plan_of(method.input_type)


def test_roles_are_the_ones_of_the_protos() -> None:
    declared = {value.name: value.number for value in permission_pb2.DESCRIPTOR.enum_types_by_name["Role"].values}
    assert {role.name: int(role) for role in Role} == {k: v for k, v in declared.items() if v}


@pytest.mark.parametrize("descriptor", METHODS, ids=lambda descriptor: descriptor.full_name)
def test_every_method_says_who_may_call_it(descriptor: Any) -> None:
    method = find_method(f"/{descriptor.containing_service.full_name}/{descriptor.name}")
    assert method is not None and method.permission is not None and method.permission.any_of
    message = descriptor.input_type
    for part in filter(None, method.permission.resource.split(".")):
        assert part in message.fields_by_name, f"{method.permission.resource} is no field of the request"
        message = message.fields_by_name[part].message_type


@pytest.mark.parametrize("descriptor", METHODS, ids=lambda descriptor: descriptor.full_name)
def test_calls_that_change_something_can_be_repeated(descriptor: Any) -> None:
    reads = descriptor.GetOptions().idempotency_level == 1
    verbs = ("Get", "List", "Watch")
    if descriptor.name.startswith(verbs):
        assert reads, "must be declared NO_SIDE_EFFECTS"


def test_patterns_build_and_take_apart_names() -> None:
    name = names.MODEL.format("feed_ctr", "v7")
    assert name == "modelTypes/feed_ctr/models/v7"
    assert names.MODEL.parse(name) == ("feed_ctr", "v7")
    assert names.MODEL.parent is not None and names.MODEL.parent.template == names.MODEL_TYPE.template
    assert names.TEAM.parent is None
    assert names.REVISION.parse("revisions/12") == ("12",)
    assert names.MODEL_TYPE.parse("modelTypes/-", wildcard=True) == ("-",)


@pytest.mark.parametrize(
    "name", ["", "modelTypes/", "modelTypes/Feed", "modelTypes/-", "modeltypes/a", "modelTypes/a/", "modelTypes/a\n"]
)
def test_other_names_are_refused_with_what_would_be_accepted(name: str) -> None:
    with pytest.raises(errors.InvalidFields, match=r"modelTypes/\{model_type\}") as caught:
        names.MODEL_TYPE.parse(name, "launch.model_type")
    assert caught.value.violations[0].path == "launch.model_type"


@pytest.mark.parametrize("value", ["", "A", "1a", "a" * 64, "a b", "ä", "-a", "a\n"])
def test_other_ids_are_refused(value: str) -> None:
    with pytest.raises(errors.InvalidFields, match="team_id: must match"):
        names.check_id(value, "team_id")


@pytest.mark.parametrize("number", ["0", "01", "-1", "1" * 19, "x"])
def test_other_numbers_are_refused(number: str) -> None:
    assert names.REVISION.match(f"revisions/{number}") is None
