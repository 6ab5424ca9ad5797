"""The registry's methods: parse, decide, store, reply. A file per concept."""

from __future__ import annotations

from modelfleetd.registry.api.apply import Apply
from modelfleetd.registry.api.assets import Assets
from modelfleetd.registry.api.classification import Classification
from modelfleetd.registry.api.criticality import Criticality
from modelfleetd.registry.api.entries import Entries
from modelfleetd.registry.api.evidence import Evidence
from modelfleetd.registry.api.history import History
from modelfleetd.registry.api.launches import Launches
from modelfleetd.registry.api.serving import Serving
from modelfleetd.registry.api.standard import Standard


class RegistryServicer(
    Entries, Assets, Classification, Criticality, Evidence, Standard, Apply, Launches, History, Serving
):
    """All of them."""
