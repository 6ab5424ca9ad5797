"""Failpoints: a file arms a place once, connections are really lost, and no single statement is forgotten."""

from __future__ import annotations

import ast
import importlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import MethodOptions

import modelfleetd
from modelfleet import snapshot
from modelfleetd.kit.failpoint import FailpointFile, drop_connections, spelled
from modelfleetd.kit.places import OTHER_PLACES, PLACES, is_listed
from modelfleetd.launcher.domain.record import ON_PLATFORM, Act
from modelfleetd.node.domain import Phase
from modelfleetd.platform.model import EffectKind

_CODE = Path(modelfleetd.__file__).parent
_FOLLOWING = Path(snapshot.__file__).parent
_SERVICES = ("launcher", "capacity", "registry", "stability")
_ALL = {*PLACES, *OTHER_PLACES}
# Everything that is no service's: what is in a service's own folder is that service's.
_SHARED = ("kit", "platform")
# Of these objects a method that is called like one of the contract's is a call of another part.
_STUBS = re.compile(r"(_stub|_client|_registry|_agent|\bplatform|client\.\w+)$")
_WRITES = re.compile(r"\b(INSERT INTO|UPDATE \w+( \w+)? SET|DELETE FROM|setval)\b")


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


@cache
def _modules(folder: str) -> tuple[ast.Module, ...]:
    paths = sorted(path for path in (_CODE / folder).rglob("*.py") if not {"migrations", "domain"} & {*path.parts})
    return tuple(ast.parse(path.read_text()) for path in paths)


@cache
def _calls(folder: str) -> tuple[ast.Call, ...]:
    return tuple(node for module in _modules(folder) for node in ast.walk(module) if isinstance(node, ast.Call))


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _literal(node: ast.expr) -> str:
    """Text as the list has it: what is put in at run time is a `*`."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "*"


def _listed(part: str, kind: str) -> set[str]:
    start = f"{part}.before_{kind}."
    return {name.removeprefix(start) for name in _ALL if name.startswith(start)}


def _methods(part: str, is_one: Callable[[MethodOptions], bool] = lambda options: True) -> set[str]:
    file = importlib.import_module(f"modelfleet.{part}.v1.{part}_pb2").DESCRIPTOR
    return {
        method.name
        for service in file.services_by_name.values()
        for method in service.methods
        if is_one(method.GetOptions())
    }


def _may_write(options: MethodOptions) -> bool:
    return options.idempotency_level != MethodOptions.NO_SIDE_EFFECTS


def _snake(method: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()


def _is_method(name: str) -> bool:
    return name[0].isupper()


def test_each_listed_place_has_its_other_side() -> None:
    for place in _ALL:
        other = place.replace(".before_", ".after_") if ".before_" in place else place.replace(".after_", ".before_")
        assert other != place
        assert other in _ALL and PLACES.get(other) is PLACES.get(place)
    assert not PLACES.keys() & OTHER_PLACES.keys()


@pytest.mark.parametrize("part", _SERVICES)
def test_what_commits_is_listed_and_what_is_listed_exists(part: str) -> None:
    """Methods that may write by the contract, workers by their names, and what the code itself names."""
    listed = _listed(part, "commit")
    assert {name for name in listed if _is_method(name)} == _methods(part, _may_write)
    named = {"own"}
    for call in _calls(part):
        match _called(call):
            case "Periodic":
                named.add(spelled(_literal(call.args[0]).replace("*", "0")).replace("0", "*"))
            case "passing" if [_literal(each) for each in call.args[:2]] == [part, "commit"]:
                named.add(_literal(call.args[2]))
            case "failpoint" if _literal(call.args[0]).startswith(f"{part}.before_commit."):
                named.add(_literal(call.args[0]).rpartition(".")[2])
            case "transaction" | "run" | "execute":
                named |= {_literal(each.value) for each in call.keywords if each.arg == "what"}
    for module in _modules(part):
        for kind in (node for node in ast.walk(module) if isinstance(node, ast.ClassDef)):
            if any(isinstance(each, ast.AsyncFunctionDef) and each.name == "run" for each in kind.body):
                named |= {spelled(name.replace("*", "0")).replace("0", "*") for name in _worker_names(kind)}
    # A method's own words are no other place.
    assert {name for name in listed if not _is_method(name)} == {name for name in named if not _is_method(name)}


def _worker_names(kind: ast.ClassDef) -> Iterator[str]:
    for node in (node for node in ast.walk(kind) if isinstance(node, ast.Assign)):
        is_text = isinstance(node.value, ast.Constant | ast.JoinedStr)
        if is_text and ast.unparse(node.targets[0]) in ("name", "self.name"):
            yield _literal(node.value)


@pytest.mark.parametrize("part", _SERVICES)
def test_every_outgoing_call_is_listed_and_what_is_listed_can_be_called(part: str) -> None:
    others = {_snake(name): name for other in {*_SERVICES, "platform"} - {part} for name in _methods(other)}
    own, shared = (
        {
            others[name]
            for folder in folders
            for call in _calls(folder)
            if isinstance(call.func, ast.Attribute)
            and (name := call.func.attr.removesuffix("_all")) in others
            and _STUBS.search(ast.unparse(call.func.value))
        }
        for folders in ((part,), _SHARED)
    )
    listed = {name for name in _listed(part, "call") if _is_method(name)}
    assert own <= listed, "an outgoing call has no place"
    # Following the whole ledger is the client's own work: it calls methods by their names.
    following = "".join(path.read_text() for path in _FOLLOWING.glob("*.py")) if part == "stability" else ""
    followed = {method for name, method in others.items() if f'"{name}"' in following}
    assert followed <= listed, "an outgoing call has no place"
    assert listed <= own | shared | followed, "nobody calls that"
    if part == "registry":
        assert not listed, "the registry calls nobody"


def test_each_act_has_its_places() -> None:
    assert _listed("launcher", "record") == {"change", "outcome", *(f"intent_{act.value}" for act in Act)}
    assert _listed("launcher", "act") == {act.value for act in ON_PLATFORM}


def test_each_commit_of_the_node_agent_is_listed() -> None:
    named = {_literal(call.args[0]) for call in _calls("node") if _called(call) == "transaction"} - {"*"}
    moved = {kind.name.lower() for kind in EffectKind if kind.name.startswith("REPLICA_")}
    moved |= {phase.name.lower() for phase in Phase}
    assert named <= _listed("node", "commit") <= named | moved
    # Written with the end of its process (`replica_ended`), and phases that are entered with an effect of their own.
    by_name = {"replica_failed", "replica_terminated", "available", "draining"}
    assert moved - by_name <= _listed("node", "commit")


@pytest.mark.parametrize("folder", [*_SERVICES, "node", "kit"])
def test_the_code_names_only_listed_places(folder: str) -> None:
    for call in _calls(folder):
        if _called(call) == "failpoint" and "*" not in (name := _literal(call.args[0])):
            assert is_listed(name), name
        if _called(call) == "passing" and len(call.args) == 3:
            part, kind, what = (_literal(each) for each in call.args)
            if "*" not in (part, kind, what):
                assert is_listed(f"{part}.before_{kind}.{what}"), (part, kind, what)


def _is_passing(context: ast.expr) -> bool:
    return isinstance(context, ast.Call) and _called(context) == "passing"


@cache
def _constants() -> dict[str, str]:
    return {
        node.targets[0].id: ast.unparse(node.value)
        for part in _SERVICES
        for module in _modules(part)
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


@pytest.mark.parametrize("part", _SERVICES)
def test_no_statement_commits_by_itself_without_its_places(part: str) -> None:
    """Transactions and `execute` pass theirs in the database; what returns rows and writes is between its own."""
    constants = _constants()
    for module in _modules(part):
        inside = {
            id(node)
            for block in ast.walk(module)
            if isinstance(block, ast.With) and any(_is_passing(item.context_expr) for item in block.items)
            for node in ast.walk(block)
        }
        for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
            if _called(call) not in ("fetch", "fetchrow", "fetchval") or "database" not in ast.unparse(call.func):
                continue
            said = ast.unparse(call.args[0])
            # A round's change has its places in the round, for each kind; a claim only where it claims anything.
            placed = id(call) in inside or said in ("_RECORD", "CLAIM")
            if _WRITES.search(constants.get(said, said)) and not placed:
                pytest.fail(f"{part}: {said} writes outside of any place")


def test_the_command_lists_them_and_a_process_passes_no_other() -> None:
    listed = _run("-m", "modelfleetd", "failpoints", "launcher")
    assert "launcher.after_act.shift" in listed.stdout and "MODELFLEET_FAILPOINT_FILE" in listed.stdout
    assert "capacity." not in listed.stdout
    code = "from modelfleetd.kit.failpoint import failpoint; failpoint('launcher.before_act.guess')"
    assert _run("-c", code).returncode == 0
    armed = _run("-c", code, MODELFLEET_FAILPOINT="launcher.before_act.shift:kill")
    assert "LookupError: launcher.before_act.guess is no place that kit/places.py lists" in armed.stderr


def test_a_service_that_proves_its_callers_refuses_failpoints() -> None:
    proving = ("--jwt-jwks=keys.json", "--jwt-issuer=https://issuer.example")
    refused = _run("-m", "modelfleetd", "registry", *proving, MODELFLEET_FAILPOINT_FILE="failpoint")
    assert refused.returncode == 1
    assert "MODELFLEET_FAILPOINT* is for tests: a service that proves its callers refuses it" in refused.stderr


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
