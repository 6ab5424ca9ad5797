"""Finds the model that somebody means: by its name, a part of it, an asset's URI, or the address of what serves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.asking import Answer, Asking, Unknown
from modelfleet.client import AsyncClient
from modelfleet.errors import ModelfleetError, NotFound
from modelfleet.registry.v1 import assets_pb2
from modelfleet.wording import short_model

_ID: Final = r"[a-z][a-z0-9_-]{0,62}"
_TYPE: Final = re.compile(rf"(modelTypes/)?({_ID})")
_MODEL: Final = re.compile(rf"(?:modelTypes/({_ID})/models/|({_ID})/)({_ID})")
_PART_OF_NAME: Final = assets_pb2.EntryMatch.PART_OF_NAME
# More than these nobody reads; a longer part of the name finds fewer.
_MOST_MATCHES: Final = 20
# The part of the time that finding it may take; everything else comes after.
_PART: Final = 0.4


@dataclass(frozen=True, slots=True)
class Entry:
    """What was meant: a model, or a model type, whose baseline is then meant."""

    model_type: str
    # Empty: the baseline of the type, whichever that is.
    model: str = ""


class NothingFound(LookupError):
    """Nothing in the registry fits what was asked for. `str()` of it says what to do."""


class Ambiguous(LookupError):
    """Several entries fit what was asked for; somebody has to say which. `.matches` are the best of them."""

    def __init__(self, query: str, matches: Sequence[assets_pb2.EntryMatch], *, truncated: bool) -> None:
        self.query = query
        self.matches = tuple(matches)
        self.truncated = truncated
        shown = f"more than {len(matches)}" if truncated else str(len(matches))
        super().__init__(f"{shown} entries fit '{query}'")


async def find_entry(client: AsyncClient, asking: Asking, query: str) -> Entry:
    """Returns the entry that somebody means. A full name is taken as it is: whether it exists, others find out.

    Args:
        client: of the fleet.
        asking: until when there has to be an answer.
        query: TYPE, TYPE/MODEL, a full name, a part of one, the URI of an asset, or the address of an endpoint.

    Raises:
        NothingFound: nothing fits.
        Ambiguous: several do.
        ModelfleetError: the registry did not answer.
    """
    query = query.strip()
    if named := _MODEL.fullmatch(query):
        model_type = f"modelTypes/{named[1] or named[2]}"
        return Entry(model_type, f"{model_type}/models/{named[3]}")
    named = _TYPE.fullmatch(query)
    if named is not None and named[1]:
        return Entry(query)
    if named is None:
        return await look_up(client, asking, query)
    # One word: the id of a model type before anything that it may be a part of.
    registry, name = client.registry, f"modelTypes/{query}"
    async with asyncio.TaskGroup() as calls:
        exists = calls.create_task(_may_exist(client, asking, name))
        similar = calls.create_task(
            asking.ask(registry.lookup_entries, part=_PART, query=query, page_size=_MOST_MATCHES)
        )
    return Entry(name) if exists.result() else choose(query, similar.result())


async def _may_exist(client: AsyncClient, asking: Asking, model_type: str) -> bool:
    """Says whether a model type exists; yes where nobody can say: other services may know it."""
    try:
        await asking.expect(client.registry.get_model_type, part=_PART, name=model_type)
    except NotFound:
        return False
    except ModelfleetError:
        return True
    return True


async def look_up(client: AsyncClient, asking: Asking, query: str) -> Entry:
    """Returns the one entry that fits something that is no name.

    Raises:
        NothingFound: nothing fits, or the registry could not look.
        Ambiguous: several do.
    """
    looking = client.registry.lookup_entries
    return choose(query, await asking.ask(looking, part=_PART, query=query, page_size=_MOST_MATCHES))


def choose(query: str, answer: Answer[assets_pb2.LookupEntriesResponse]) -> Entry:
    """Returns the one entry that was meant: what fits as a whole before what fits in part, a type before its models.

    Raises:
        NothingFound: nothing fits, or nobody could look.
        Ambiguous: several do.
    """
    if isinstance(answer, Unknown):
        raise NothingFound(f"no model type or model is called '{query}', and it cannot be looked up: {answer.reason}")
    whole = [match for match in answer.matches if match.basis != _PART_OF_NAME]
    fitting = whole or list(answer.matches)
    names = {match.resource for match in fitting}
    types = {name for name in names if "/models/" not in name}
    if len(types) == 1 and {name.partition("/models/")[0] for name in names} == types:
        names = types  # its models fit because they are below it
    if len(names) > 1:
        raise Ambiguous(query, fitting, truncated=answer.truncated)
    if not names:
        raise NothingFound(f"nothing in the registry fits '{query}'; list what there is: modelfleet registry type list")
    (name,) = names
    model_type, below, _ = name.partition("/models/")
    return Entry(model_type, name if below else "")


def described(match: assets_pb2.EntryMatch) -> str:
    """Returns why an entry fits, for people."""
    basis = assets_pb2.EntryMatch.Basis.Name(match.basis).lower().replace("_", " ")
    return f"{basis} {match.matched}" if match.matched and match.matched != match.resource else basis


def typed(match: assets_pb2.EntryMatch) -> str:
    """Returns an entry's name as commands take it."""
    return short_model(match.resource)
