"""Builders of desired serving: short names for what platform tests say all the time."""

from __future__ import annotations

from modelfleetd.platform.model import DesiredModel, DesiredServing, ModelShare, ServingSpec

TARGET = "targets/ranker"
OLD = "modelTypes/ranker/models/old"
NEW = "modelTypes/ranker/models/new"
CPU = "flavors/cpu"
SPEC = ServingSpec(command=("serve", "--port", "{port}"), flavor=CPU)


def serving(replicas: dict[str, int], shares: dict[str, int] | None = None, spec: ServingSpec = SPEC) -> DesiredServing:
    """Desired serving with these replicas and shares by model, in this order."""
    return DesiredServing(
        models=tuple(DesiredModel(model, spec, count) for model, count in replicas.items()),
        shares=tuple(ModelShare(model, share) for model, share in (shares or {}).items()),
    )
