"""`modelfleet`: the command line of a fleet. A file per noun; every command has `--output table|json|yaml`."""

from __future__ import annotations

import sys

import click

from modelfleet.errors import ModelfleetError

# Keep the start of `modelfleet --help` short: commands import what they need when they run.
_COMMANDS = {
    "registry": ("modelfleet.cli.registry", "Teams, regions, model types, models and their history."),
    "evidence": ("modelfleet.cli.evidence", "Evaluations and risk assessments of models, and what rules say of them."),
    "capacity": (
        "modelfleet.cli.capacity",
        "What a model needs, whose capacity it is, and whether it is worth it.",
    ),
    "launch": ("modelfleet.cli.launch", "Plan, start, watch and steer launches."),
    "stability": ("modelfleet.cli.stability", "Are the predictions still right?"),
    "fleet": ("modelfleet.cli.fleet", "Synthetic fleets to try the commands with."),
    "investigate": ("modelfleet.cli.investigate", "Everything about one model that was just paged for, on one screen."),
    "triage": ("modelfleet.cli.triage", "What is wrong in the fleet now, the most important first."),
    "mitigate": ("modelfleet.cli.mitigate", "End an experiment or take a launch back; or whom to page instead."),
    "completion": ("modelfleet.cli.completion", "Let the shell complete commands, launches and models."),
}


class _Root(click.Group):
    """The top level; a noun's module is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names the nouns in the order of a model's life, then what there is for when it goes wrong."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the module of a noun."""
        if cmd_name not in _COMMANDS:
            if ctx.resilient_parsing:  # the shell asks what may follow: nothing
                return None
            raise click.UsageError(f"no command '{cmd_name}'; there are: {', '.join(_COMMANDS)}", ctx)
        module = __import__(_COMMANDS[cmd_name][0], fromlist=["group"])
        command = module.group
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the nouns without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Where: --address after the command, $MODELFLEET_ADDRESS, or 127.0.0.1:8460 (`modelfleetd up`).",
)
@click.version_option(package_name="modelfleet", prog_name="modelfleet")
def root() -> None:
    """Steer a fleet of production ML models: what is live, what it needs, how it is launched, whether it is right."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 1 with one line of what was wrong, 130 after Ctrl-C."""
    try:
        status = root.main(argv, prog_name="modelfleet", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
        hint = f" (see '{where} --help')" if where else ""
        return _fail(" ".join(error.format_message().split()) + hint)
    except ModelfleetError as error:
        return _fail(_one_line(error))
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (OSError, UnicodeDecodeError) as error:
        name = getattr(error, "filename", None)
        return _fail(f"{name}: {error.strerror}" if isinstance(error, OSError) and name else str(error))
    return status if isinstance(status, int) else 0


def _one_line(error: ModelfleetError) -> str:
    details = "; ".join(f"{field.field}: {field.description}" for field in error.violations)
    text = error.message if not details or details in error.message else f"{error.message} {details}"
    reason = f" [{error.reason}]" if error.reason else ""
    return " ".join(text.split()) + reason


def _fail(line: str) -> int:
    click.echo(f"modelfleet: {line}", err=True)
    return 1
