"""What stability asks the registry: which predictions a model type declares, and whether models exist.

Answers are kept: writers come every second with the same model types, and go on while the registry is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from modelfleet.errors import ModelfleetError, NotFound
from modelfleet.registry.v1 import registry_pb2
from modelfleet.services import AsyncRegistry
from modelfleetd.clock import Clock
from modelfleetd.errors import NotConfigured, PartUnavailable, ReferenceNotFound, ResourceNotFound
from modelfleetd.names import MODEL, MODEL_TYPE
from modelfleetd.stability.domain.criteria import DeclaredPrediction
from modelfleetd.stability.wire.registry import declared_prediction

_log = logging.getLogger(__name__)
# Ranges and windows are changed by people; models hardly ever disappear.
_TYPE_FRESH: Final = 5.0
_MODEL_FRESH: Final = 300.0
# A registry that hangs must not hold up those who could go on with what is known.
_TIMEOUT: Final = 2.0
_WITHOUT_PREDICTIONS: Final = "set them first; stability does not apply to a model type without any, as of retrieval"
_MOST_KEPT: Final = 100_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeclaredType:
    """A model type as far as stability is concerned."""

    name: str
    team: str
    predictions: dict[str, DeclaredPrediction]  # in the order of their declaration


@dataclass(slots=True)
class _Entry(Generic[T]):
    asked_at: float = float("-inf")
    value: T | None = None  # None where it does not exist, or nothing is known yet
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Registry:
    """The registry's answers. Every method may raise PartUnavailable where nothing is known yet."""

    def __init__(self, client: AsyncRegistry, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._types: dict[str, _Entry[DeclaredType]] = {}
        self._models: dict[str, _Entry[str]] = {}

    async def declared(self, model_type: str, field_path: str) -> DeclaredType:
        """Returns a model type that a request refers to.

        Raises:
            ReferenceNotFound: there is no such model type.
            NotConfigured: it declares no predictions, as retrieval does not: stability does not apply to it.
        """
        found = await self._type(model_type)
        if found is None:
            raise ReferenceNotFound(field_path, model_type)
        if not found.predictions:
            raise NotConfigured(model_type, "predictions", _WITHOUT_PREDICTIONS)
        return found

    async def declared_of_model(self, model: str) -> DeclaredType:
        """Returns the type of the model that a request is about.

        Raises:
            ResourceNotFound: there is no such model.
            NotConfigured: its type declares no predictions.
        """
        await self.expect_model(model)
        return await self.declared(MODEL_TYPE.format(MODEL.parse(model)[0]), "model")

    async def expect_model(self, model: str) -> None:
        """Raises ResourceNotFound where there is no such model."""
        if await self._model(model) is None:
            raise ResourceNotFound(model)

    async def check_models(self, models: Sequence[tuple[str, str]]) -> None:
        """Raises ReferenceNotFound for the first of (field, model) that does not exist."""
        for path, model in models:
            if await self._model(model) is None:
                raise ReferenceNotFound(path, model)

    async def check_exists(self, path: str, name: str) -> None:
        """Raises ReferenceNotFound where there is no such model type or model."""
        found = await (self._type(name) if MODEL_TYPE.match(name) else self._model(name))
        if found is None:
            raise ReferenceNotFound(path, name)

    async def team_of(self, name: str) -> str | None:
        """Returns the team of a model type or model; None where it does not exist or is something else."""
        ids = MODEL_TYPE.match(name) or MODEL.match(name)
        found = None if ids is None else await self._type(MODEL_TYPE.format(ids[0]))
        return None if found is None else found.team

    async def _type(self, name: str) -> DeclaredType | None:
        async def ask() -> DeclaredType:
            return _declared(await self._client.get_model_type(name=name, timeout=_TIMEOUT))

        return await self._kept(self._types, name, _TYPE_FRESH, ask)

    async def _model(self, name: str) -> str | None:
        async def ask() -> str:
            return (await self._client.get_model(name=name, timeout=_TIMEOUT)).name

        return await self._kept(self._models, name, _MODEL_FRESH, ask)

    async def _kept(
        self, entries: dict[str, _Entry[T]], name: str, fresh: float, ask: Callable[[], Awaitable[T]]
    ) -> T | None:
        """Returns what is known, asked again when it is old; what does not exist is asked for every time."""
        if len(entries) > _MOST_KEPT:
            entries.clear()
        entry = entries.setdefault(name, _Entry())
        if entry.value is not None and self._clock.monotonic() - entry.asked_at < fresh:
            return entry.value
        async with entry.asking:
            if entry.value is not None and self._clock.monotonic() - entry.asked_at < fresh:
                return entry.value
            try:
                entry.value = await ask()
            except NotFound:
                entry.value = None
            except ModelfleetError as error:
                if entry.value is None:
                    del entries[name]
                    raise PartUnavailable("registry", error.retry_after) from error
                _log.warning("the registry does not answer (%s); going by what is known of %s", error.reason, name)
            entry.asked_at = self._clock.monotonic()
            if entry.value is None:
                entries.pop(name, None)
            return entry.value


def _declared(model_type: registry_pb2.ModelType) -> DeclaredType:
    predictions = (declared_prediction(prediction) for prediction in model_type.predictions)
    return DeclaredType(model_type.name, model_type.team, {prediction.id: prediction for prediction in predictions})
