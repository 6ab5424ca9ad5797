"""What the launcher refuses, as whoever typed a command reads it."""

from __future__ import annotations

import click
import pytest

from modelfleet.cli.flags import told_in_flags
from modelfleet.cli.launch import group
from modelfleet.cli.launch.follow import launch_name
from modelfleet.cli.launch.told import _VERBS, FLAGS, told_in_verbs
from modelfleet.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Violation
from modelfleet.launcher.v1 import holds_pb2, kpis_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb

REQUESTS = (
    pb.CreateLaunchRequest, pb.PauseLaunchRequest, pb.SkipLaunchStepRequest, pb.ApproveLaunchRequest,
    pb.OverrideLaunchFreezeRequest, holds_pb2.CreateHoldRequest, kpis_pb2.GetLaunchStatisticsRequest,
)  # fmt: skip


def test_what_is_allowed_instead_is_told_in_commands_and_stays_in_the_metadata_as_methods() -> None:
    allowed = "PauseLaunch (engineer, owner, oncall), RollBackLaunch (owner)"
    refused = FailedPrecondition(
        f"launches/l1 is PREPARING; allowed now: {allowed}.", reason="WRONG_STATE", metadata={"allowed": allowed}
    )
    with pytest.raises(FailedPrecondition) as raised, told_in_verbs():
        raise refused
    said = "launches/l1 is PREPARING; allowed now: pause (engineer, owner, oncall), rollback (owner)."
    assert raised.value.message == str(raised.value) == said
    assert raised.value.metadata["allowed"] == allowed and raised.value.reason == "WRONG_STATE"


def test_who_may_not_do_something_reads_the_command_that_they_typed() -> None:
    with (
        pytest.raises(PermissionDenied, match="alice may not call hold lift; it takes"),
        told_in_verbs(),
    ):
        raise PermissionDenied("alice may not call LiftHold; it takes the role OWNER.", reason="ROLE_MISSING")
    for named in _VERBS.values():
        command: click.Command = group
        for word in named.split():
            assert isinstance(command, click.Group)
            command = command.commands[word]


def test_a_wrong_field_is_told_under_the_name_of_its_option() -> None:
    wrong = (
        Violation("launch.target_share_basis_points", "must be more"),
        Violation("launch.regions[1]", "must be a region"),
        Violation("launch.policy.max_steps", "must be fewer"),
    )
    context = click.Context(group.commands["create"], info_name="create")
    with context, pytest.raises(click.UsageError) as raised, told_in_flags(FLAGS):
        raise InvalidArgument("wrong", violations=wrong)
    assert raised.value.message == (
        "--share: must be more; --region: number 2 must be a region; --max-steps: must be fewer"
    )


def test_what_a_share_must_be_is_told_as_its_option_takes_it() -> None:
    wrong = (
        Violation("launch.target_share_basis_points", "must be 1 to 9,999 with RAMP: 1 for nobody"),
        Violation("launch.holdout_share_basis_points", "must be 0 to 5,000"),
        Violation("launch.policy.max_steps", "must be 1 to 100"),
    )
    context = click.Context(group.commands["create"], info_name="create")
    with context, pytest.raises(click.UsageError) as raised, told_in_flags(FLAGS):
        raise InvalidArgument("wrong", violations=wrong)
    assert raised.value.message == (
        "--share: must be 0.01% to 99.99% with RAMP: 1 for nobody; --holdout: must be 0% to 50%; "
        "--max-steps: must be 1 to 100"
    )


@pytest.mark.parametrize("field", FLAGS)
def test_every_field_that_an_option_is_named_for_exists_and_so_does_the_option(field: str) -> None:
    def reaches(descriptor: object, path: list[str]) -> bool:
        found = getattr(descriptor, "fields_by_name", {}).get(path[0])
        return found is not None and (len(path) == 1 or reaches(found.message_type, path[1:]))

    assert any(reaches(request.DESCRIPTOR, field.split(".")) for request in REQUESTS), "no request has it"
    hold = group.commands["hold"]
    assert isinstance(hold, click.Group)
    commands = [*group.commands.values(), *hold.commands.values()]
    known = {name for command in commands for param in command.params for name in (*param.opts, param.metavar)}
    assert FLAGS[field] in known, "no command has it"


def test_a_launch_is_named_by_its_id_or_its_name_and_an_attempt_is_sent_to_where_it_is_explained() -> None:
    assert launch_name("l1") == launch_name("launches/l1") == "launches/l1"
    with pytest.raises(click.UsageError, match="modelfleet launch attempts LAUNCH/ATTEMPT"):
        launch_name("l1/7")
