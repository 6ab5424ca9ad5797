"""A launcher is killed around what it tells people: it reaches them all the same, and once those who honour its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelfleet import AsyncClient
from modelfleet.launcher.v1 import launcher_pb2 as pb
from modelfleet.launcher.v1 import notifications_pb2
from tests.faults.test_launcher_killed import _answers, _create, _ended, fleet_with_agent, process_of
from tests.support.chance import chosen
from tests.support.wait import until
from tests.support.webhook_receiver import webhook_receiver

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

_DEATHS = [("launcher.before_call.webhook:kill", 1), ("launcher.after_call.webhook:kill", 2)]


@pytest.mark.parametrize(("failpoint", "requests"), chosen(_DEATHS, 1))
async def test_what_was_written_reaches_people_though_the_launcher_dies_before_or_after_it_is_delivered(
    database_url: str, tmp_path: Path, failpoint: str, requests: int, unused_tcp_port: int
) -> None:
    with webhook_receiver() as receiver:
        flag = f"--webhooks={receiver.configuration(tmp_path, more='  kinds: [SUCCEEDED]')}"
        async with (
            fleet_with_agent(database_url) as fleet,
            process_of(fleet, tmp_path, failpoint, unused_tcp_port, flag) as process,
            AsyncClient(launcher=process.address) as client,
        ):
            await _create(client, fleet)
            assert (await _ended(client)).state == pb.Launch.SUCCEEDED
            await until(lambda: process.deaths == 1, 30)
            await until(lambda: _answers(client), 30)

            async def arrived() -> bool:
                found = (await client.launcher.list_notifications(launch="launches/l1")).notifications
                return bool(found) and all(one.state == notifications_pb2.Notification.DELIVERED for one in found)

            await until(arrived, 30)
            # At least once for everybody; who acts once for each key acts once.
            keys = receiver.keys("SUCCEEDED")
            assert len(keys) == requests and len(set(keys)) == 1
            assert [told["kind"] for told in receiver.done.values()] == ["SUCCEEDED"]
