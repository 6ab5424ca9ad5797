"""Page sizes and page tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import InvalidFields, InvalidPageToken
from modelfleetd.kit import paging

POSITIONS = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.integers(), max_size=3).map(tuple)


@pytest.mark.parametrize(("asked", "given_size"), [(0, 50), (1, 1), (1000, 1000), (5000, 1000)])
def test_sizes_have_a_default_and_a_most(asked: int, given_size: int) -> None:
    assert paging.read(pb.ListTeamsRequest(page_size=asked)).size == given_size


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidFields, match="page_size"):
        paging.page_size(-1)


def test_pages_follow_one_another_until_the_last() -> None:
    rows = [f"r{index}" for index in range(7)]
    token, seen = "", list[str]()
    for _ in range(10):
        page = paging.read(pb.ListModelsRequest(parent="modelTypes/-", page_size=3, page_token=token))
        after = page.position[0] if page.position else ""
        found = [row for row in rows if row > str(after)][: page.size + 1]
        items, token = page.cut(found, key=lambda row: (row,))
        seen += items
        if not token:
            break
    assert seen == rows


def test_a_token_is_bound_to_its_request_but_not_to_the_size_of_the_page() -> None:
    page = paging.read(pb.ListModelsRequest(parent="modelTypes/a", page_size=1))
    _, token = page.cut(["x", "y"], key=lambda row: (row,))
    again = paging.read(pb.ListModelsRequest(parent="modelTypes/a", page_size=9, page_token=token, min_revision=4))
    assert again.position == ("x",)
    for other in (
        pb.ListModelsRequest(parent="modelTypes/b", page_token=token),
        pb.ListTeamsRequest(page_token=token),
    ):
        with pytest.raises(InvalidPageToken):
            paging.read(other)


@given(st.binary(max_size=16), POSITIONS)
def test_tokens_hold_any_position(scope: bytes, position: tuple[str | int, ...]) -> None:
    assert paging.decode(scope, paging.encode(scope, position)) == position


@given(st.text(max_size=60))
def test_made_up_tokens_are_refused(token: str) -> None:
    with pytest.raises(InvalidPageToken):
        paging.decode(b"scope", token)
