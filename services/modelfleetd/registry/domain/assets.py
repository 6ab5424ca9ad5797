"""Assets: what belongs to model types and models and lies elsewhere."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelfleetd.registry.domain.resource import Resource


class AssetKind(enum.Enum):
    """What an asset is."""

    TRAINING_FLOW = "TRAINING_FLOW"
    CHECKPOINT = "CHECKPOINT"
    INFERENCE_SERVICE = "INFERENCE_SERVICE"
    DATASET = "DATASET"
    DASHBOARD = "DASHBOARD"
    OTHER = "OTHER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset(Resource):
    """Something that belongs to model types or models and lies elsewhere."""

    kind: AssetKind | None = None
    uri: str = ""
    display_name: str = ""
    team: str = ""
    model_types: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


def place(uri: str) -> str:
    """Returns what a URI is compared by: a slash at its end makes no difference."""
    return uri.rstrip("/")
