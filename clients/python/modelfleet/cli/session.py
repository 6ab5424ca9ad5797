"""What every command shares: where the fleet is, who asks, and how the answer is printed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from modelfleet.client import Client
from modelfleet.errors import DeadlineExceeded, Unavailable
from modelfleet.transport import DEFAULT_ADDRESS, Tls

Output = Literal["table", "json", "yaml"]
_F = TypeVar("_F", bound=Callable[..., Any])

# Either word shows one thing; each group has the one that says better what is shown.
_SAME_VERB = {"get": "show", "show": "get"}
# Longer than any first sentence.
_WHOLE = 1_000


@dataclass(frozen=True, slots=True)
class Session:
    """One invocation of a command: the client and the wished form of the answer."""

    client: Client
    output: Output

    @property
    def is_table(self) -> bool:
        """Whether a person reads the answer."""
        return self.output == "table"


class FleetGroup(click.Group):
    """A noun. An abbreviation or a wrong verb is answered with the verbs that exist; `get` and `show` are one."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Finds a verb, also by the other word for it where it has only one."""
        found = super().get_command(ctx, cmd_name)
        return found or super().get_command(ctx, _SAME_VERB.get(cmd_name, cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the verbs; what each does goes on in the next line rather than being cut off."""
        verbs = [(name, super(FleetGroup, self).get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, verb.get_short_help_str(_WHOLE)) for name, verb in verbs if verb is not None and not verb.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the verb, or says which there are."""
        name = args[0] if args else ""
        known = self.get_command(ctx, name) is not None or ctx.resilient_parsing
        if name and not known and not name.startswith("-"):
            raise click.UsageError(f"no command '{name}'; there are: {', '.join(self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def with_session(command: _F) -> _F:
    """Adds the options that every command has, and calls it with a `Session` as its first argument."""

    @click.option(
        "--address",
        envvar="MODELFLEET_ADDRESS",
        default=DEFAULT_ADDRESS,
        show_default=True,
        help="Front door of the fleet, host:port.",
    )
    @click.option("--as", "principal", envvar="MODELFLEET_AS", help="Act as this principal (only on loopback).")
    @click.option(
        "--token-file",
        envvar="MODELFLEET_TOKEN_FILE",
        type=click.Path(exists=True, dir_okay=False),
        help="File with a bearer token.",
    )
    @click.option(
        "--tls-ca", envvar="MODELFLEET_TLS_CA", type=click.Path(exists=True), help="CA of the server; turns TLS on."
    )
    @click.option(
        "--tls-cert", envvar="MODELFLEET_TLS_CERT", type=click.Path(exists=True), help="Own certificate (mTLS)."
    )
    @click.option("--tls-key", envvar="MODELFLEET_TLS_KEY", type=click.Path(exists=True), help="Key of --tls-cert.")
    @click.option(
        "--timeout", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="Seconds for a call."
    )
    @click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="Form of the answer. json and yaml leave out what is 0 or empty, and have 64-bit integers as strings.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any,
        address: str,
        principal: str | None,
        token_file: str | None,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        timeout: float,
        output: Output,
        **kwargs: Any,
    ) -> Any:
        try:
            tls = Tls(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert or tls_key else None
            token = Path(token_file).read_text(encoding="utf-8").strip() if token_file else None
            opened = Client(address, principal=principal, token=token, tls=tls, timeout=timeout)
        except UnicodeError:
            raise click.UsageError(
                f"--token-file {token_file}: the token must be one line of printable ASCII"
            ) from None
        except (ValueError, OSError) as error:
            raise click.UsageError(_in_flags(str(error))) from None
        with opened as client:
            try:
                return command(Session(client, output), *args, **kwargs)
            except (Unavailable, DeadlineExceeded) as error:
                if error.reason:  # a service did answer, and says more than this
                    raise
                raise click.ClickException(_unanswered(error, address, timeout)) from None

    return wrapper  # type: ignore[return-value]


def _unanswered(error: Unavailable | DeadlineExceeded, address: str, timeout: float) -> str:
    """Returns why no service answered, and what to do about it."""
    if isinstance(error, DeadlineExceeded):
        return f"no answer from {address} within {timeout:g} s; give it more with --timeout, or another --address"
    # A proxy that answers for a service which is down says it in other words.
    if "failed to connect to all addresses" in error.message and "Connection refused" in error.message:
        return f"nothing listens at {address}; start it with `modelfleetd up`, or give --address"
    return f"no answer from {address}: {error.message}; see that it runs, or give another --address"


def _in_flags(problem: str) -> str:
    """Returns what is wrong in the words of the command line."""
    for words, flag in (
        ("a certificate and its private key go together", "--tls-cert and --tls-key go together"),
        ("give the authorities of its TLS", "give --tls-ca"),
        ("the principal", "--as"),
        ("the token must", "--token-file: the token must"),
    ):
        problem = problem.replace(words, flag)
    return problem
