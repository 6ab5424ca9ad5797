"""Creating, changing and deleting assets, and what becomes of them when what they belong to goes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from modelfleetd import names
from modelfleetd.errors import ReferenceNotFound, UriTaken
from modelfleetd.registry.domain.assets import Asset
from modelfleetd.registry.domain.edits import changed, created, current, deleted, refuse_existing, refuse_in_use
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.masks import merge
from modelfleetd.registry.domain.revisions import Edit, Edits
from modelfleetd.registry.domain.rules import MAX_ITEMS, MAX_TEXT, MAX_URI, check_labels
from modelfleetd.registry.domain.violations import Violations

# Assets that may change in one revision, when what they belong to goes.
MAX_FREED: Final = 100

_BLANK = re.compile(r"[\s\x00-\x1f\x7f]")


def check_asset(asset: Asset) -> Asset:
    """Returns the asset if its fields are right. Raises InvalidFields."""
    wrong = Violations("asset")
    wrong.expect(asset.kind is not None, "kind", "is required")
    wrong.text(asset.uri, "uri", MAX_URI, least=1)
    blank = _BLANK.search(asset.uri) is not None
    wrong.expect(not blank, "uri", "must not hold spaces or control characters; write them as %20 and the like")
    wrong.text(asset.display_name, "display_name", MAX_TEXT)
    wrong.name(asset.team, names.TEAM, "team")
    for path, values, pattern in (
        ("model_types", asset.model_types, names.MODEL_TYPE),
        ("models", asset.models, names.MODEL),
    ):
        wrong.count(values, path, MAX_ITEMS)
        for index, value in enumerate(values[:MAX_ITEMS]):
            wrong.name(value, pattern, f"{path}[{index}]")
        wrong.unique(values, path)
    check_labels(wrong, asset.labels)
    wrong.raise_if_any()
    return asset


def create_asset(ledger: Ledger, asked: Asset, uid: str) -> Edits:
    """Decides CreateAsset."""
    refuse_existing(ledger, asked.name)
    asset = check_asset(asked)
    _expect_references(ledger, asset)
    _expect_own_uri(ledger, asset)
    return created(asset, uid)


def update_asset(ledger: Ledger, asked: Asset, mask: Sequence[str]) -> Edits:
    """Decides UpdateAsset."""
    before = current(_asset(ledger, asked.name), asked.name, asked.etag)
    asset = check_asset(merge(before, asked, mask, field="asset"))
    _expect_references(ledger, asset)
    _expect_own_uri(ledger, asset)
    return changed(before, asset)


def delete_asset(ledger: Ledger, name: str, etag: str) -> Edits:
    """Decides DeleteAsset."""
    return deleted(current(_asset(ledger, name), name, etag))


def is_asset(name: str) -> bool:
    """Says whether a name is that of an asset."""
    return names.ASSET.match(name) is not None


def without(ledger: Ledger, name: str) -> Edits:
    """Returns the edits of assets that belong to a model type or model which is deleted: they name it no more.

    They stay, and hold nothing back: what they say the place of still lies there.

    Raises:
        ResourceInUse: there are more of them than one revision may change.
    """
    belonging = [each for each in ledger.referrers(name) if is_asset(each)]
    if len(belonging) > MAX_FREED:
        refuse_in_use(name, belonging)
    edits = []
    for each in belonging:
        asset = _asset(ledger, each)
        if asset is not None:
            types = tuple(other for other in asset.model_types if other != name)
            models = tuple(other for other in asset.models if other != name)
            edits.append(Edit(asset, replace(asset, model_types=types, models=models)))
    return tuple(edits)


def _asset(ledger: Ledger, name: str) -> Asset | None:
    found = ledger.find(name)
    return found if isinstance(found, Asset) else None


def _expect_references(ledger: Ledger, asset: Asset) -> None:
    if ledger.team(asset.team) is None:
        raise ReferenceNotFound("asset.team", asset.team)
    for index, name in enumerate(asset.model_types):
        if ledger.model_type(name) is None:
            raise ReferenceNotFound(f"asset.model_types[{index}]", name)
    for index, name in enumerate(asset.models):
        if ledger.model(name) is None:
            raise ReferenceNotFound(f"asset.models[{index}]", name)


def _expect_own_uri(ledger: Ledger, asset: Asset) -> None:
    other = ledger.asset_at(asset.uri)
    if other is not None and other != asset.name:
        raise UriTaken(asset.uri, other)
