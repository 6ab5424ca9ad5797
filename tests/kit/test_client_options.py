"""What a client is given is checked before anything is sent: grpc itself aborts, or only says that nobody answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelfleet import AsyncClient, Client, Tls
from modelfleet.cli import main
from tests.kit.fakes import FakeRegistry, build_with
from tests.support.servers import running
from tests.support.tls import Authority

SECRET = "eyJhbGciOi.c2VjcmV0.c2lnbmVk"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_certificate_without_its_key_and_the_reverse_are_refused(authority: Authority) -> None:
    cert, key = authority.issue("client")
    with pytest.raises(ValueError, match="private key is missing"):
        Tls(authority.ca, cert)
    with pytest.raises(ValueError, match="certificate is missing"):
        Tls(authority.ca, None, key)


def test_files_that_are_not_what_they_should_be_are_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("client")
    _, others = authority.issue("other")
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xff no PEM")
    for tls in (Tls(str(junk)), Tls(authority.ca, str(junk), key), Tls(authority.ca, cert, str(junk))):
        with pytest.raises(ValueError, match="junk"):
            Client(tls=tls)
    with pytest.raises(ValueError, match=r"other\.key"):
        Client(tls=Tls(None, cert, others))
    with pytest.raises(FileNotFoundError):
        Client(tls=Tls(str(tmp_path / "absent")))


@pytest.mark.parametrize("principal", ["J\u00fcrgen", "a\nb", ""])
def test_a_principal_that_cannot_be_sent_is_refused(principal: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        Client(principal=principal)


@pytest.mark.parametrize("token", [f"{SECRET}\n{SECRET}", f"{SECRET}\u00fc", ""])
async def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="one line of printable ASCII") as caught:
        Client(token=token)
    assert SECRET not in str(caught.value)
    async with AsyncClient("127.0.0.1:1", token=lambda: token) as client:
        with pytest.raises(ValueError, match="one line of printable ASCII"):
            await client.registry.get_team(name="teams/a")


def test_a_token_does_not_travel_in_plain_text(authority: Authority) -> None:
    with pytest.raises(ValueError, match=r"refusing to send a token to fleet\.example\.com:443"):
        Client("fleet.example.com:443", token=SECRET)
    with pytest.raises(ValueError, match=r"10\.0\.0\.1:1"):
        Client(registry="10.0.0.1:1", token=SECRET)
    for client in (Client("fleet.example.com:443", token=SECRET, tls=Tls(authority.ca)), Client(token=SECRET)):
        client.close()


async def test_a_key_that_comes_after_its_certificate_does_not_interrupt_calls(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfleet.transport._LOOK_EVERY", 0.0)
    cert, key = authority.issue("server")
    fake = FakeRegistry()  # type: ignore[abstract]  # the rest is refused
    settings: dict[str, Any] = {"tls_cert": cert, "tls_key": key, "tls_ca": authority.ca}
    mine = authority.issue("client", spiffe_id="spiffe://cluster.local/modelfleet/launcher")
    async with (
        running("registry", build_with(fake), **settings) as service,
        AsyncClient(service.address, tls=Tls(authority.ca, *mine)) as client,
    ):
        await client.registry.get_team(name="teams/a")
        new = authority.issue("new", spiffe_id="spiffe://cluster.local/modelfleet/capacity")
        Path(new[0]).replace(mine[0])
        await client.registry.get_team(name="teams/a")
        assert fake.principal is not None and fake.principal.name == "service/launcher"
        Path(new[1]).replace(mine[1])
        await client.registry.get_team(name="teams/a")
        assert fake.principal.name == "service/capacity"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tls-cert", "{cert}"], "--tls-cert and --tls-key go together: the private key is missing"),
        (["--tls-key", "{key}"], "--tls-cert and --tls-key go together: the certificate is missing"),
        (["--tls-ca", "{key}"], "holds no certificates of authorities (PEM)"),
        (["--as", "J\u00fcrgen"], "--as 'J\u00fcrgen' must be printable ASCII"),
        (["--token-file", "{bad_token}"], "--token-file: the token must be one line of printable ASCII"),
        (["--token-file", "{binary}"], "the token must be one line of printable ASCII"),
        (["--token-file", "{token}", "--address", "fleet.example.com:443"], "give --tls-ca"),
    ],
)
def test_the_command_line_says_it_in_one_line_that_names_the_flag(
    authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    cert, key = authority.issue("client")
    files = {"cert": cert, "key": key}
    for name, content in (("token", SECRET), ("bad_token", f"{SECRET}\n{SECRET}"), ("binary", "\udcff")):
        (tmp_path / name).write_text(content, errors="surrogateescape")
        files[name] = str(tmp_path / name)
    given = [flag.format(**files) for flag in flags]
    assert main(["registry", "team", "list", *given]) == 1
    shown = capsys.readouterr().err
    assert said in shown.splitlines()[-1]
    assert SECRET not in shown and "Traceback" not in shown
