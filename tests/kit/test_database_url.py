"""URLs of databases: the ones that can be read, and how the others are refused without showing them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleetd import migrate
from modelfleetd.kit.app import run_service
from modelfleetd.kit.config import ServiceConfig
from modelfleetd.kit.database_url import check_database_url
from modelfleetd.kit.migrations import migrate as migrate_schema
from modelfleetd.local import up
from modelfleetd.registry import migrations

GOOD = [
    "postgresql://app@db/fleet",
    "postgres://app:secret@db:5432/fleet",
    "postgresql://app:sec:ret@db/fleet",
    "postgresql://app:sec%23r%40et@[::1]:5432/fleet?sslmode=require",
    "postgresql://app:secret@one:5432,two:5433/fleet?target_session_attrs=read-write",
    "postgresql://postgres@/fleet?host=%2Ftmp%2Fsocket",
    "postgresql:///fleet?host=/tmp/socket",
    "postgresql://[::1]/fleet",
]
# Everything in them that is secret has a Q.
BAD = [
    "postgresql://app:Qsec#Qret@db/fleet",
    "postgresql://app:Qsec/Qret@db/fleet",
    "postgresql://app:Qsec?Qret@db/fleet",
    "postgresql://app:Qsec@Qret@db/fleet",
    "postgresql://app:12#Qret@db/fleet",
    "postgresql://app:12/Qret@db/fleet",
    "postgresql://app:12?Qret@db/fleet",
    "postgresql://app:Q[ret@db/fleet",
    "postgresql://app:Q\u2100ret@db/fleet",
    "postgresql://app:Qsec ret@db/fleet",
    "postgresql://app:Qret@db:port/fleet",
    "postgresql://app:Qret@db:99999/fleet",
    "mysql://app:Qret@db/fleet",
    "host=db password=Qret",
    "app:Qret@db",
]


@pytest.mark.parametrize("url", GOOD)
def test_what_the_driver_can_read_is_accepted(url: str) -> None:
    ServiceConfig(database_url=url).check()


@pytest.mark.parametrize("url", BAD)
def test_what_it_would_read_otherwise_is_refused_without_showing_it(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def build(service: object) -> None:
        raise AssertionError("unreachable")

    monkeypatch.setenv("MODELFLEET_DATABASE_URL", url)
    programs: dict[str, Callable[[], int]] = {
        "registry": lambda: run_service("registry", build, []),
        "up": lambda: up.main([]),
        "migrate": lambda: migrate.main([]),
    }
    for program, run in programs.items():
        assert run() == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"modelfleetd {program}: --database-url (or MODELFLEET_DATABASE_URL) must be ")
        assert said.err.count("\n") == 1 and "percent-encode" in said.err
        assert "Q" not in said.err.replace("DATABASE_URL", "").replace("PostgreSQL", "")


def test_what_only_the_driver_refuses_is_not_shown_either() -> None:
    url = "postgresql://app:Qret@db/fleet?sslmode=Qbogus"
    with pytest.raises(ValueError, match="must be postgresql://") as caught:
        asyncio.run(migrate_schema(url, "registry", migrations))
    assert "Qbogus" not in str(caught.value) and caught.value.__suppress_context__


@given(st.text(max_size=20))
def test_an_encoded_password_is_always_accepted(password: str) -> None:
    try:
        encoded = quote(password, safe="")
    except UnicodeEncodeError:
        return
    check_database_url(f"postgresql://app:{encoded}@db:5432/fleet")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12))
def test_only_a_password_with_something_special_is_refused(password: str) -> None:
    if any(special in password for special in "#/?@[]"):
        with contextlib.suppress(ValueError):
            check_database_url(f"postgresql://app:{password}@db.internal:5432/fleet")
    else:
        check_database_url(f"postgresql://app:{password}@db.internal:5432/fleet")
