"""Keeps the words of model types (`naming`) as the naming schemes have them.

A type gets its words when it is created or changed. When a scheme changes, thousands may get others, and a revision has
to fit into one message: so they follow in revisions of their own, some hundred types each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.registry.v1.classification_pb2 import NamingScheme as SchemeMessage
from modelfleetd import names
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.naming import NamingScheme, parsed
from modelfleetd.registry.domain.revisions import Author, Edits
from modelfleetd.registry.domain.type_names import renamed
from modelfleetd.registry.follower import Follower
from modelfleetd.registry.writer import Writer

PERIOD_SECONDS: Final = 1.0
ACTOR: Final = "registry"
# Of one revision: watchers get it as one message of at most 4 MiB.
_MOST_TYPES = 200
_MOST_BYTES = 1 << 20
# Of the event loop at a time.
_SLICE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class _Batch:
    model_types: Sequence[str]
    # The schemes by which they get their words.
    schemes: frozenset[str]

    @property
    def reason(self) -> str:
        if not self.schemes:
            return "These ids fit no naming scheme any more."
        return f"Words of these ids by {', '.join(sorted(self.schemes))}."


class Renaming:
    """Writes words that are not what the schemes say: at start, and after each change of a scheme."""

    def __init__(self, follower: Follower, writer: Writer) -> None:
        self._follower = follower
        self._writer = writer
        self._done: object = None

    async def round(self) -> None:
        """Brings all model types to the schemes as they are. Costs nothing where no scheme has changed since."""
        state = self._state()
        if state == self._done:
            return
        pause = asyncio.get_running_loop().time() + _SLICE_SECONDS
        for batch in self._batches():
            if batch is None:
                if asyncio.get_running_loop().time() >= pause:
                    await asyncio.sleep(0)
                    pause = asyncio.get_running_loop().time() + _SLICE_SECONDS
                continue

            def decide(ledger: Ledger, batch: _Batch = batch) -> Edits:
                return renamed(ledger, batch.model_types)

            await self._writer.change_unasked(Author(ACTOR, reason=batch.reason), decide)
        self._done = state

    def _state(self) -> object:
        """Returns what tells these schemes from any others."""
        schemes = self._follower.snapshot.table(SchemeMessage)
        return self._follower.generation, {name: scheme.revision for name, scheme in schemes.items()}

    def _batches(self) -> Iterator[_Batch | None]:
        """Yields types whose words are not right, some hundred at a time; None for each that was looked at."""
        wrong: list[str] = []
        schemes: set[str] = set()
        size = 0
        for name in sorted(self._follower.snapshot.model_types):
            message = self._follower.snapshot.model_types.get(name)
            if message is None:
                continue
            (id_,) = names.MODEL_TYPE.parse(name)
            scheme, words = parsed(id_, self._follower.snapshot.every(NamingScheme))
            if dict(message.naming) != words:
                wrong.append(name)
                schemes |= {scheme.name} if scheme is not None else set()
                size += message.ByteSize()
            if len(wrong) >= _MOST_TYPES or size >= _MOST_BYTES:
                yield _Batch(wrong, frozenset(schemes))
                wrong, schemes, size = [], set(), 0
            yield None
        if wrong:
            yield _Batch(wrong, frozenset(schemes))
