"""Page sizes and page tokens."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import InvalidFields, InvalidPageToken
from modelfleetd.kit import paging

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
INTEGERS = st.integers(-(2**63), 2**63 - 1)
POSITIONS = st.lists(TEXTS | INTEGERS, min_size=1, max_size=3).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


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


def _forged(scope: bytes, body: bytes) -> str:
    """A token as whoever knows how they are made would make it."""
    return base64.urlsafe_b64encode(paging._check(scope, body) + body).decode().rstrip("=")


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_forged_token_is_a_position_or_refused(body: bytes) -> None:
    request = pb.ListTeamsRequest()
    request.page_token = _forged(paging.read(request).scope, body)
    for kinds in ((), (str,), (int,), (str, str)):
        with contextlib.suppress(InvalidPageToken):
            position = paging.read(request, *kinds).position
            assert position
            assert not kinds or tuple(map(type, position)) == kinds


@pytest.mark.parametrize(
    "body",
    [b"[" * 5000, b"[]", b"{}", b"5", b"null", b"[true]", b"[1.5]", b"[[1]]", b"[9223372036854775808]", b'["\\u0000"]',
     b'["\\ud800"]', b"[1e999]", b"[NaN]", b"[1,2,3,4,5,6,7,8,9]", b"\xff"],
)  # fmt: skip
def test_what_no_position_can_hold_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidPageToken):
        paging.decode(b"scope", _forged(b"scope", body))


def test_a_page_ends_before_it_is_too_large_for_a_message_and_the_next_one_goes_on() -> None:
    teams = [pb.Team(name=f"teams/t{index}", display_name="x" * size) for index, size in enumerate((2, 1, 4, 1, 1, 1))]
    for team in teams:
        team.display_name *= 1 << 20
    seen, sizes, token = list[pb.Team](), list[int](), ""
    for _ in range(10):
        page = paging.read(pb.ListTeamsRequest(page_size=10, page_token=token), str)
        rest = [team for team in teams if page.position is None or team.name > str(page.position[0])]
        shown, token = page.cut(rest, lambda team: (team.name,))
        assert (list(shown), token) == page.answer(rest, lambda team: (team.name,), lambda team: team)
        seen += shown
        sizes.append(len(shown))
        if not token:
            break
    assert seen == teams
    # One that is larger than a page is a page.
    assert sizes == [1, 1, 1, 2, 1]
