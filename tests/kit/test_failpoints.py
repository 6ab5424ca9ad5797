"""Failpoints: a file arms a place once, connections are really lost, and no single statement is forgotten."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import modelfleetd
from modelfleetd.kit.failpoint import FailpointFile, drop_connections
from modelfleetd.kit.places import PLACES

_CODE = Path(modelfleetd.__file__).parent


def test_a_file_arms_a_place_once_for_all_processes_that_read_it(tmp_path: Path) -> None:
    file = tmp_path / "failpoint"
    first, second = FailpointFile(str(file)), FailpointFile(str(file))
    first.pass_by("launcher.before_act.shift")
    file.write_text("launcher.before_act.shift:drop")
    first.pass_by("launcher.before_act.reduce")
    assert file.exists()
    second.pass_by("launcher.before_act.shift")
    first.pass_by("launcher.before_act.shift")
    assert [path.name for path in tmp_path.iterdir()] == [f"failpoint.{os.getpid()}"]


def test_a_process_that_drops_its_connections_loses_those_with_an_address_and_keeps_the_rest() -> None:
    child_of_loop, woken = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server, child_of_loop, woken:
        with socket.create_connection(server.getsockname()) as ours, server.accept()[0] as theirs:
            pid = os.fork()
            if pid == 0:
                drop_connections()
                os._exit(0)
            os.waitpid(pid, 0)
            assert theirs.recv(1) == b"" and ours.recv(1) == b""
        child_of_loop.send(b"!")
        assert woken.recv(1) == b"!"
        socket.create_connection(server.getsockname()).close()


def test_each_listed_place_has_its_other_side() -> None:
    for place in PLACES:
        other = place.replace(".before_", ".after_") if ".before_" in place else place.replace(".after_", ".before_")
        assert other != place
        assert PLACES[other] is PLACES[place]


def test_no_single_statement_of_a_round_writes_without_its_places() -> None:
    """Transactions and calls pass theirs in the database and the client; what commits by itself names its own."""
    text = (_CODE / "launcher" / "store" / "rounds.py").read_text()
    # Of the whole database, or a repair: no launch's path. `record` has its places in the round, for each kind.
    elsewhere = {"sweep", "raise_fence", "record", "is_held", "_take_precedence"}
    methods = re.split(r"\n    async def ", text.partition("class Rounds")[2])[1:]
    bare = {
        name
        for method in methods
        if "failpoint(" not in method and "passing(" not in method
        for name in [method.partition("(")[0]]
    }
    assert bare == elsewhere
