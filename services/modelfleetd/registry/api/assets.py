"""Assets, and entries found by what is known of them."""

from __future__ import annotations

from collections import ChainMap
from typing import cast

from google.protobuf.empty_pb2 import Empty

from modelfleet.registry.v1 import assets_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd import names
from modelfleetd.errors import invalid
from modelfleetd.kit import paging
from modelfleetd.kit.auth import expect_role_on_destination
from modelfleetd.kit.codec import from_proto
from modelfleetd.registry.api.base import Base, Context, author, new_uid
from modelfleetd.registry.domain import asset_entries
from modelfleetd.registry.domain.assets import Asset
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.rules import MAX_URI
from modelfleetd.registry.lookup import find_entries


class Assets(Base):
    """Assets, and entries found by what is known of them."""

    async def GetAsset(self, request: assets_pb2.GetAssetRequest, context: Context) -> assets_pb2.Asset:
        return await self._get(request, assets_pb2.Asset)

    async def ListAssets(
        self, request: assets_pb2.ListAssetsRequest, context: Context
    ) -> assets_pb2.ListAssetsResponse:
        assets, token, revision = await self._list(request, assets_pb2.Asset)
        return assets_pb2.ListAssetsResponse(assets=assets, next_page_token=token, revision=revision)

    async def CreateAsset(self, request: assets_pb2.CreateAssetRequest, context: Context) -> assets_pb2.Asset:
        name = names.ASSET.format(names.check_id(request.asset_id, "asset_id"))
        asset, uid = from_proto(request.asset, Asset, name=name), new_uid()

        def decide(ledger: Ledger) -> Edits:
            return asset_entries.create_asset(ledger, asset, uid)

        return await self._writer.change(request, assets_pb2.Asset, name, author(request), decide)

    async def UpdateAsset(self, request: assets_pb2.UpdateAssetRequest, context: Context) -> assets_pb2.Asset:
        names.ASSET.parse(request.asset.name, "asset.name")
        await expect_role_on_destination(request.asset.team, request.update_mask.paths)
        asset = from_proto(request.asset, Asset)

        def decide(ledger: Ledger) -> Edits:
            return asset_entries.update_asset(ledger, asset, request.update_mask.paths)

        return await self._writer.change(request, assets_pb2.Asset, asset.name, author(request), decide)

    async def DeleteAsset(self, request: assets_pb2.DeleteAssetRequest, context: Context) -> Empty:
        names.ASSET.parse(request.name)

        def decide(ledger: Ledger) -> Edits:
            return asset_entries.delete_asset(ledger, request.name, request.etag)

        return await self._writer.change(request, Empty, request.name, author(request), decide)

    async def LookupEntries(
        self, request: assets_pb2.LookupEntriesRequest, context: Context
    ) -> assets_pb2.LookupEntriesResponse:
        if not request.query.strip() or len(request.query) > MAX_URI:
            raise invalid("query", f"must have 1 to {MAX_URI} characters, and not only spaces")
        limit = paging.page_size(request.page_size)
        snapshot = await self._at(request.min_revision)
        # Only read: what is in the snapshot never changes.
        entries = ChainMap(
            cast(dict[str, pb.ModelType | pb.Model], snapshot.models),
            cast(dict[str, pb.ModelType | pb.Model], snapshot.model_types),
        )
        matches = find_entries(request.query, limit + 1, snapshot.lookup, entries, snapshot.table(assets_pb2.Asset))
        return assets_pb2.LookupEntriesResponse(
            matches=matches[:limit], truncated=len(matches) > limit, revision=snapshot.revision
        )
