"""What a service says of fields, in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click

from modelfleet.errors import FailedPrecondition, InvalidArgument, Violation
from modelfleet.wording import percent


@contextmanager
def told_in_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Says what is wrong with fields of a request, or what they refer to, under the names of their options.

    Args:
        flags: the option by the field, without indices: `load_test.stoppers.latencies`. Others stay as they are.
    """
    try:
        yield
    except InvalidArgument as error:
        wrong = "; ".join(_in_flags(each, flags) for each in error.violations)
        if not wrong:
            raise
        raise click.UsageError(wrong, click.get_current_context()) from None
    except FailedPrecondition as error:
        field = error.metadata.get("field", "")
        flag = flags.get(_without_indices(field))
        if error.reason != "REFERENCE_NOT_FOUND" or flag is None:
            raise
        raise FailedPrecondition(
            error.message.replace(field, flag, 1),
            code=error.code,
            reason=error.reason,
            metadata=error.metadata,
            preconditions=error.preconditions,
            method=error.method,
        ) from error


def _in_flags(wrong: Violation, flags: Mapping[str, str]) -> str:
    """What is wrong with a field, under the name of its option; of one that may be repeated, with which it is."""
    path, index = wrong.field, ""
    # Of a part that is no option of its own, as a limit of a range, the whole is told.
    while path and _without_indices(path) not in flags:
        path = path.rpartition(".")[0]
    if last := re.search(r"\[(\d+)\]$", path):
        index = f"number {int(last[1]) + 1} "
    return f"{flags[_without_indices(path)] if path else wrong.field}: {index}{_in_shares(wrong)}"


def _in_shares(wrong: Violation) -> str:
    """What is wrong with a field; of a share the numbers that it must be are in percent, as its option takes them."""
    if not _without_indices(wrong.field).endswith("_basis_points"):
        return wrong.description
    demanded, colon, why = wrong.description.partition(":")
    return re.sub(r"(?<= )\d[\d,]*", lambda number: percent(int(number[0].replace(",", ""))), demanded) + colon + why


def _without_indices(field: str) -> str:
    return re.sub(r"\[\d+\]", "", field)
