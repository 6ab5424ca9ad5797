"""People are told over HTTP: by webhooks that fail, hang and answer, and by a real Alertmanager."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from argparse import Namespace
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from modelfleet.cli import main
from modelfleet.errors import NotFound
from modelfleet.launcher.v1 import gates_pb2, notifications_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleetd.clock import SystemClock
from modelfleetd.kit.alertmanager import Alertmanager as Client
from modelfleetd.kit.db import Database
from modelfleetd.launcher import webhooks
from modelfleetd.launcher.delivery import AlertDelivery, OutboxMetrics
from modelfleetd.launcher.domain.launch import Launch, enter
from modelfleetd.launcher.domain.notifications import ALERTMANAGER, Kind
from modelfleetd.launcher.domain.record import Abort, Condition, PauseReason, Status, Verdict
from modelfleetd.launcher.domain.states import State
from modelfleetd.launcher.store import Change, Store
from modelfleetd.launcher.webhooks import NotTaken, Webhook, Webhooks
from tests.api.test_launcher_readme import README
from tests.store.test_launcher_store import NOW, insert, launch
from tests.support.alertmanager import alertmanager
from tests.support.launcher import WrongClock, another_launcher, launcher_fleet, refused
from tests.support.wait import until
from tests.support.webhook_receiver import SECRET, Receiver, webhook_receiver

KIND = notifications_pb2.Notification


def is_genuine() -> Any:
    """The README's function that verifies a request."""
    source, _ = re.findall(r"```py\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(source, str(README), "exec"), names)
    return names["is_genuine"]


async def test_a_receiver_that_fails_and_hangs_is_told_again_with_the_same_key_until_it_takes_it(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with webhook_receiver(500, None) as receiver:
        options = Namespace(webhooks=receiver.configuration(tmp_path), lease_seconds=2.0)
        async with launcher_fleet(database_url, options=options) as fleet:
            await fleet.create(bake=60, policy=pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED))
            await until(lambda: receiver.done, 30)
            keys = receiver.keys("AWAITING_APPROVAL")
            assert len(keys) == 3 and len(set(keys)) == 1
            assert len({request.body for request in receiver.requests}) == 1
            verify = is_genuine()
            for request in receiver.requests:
                assert verify(request.headers, request.body, SECRET)
                assert not verify(request.headers, request.body + b" ", SECRET)
                assert not verify({**request.headers, "Modelfleet-Timestamp": "1700000000"}, request.body, SECRET)

            async def delivered() -> list[notifications_pb2.Notification]:
                found = await fleet.client.launcher.list_notifications(launch="launches/l1")
                return [one for one in found.notifications if one.state == KIND.DELIVERED]

            (told,) = await until(delivered)
            assert (told.kind, told.receiver, told.attempts) == (KIND.AWAITING_APPROVAL, "chat", 3)
            assert told.key == keys[0] and told.last_error == ""
            await fleet.client.launcher.abort_launch(name="launches/l1", reason="wrong checkpoint")
            await until(lambda: receiver.keys("CANCELLED"))
            assert receiver.requests[-1].document["team"] == "teams/feed"

            async def listed(*arguments: str) -> str:
                typed = ["launch", "notifications", *arguments, "--address", fleet.launcher.address]
                assert await asyncio.to_thread(main, typed) == 0
                return capsys.readouterr().out

            await until(lambda: delivered_all(fleet))
            assert [one["kind"] for one in json.loads(await listed("l1", "-o", "json"))] == [
                "CANCELLED",
                "AWAITING_APPROVAL",
            ]
            assert "l1 (new on ctr): Cancelled after" in await listed()
            assert await listed("--pending") == "Everything has arrived.\n"
            with pytest.raises(NotFound):
                await fleet.client.launcher.list_notifications(launch="launches/unheard-of")


async def test_the_readmes_receiver_acts_once_however_often_two_launchers_tell_it(
    database_url: str, tmp_path: Path
) -> None:
    """Its answers get lost: each kind of news once after it has acted, as where the launcher dies before it hears."""
    acted: list[dict[str, Any]] = []
    names: dict[str, Any] = {"SECRET": SECRET, "KEYS": tmp_path / "keys.db", "act": acted.append}
    for source in re.findall(r"```py\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(source, str(README), "exec"), names)
    told: list[str] = []

    documented: Any = names["Receiver"]

    class Lossy(documented):  # type: ignore[misc]
        def send_response(self, code: int, message: str | None = None) -> None:
            told.append(self.headers["Modelfleet-Key"])
            if told.count(told[-1]) == 1:
                raise ConnectionAbortedError
            super().send_response(code, message)

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Lossy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hook")
    options = Namespace(webhooks=receiver.configuration(tmp_path), lease_seconds=2.0)
    try:
        async with (
            launcher_fleet(database_url, options=options) as fleet,
            another_launcher(fleet, options=options),
        ):
            await fleet.create(bake=60, policy=pb.LaunchPolicy(approval=pb.LaunchPolicy.REQUIRED))
            await until(lambda: len(told) >= 2, 30)
            await fleet.client.launcher.abort_launch(name="launches/l1", reason="wrong checkpoint")
            await until(lambda: len(told) >= 4, 30)
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
    assert [one["kind"] for one in acted] == ["AWAITING_APPROVAL", "CANCELLED"]
    assert {key: told.count(key) for key in told} == {one["key"]: 2 for one in acted}


async def test_a_launch_is_let_on_by_the_webhook_that_it_names_as_a_gate(database_url: str, tmp_path: Path) -> None:
    with webhook_receiver() as receiver:
        receiver.reply = b'{"verdict": "PASS", "explanation": "no change is under way"}'
        path = receiver.configuration(tmp_path, more="  kinds: []\n  gate: true\n")
        async with launcher_fleet(database_url, options=Namespace(webhooks=path)) as fleet:
            with refused("INVALID_FIELDS"):
                other = gates_pb2.WebhookGate(webhook="unheard-of")
                await fleet.create(policy=pb.LaunchPolicy(webhook_gates=[other]))
            await fleet.create(policy=pb.LaunchPolicy(webhook_gates=[gates_pb2.WebhookGate(webhook="chat")]))
            await fleet.reaches(pb.Launch.SHIFTING)
            assert is_genuine()(receiver.requests[0].headers, receiver.requests[0].body, SECRET)
            assert len(receiver.done) == 1
            (verdict,) = (await fleet.get()).gate_verdicts
            assert verdict.explanation == "no change is under way"
            await fleet.client.launcher.abort_launch(name="launches/l1", reason="enough")


async def delivered_all(fleet: Any) -> bool:
    return not (await fleet.client.launcher.list_notifications(pending_only=True)).notifications


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(database_url, "launcher")
    try:
        yield database
    finally:
        await database.close()


async def test_alertmanager_pages_for_a_failure_hears_of_pauses_and_that_they_are_over(
    database: Database, tmp_path: Path
) -> None:
    store = Store(database, {ALERTMANAGER: frozenset(Kind)})
    await insert(store, launch(state=State.SHIFTING, team="teams/feed", abort=Abort("bob", "no", NOW)))

    async def become(after: Launch) -> Launch:
        written = await store.record(Change(await store.get("launches/l1"), after, due=None))
        assert written is not None
        return written

    with alertmanager(tmp_path) as manager:
        told, client = manager.receivers, Client(manager.url)
        try:
            # An hour late: the database's clock counts.
            late = WrongClock(-timedelta(hours=1))
            delivery = AlertDelivery(client, store, late)
            running = await store.get("launches/l1")
            paused = await become(replace(running, pause_reasons=(PauseReason("bob", "a look", NOW),)))
            await delivery.round()
            await until(lambda: told.of("tickets") == [("firing", "LaunchPaused")])
            _, _, labels, notes = told.notified[0]
            assert labels.items() >= {"launch": "l1", "team": "feed", "about": "bob"}.items()
            assert notes["describe"] == "modelfleet launch describe l1"
            going = await become(replace(paused, pause_reasons=()))
            # While it is away nothing is lost.
            manager.stop()
            await delivery.round()
            alarm = Condition("NeedsAttention", Status.TRUE, "HoldShort", "waits for room in its hold", NOW)
            alarmed = await become(replace(going, conditions=(alarm,)))
            failed = enter(enter(alarmed, State.ROLLING_BACK, NOW), State.FAILED, NOW)
            await become(failed)
            await delivery.round()
            pending = await store.notifications(launch="launches/l1", pending_only=True, before=None, limit=9)
            assert {one.kind for one in pending} == {Kind.NEEDS_ATTENTION, Kind.FAILED}
            metrics = OutboxMetrics(store, WrongClock(timedelta(hours=1)), ["chat"])
            await metrics.count()
            samples = {
                (s.name.rpartition("_")[2], s.labels["receiver"]): s.value for m in metrics.collect() for s in m.samples
            }
            assert samples["pending", ALERTMANAGER] == 2 and samples["pending", "chat"] == 0
            assert 60 > samples["seconds", ALERTMANAGER] >= 0 == samples["seconds", "chat"]
            manager.start()

            async def taken() -> bool:
                await delivery.round()
                return not await store.backlog()

            await until(taken)
            await until(lambda: told.of("pager") == [("firing", "LaunchFailed")])
            await until(lambda: ("resolved", "LaunchPaused") in told.of("tickets"))
            assert ("firing", "LaunchNeedsAttention") not in told.of("tickets")
        finally:
            await client.close()


async def test_a_gate_answers_with_a_verdict_and_everything_else_is_an_error_that_names_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with webhook_receiver() as receiver:
        hidden = f"{receiver.url}/t0ken"
        asked = [
            Webhook("board", hidden, lambda: SECRET, frozenset(), gate=True),
            Webhook("chat", hidden, lambda: SECRET),
        ]
        asked.append(Webhook("gone", "http://127.0.0.1:1/t0ken", lambda: SECRET, gate=True))
        client = Webhooks(asked, SystemClock(), 0.3)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        try:
            assert (sorted(client.gates), sorted(client.audience)) == (["board", "gone"], ["chat", "gone"])

            async def ask(reply: bytes, *answers: int | None, name: str = "board") -> tuple[Verdict, str]:
                receiver.reply, receiver.answers = reply, [*answers]
                found = await client.ask(name, "launches/l1/1/gate", {"launch": "launches/l1"})
                return found.verdict, found.explanation

            unclear = (b"", b"[]", b'{"verdict": "ERROR", "explanation": "x"}', b'{"verdict": "PASS"}', b"[" * 60_000)
            assert await ask(b'{"verdict": "FAIL", "explanation": "frozen"}') == (Verdict.FAIL, "frozen")
            assert receiver.requests[-1].document == {
                "type": "gate",
                "key": "launches/l1/1/gate",
                "launch": "launches/l1",
            }
            for reply in unclear:
                verdict, explanation = await ask(reply)
                assert verdict is Verdict.ERROR and "must answer with" in explanation
            errors = [
                await ask(b"x" * 70_000),
                await ask(b"", 503),
                await ask(b"", 302),
                await ask(b"", None),
                await ask(b"", name="gone"),
                await ask(b"", name="chat"),
            ]
            assert [explanation for _, explanation in errors] == [
                "board answered with more than 65536 bytes",
                "board answered with status 503",
                "board answered with status 302",
                "board did not answer within 0.3 s",
                "gone cannot be reached (ConnectError)",
                "chat is no webhook that may be asked, by the launcher's configuration",
            ]
            assert {verdict for verdict, _ in errors} == {Verdict.ERROR}
            with pytest.raises(NotTaken, match="status 503") as raised:
                receiver.answers = [503]
                await client.tell("chat", "k", {})
            assert raised.value.__cause__ is None
            assert "t0ken" not in caplog.text and SECRET.decode() not in caplog.text
        finally:
            await client.close()


def test_what_is_wrong_with_a_configuration_is_said_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "webhooks.yaml"
    path.write_text(
        "webhooks:\n"
        "- {name: Chat, url: 'http://chat.example.com/x', secret_env: SHORT, kinds: [STARTED], gates: true}\n"
        "- {name: alertmanager, url: 'https://a.example.com', secret_file: /nowhere, secret_env: LONG}\n"
        "- {name: ok, url: 'https://b.example.com', secret_env: LONG}\n"
        "- {name: ok, url: 'http://[::1]:80/x', secret_file: /nowhere}\n"
    )
    with pytest.raises(ValueError, match="webhooks") as raised:
        webhooks.read(str(path), {"SHORT": "secret", "LONG": SECRET.decode()})
    said = str(raised.value)
    for part in (
        "webhooks[0].gates: there is no such field",
        "webhooks[0].name: must match",
        "webhooks[0].url: must be https://",
        "webhooks[0].kinds: must be a list of SUCCEEDED",
        "webhooks[0].secret_env: must lead to a secret of at least 16 bytes",
        "webhooks[1].name: must not be alertmanager",
        "webhooks[1].secret_file: must name a file",
        "webhooks[3].secret_file: cannot be read: No such file",
        "webhooks[3].name: must be unique",
    ):
        assert part in said
    assert "webhooks[2]." not in said and SECRET.decode() not in said
    for text in ("[", "webhooks: []", "webhooks: {}", "hooks: []"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"webhooks\.yaml"):
            webhooks.read(str(path), {})


def test_the_readmes_configuration_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(webhooks:.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "secret").write_bytes(SECRET)
    path = tmp_path / "webhooks.yaml"
    path.write_text(text.replace("/etc/modelfleet/chat", str(tmp_path / "secret")))
    chat, board = webhooks.read(str(path), {"CHANGE_BOARD_SECRET": SECRET.decode()})
    assert (chat.name, chat.gate, chat.secret()) == ("chat", False, SECRET)
    assert chat.kinds == {Kind.FAILED, Kind.PAUSED}
    assert (board.name, board.kinds, board.gate) == ("change-board", frozenset(), True)
