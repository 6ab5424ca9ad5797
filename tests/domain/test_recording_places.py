"""Which places are inside the root of recordings: nothing else is ever written, read or deleted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.recordings import is_beneath
from modelfleetd.capacity.datasets import Datasets
from modelfleetd.capacity.domain.recording import is_path
from modelfleetd.errors import NotConfigured


@pytest.mark.parametrize(
    ("root", "uri", "inside"),
    [
        ("/data/rec", "/data/rec/a", True),
        ("/data/rec/", "/data/rec/a/b", True),
        ("/data/rec", "/data/rec", False),
        ("/data/rec", "/data/recordings/a", False),
        ("/data/rec", "/data/rec/../a", False),
        ("/data/rec", "s3://data/rec/a", False),
        ("s3://bucket/rec", "s3://bucket/rec/a", True),
        ("s3://bucket/rec/", "s3://bucket/rec/a", True),
        ("s3://bucket/rec", "s3://bucket/rec/", False),
        ("s3://bucket/rec", "s3://bucket/rec2/a", False),
        ("s3://bucket/rec", "s3://bucket/rec/../a", False),
        ("s3://bucket/rec", "gs://bucket/rec/a", False),
        ("s3://bucket/rec", "/bucket/rec/a", False),
        ("s3://bucket/rec", "s3://bucket/rec/a?endpoint_override=elsewhere", False),
        ("file:///data/rec", "file:///data/rec/a", True),
        ("file:///data/rec", "file:///data/rec/%2e%2e/a", False),
        ("file:///data/rec", "file:///data/rec/../a", False),
        ("file:///data/rec", "/data/rec/a", False),
    ],
)
def test_only_what_lies_beneath_the_root_is_inside(root: str, uri: str, inside: bool) -> None:
    assert is_beneath(root, uri) is inside


def test_a_link_that_leads_out_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    assert not is_beneath(str(tmp_path / "root"), str(tmp_path / "root" / "out" / "x"))


@given(text=st.text(alphabet="ab./-_ :~\0é", max_size=12))
def test_every_path_that_is_accepted_is_beneath_every_root(text: str) -> None:
    for root in ("/data/rec", "s3://bucket/rec"):
        if is_path(text):
            assert is_beneath(root, Datasets(root).place("recordings/r1", text))


@pytest.mark.parametrize("path", ["feed_ctr/2026-11", "a", "A.b-c/d_e", "a..b/c"])
def test_folders_beneath_the_root_are_accepted(path: str) -> None:
    assert is_path(path)


def test_what_an_agent_records_has_a_place_of_its_own() -> None:
    assert Datasets("s3://bucket/rec/").place("recordings/r12", "") == "s3://bucket/rec/r12"
    with pytest.raises(NotConfigured):
        Datasets("").place("recordings/r12", "")
