"""`modelfleet completion`: what the shell needs to complete commands, options, launches and models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from modelfleet.cli import render
from modelfleet.client import Client
from modelfleet.errors import ModelfleetError
from modelfleet.transport import DEFAULT_ADDRESS, Tls

_SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_MODELFLEET_COMPLETE"
# Whoever presses Tab does not wait for a fleet that does not answer; and reads no more than a screen of names.
_SECONDS, _MOST = 1.0, 100

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
def group(shell: str) -> None:
    """Print what makes a shell complete commands, launches and models.

    In ~/.bashrc: eval "$(modelfleet completion bash)". In ~/.zshrc the same with zsh. For fish:
    modelfleet completion fish > ~/.config/fish/completions/modelfleet.fish

    Launches and models are asked of the fleet at $MODELFLEET_ADDRESS, or where --address before them says; a fleet that
    does not answer within a second completes nothing.
    """
    from modelfleet.cli import root

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(root, {}, "modelfleet", _VARIABLE).source())


def _asked(find: Callable[[Client, str], Iterable[CompletionItem]]) -> Complete:
    """Asks the fleet of the command line for what may stand there. Whatever goes wrong: there is nothing to offer."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        given = ctx.params
        try:
            ca, cert, key = (given.get(f"tls_{name}") for name in ("ca", "cert", "key"))
            tls = Tls(ca, cert, key) if ca or cert or key else None
            token_file = given.get("token_file")
            token = Path(token_file).read_text(encoding="utf-8").strip() if token_file else None
            address = given.get("address") or DEFAULT_ADDRESS
            with Client(address, principal=given.get("principal"), token=token, tls=tls, timeout=_SECONDS) as client:
                return [item for item in find(client, incomplete) if item.value.startswith(incomplete)]
        except (ModelfleetError, OSError, ValueError):
            return []

    return complete


def _launches(client: Client, _: str) -> Iterable[CompletionItem]:
    """The newest launches, with what they do now."""
    for launch in client.launcher.list_launches(page_size=_MOST).launches:
        what = f"{render.short(launch.candidate)} on {render.short(launch.model_type)}, {render.enum(launch, 'state')}"
        yield CompletionItem(render.short(launch.name), help=what)


def _models(client: Client, incomplete: str) -> Iterable[CompletionItem]:
    """Model types as long as several fit, then the models of the one."""
    wanted, slash, _ = incomplete.partition("/")
    if not slash:
        types = [render.short(found.name) for found in client.registry.list_model_types(page_size=1000).model_types]
        fitting = [name for name in types if name.startswith(wanted)]
        if len(fitting) != 1:
            return [CompletionItem(f"{name}/") for name in fitting[:_MOST]]
        (wanted,) = fitting
    models = client.registry.list_models(parent=f"modelTypes/{wanted}", page_size=_MOST).models
    return [CompletionItem(f"{wanted}/{render.short(found.name)}", help=render.enum(found, "role")) for found in models]


launches, models = _asked(_launches), _asked(_models)
