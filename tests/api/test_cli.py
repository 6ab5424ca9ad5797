"""The command line as a user types it, against a real registry and capacity."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from modelfleet.cli import _COMMANDS, main
from tests.support.fleet import Fleet, fleet


@dataclass
class Done:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


Run = Callable[..., Awaitable[Done]]


@pytest.fixture
async def registry(database_url: str, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Run]:
    """Runs a command line against the registry."""
    async with fleet(database_url, ["registry"]) as running:
        yield runner(running, "registry", capsys)


def runner(running: Fleet, service: str, capsys: pytest.CaptureFixture[str]) -> Run:
    async def run(*arguments: str) -> Done:
        capsys.readouterr()
        status = await asyncio.to_thread(main, [*arguments, "--address", running.services[service].address])
        printed = capsys.readouterr()
        return Done(status, printed.out, printed.err)

    return run


async def test_what_was_created_is_listed_shown_changed_and_deleted(registry: Run) -> None:
    made = await registry("registry", "team", "create", "ranking", "--set", "on_call=pager", "-o", "json")
    assert made.status == 0 and json.loads(made.out)["on_call"] == "pager"
    assert "ranking" in (await registry("registry", "team", "list")).out
    changed = await registry(
        "registry", "team", "update", "teams/ranking", "--set", "on_call=alice", "--reason", "moved"
    )
    assert yaml.safe_load(changed.out)["on_call"] == "alice"
    revisions = json.loads((await registry("registry", "revision", "list", "teams/ranking", "-o", "json")).out)
    assert [revision["reason"] for revision in revisions if "reason" in revision] == ["moved"]
    assert (await registry("registry", "team", "show", "ranking")).out == changed.out
    assert (await registry("registry", "team", "delete", "ranking")).out == "deleted teams/ranking\n"
    assert (await registry("registry", "team", "get", "ranking")).status == 1


async def test_fields_may_come_from_a_file(registry: Run, tmp_path: Path) -> None:
    file = tmp_path / "team.yaml"
    file.write_text("on_call: pager\nlabels:\n  site: zrh\n")
    made = await registry(
        "registry", "team", "create", "ranking", "-f", str(file), "--set", "labels.site=ber", "-o", "json"
    )
    assert json.loads(made.out)["labels"] == {"site": "ber"}


async def test_a_dry_run_changes_nothing(registry: Run) -> None:
    assert (await registry("registry", "team", "create", "ranking", "--dry-run")).status == 0
    assert "No teams yet" in (await registry("registry", "team", "list")).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["registry", "team", "get", "nope"], "teams/nope does not exist"),
        (["registry", "team", "create", "Not An Id"], "must match"),
        (["registry", "team", "create", "x", "--set", "onCall"], "FIELD=VALUE"),
        (["registry", "team", "create", "x", "--set", "pager=1"], "no field 'pager'; there are: name"),
        (["registry", "type", "create", "x", "--set", "tier=TIER9"], "none of TIER0, TIER1"),
        (["registry", "type", "create", "x", "--set", "team=teams/nope"], "teams/nope, which does not exist"),
        (["registry", "model", "get", "feed"], "give TYPE/MODEL or modelTypes/ID/models/ID"),
        (["registry", "teams"], "no command 'teams'; there are:"),
        (["registry", "team", "update", "x"], "nothing to change"),
        (["registry", "team", "create", "x", "-f", "/nope.yaml"], "/nope.yaml"),
        (["registry", "team", "create", "x", "--as", "stranger"], "stranger may not call CreateTeam"),
    ],
)
async def test_a_mistake_is_told_on_one_line_with_exit_status_1(registry: Run, arguments: list[str], said: str) -> None:
    done = await registry(*arguments)
    assert done.status == 1
    assert done.out == ""
    assert done.err.count("\n") == 1 and said in done.err and "Traceback" not in done.err


def test_a_fleet_that_does_not_answer_is_told_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "team", "list", "--address", "127.0.0.1:1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "nothing listens at 127.0.0.1:1" in err


def test_a_fleet_that_says_nothing_is_told_from_one_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert main(["registry", "team", "list", "--address", address, "--timeout", "0.5"]) == 1
    assert f"no answer from {address} within 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize("noun", [*_COMMANDS])
def test_every_verb_explains_itself_and_has_an_output_format(noun: str, capsys: pytest.CaptureFixture[str]) -> None:
    import click

    group = __import__(f"modelfleet.cli.{noun}", fromlist=["group"]).group

    def verbs(command: click.Command, path: list[str]) -> list[list[str]]:
        if isinstance(command, click.Group):
            return [found for name, sub in command.commands.items() for found in verbs(sub, [*path, name])]
        assert command.help, path
        # What a shell is to run has the form that the shell takes.
        assert path == ["completion"] or any("--output" in option.opts for option in command.params), path
        return [path]

    for path in verbs(group, [noun]):
        assert main([*path, "--help"]) == 0
        assert "Usage: modelfleet" in capsys.readouterr().out


def test_no_list_of_commands_cuts_a_sentence_off_on_a_narrow_terminal() -> None:
    import click

    from modelfleet.cli import root

    def groups(command: click.Command, parent: click.Context | None, name: str) -> Iterator[click.Context]:
        context = click.Context(command, parent=parent, info_name=name, terminal_width=80)
        if isinstance(command, click.Group):
            yield context
            for each in command.list_commands(context):
                found = command.get_command(context, each)
                assert found is not None
                yield from groups(found, context, each)

    walked = list(groups(root, None, "modelfleet"))
    assert len(walked) > 20
    for context in walked:
        listed = context.get_help().partition("Commands:")[2].splitlines()
        assert listed and not any(line.endswith("...") for line in listed), context.command_path
        assert all(len(line) <= 80 for line in listed), context.command_path


@pytest.mark.parametrize("noun", ["capacity", "stability"])
def test_a_list_of_commands_cuts_no_sentence_and_every_option_says_what_it_is(noun: str) -> None:
    import click

    group = __import__(f"modelfleet.cli.{noun}", fromlist=["group"]).group

    def check(command: click.Command, path: list[str]) -> None:
        assert not command.get_short_help_str(60).endswith("..."), path
        for option in command.params:
            assert not isinstance(option, click.Option) or option.hidden or option.help, (path, option.opts)
        if isinstance(command, click.Group):
            for name, sub in command.commands.items():
                check(sub, [*path, name])

    check(group, [noun])
